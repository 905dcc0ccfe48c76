"""A subject's server: ``python serve.py APP.py``. The standard library, uvicorn and uvloop only.

The settings come as one line of JSON on standard input; ``make(settings)`` of the file makes the
application. The port is the system's choice and is printed; the server stops when standard input
ends, so it never outlives whoever started it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
import sys
import threading
from pathlib import Path

import uvicorn
import uvloop


def main() -> None:
    """Serve: one process, one loop, httptools, no access log."""
    path, settings = Path(sys.argv[1]), json.loads(sys.stdin.readline())
    sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))  # their shared modules
    spec = importlib.util.spec_from_file_location("app_of_subject", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["app_of_subject"] = module
    spec.loader.exec_module(module)
    config = uvicorn.Config(
        module.make(settings),
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=2,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(Server(config)))


class Server(uvicorn.Server):
    """Says where it serves, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, with the sockets it is given."""
        await super().startup(sockets)
        if self.started:
            assert sockets is not None
            print(f"port {sockets[0].getsockname()[1]}", flush=True)


async def serve(server: Server) -> None:
    """Until standard input ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it

    def wait_for_the_end() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    await server.serve([listener])


if __name__ == "__main__":
    main()
