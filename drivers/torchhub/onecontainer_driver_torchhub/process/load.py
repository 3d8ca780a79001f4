"""Makes a model of what `torch.hub.load` takes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]

from onecontainer_driver_torchhub.process.failures import Failure, Kind, of_load, words

Tell = Callable[[str, int, int | None], None]
"""How far it is: message, bytes done, bytes in all."""

WITHOUT_NAME = "input"
"""What the only input of a model is called that does not name its own."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the sidecar asks for; checked there."""

    repo: str
    """`owner/name[:ref]`, or a folder."""
    local: bool
    entrypoint: str
    kwargs: Mapping[str, Any]
    force_reload: bool
    weights: str
    """Path of a state dict. Empty: none."""
    hub_dir: str
    device: str
    threads: int
    inter_op_threads: int


@dataclass(frozen=True, slots=True)
class Loaded:
    call: Callable[..., Any]
    names: list[str]
    """What it takes, in order."""
    required: list[str]
    by_position: bool
    device: torch.device


def load(wanted: Wanted, tell: Tell) -> Loaded:
    """Raises Failure."""
    torch.set_num_threads(wanted.threads)
    torch.set_num_interop_threads(wanted.inter_op_threads)
    torch.hub.set_dir(wanted.hub_dir)
    torch.hub.tqdm = _bar(tell)
    tell(f"{wanted.entrypoint} of {wanted.repo}", 0, None)
    try:
        with _alone(wanted):
            # All of hub.load's own parameters are given here, so that none of the caller's can be taken for one.
            model: Any = torch.hub.load(
                wanted.repo,
                wanted.entrypoint,
                source="local" if wanted.local else "github",
                trust_repo=True,
                force_reload=wanted.force_reload,
                verbose=False,
                skip_validation=False,
                **wanted.kwargs,
            )
    except Exception as error:
        raise of_load(error, wanted.repo, wanted.entrypoint) from error
    if not callable(model):
        raise Failure(
            Kind.INVALID, f"{wanted.entrypoint} returned {type(model).__name__}, which is no model", "entrypoint"
        )
    module: Any = model if isinstance(model, torch.nn.Module) else None
    if wanted.weights:
        _take_weights(module, wanted.weights)
    device = torch.device(wanted.device)
    if module is not None:
        try:
            module.eval().requires_grad_(False).to(device)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            raise Failure(Kind.MEMORY, f"the model does not go to {wanted.device}: {words(error)}") from error
    names, required, by_position = _parameters(model if module is None else module.forward)
    return Loaded(model, names, required, by_position, device)


@contextlib.contextmanager
def _alone(wanted: Wanted) -> Iterator[None]:
    """Two processes that fetch one repository at the same time would take each other's files."""
    if wanted.local:
        yield
        return
    locks = Path(wanted.hub_dir) / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(wanted.repo.encode()).hexdigest()[:32]
    descriptor = os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _bar(tell: Tell) -> type:
    """Stands for the progress bar that torch.hub shows while it fetches weights."""

    class Bar:
        def __init__(self, *_: Any, total: int | None = None, **__: Any) -> None:
            self._total, self._done = total, 0

        def update(self, count: int) -> None:
            self._done += count
            tell("fetching weights", self._done, self._total)

        def close(self) -> None: ...

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

    return Bar


def _take_weights(module: Any, path: str) -> None:
    """`module` None: what was loaded is none."""
    field = "weights_artifact"
    if module is None:
        raise Failure(Kind.INVALID, "goes with a torch.nn.Module only", field)
    try:
        # Only tensors: a pickle could run code.
        state = torch.load(path, map_location="cpu", weights_only=True)
        nested = state.get("state_dict", state) if isinstance(state, dict) else None
        if not isinstance(nested, dict):
            raise TypeError(f"a {type(state).__name__} instead of a state dict")
        module.load_state_dict(nested)
    except Exception as error:
        raise Failure(Kind.INVALID, f"is no state dict of this model: {words(error)}", field) from error


def _parameters(function: Callable[..., Any]) -> tuple[list[str], list[str], bool]:
    """Names of what a function takes, those it must get, and whether it takes them by position only."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return [WITHOUT_NAME], [WITHOUT_NAME], True
    named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if not named:
        return [WITHOUT_NAME], [WITHOUT_NAME], True
    by_position = any(one.kind is one.POSITIONAL_ONLY for one in named)
    required = [one.name for one in named if one.default is one.empty]
    # One whose inputs are all optional still needs one.
    return [one.name for one in named], required or [named[0].name], by_position
