"""What this driver takes of a ModelConfig: repositories that the settings allow, and what `torch.hub.load` can be given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format, struct_pb2

from onecontainer.api.ai.v1 import model_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.config import Rules
from onecontainer.driver.models.sources import allowed_folder

HUB = "config.source.torch_hub"

# What GitHub takes as a name, and a branch, tag or commit; no part can climb out of the folder that it becomes a part of.
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_])?"
_REF = r"[A-Za-z0-9_](?:(?!\.\.|//)[A-Za-z0-9._/-]){0,198}"
GITHUB_REPO = re.compile(rf"(?P<owner>{_NAME})/(?P<name>{_NAME})(?::(?P<ref>{_REF}))?")
_ALLOWED = re.compile(rf"{_NAME}/(?:\*|{_NAME}(?::{_REF})?)")
_ENTRYPOINT = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}")
# Parameters of torch.hub.load: what is safe is not the caller's to say.
RESERVED = frozenset(
    {
        "repo_or_dir",
        "model",
        "source",
        "trust_repo",
        "force_reload",
        "verbose",
        "skip_validation",
    }
)


@dataclass(frozen=True, slots=True)
class Allowed:
    """Which repositories the service's settings allow.

    Attributes:
        repos: `owner/name`, `owner/name:ref` or `owner/*`.
        folder: local ones lie in it.
        artifacts: they may come as artifacts.
    """

    repos: Sequence[str] = ()
    folder: Path | None = None
    artifacts: bool = False

    def check(self, config: model_pb2.ModelConfig) -> None:
        """Raises FieldRequired, FieldInvalid, SourceNotAllowed. Whether a local folder is inside the allowed one is seen when it is
        read.
        """
        hub = config.source.torch_hub
        if bool(hub.repo) == bool(hub.repo_artifact):
            raise errors.FieldRequired(f"{HUB}.repo", "needs one of `repo` and `repo_artifact`")
        if not _ENTRYPOINT.fullmatch(hub.entrypoint):
            if not hub.entrypoint:
                raise errors.FieldRequired(f"{HUB}.entrypoint")
            raise errors.FieldInvalid(f"{HUB}.entrypoint", f"must match {_ENTRYPOINT.pattern}")
        for name in hub.kwargs.fields:
            if name in RESERVED:
                raise errors.FieldInvalid(f"{HUB}.kwargs.{name}", "is a parameter of torch.hub.load itself")
        if len(config.execution.runtime_options.fields):
            name = next(iter(config.execution.runtime_options.fields))
            raise errors.FieldInvalid(f"config.execution.runtime_options.{name}", "there are no such options here")
        if hub.repo_artifact:
            if not self.artifacts:
                raise errors.SourceNotAllowed(
                    f"{HUB}.repo_artifact", "the driver's option `allow_repo_artifacts` does not allow it"
                )
        elif not is_local(hub):
            self._check_github(hub.repo)

    def _check_github(self, repo: str) -> None:
        match = GITHUB_REPO.fullmatch(repo)
        if match is None or repo.endswith((".", "/", ".lock")):
            raise errors.FieldInvalid(
                f"{HUB}.repo",
                "must be `owner/name` or `owner/name:ref`, or a folder: its absolute path, or `./NAME` in `hub_dir`",
            )
        plain = f"{match['owner']}/{match['name']}"
        if not {repo, plain, f"{match['owner']}/*"}.intersection(self.repos):
            raise errors.SourceNotAllowed(
                f"{HUB}.repo",
                f"{plain} is not among the driver's option `allowed_repos`: {', '.join(self.repos) or 'none are'}",
            )


def allowed_of(options: Mapping[str, Any], state: Path) -> Allowed:
    """`state`: the service's state folder. Blocks. Raises FieldInvalid with the option's name."""
    repos = options["allowed_repos"] or []
    for index, repo in enumerate(repos):
        if not isinstance(repo, str) or not _ALLOWED.fullmatch(repo):
            raise errors.FieldInvalid(
                f"options.allowed_repos[{index}]", "must be `owner/name`, `owner/name:ref` or `owner/*`"
            )
    folder = allowed_folder(options["hub_dir"], state, "hub_dir")
    return Allowed(repos, folder, options["allow_repo_artifacts"])


def rules(allowed: Allowed, devices: Sequence[str]) -> Rules:
    return Rules(("torch_hub",), (), devices, False, allowed.check)


def is_local(hub: model_pb2.TorchHubSource) -> bool:
    """Whether `repo` is a path, not a name on GitHub."""
    return hub.repo.startswith(("/", "./"))


def keywords(kwargs: struct_pb2.Struct) -> dict[str, Any]:
    """What is written is passed. JSON has one kind of numbers, so whole ones become int, as they are written."""
    found: dict[str, Any] = _plain(json_format.MessageToDict(kwargs))
    return found


def _plain(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {key: _plain(one) for key, one in value.items()}
        case list():
            return [_plain(one) for one in value]
    return value
