"""The packages of stubs, each written once for all tests of a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.stubs import packages, tools


@pytest.fixture(scope="session")
def stubs_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes the package of a language, the first time; returns its folder. Skips without the language's toolchain."""
    out = tmp_path_factory.mktemp("stubs")
    written: dict[str, Path] = {}

    def stubs(language: str) -> Path:
        if language not in written:
            try:
                written.update(packages.write(out, [language]))
            except tools.ToolMissing as error:
                pytest.skip(str(error))
        return written[language]

    return stubs
