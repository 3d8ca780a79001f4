"""How patient the supervisor is, and how long it waits before it starts a sidecar again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onecontainer.settings import Settings


@dataclass(frozen=True, slots=True)
class Policy:
    """Numbers of the supervisor, in seconds where nothing else is said."""

    start_timeout: float = 60.0
    attach_timeout: float = 60.0
    probe_interval: float = 5.0
    probe_timeout: float = 10.0
    first_probe_interval: float = 0.1
    health_failures: int = 3
    stop_grace: float = 12.0
    backoff_initial: float = 0.5
    backoff_max: float = 30.0
    backoff_reset: float = 60.0
    concurrent_starts: int = 4
    start_slot: float = 5.0
    max_message_bytes: int = 64 * 1024 * 1024
    log_level: str = "info"
    past_instances: int = 4

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        return cls(
            start_timeout=settings.sidecar_start_timeout,
            attach_timeout=settings.sidecar_start_timeout,
            probe_interval=settings.probe_interval,
            probe_timeout=settings.probe_timeout,
            backoff_initial=settings.restart_backoff_initial,
            backoff_max=settings.restart_backoff_max,
            max_message_bytes=settings.max_message_bytes,
            log_level=settings.log_level,
        )


def restart_delay(policy: Policy, failures: int, random: Callable[[], float]) -> float:
    """Seconds before the next start after so many failures in a row (from 1 on): doubled each time, bounded, half of it jitter.

    The jitter keeps sidecars that died of one cause from coming back all at once.
    """
    whole = min(policy.backoff_max, policy.backoff_initial * 2.0 ** min(failures - 1, 30))
    return whole * (0.5 + 0.5 * random())
