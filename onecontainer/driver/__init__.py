"""The driver SDK: what a driver author uses, and all that a driver imports of oneContainer besides `onecontainer.api`.

from onecontainer.driver import Context, InferenceDriver, errors, main

class MyDriver(InferenceDriver):
    async def predict(self, request: PredictRequest, context: Context) -> PredictResponse: ...

if __name__ == "__main__":
    main(MyDriver)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onecontainer import errors
from onecontainer.driver.context import Context, JobAttempt
from onecontainer.driver.driver import Answer, Answers, Attachment, Driver, ProbeResult
from onecontainer.driver.isolation import Requests
from onecontainer.driver.methods import isolated
from onecontainer.driver.runs import to_status
from onecontainer.driver.serve import main

if TYPE_CHECKING:
    from onecontainer.driver.ai import InferenceDriver
    from onecontainer.driver.artifacts import Artifacts
    from onecontainer.driver.db import DatabaseDriver
    from onecontainer.driver.media import MediaDriver

__all__ = [
    "Answer",
    "Answers",
    "Artifacts",
    "Attachment",
    "Context",
    "DatabaseDriver",
    "Driver",
    "InferenceDriver",
    "JobAttempt",
    "MediaDriver",
    "ProbeResult",
    "Requests",
    "errors",
    "isolated",
    "main",
    "to_status",
]

# A driver of one vertical starts without the messages of the others.
_LAZY = {
    "Artifacts": "onecontainer.driver.artifacts",
    "DatabaseDriver": "onecontainer.driver.db",
    "InferenceDriver": "onecontainer.driver.ai",
    "MediaDriver": "onecontainer.driver.media",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
