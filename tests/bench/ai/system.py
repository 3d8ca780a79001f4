"""What is compared: the work, the port that each system implements, and how one of them is asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench.ai.environments import environment
from tests.bench.trees import running_tree

PEERS = Path(__file__).parent / "peers"
TENSOR, PNG = "tensor", "png"

Call = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True)
class Work:
    """The same for all.

    Attributes:
        model: the ONNX file.
        tensor: 1 × 3 × 224 × 224 float32, prepared from the image, as a file of little-endian bytes.
        image: a PNG file.
        best: index of the class that the model gives for both.
        folder: for whatever is made on the way.
    """

    model: Path
    tensor: Path
    image: Path
    best: int
    folder: Path


class System(Protocol):
    """One way to ask the model. Its processes end with the stack that it was started on."""

    name: str

    async def start(self, work: Work, stack: AsyncExitStack) -> Mapping[str, Call]:
        """Returns how to ask about the tensor and the image; what it does not take is left out."""
        ...

    def best(self, kind: str, answer: bytes) -> int:
        """Index of the most probable class in an answer."""
        ...


def peer(
    stack: AsyncExitStack, name: str, command: list[str], ready: str, *, own: bool = False, **settings: str
) -> None:
    """Starts one of the programs in `peers`, in its own environment or (``own``) in ours; its first word is looked for there.

    It and all that it starts end with the stack.
    """
    folder = Path(sys.executable).parent if own else environment(name)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    paths = {"PYTHONPATH": str(PEERS), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    program = [str(folder / command[0]), *command[1:]]
    stack.enter_context(running_tree(program, threads | paths | settings, ready))
