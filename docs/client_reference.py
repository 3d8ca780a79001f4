"""The page of the Python client's methods, from their signatures and docstrings: docs/reference/client.md, by reference.py."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from onecontainer import client
from onecontainer.client import ai, artifacts, calls, channel, db, jobs, management, media, names, values

HEAD = """# Methods of the Python client

As `AsyncClient` has them; `Client` has the same ones and waits for each. The [guide](../python.md) shows them at work.
All raise the errors of [errors](errors.md), `timeout` is in seconds everywhere, and a name of a resource may be short
(`cats`) or full (`services/cats`).
"""
GROUPS = {
    "client": client.AsyncClient,
    "client.services": management.Services,
    "client.drivers": management.Drivers,
    "client.sidecars": management.Sidecars,
    "client.ai": ai.Ai,
    "client.db": db.Db,
    "client.media": media.Media,
    "client.jobs": jobs.Jobs,
    "job": jobs.AsyncJob,
    "client.artifacts": artifacts.Artifacts,
}
FUNCTIONS = (
    media.transcode_request,
    jobs.create_request,
    names.job_options,
    jobs.job_error,
    jobs.job_state,
    values.to_value,
    values.from_value,
    values.column_type,
)
STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
SETTINGS = (calls.RetryPolicy, channel.Tls)


def argument(one: inspect.Parameter) -> str:
    kind = "" if one.annotation is inspect.Parameter.empty else f": {one.annotation}"
    default = "" if one.default is inspect.Parameter.empty else f" = {one.default!r}"
    return f"{STARS.get(one.kind, '')}{one.name}{kind}{default}"


def signature(shown: str, made: Any) -> str:
    """The signature as code, an argument a line if it is long."""
    found = inspect.signature(made)
    kinds = [one for one in found.parameters.values() if one.name != "self"]
    parameters = [argument(one) for one in kinds]
    first = next((number for number, one in enumerate(kinds) if one.kind is inspect.Parameter.KEYWORD_ONLY), None)
    if first is not None and not any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in kinds):
        parameters.insert(first, "*")
    answer = "" if found.return_annotation is inspect.Signature.empty else f" -> {found.return_annotation}"
    line = f"{shown}({', '.join(parameters)}){answer}"
    if len(line) <= 120:
        return line
    return f"{shown}(\n    " + ",\n    ".join(parameters) + f",\n){answer}"


def text_of(documented: Any) -> str:
    """Its docstring, which is Markdown: what it lists (Args, Raises …) as a list."""
    lines: list[str] = []
    listing = False
    for line in (inspect.getdoc(documented) or "").splitlines():
        if line in ("Args:", "Attributes:", "Raises:", "Yields:", "Returns:"):
            lines.append(f"*{line.removesuffix(':')}*\n")
            listing = True
        elif listing and line.startswith("    ") and not line.startswith("     ") and ":" in line:
            name, _, rest = line.strip().partition(":")
            lines.append(f"- `{name}`:{rest}")
        elif listing and line.startswith("    "):
            lines.append(f"  {line.strip()}")
        else:
            listing = listing and not line.strip()
            lines.append(line)
    return "\n".join(lines).strip() + "\n"


def methods(group: type) -> Iterator[tuple[str, Any]]:
    for name, method in vars(group).items():
        if not name.startswith("_") and inspect.isfunction(method):
            yield name, method


def client_page(header: str) -> str:
    parts = [header + HEAD]
    for shown, group in GROUPS.items():
        parts.append(f"## {shown}\n\n{text_of(group)}")
        for name, method in methods(group):
            code = signature(f"{shown}.{name}", method)
            asynchronous = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
            prefix = ("async for item in " if inspect.isasyncgenfunction(method) else "await ") if asynchronous else ""
            parts.append(f"### {shown}.{name}\n\n```python\n{prefix}{code}\n```\n\n{text_of(method)}")
    parts.append("## Beside the client\n\nFrom `onecontainer.client`.\n")
    for made in FUNCTIONS:
        parts.append(f"### {made.__name__}\n\n```python\n{signature(made.__name__, made)}\n```\n\n{text_of(made)}")
    for setting in SETTINGS:
        parts.append(
            f"### {setting.__name__}\n\n```python\n{signature(setting.__name__, setting)}\n```\n\n{text_of(setting)}"
        )
    return textwrap.dedent("\n".join(parts))
