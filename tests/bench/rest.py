"""make bench-rest: Predict and a small read by REST: our front (grpc-gateway), Envoy's gRPC-JSON transcoder before the same gateway, and a
chain of FastAPI services with blocking clients.

The read is one row of three in SQLite, by its key. Predict is a photo (PNG, 240 kB): as it is to our front, in a form to the chain, as
base64 in JSON to Envoy, which knows nothing else. All are on this machine together and take turns in every round, so that a noisy machine
disturbs all alike; ratios are medians over the rounds' own ratios.

    python -m tests.bench.rest [--rounds N] [--seconds S] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import onecontainer_driver_onnx
from onecontainer_driver_onnx import built_in
from platformdirs import user_cache_path

from onecontainer.client import Client
from tests.bench import figures
from tests.bench.ai.http_systems import MULTIPART, form, post, session
from tests.bench.ai.system import PEERS, Call, peer
from tests.bench.relay import Measured, load
from tests.fixtures.processes import GatewayProcess, Process, free_port, running
from tests.fixtures.rest import RestProcess

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = ("rest", "envoy", "fastapi_chain")
KINDS = ("read", "predict")
CALLERS = (1, 16)
FILMS = ((1, "Metropolis"), (2, "Nosferatu"), (3, "Der letzte Mann"))
TRANSCODED = ("onecontainer.api.db.v1.DatabaseService", "onecontainer.api.ai.v1.InferenceService")

Asked = Mapping[str, Mapping[str, Call]]
"""Kind → system → how it is asked."""


def get(on: aiohttp.ClientSession, url: str) -> Call:
    async def call() -> bytes:
        async with on.get(url) as answer:
            got = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{url}: {answer.status} {got[:500]!r}")
            return got

    return call


def make_services(gateway: str) -> None:
    """The table `films` in `services/rows`, and `services/cats`."""
    with Client(gateway) as client:
        client.services.create("rows", app="sql")
        client.services.create("cats", app="onnx")
        client.services.wait_ready("rows", "cats", timeout=180)
        client.db.create_table("rows", "films", {"id": "int64", "title": "text"}, key=["id"])
        client.db.insert("rows", "films", [{"id": key, "title": title} for key, title in FILMS])


def envoy_config(folder: Path, listen: int, gateway: str) -> Path:
    """Envoy as a transcoder of the two services, and nothing else."""
    sys.path.insert(0, str(ROOT / "protos"))
    contracts = importlib.import_module("generate")
    descriptors = folder / "contracts.binpb"
    descriptors.write_bytes(contracts.compile_image(source_info=False).SerializeToString())
    host, _, port = gateway.rpartition(":")
    kinds = "type.googleapis.com/envoy.extensions"
    filters = [
        {
            "name": "transcoder",
            "typed_config": {
                "@type": f"{kinds}.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
                "proto_descriptor": str(descriptors),
                "services": list(TRANSCODED),
                "max_request_body_size": 64 * 1024 * 1024,
                "max_response_body_size": 64 * 1024 * 1024,
            },
        },
        {"name": "router", "typed_config": {"@type": f"{kinds}.filters.http.router.v3.Router"}},
    ]
    route = {"match": {"prefix": "/"}, "route": {"cluster": "gateway", "timeout": "120s"}}
    manager = {
        "@type": f"{kinds}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "rest",
        "http_filters": filters,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }
    http2 = {
        "@type": f"{kinds}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    place = {"socket_address": {"address": host, "port_value": int(port)}}
    cluster = {
        "name": "gateway",
        "type": "STATIC",
        "connect_timeout": "5s",
        "per_connection_buffer_limit_bytes": 64 * 1024 * 1024,
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": {
            "cluster_name": "gateway",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": place}}]}],
        },
    }
    listener = {
        "name": "rest",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": listen}},
        "per_connection_buffer_limit_bytes": 64 * 1024 * 1024,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    config = folder / "envoy.json"
    config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    return config


async def start(stack: AsyncExitStack, folder: Path) -> Asked:
    """Starts all three, and returns how they are asked."""
    gateway = GatewayProcess(folder / "data")
    stack.enter_context(running(gateway))
    await asyncio.to_thread(make_services, gateway.address)
    rest = RestProcess(gateway.address)
    stack.enter_context(running(rest))
    envoy_port = free_port()
    # Several may run on a machine.
    envoy = [str(Path(sys.executable).with_name("envoy")), "-c", str(envoy_config(folder, envoy_port, gateway.address))]
    envoy += ["--use-dynamic-base-id", "--log-level", "info"]
    stack.enter_context(running(Process(envoy, {}, "starting main dispatch loop")))
    chain = await start_chain(stack, folder)

    image = (Path(onecontainer_driver_onnx.__file__).parent / "assets" / "chelsea.png").read_bytes()
    query = {"query": {"where": {"comparison": {"column": "id", "value": {"int64Value": 2}}}}}
    read, encoded = (
        json.dumps(query).encode(),
        json.dumps({"inputs": [{"image": base64.b64encode(image).decode()}]}).encode(),
    )
    rows, cats = "/v1/services/rows/tables/films/records:select", "/v1/services/cats/ai:predict"
    envoy_url = f"http://127.0.0.1:{envoy_port}"
    on = await session(stack)
    asked = {
        "read": {
            "rest": post(on, rest.url + rows, read, "application/json"),
            "envoy": post(on, envoy_url + rows, read, "application/json"),
            "fastapi_chain": get(on, f"{chain}/read?key=2"),
        },
        "predict": {
            "rest": post(on, rest.url + cats, image, "image/png"),
            "envoy": post(on, envoy_url + cats, encoded, "application/json"),
            "fastapi_chain": post(on, f"{chain}/predict", form("file", image, "image/png"), MULTIPART),
        },
    }
    for kind, word in (("read", b"Nosferatu"), ("predict", b"282")):
        for system, call in asked[kind].items():
            await answered(system, call, word)
    return asked


async def start_chain(stack: AsyncExitStack, folder: Path) -> str:
    """Starts backend, driver and API; the API's URL."""
    cache = user_cache_path("onecontainer", appauthor=False) / "onnx"
    model = await built_in.model_file(cache, None, lambda _phase, _message: None)
    rows = folder / "films.db"
    with sqlite3.connect(rows) as database:
        database.execute("CREATE TABLE films (id INTEGER PRIMARY KEY, title TEXT)")
        database.executemany("INSERT INTO films VALUES (?, ?)", FILMS)
    ports = [free_port() for _ in range(3)]
    for index, port in enumerate(ports):
        way = ["forward", f"http://127.0.0.1:{ports[index - 1]}/predict"] if index else ["backend", str(model)]
        command = ["python", str(PEERS / "http_chain.py"), str(port), *way]
        peer(stack, "http_chain", command, "Uvicorn running", ROWS=str(rows))
    return f"http://127.0.0.1:{ports[-1]}"


