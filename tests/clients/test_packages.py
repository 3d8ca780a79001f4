"""The packages that `make stubs` writes: whole, of one version, and made of nothing that only this machine has."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.stubs import packages
from deploy.stubs.__main__ import main
from protos import generate

MANIFESTS = {
    "go": "go.mod",
    "node": "package.json",
    "python": "pyproject.toml",
    "java": "pom.xml",
    "rust": "Cargo.toml",
}
LANGUAGES = [
    "go",
    "node",
    "python",
    # What makes these is fetched or compiled for minutes the first time.
    pytest.param("java", marks=pytest.mark.slow),
    pytest.param("rust", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=LANGUAGES)
def package(request: pytest.FixtureRequest, stubs_of: Callable[[str], Path]) -> tuple[str, Path]:
    """A language and its package."""
    return request.param, stubs_of(request.param)


def test_a_package_has_a_licence_a_readme_and_a_version(package: tuple[str, Path]) -> None:
    language, folder = package
    assert (folder / "LICENSE").read_text() == (packages.ROOT / "LICENSE").read_text()
    manifest = (folder / MANIFESTS[language]).read_text()
    # A Go module's version is its tag.
    assert packages.version() in manifest or language == "go"
    for text in (manifest, (folder / "README.md").read_text()):
        assert re.findall(r"@[A-Z_]+@", text) == []
        assert str(packages.ROOT) not in text


def test_a_package_has_every_service_of_ours_and_nobody_elses(package: tuple[str, Path]) -> None:
    language, folder = package
    endings = {".go", ".js", ".py", ".java", ".rs"}
    code = "".join(path.read_text() for path in folder.rglob("*") if path.suffix in endings)
    image = generate.compile_image(source_info=False)
    ours = [file for file in image.file if file.name.startswith(f"{packages.OWN}/")]
    for file in ours:
        for service in file.service:
            foreign = file.name.startswith(packages.FOREIGN)
            full_name = f"{file.package}.{service.name}"
            name = f"service {full_name}\n" if language == "node" else f'"{full_name}"'
            assert (name in code or f"/{full_name}/" in code) is not foreign, full_name


def test_the_wheel_has_the_modules_and_their_types_alone(stubs_of: Callable[[str], Path]) -> None:
    (wheel,) = (stubs_of("python") / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name == f"onecontainer_api-{packages.version()}-py3-none-any.whl"
    assert {
        "onecontainer/api/job/v1/job_pb2.py",
        "onecontainer/api/job/v1/job_pb2.pyi",
        "onecontainer/api/py.typed",
    } <= {*names}
    # A namespace: what else is called onecontainer is none of its business.
    assert all(name.startswith(("onecontainer/api/", "onecontainer_api-")) for name in names)


def test_another_language_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["stubs", "cobol"])
    with pytest.raises(SystemExit):
        main()
    assert "no such language: cobol" in capsys.readouterr().err
