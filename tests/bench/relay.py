"""make bench-relay: the same calls direct to the sidecar, through a minimal raw-bytes proxy, and through the gateway.

One real sidecar (the test driver echo, on the SDK) on loopback TCP serves all three. Rounds take turns, so that a noisy
machine disturbs all alike; ratios are medians over the rounds' own ratios.

    python -m tests.bench.relay [ROUNDS [SECONDS_PER_MEASUREMENT]]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import AsyncClient
from onecontainer.rpc.channel import channel_options
from tests.bench import figures
from tests.drivers.build import build_driver
from tests.fixtures.processes import GatewayProcess, Process, free_port, running

SERVICE = "services/echo"
ECHO = "/onecontainer.test.echo.v1.EchoService"
TARGETS = ("direct", "proxy", "gateway")
MESSAGES = 1000
"""Messages of one stream."""


def request(payload: int, *, delay: float = 0.0, count: int = 0, service: str = SERVICE) -> bytes:
    """A serialised EchoRequest."""
    from onecontainer_driver_echo import echo_pb2  # built at the start of this run

    message = echo_pb2.EchoRequest(service=service, payload=bytes(payload), delay=delay, count=count)
    return bytes(message.SerializeToString())


@dataclass
class Measured:
    """What one kind of call did in each round."""

    rates: list[float] = field(default_factory=list)
    p50s: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)

    def add(self, latencies: list[float], seconds: float, units: int = 1) -> None:
        self.rates.append(len(latencies) * units / seconds)
        self.p50s.append(figures.percentile(latencies, 0.50))
        self.p99s.append(figures.percentile(latencies, 0.99))


async def load(call: Callable[[], Awaitable[Any]], callers: int, seconds: float) -> tuple[list[float], float]:
    """Calls as fast as so many callers can for so long; latencies in seconds, and the time it took."""
    latencies: list[float] = []
    begin = time.perf_counter()

    async def caller() -> None:
        while (start := time.perf_counter()) - begin < seconds:
            await call()
            latencies.append(time.perf_counter() - start)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return latencies, time.perf_counter() - begin


def unary(channel: grpc.aio.Channel, message: bytes) -> Callable[[], Awaitable[Any]]:
    stub = channel.unary_unary(f"{ECHO}/Echo")
    return lambda: stub(message, timeout=60)


def down(channel: grpc.aio.Channel) -> Callable[[], Awaitable[Any]]:
    stub = channel.unary_stream(f"{ECHO}/Down")
    message = request(1024, count=MESSAGES)

    async def call() -> None:
        received = 0
        async for _ in stub(message, timeout=60):
            received += 1
        assert received == MESSAGES

    return call


def both(channel: grpc.aio.Channel) -> Callable[[], Awaitable[Any]]:
    stub = channel.stream_stream(f"{ECHO}/Both")
    message = request(1024)

    async def messages() -> AsyncIterator[bytes]:
        for _ in range(MESSAGES):
            yield message

    async def call() -> None:
        received = 0
        async for _ in stub(messages(), timeout=60):
            received += 1
        assert received == MESSAGES

    return call


KINDS: dict[str, tuple[Callable[[grpc.aio.Channel], Callable[[], Awaitable[Any]]], int, int]] = {
    # name: (call, callers, messages a call)
    "unary_1k_c1": (lambda channel: unary(channel, request(1024)), 1, 1),
    "unary_1k_c16": (lambda channel: unary(channel, request(1024)), 16, 1),
    "unary_1m_c1": (lambda channel: unary(channel, request(1024 * 1024)), 1, 1),
    "unary_1m_c16": (lambda channel: unary(channel, request(1024 * 1024)), 16, 1),
    "stream_down": (down, 1, MESSAGES),
    "stream_both": (both, 1, MESSAGES),
}


async def measure(
    channels: dict[str, grpc.aio.Channel], rounds: int, seconds: float
) -> dict[tuple[str, str], Measured]:
    found: dict[tuple[str, str], Measured] = {}
    for kind, (make, callers, units) in KINDS.items():
        calls = {target: make(channel) for target, channel in channels.items()}
        for call in calls.values():  # warm up
            await load(call, callers, 0.2)
        for turn in range(rounds):
            order = TARGETS if turn % 2 else TARGETS[::-1]
            for target in order:
                latencies, took = await load(calls[target], callers, seconds)
                found.setdefault((kind, target), Measured()).add(latencies, took, units)
        print(f"  {kind}: measured", flush=True)
    return found


async def fast_beside_slow(gateway: grpc.aio.Channel, seconds: float) -> tuple[float, float]:
    """p50 of a fast call on one service: alone, and while 64 slow calls of another service are under way; in seconds."""
    fast = unary(gateway, request(1024, service="services/fast"))
    slow = unary(gateway, request(1024, delay=0.5))
    await load(fast, 1, 0.2)
    alone, _ = await load(fast, 1, seconds)
    slow_load = asyncio.ensure_future(load(slow, 64, seconds + 1))
    # Into the middle of a wave of slow calls: all 64 are under way then.
    await asyncio.sleep(0.25)
    beside, _ = await load(fast, 1, seconds)
    await slow_load
    return figures.percentile(alone, 0.5), figures.percentile(beside, 0.5)


async def run(gateway: str, proxy: str, sidecars: dict[str, str], rounds: int, seconds: float) -> None:
    async with AsyncClient(gateway) as client:
        for service, endpoint in sidecars.items():
            await client.services.create(
                service.removeprefix("services/"),
                app="echo",
                runtime=resources_pb2.Runtime(kind=resources_pb2.RUNTIME_KIND_ATTACHED, endpoint=endpoint),
            )
            await client.services.wait_ready(service, timeout=30)
    addresses = {"direct": sidecars[SERVICE], "proxy": proxy, "gateway": gateway}
    channels = {
        name: grpc.aio.insecure_channel(address, options=channel_options()) for name, address in addresses.items()
    }
    try:
        found = await measure(channels, rounds, seconds)
        alone, beside = await fast_beside_slow(channels["gateway"], seconds)
    finally:
        for channel in channels.values():
            await channel.close()
    report(found, alone, beside)


def report(found: dict[tuple[str, str], Measured], alone: float, beside: float) -> None:
    out: dict[str, float] = {"fast_beside_slow.p50_over_alone": beside / alone}
    rows = []
    for kind in KINDS:
        by_target = {target: found[kind, target] for target in TARGETS}
        for target, measured in by_target.items():
            rate = statistics.median(measured.rates)
            p50, p99 = statistics.median(measured.p50s), statistics.median(measured.p99s)
            out |= {
                f"{kind}.{target}_per_s": rate,
                f"{kind}.{target}_p50_ms": p50 * 1e3,
                f"{kind}.{target}_p99_ms": p99 * 1e3,
            }
            rows.append([kind, target, f"{rate:,.0f}", f"{p50 * 1e3:.2f}", f"{p99 * 1e3:.2f}"])
        gateway, proxy, direct = by_target["gateway"], by_target["proxy"], by_target["direct"]
        out[f"{kind}.gateway_over_proxy"] = figures.median_ratio(gateway.rates, proxy.rates)
        out[f"{kind}.gateway_over_direct"] = figures.median_ratio(gateway.rates, direct.rates)
        out[f"{kind}.p99_gateway_over_proxy"] = figures.median_ratio(gateway.p99s, proxy.p99s)
    # Of the two streams the worse one.
    out["stream.gateway_over_proxy"] = min(out[f"stream_{kind}.gateway_over_proxy"] for kind in ("down", "both"))
    figures.show(
        "Through the gateway, through a minimal proxy, and direct",
        ["calls", "through", "per s", "p50 ms", "p99 ms"],
        rows,
        {
            "unary_1k_c16.gateway_over_proxy": (out["unary_1k_c16.gateway_over_proxy"], "≥ 0.85"),
            "unary_1k_c16.p99_gateway_over_proxy": (out["unary_1k_c16.p99_gateway_over_proxy"], "≤ 1.3"),
            "unary_1m_c1.gateway_over_proxy": (out["unary_1m_c1.gateway_over_proxy"], "≥ 0.85"),
            "stream.gateway_over_proxy": (out["stream.gateway_over_proxy"], "≥ 0.85"),
            "fast_beside_slow.p50_over_alone": (out["fast_beside_slow.p50_over_alone"], "about 1"),
        },
    )
    print(f"figures in {figures.write('relay', out)}")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 1.5
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oc-bench-")))
        drivers = folder / "drivers"
        driver = build_driver("echo", drivers)
        sys.path.insert(0, str(driver))
        sidecars = {SERVICE: f"127.0.0.1:{free_port()}", "services/fast": f"127.0.0.1:{free_port()}"}
        for name, address in sidecars.items():
            state = folder / name.replace("/", "-")
            state.mkdir()
            environment = {
                "ONECONTAINER_LISTEN": address,
                "ONECONTAINER_STATE_DIR": str(state),
                "ONECONTAINER_SCRATCH_DIR": str(state),
            }
            command = [sys.executable, "-m", "onecontainer.driver", "--driver-dir", str(driver)]
            stack.enter_context(running(Process(command, environment, "serves on")))
        proxy_address = f"127.0.0.1:{free_port()}"
        proxy = [sys.executable, "-m", "tests.bench.proxy", proxy_address, sidecars[SERVICE]]
        stack.enter_context(running(Process(proxy, {}, "READY")))
        gateway = GatewayProcess(folder / "data", [drivers])
        stack.enter_context(running(gateway))
        asyncio.run(run(gateway.address, proxy_address, sidecars, rounds, seconds))


if __name__ == "__main__":
    main()
