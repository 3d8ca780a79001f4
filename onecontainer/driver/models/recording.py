"""From versions to what is recorded of them, and back."""

from __future__ import annotations

from onecontainer.driver.models.store import Record, Store
from onecontainer.driver.models.version import Material, Version


def record_of(found: Version, *, default_version: bool) -> Record:
    material = found.material
    return Record(
        model=found.model,
        version=found.version,
        config=found.config,
        loaded=not found.stays_out,
        default_version=default_version,
        sha256=material.sha256 if material is not None else "",
        labels=material.labels if material is not None and material.label_artifact else (),
        weights_sha256=material.weights_sha256 if material is not None else "",
    )


def material_of(record: Record, store: Store) -> Material:
    return Material(
        store.path(record.sha256) if record.sha256 else None,
        record.labels,
        record.sha256,
        record.weights_sha256,
        record.config.classification.labels.HasField("artifact"),
    )
