"""For a driver's own tests, which call its methods without a sidecar around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onecontainer.driver.driver import Attachment
from onecontainer.errors import FieldInvalid
from onecontainer.rpc.manifest import load_manifest
from onecontainer.rpc.options import option_violations, resolve_options


def attachment_of(
    folder: Path,
    state_dir: Path,
    options: Mapping[str, Any] | None = None,
    *,
    service: str = "services/test",
    endpoints: Mapping[str, str] | None = None,
) -> Attachment:
    """What `attach` gets in a sidecar of the driver in `folder`: options are checked and filled up by its metadata.json.

    Raises DataInvalid for a wrong metadata.json, and FieldInvalid with all options that are wrong.
    """
    manifest = load_manifest(folder)
    violations = option_violations(manifest.options, options or {})
    if violations:
        raise FieldInvalid(violations=violations)
    return Attachment(
        service=service,
        app=manifest.app,
        app_version="",
        endpoints=dict(endpoints or {}),
        options=resolve_options(manifest.options, options or {}),
        state_dir=state_dir,
        manifest=manifest,
    )
