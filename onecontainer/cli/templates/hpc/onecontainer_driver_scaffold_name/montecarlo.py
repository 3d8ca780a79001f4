"""Integrals of polynomials. Knows nothing of gRPC: replace it by your own computation."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


def integral(coefficients: Sequence[float], lower: float, upper: float) -> float:
    """The exact integral of a polynomial, the constant coefficient first."""
    return math.fsum(
        coefficient * (upper ** (power + 1) - lower ** (power + 1)) / (power + 1)
        for power, coefficient in enumerate(coefficients)
    )


def value_at(coefficients: Sequence[float], x: float) -> float:
    result = 0.0
    for coefficient in reversed(coefficients):
        result = result * x + coefficient
    return result


@dataclass(frozen=True)
class Sums:
    """An estimate that is under way: all that it takes to go on."""

    points: int = 0
    total: float = 0.0
    squares: float = 0.0

    def estimate(self, lower: float, upper: float) -> tuple[float, float]:
        """The integral and its standard error; 0 and 0 without points."""
        if not self.points:
            return 0.0, 0.0
        mean = self.total / self.points
        variance = max(0.0, self.squares / self.points - mean * mean)
        width = upper - lower
        return width * mean, width * math.sqrt(variance / self.points)


def next_block(
    sums: Sums, coefficients: Sequence[float], lower: float, upper: float, *, seed: int, points: int
) -> Sums:
    """So many points more. The block's random numbers depend on the seed and on where it begins, not on who computed what is before."""
    # Not for secrets: a seed has to give the same points again.
    generator = random.Random(f"{seed}/{sums.points}")
    total, squares = sums.total, sums.squares
    for _ in range(points):
        value = value_at(coefficients, generator.uniform(lower, upper))
        total += value
        squares += value * value
    return Sums(sums.points + points, total, squares)
