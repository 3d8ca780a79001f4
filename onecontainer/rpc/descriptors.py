"""Files of protobuf descriptors, with what they import."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.descriptor import FileDescriptor


def with_dependencies(files: Iterable[FileDescriptor]) -> list[FileDescriptor]:
    """The files and all that they import, each once and after what it imports."""
    found: dict[str, FileDescriptor] = {}

    def visit(file: FileDescriptor) -> None:
        if file.name not in found:
            for dependency in file.dependencies:
                visit(dependency)
            found[file.name] = file

    for file in files:
        visit(file)
    return list(found.values())
