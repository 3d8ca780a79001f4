"""What only the store of files has to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from onecontainer.artifacts.files import FileArtifactStore, folder_of_url

KEY = "0123456789abcdef" * 2


async def test_only_files_of_dead_writers_are_removed(tmp_path: Path) -> None:
    async with FileArtifactStore(tmp_path) as store:
        (tmp_path / "tmp" / f"{'a' * 32}.dead").write_bytes(b"left by a process that was killed")
        async with store.create(KEY) as writer:
            await writer.write(b"abc")
            assert await store.remove_partial() == 1
            await writer.commit()
        assert await store.exists(KEY)
        assert list((tmp_path / "tmp").iterdir()) == []


async def test_only_the_owner_may_look(tmp_path: Path) -> None:
    async with FileArtifactStore(tmp_path / "artifacts") as store:
        async with store.create(KEY) as writer:
            await writer.commit()
        paths = [tmp_path / "artifacts", *(tmp_path / "artifacts").rglob("*")]
        assert [path.stat().st_mode & 0o077 for path in paths] == [0] * len(paths)


async def test_files_that_are_not_ours_are_no_blobs(tmp_path: Path) -> None:
    async with FileArtifactStore(tmp_path) as store:
        (tmp_path / "ab").mkdir()
        (tmp_path / "ab" / "notes.txt").write_text("x")
        (tmp_path / "README").write_text("x")
        assert [entry async for entry in store.entries()] == []


def test_folder_of_url() -> None:
    assert folder_of_url("file:///srv/my%20files") == Path("/srv/my files")
    assert folder_of_url(Path("/tmp/ä b").as_uri()) == Path("/tmp/ä b")
    for wrong in ["s3://bucket", "file://host/x", "/srv/files", "file:"]:
        with pytest.raises(ValueError, match="file:///FOLDER"):
            folder_of_url(wrong)