async def answered(system: str, call: Call, word: bytes) -> None:
    """It answers, and rightly: what is fast and wrong is not compared."""
    deadline = time.monotonic() + 60
    while True:
        try:
            answer = await call()
            break
        except (aiohttp.ClientError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)  # it says that it is ready before it is
    if word not in answer:
        raise RuntimeError(f"{system} answers {answer[:500]!r}")
    await load(call, 4, 0.3)


async def run(folder: Path, rounds: int, seconds: float) -> dict[tuple[str, int, str], Measured]:
    found: dict[tuple[str, int, str], Measured] = {}
    async with AsyncExitStack() as stack:
        asked = await start(stack, folder)
        for turn in range(rounds):
            for kind in KINDS:
                for callers in CALLERS:
                    for system in SYSTEMS if turn % 2 else SYSTEMS[::-1]:
                        latencies, took = await load(asked[kind][system], callers, seconds)
                        found.setdefault((kind, callers, system), Measured()).add(latencies, took)
            print(f"  round {turn + 1} of {rounds}", flush=True)
    return found


def report(name: str, found: dict[tuple[str, int, str], Measured]) -> None:
    out: dict[str, float] = {}
    rows = []
    for (kind, callers, system), measured in found.items():
        rate, p50, p99 = (statistics.median(values) for values in (measured.rates, measured.p50s, measured.p99s))
        label = f"{kind}_c{callers}"
        out |= {
            f"{label}.{system}_per_s": rate,
            f"{label}.{system}_p50_ms": p50 * 1e3,
            f"{label}.{system}_p99_ms": p99 * 1e3,
        }
        rows.append([kind, str(callers), system, f"{rate:,.0f}", f"{p50 * 1e3:.1f}", f"{p99 * 1e3:.1f}"])
        if system != "rest":
            ours = found[kind, callers, "rest"]
            out[f"{label}.rest_over_{system}"] = figures.median_ratio(ours.rates, measured.rates)
    goals = {
        "read_c16.rest_over_fastapi_chain": "≥ 5",
        "predict_c16.rest_over_fastapi_chain": "≥ 1",
        "read_c16.rest_over_envoy": "",
    }
    figures.show(
        "By REST",
        ["calls", "callers", "through", "per s", "p50 ms", "p99 ms"],
        sorted(rows),
        {key: (out[key], wanted) for key, wanted in goals.items()},
    )
    print(f"figures in {figures.write(name, out)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rest")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="so long is each measurement")
    parser.add_argument(
        "--quick", action="store_true", help="one short round: shows that all works, not how fast it is"
    )
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds = 1, 0.5
    with tempfile.TemporaryDirectory(prefix="oc-bench-") as folder:
        report("rest-quick" if given.quick else "rest", asyncio.run(run(Path(folder), given.rounds, given.seconds)))


if __name__ == "__main__":
    main()
