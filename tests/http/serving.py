"""A real uvicorn on a port of its own, in this event loop or in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn


def _listener() -> socket.socket:
    """Connections inherit its TCP_NODELAY, which asyncio sets on no socket made like this; else
    each answer of a head and a body takes the 40 ms of a delayed acknowledgement."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


@asynccontextmanager
async def serving(app: Any, **config: Any) -> AsyncIterator[str]:
    """Serve ``app`` in this event loop, its lifespan included; the base address."""
    listener = _listener()
    settings = uvicorn.Config(
        app, log_level="warning", lifespan="on", timeout_graceful_shutdown=5, **config
    )
    server = uvicorn.Server(settings)
    # The handlers it would leave, where two servers end in the order they began, swallow Ctrl-C.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve([listener]))
    try:
        async with asyncio.timeout(20):
            while not server.started:
                if task.done():
                    raise AssertionError(f"the application did not start: {task}")
                await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(20):
                await task
        listener.close()


@asynccontextmanager
async def client_of(app: Any, **config: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of ``app``, which is served for as long; over real sockets."""
    limits = httpx.Limits(max_connections=500)
    async with (
        serving(app, **config) as address,
        httpx.AsyncClient(base_url=address, timeout=20, limits=limits) as client,
    ):
        yield client


@dataclass(frozen=True, slots=True)
class Replica:
    """An application in a process of its own."""

    process: subprocess.Popen[bytes]
    address: str

    def send_signal(self, number: signal.Signals) -> None:
        """SIGSTOP, SIGKILL and the like."""
        self.process.send_signal(number)


@contextmanager
def replica(factory: str, **environment: str) -> Iterator[Replica]:
    """``factory`` ("module:function") served by a process of its own, with these variables."""
    listener = _listener()
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", factory, "--factory", "--fd", str(listener.fileno()),
         "--log-level", "warning", "--timeout-graceful-shutdown", "5"],
        env={**os.environ, **environment}, pass_fds=[listener.fileno()],
    )  # fmt: skip
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    try:
        until = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{address}/", timeout=10)
                break
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"{factory} did not start (exit code {process.poll()})")
            time.sleep(0.05)
        yield Replica(process, address)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
