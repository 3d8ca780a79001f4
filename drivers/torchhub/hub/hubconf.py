"""A repository of PyTorch Hub with one small model, to try the driver with."""

import torch

dependencies = ["torch"]


class Line(torch.nn.Module):
    """y = factor · x + offset, for a tensor of any shape."""

    def __init__(self, factor: float, offset: float) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(float(factor)))
        self.offset = torch.nn.Parameter(torch.tensor(float(offset)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x + self.offset


def line(factor: float = 2.0, offset: float = 1.0) -> Line:
    """A line; its parameters are what `weights_artifact` may replace."""
    return Line(factor, offset)
