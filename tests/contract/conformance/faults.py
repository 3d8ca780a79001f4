"""Drivers that are broken in one way each, and the check that is meant for it."""

from __future__ import annotations

# Each module adds its own to the table.
from tests.contract.conformance import faults_life, faults_work
from tests.contract.conformance.fault import FAULTS

__all__ = ["FAULTS", "faults_life", "faults_work"]
