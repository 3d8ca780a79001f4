"""The documentation as a static site: the pages of docs/, the drivers' own, and the contracts, in build/site/html.

python docs/site/build.py    (make site)

Pages keep their places in a copy of the repository's tree, so that links between them, made for GitHub, lead somewhere here too. A
link that does not, or a page that no list below has, is an error.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from sphinx.cmd.build import main as sphinx

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "build" / "site" / "source"
HTML = ROOT / "build" / "site" / "html"
CONTRACTS = Path("protos/onecontainer/api")
LANGUAGES = {".go": "go", ".py": "python", ".sh": "bash", ".java": "java", ".rs": "rust", ".ts": "typescript"}
ORPHAN = b"---\norphan: true\n---\n"  # a page that only links lead to
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)")

# The order in which one would read. A folder stands for all that is in it.
CONTENTS = {
    "Begin": ["docs/README", "docs/tutorial"],
    "Call it": [
        "docs/python",
        "docs/stubs",
        "docs/rest",
        "docs/media",
        "docs/open-inference",
        "docs/databases",
        "docs/torchhub",
    ],
    "Run it": [
        "docs/docker",
        "docs/compose",
        "docs/backends",
        "docs/attached",
        "docs/plugins",
        "docs/kafka",
        "docs/lost-broker",
        "docs/postgresql",
        "docs/several-gateways",
        "docs/upgrade",
    ],
    "Write a driver": ["docs/write-a-driver", "docs/drivers", "docs/conformance", "docs/worker"],
    "Drivers": ["drivers/index"],
    "Understand it": ["docs/design", "docs/guarantees", "docs/adr/README"],
    "Reference": [
        "docs/reference/api",
        "docs/reference/client",
        "docs/reference/cli",
        "docs/reference/settings",
        "docs/reference/errors",
        "protos/index",
    ],
}


def pages() -> Iterator[Path]:
    """All pages, as paths in the repository. The first one is the site's."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))
    yield from sorted((ROOT / "drivers").glob("*/README.md"))


def copy(page: Path) -> None:
    """A page, and what it links to that is none: a file is copied, a folder becomes a page that shows its files."""

    def target(link: re.Match[str]) -> str:
        found = (page.parent / link[2]).resolve()
        place = found.relative_to(ROOT)
        if place == Path("README.md"):
            return f"{link[1]}/index.md"
        if found.is_dir():
            if not place.is_relative_to("drivers") and not place.is_relative_to("protos"):
                show_folder(place)
            return f"{link[1]}/{'protos' if place.is_relative_to('protos') else place}/index.md"
        if found.is_file() and found.suffix != ".md":
            put(place, found.read_bytes())
        elif found.is_file() and found not in set(pages()):
            put(place, ORPHAN + found.read_bytes())
        return link[0]

    place = page.relative_to(ROOT)
    put(Path("index.md") if place == Path("README.md") else place, LINK.sub(target, page.read_text()).encode())


def show_folder(folder: Path) -> None:
    files = sorted(file for file in (ROOT / folder).iterdir() if file.is_file())
    shown = [f"## {file.name}\n\n````{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text()}````\n" for file in files]
    put(folder / "index.md", ORPHAN + "\n".join([f"# {folder}", "", *shown]).encode())


def put(place: Path, content: bytes) -> None:
    (SOURCE / place).parent.mkdir(parents=True, exist_ok=True)
    (SOURCE / place).write_bytes(content)


def toctree(entries: list[str], caption: str = "", hidden: bool = False) -> str:
    options = [":maxdepth: 1", *([f":caption: {caption}"] if caption else []), *([":hidden:"] if hidden else [])]
    return "\n".join(["```{toctree}", *options, "", *entries, "```", ""])


def list_folder(folder: str, title: str, text: str, entries: list[str]) -> None:
    put(Path(folder, "index.md"), f"# {title}\n\n{text}\n\n{toctree(entries)}".encode())


def assemble() -> None:
    shutil.rmtree(SOURCE, ignore_errors=True)
    for page in pages():
        copy(page)
    drivers = sorted(page.parent.name for page in (ROOT / "drivers").glob("*/README.md"))
    list_folder("drivers", "Drivers", "Those that come along.", [f"{name}/README" for name in drivers])
    contracts = sorted((ROOT / CONTRACTS).rglob("*.proto"))
    for contract in contracts:
        name = contract.relative_to(ROOT / "protos")
        put(
            Path("protos", name).with_suffix(".md"),
            f"# {name.relative_to('onecontainer/api')}\n\n```proto\n{contract.read_text()}```\n".encode(),
        )
        put(Path("protos", name), contract.read_bytes())
    list_folder(
        "protos",
        "Contracts",
        "All that a caller or a driver's author has to know.",
        [str(contract.relative_to(ROOT / "protos").with_suffix("")) for contract in contracts],
    )
    decisions = sorted(page.stem for page in (ROOT / "docs" / "adr").glob("0*.md"))
    with (SOURCE / "docs" / "adr" / "README.md").open("a") as listing:
        listing.write("\n" + toctree(decisions, hidden=True))
    with (SOURCE / "index.md").open("a") as first:
        first.write("\n" + "".join(toctree(entries, caption, hidden=True) for caption, entries in CONTENTS.items()))


def build() -> int:
    """0: built. Otherwise Sphinx has told what is wrong."""
    assemble()
    return sphinx(
        [
            "-q",
            "-W",
            "--keep-going",
            "-j",
            "auto",
            "-c",
            str(Path(__file__).parent),
            "-b",
            "html",
            str(SOURCE),
            str(HTML),
        ]
    )


if __name__ == "__main__":
    code = build()
    if not code:
        click.echo(f"site: {HTML / 'index.html'}")
    sys.exit(code)
