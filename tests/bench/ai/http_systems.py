"""What is asked over HTTP: BentoML, LitServe, and a chain of blocking services."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AsyncExitStack

import aiohttp
import numpy as np

from tests.bench.ai.system import PEERS, PNG, TENSOR, Call, Work, peer
from tests.fixtures.processes import free_port


async def session(stack: AsyncExitStack) -> aiohttp.ClientSession:
    """A session whose connections are given up before a server does so (uvicorn after 5 s), which would break a POST."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)
    return await stack.enter_async_context(aiohttp.ClientSession(connector=connector))


def post(on: aiohttp.ClientSession, url: str, body: bytes, content_type: str) -> Call:
    async def call() -> bytes:
        async with on.post(url, data=body, headers={"content-type": content_type}) as answer:
            got = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{url}: {answer.status} {got[:500]!r}")
            return got

    return call


BOUNDARY = "0123456789abcdef"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


def form(field: str, data: bytes, media_type: str) -> bytes:
    """A form with one file, made once: none of that is measured."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="file"\r\n'
        f"Content-Type: {media_type}\r\n\r\n"
    )
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


class BentoMl:
    name = "bentoml"

    async def start(self, work: Work, stack: AsyncExitStack) -> Mapping[str, Call]:
        port = free_port()
        command = ["bentoml", "serve", "bentoml_service:Served", "--host", "127.0.0.1", "--port", str(port)]
        settings = {"MODEL": str(work.model), "BENTOML_HOME": str(work.folder / "bentoml"), "DO_NOT_TRACK": "1"}
        command += ["--working-dir", str(PEERS)]
        peer(stack, self.name, command, "Service Served initialized", **settings)
        on, url = await session(stack), f"http://127.0.0.1:{port}"
        return {
            TENSOR: post(
                on, f"{url}/tensor", form("file", work.tensor.read_bytes(), "application/octet-stream"), MULTIPART
            ),
            PNG: post(on, f"{url}/image", form("file", work.image.read_bytes(), "image/png"), MULTIPART),
        }

    def best(self, kind: str, answer: bytes) -> int:
        return int(np.frombuffer(answer, np.float32).argmax()) if kind == TENSOR else int(json.loads(answer)[0][0])


class LitServe:
    name = "litserve"

    async def start(self, work: Work, stack: AsyncExitStack) -> Mapping[str, Call]:
        port = free_port()
        peer(
            stack,
            self.name,
            ["python", str(PEERS / "litserve_server.py"), str(port), str(work.model)],
            "Uvicorn running",
        )
        on, url = await session(stack), f"http://127.0.0.1:{port}/predict"
        return {
            TENSOR: post(on, url, form("tensor", work.tensor.read_bytes(), "application/octet-stream"), MULTIPART),
            PNG: post(on, url, form("image", work.image.read_bytes(), "image/png"), MULTIPART),
        }

    def best(self, kind: str, answer: bytes) -> int:
        return int(np.frombuffer(answer, np.float32).argmax()) if kind == TENSOR else int(json.loads(answer)[0][0])


class HttpChain:
    name = "http_chain"

    async def start(self, work: Work, stack: AsyncExitStack) -> Mapping[str, Call]:
        ports = [free_port() for _ in range(3)]
        for index, port in enumerate(ports):
            way = ["backend", str(work.model)]
            if index:
                way = ["forward", f"http://127.0.0.1:{ports[index - 1]}/predict"]
            peer(stack, self.name, ["python", str(PEERS / "http_chain.py"), str(port), *way], "Uvicorn running")
        url = f"http://127.0.0.1:{ports[-1]}/predict"
        return {PNG: post(await session(stack), url, form("file", work.image.read_bytes(), "image/png"), MULTIPART)}

    def best(self, kind: str, answer: bytes) -> int:
        return int(json.loads(answer)[0][0])
