"""make stubs: packages of stubs for users, below build/stubs.

python -m deploy.stubs [--out FOLDER] [LANGUAGE…]      LANGUAGE: go, node, java, rust, python; all without one
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.stubs.packages import LANGUAGES, ROOT, write
from deploy.stubs.tools import ToolMissing
from protos.generate import GenerationError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.stubs", description="Writes packages of stubs for users.")
    parser.add_argument("--out", type=Path, default=ROOT / "build/stubs", help="default: build/stubs")
    parser.add_argument("languages", nargs="*", metavar="LANGUAGE", help=", ".join(LANGUAGES))
    arguments = parser.parse_args()
    unknown = set(arguments.languages) - set(LANGUAGES)
    if unknown:
        parser.error(f"no such language: {', '.join(sorted(unknown))}; there are {', '.join(LANGUAGES)}")
    for name in arguments.languages or LANGUAGES:
        try:
            (folder,) = write(arguments.out.absolute(), [name]).values()
        except (ToolMissing, GenerationError, RuntimeError) as error:
            sys.stderr.write(f"{name}: {error}\n")
            return 1
        sys.stdout.write(f"{name:<8} {folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
