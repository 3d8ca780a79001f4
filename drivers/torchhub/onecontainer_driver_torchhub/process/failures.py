"""Why something failed, as it crosses to the sidecar. This process has no oneContainer in it, so there is no typed error."""

from __future__ import annotations

import urllib.error
from enum import StrEnum

WORDS = 2000


class Kind(StrEnum):
    MISSING = "missing"
    """No such repository, entry point or file."""
    UNREACHABLE = "unreachable"
    """It cannot be fetched now."""
    CAPABILITY = "capability"
    """Something that it needs is not installed here."""
    INVALID = "invalid"
    """It is no such model, or what was given does not fit it."""
    MEMORY = "memory"
    FAILED = "failed"
    """The model failed on this input."""


class Failure(Exception):
    """`field`: what of the request is to blame, without `config.source.torch_hub.` in front."""

    def __init__(self, kind: Kind, message: str, field: str = "") -> None:
        super().__init__(message[:WORDS])
        self.kind = kind
        self.field = field


def words(error: BaseException) -> str:
    """`ValueError: too large`, without what is of no use to the caller."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def of_load(error: Exception, repo: str, entrypoint: str) -> Failure:
    """What `torch.hub.load` raised. Its own refusals are plain RuntimeErrors, told apart by what they say."""
    text = str(error)
    match error:
        case Failure():
            return error
        case urllib.error.HTTPError(code=404):
            return Failure(Kind.MISSING, f"{repo} is not there: {words(error)}", "repo")
        case ValueError() if "Cannot find" in text and "commit" in text:
            return Failure(Kind.MISSING, f"{repo} is not there: {text}", "repo")
        case urllib.error.URLError() | ConnectionError() | TimeoutError():
            return Failure(Kind.UNREACHABLE, f"{repo} cannot be fetched: {words(error)}")
        case RuntimeError() if "no internet connection" in text:
            return Failure(Kind.UNREACHABLE, f"{repo} cannot be fetched: {text}")
        case RuntimeError() if text.startswith("Cannot find callable"):
            return Failure(Kind.MISSING, f"hubconf.py of {repo} has no function {entrypoint!r}", "entrypoint")
        case RuntimeError() if text.startswith("Missing dependencies"):
            return Failure(Kind.CAPABILITY, f"{repo} needs packages that are not installed here: {text}", "repo")
        case ImportError():
            return Failure(Kind.CAPABILITY, f"{repo} cannot be imported here: {words(error)}", "repo")
        case MemoryError():
            return Failure(Kind.MEMORY, f"there is no memory for {entrypoint} of {repo}")
    return Failure(Kind.INVALID, f"{entrypoint} of {repo} raised {words(error)}", "entrypoint")
