"""What the tests serve besides the real classifier: small models, and models that misbehave."""

import os
import tempfile
import time
from pathlib import Path

import torch

dependencies = ["torch"]


class Line(torch.nn.Module):
    """y = factor · x + offset."""

    def __init__(self, factor, offset, seconds=0.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(float(factor)))
        self.offset = torch.nn.Parameter(torch.tensor(float(offset)))
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return self.factor * x + self.offset


class Deadly(torch.nn.Module):
    def forward(self, x):
        print("these are my last words")
        os.abort()


class Several(torch.nn.Module):
    def forward(self, left, right, scale=None):
        total = left + right
        return {"sum": total if scale is None else total * scale, "parts": [left, {"right": right.to(torch.bfloat16)}]}


def line(factor=2.0, offset=0.0, seconds=0.0, load_seconds=0.0):
    time.sleep(load_seconds)
    return Line(factor, offset, seconds)


def fetched(megabytes):
    """Weights that torch.hub fetches, here from a file; its progress is what the job tells."""
    with tempfile.TemporaryDirectory(dir=os.environ["HOME"]) as folder:
        source = Path(folder, "line.pth")
        torch.save({**Line(3, 4).state_dict(), "ballast": torch.zeros(megabytes << 18)}, source)
        state = torch.hub.load_state_dict_from_url(source.as_uri(), weights_only=True)
    del state["ballast"]
    model = Line(0, 0)
    model.load_state_dict(state)
    return model


def large(megabytes):
    model = torch.nn.Linear(1024, megabytes * 256, bias=False)
    torch.nn.init.ones_(model.weight)
    return model


def several():
    return Several()


def deadly():
    return Deadly()


def broken():
    raise ValueError("broken on purpose")


def no_model():
    return "text"


def environment():
    """A function is a model, too: the sum of what its process sees of the sidecar's settings."""

    def count(x):
        return x + sum(name.startswith("ONECONTAINER_") for name in os.environ)

    return count
