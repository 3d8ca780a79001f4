"""make bench-cancel: from the CancelJob request until the handler is in its `finally`, or its processes are gone.

Four kinds of jobs: queued, a running async handler, an isolated handler that blocks in its own process (and has started another one),
and an ffmpeg at the pace of playing. Besides, what isolation costs: `start.NAME.p50_ms` are from the creation to the result of a job
that does nothing, in the loop, in a warm process, and in one that is started because its predecessor has just been killed.

    python -m tests.bench.cancel [CANCELS [kafka]]
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.bench import figures
from tests.fixtures import kafka
from tests.fixtures.cancels import Cancels, cancels
from tests.fixtures.processes import running

KINDS = {"queued": "queued", "async": "running_async", "process": "isolated", "ffmpeg": "ffmpeg"}
GOAL_MS = 1000.0


def run(folder: Path, count: int, **settings: str) -> dict[str, float]:
    out: dict[str, float] = {}
    with cancels(folder, **settings) as scene:
        for name, method in KINDS.items():
            latencies = [getattr(scene, method)() * 1e3 for _ in range(count)]
            out[f"cancel.{name}.p50_ms"] = figures.percentile(latencies, 0.5)
            out[f"cancel.{name}.p99_ms"] = figures.percentile(latencies, 0.99)
            out[f"cancel.{name}.max_ms"] = max(latencies)
        starts = {
            "async": [scene.pass_through(isolated=False) for _ in range(count)],
            "process_replaced": [_after_a_kill(scene) for _ in range(max(1, count // 10))],
            "process_warm": [scene.pass_through(isolated=True) for _ in range(count)],
        }
        for name, seconds in starts.items():
            out[f"start.{name}.p50_ms"] = figures.percentile(seconds, 0.5) * 1e3
        orphans = len(scene.orphans()) + len(scene.orphans_of_the_killed_gateway())
    out["cancel.orphans"] = float(orphans)
    return out


def _after_a_kill(scene: Cancels) -> float:
    scene.isolated()
    return scene.pass_through(isolated=True)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    over_kafka = "kafka" in sys.argv[2:]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oc-bench-")))
        settings = {}
        if over_kafka:
            broker = kafka.KafkaBroker(folder / "broker")
            stack.enter_context(running(broker))
            settings["dispatch_url"] = f"kafka://{broker.address}"
        out = run(folder, count, **settings)
    figures.show(
        f"Cancel, {count} of each kind, jobs by {'Kafka' if over_kafka else 'the embedded dispatch'}",
        ["kind", "p50 ms", "p99 ms", "max ms"],
        [[name, *(f"{out[f'cancel.{name}.{key}_ms']:,.1f}" for key in ("p50", "p99", "max"))] for name in KINDS],
        {f"cancel.{name}.p99_ms": (out[f"cancel.{name}.p99_ms"], f"≤ {GOAL_MS:g}") for name in KINDS}
        | {"cancel.orphans": (out["cancel.orphans"], "0")},
    )
    print("  " + ", ".join(f"{key} = {value:,.1f}" for key, value in out.items() if key.startswith("start.")))
    print(f"figures in {figures.write('cancel_kafka' if over_kafka else 'cancel', out)}")


if __name__ == "__main__":
    main()
