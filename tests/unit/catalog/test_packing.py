"""Archives of drivers: the same files give the same bytes, and no archive writes anywhere else or without end."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onecontainer.catalog.packing import MAX_ENTRIES, digest_of, pack, unpack
from onecontainer.errors import DataInvalid, LimitExceeded

LIMIT = 100_000


def archive(*entries: tuple[str, dict[str, object]], data: bytes = b"x", compress: bool = False) -> bytes:
    """A tar archive with entries as they are given; one of type `reg` has the data."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compress else "w") as out:
        for name, fields in entries:
            entry = tarfile.TarInfo(name)
            for field, value in fields.items():
                setattr(entry, field, value)
            content = data if entry.isreg() else b""
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def everything_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def make(folder: Path) -> Path:
    (folder / "package" / "__pycache__").mkdir(parents=True)
    (folder / "tests").mkdir()
    (folder / "metadata.json").write_text("{}")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o4777)
    (folder / "package" / "__init__.py").write_text("")
    for ignored in ("package/__pycache__/a.pyc", "package/b.pyc", "tests/test_a.py", ".hidden"):
        (folder / ignored).write_text("ignored")
    return folder


def test_what_is_packed_is_what_is_unpacked_with_the_same_digest(tmp_path: Path) -> None:
    folder = make(tmp_path / "made")
    packed = pack(folder, LIMIT)
    unpack(packed, tmp_path / "out", LIMIT)
    assert everything_below(tmp_path / "out") == {"metadata.json", "run.sh", "package", "package/__init__.py"}
    assert digest_of(tmp_path / "out") == digest_of(folder)
    # Its owner's bits only: nothing that is set-user-id or that others can write comes out of an archive.
    assert (tmp_path / "out" / "run.sh").stat().st_mode & 0o7777 == 0o755 & ~os.umask(os.umask(0o22))
    os.utime(folder / "metadata.json", (1, 1))
    assert pack(make(tmp_path / "again"), LIMIT) == packed == pack(folder, LIMIT)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("../evil", {}),
        ("a/../../evil", {}),
        ("/evil", {}),
        ("..", {"type": tarfile.DIRTYPE}),
        ("a\\..\\evil", {}),
        ("evil\n", {}),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc"}),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "inside"}),
        ("link", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),
        ("device", {"type": tarfile.CHRTYPE}),
        ("device", {"type": tarfile.BLKTYPE}),
        ("pipe", {"type": tarfile.FIFOTYPE}),
        ("/".join(["deep"] * 40), {}),
        ("x" * 300, {}),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_a_hostile_entry_is_refused_and_nothing_is_outside(tmp_path, name, fields, compress) -> None:
    out = tmp_path / "below" / "out"
    with pytest.raises(DataInvalid):
        unpack(archive(("good", {}), (name, fields), ("late", {}), compress=compress), out, LIMIT)
    assert everything_below(tmp_path) <= {"below", "below/out", "below/out/good"}
    assert not Path("/evil").exists()


def test_a_link_and_then_a_file_through_it_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    data = archive(("d", {"type": tarfile.SYMTYPE, "linkname": str(tmp_path / "target")}), ("d/evil", {}))
    with pytest.raises(DataInvalid, match="link"):
        unpack(data, tmp_path / "out", LIMIT)
    assert everything_below(tmp_path / "target") == set()


@pytest.mark.parametrize("second", [("a", {}), ("a/b", {}), ("a", {"type": tarfile.DIRTYPE})])
def test_a_name_that_comes_twice_is_refused(tmp_path: Path, second) -> None:
    with pytest.raises(DataInvalid, match="twice"):
        unpack(archive(("a", {}), second), tmp_path / "out", LIMIT)


def test_what_is_too_large_ends_early(tmp_path: Path) -> None:
    with pytest.raises(LimitExceeded, match="big"):
        unpack(archive(("big", {}), data=bytes(LIMIT + 1), compress=True), tmp_path / "one", LIMIT)
    with pytest.raises(LimitExceeded):
        unpack(archive(*((f"f{n}", {}) for n in range(3)), data=bytes(LIMIT // 2)), tmp_path / "two", LIMIT)
    # A long name of 300 MB, which a tar reader keeps in memory.
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 300_000_000
    with pytest.raises(LimitExceeded):
        unpack(gzip.compress(header.tobuf() + bytes(300_000_000), 1), tmp_path / "four", LIMIT)
    many = archive(*((f"f{n}", {}) for n in range(MAX_ENTRIES + 1)), data=b"")
    with pytest.raises(LimitExceeded, match="files"):
        unpack(many, tmp_path / "five", LIMIT)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.bin").write_bytes(bytes(LIMIT + 1))
    with pytest.raises(LimitExceeded, match=r"model\.bin"):
        pack(tmp_path / "folder", LIMIT)


def test_a_link_out_of_the_folder_is_not_packed(tmp_path: Path) -> None:
    folder = make(tmp_path / "made")
    (folder / "inside").symlink_to("metadata.json")
    unpack(pack(folder, LIMIT), tmp_path / "out", LIMIT)
    assert (tmp_path / "out" / "inside").read_text() == "{}"
    (folder / "outside").symlink_to("/etc/passwd")
    with pytest.raises(DataInvalid, match="outside"):
        pack(folder, LIMIT)


GOOD = archive(("metadata.json", {}), ("package", {"type": tarfile.DIRTYPE}), ("package/a", {}), compress=False)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.booleans(), st.integers(0, len(GOOD)))
def test_damaged_archives_are_typed_errors(tmp_path_factory, position, byte, compress, length) -> None:
    data = bytearray(GOOD)
    data[position] = byte
    packed = gzip.compress(bytes(data))[:length] if compress else bytes(data[:length])
    folder = tmp_path_factory.mktemp("damaged") / "out"
    try:
        unpack(packed, folder, LIMIT)
    except (DataInvalid, LimitExceeded):
        return
    assert folder.is_dir()
