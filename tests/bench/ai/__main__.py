"""make bench-ai: the same ONNX classifier behind everything that serves models, as a tensor (602 kB) and as a PNG (240 kB).

The model alone, a minimal hand-written grpc.aio service, our sidecar directly, our gateway, MLServer, BentoML, LitServe, and a chain of
three HTTP services. All run one thread for each run of the model and as many runs at a time as there are cores. They are on this
machine together and take turns in every round, so that a noisy machine disturbs all alike; ratios are medians over the rounds' own ratios.

    python -m tests.bench.ai [--rounds N] [--seconds S] [--systems NAME,…] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import onecontainer_driver_onnx
from onecontainer_driver_onnx import built_in
from platformdirs import user_cache_path

from tests.bench import figures
from tests.bench.ai.grpc_systems import InProcess, Minimal, MlServer, Ours, Sidecar
from tests.bench.ai.http_systems import BentoMl, HttpChain, LitServe
from tests.bench.ai.peers.classifier import prepare
from tests.bench.ai.system import PNG, TENSOR, Call, System, Work
from tests.bench.relay import load

PEER_NAMES = ("mlserver", "bentoml", "litserve", "http_chain")
NAMES = ("in_process", "minimal", "direct", "gateway", *PEER_NAMES)
TIGER_CAT = 282
CALLERS = (1, 16)

Found = dict[tuple[str, int, str], list[tuple[float, float]]]
"""Per kind, callers and system: calls per second and median latency in seconds, round by round."""


def systems(stack: AsyncExitStack) -> list[System]:
    sidecar = Sidecar(stack)
    return [
        *(InProcess(), Minimal(), Ours("direct", sidecar), Ours("gateway", sidecar)),
        *(MlServer(), BentoMl(), LitServe(), HttpChain()),
    ]


async def checked(system: System, calls: Mapping[str, Call], best: int) -> None:
    """It answers, and with the right class: what is fast and wrong is not compared."""
    deadline = time.monotonic() + 60
    for kind, call in calls.items():
        while True:
            try:
                answer = await call()
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.5)  # it says that it is ready before it is
        if (found := system.best(kind, answer)) != best:
            raise RuntimeError(f"{system.name} gives class {found} for the {kind}, not {best}")
        await load(call, 4, 0.5)
    print(f"  {system.name}: answers", flush=True)


async def measure(asked: Mapping[str, Mapping[str, Call]], rounds: int, seconds: float) -> Found:
    found: Found = {}
    for turn in range(rounds):
        for kind in (TENSOR, PNG):
            for callers in CALLERS:
                names = [name for name, calls in asked.items() if kind in calls]
                for name in names if turn % 2 else names[::-1]:
                    latencies, took = await load(asked[name][kind], callers, seconds)
                    figure = (len(latencies) / took, statistics.median(latencies))
                    found.setdefault((kind, callers, name), []).append(figure)
        print(f"  round {turn + 1} of {rounds}", flush=True)
    return found


def summary(found: Found) -> dict[str, float]:
    """Keys `KIND_cCALLERS.NAME_per_s` and `…_p50_ms`, and the ratios of the goals."""
    out: dict[str, float] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    for (kind, callers, name), turns in found.items():
        label = f"{kind}_c{callers}"
        rates[label, name] = [rate for rate, _ in turns]
        out[f"{label}.{name}_per_s"] = statistics.median(rates[label, name])
        out[f"{label}.{name}_p50_ms"] = statistics.median(latency for _, latency in turns) * 1e3
    for label in {label for label, _ in rates}:
        for ours in ("direct", "gateway"):
            mine = rates.get((label, ours))
            if mine is None:
                continue
            others = {name: rates[label, name] for name in ("minimal", *PEER_NAMES) if (label, name) in rates}
            ratios = {name: figures.median_ratio(mine, theirs) for name, theirs in others.items()}
            out |= {f"{label}.{ours}_over_{name}": ratio for name, ratio in ratios.items()}
            peers = [ratio for name, ratio in ratios.items() if name in PEER_NAMES]
            if peers:
                out[f"{label}.{ours}_over_best_peer"] = min(peers)
    return out


GOALS = {
    "tensor_c16.direct_over_minimal": "≥ 0.95",
    "tensor_c16.gateway_over_minimal": "≥ 0.80",
    "tensor_c16.gateway_over_best_peer": "> 1",
    "png_c16.direct_over_minimal": "≥ 1.1",
    "png_c16.direct_over_best_peer": "> 1",
    "png_c16.gateway_over_best_peer": "> 1",
    "png_c16.gateway_over_http_chain": "> 1",
}


def table(out: Mapping[str, float], names: Sequence[str]) -> list[list[str]]:
    rows = []
    for kind in (TENSOR, PNG):
        for callers in CALLERS:
            label = f"{kind}_c{callers}"
            for name in names:
                if (rate := out.get(f"{label}.{name}_per_s")) is not None:
                    rows.append([kind, str(callers), name, f"{rate:,.0f}", f"{out[f'{label}.{name}_p50_ms']:.1f}"])
    return rows


async def run(given: argparse.Namespace, folder: Path) -> dict[str, float]:
    cache = user_cache_path("onecontainer", appauthor=False) / "onnx"
    model = await built_in.model_file(cache, None, lambda _phase, _message: None)
    image = Path(onecontainer_driver_onnx.__file__).parent / "assets" / "chelsea.png"
    tensor = folder / "tensor"
    tensor.write_bytes(prepare(image.read_bytes()).tobytes())
    work = Work(model, tensor, image, TIGER_CAT, folder)
    async with AsyncExitStack() as stack:
        asked: dict[str, Mapping[str, Call]] = {}
        for system in systems(stack):
            if system.name in given.names:
                asked[system.name] = await system.start(work, stack)
                await checked(system, asked[system.name], work.best)
        return summary(await measure(asked, given.rounds, given.seconds))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ai")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="so long is each measurement")
    parser.add_argument("--systems", default=",".join(NAMES), help="which of them, separated by commas")
    parser.add_argument(
        "--quick", action="store_true", help="one short round: shows that all works, not how fast it is"
    )
    given = parser.parse_args()
    given.names = given.systems.split(",")
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no such system: {', '.join(sorted(unknown))}")
    if given.quick:
        given.rounds, given.seconds = 1, 0.5
    return given


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="oc-bench-") as folder:
        out = asyncio.run(run(given, Path(folder)))
    figures.show(
        f"A classifier, asked for a tensor or an image (medians of {given.rounds} rounds)",
        ["input", "callers", "system", "per s", "p50 ms"],
        table(out, given.names),
        {key: (out[key], wanted) for key, wanted in GOALS.items() if key in out},
    )
    print(f"figures in {figures.write('ai-quick' if given.quick else 'ai', out)}")


if __name__ == "__main__":
    main()
