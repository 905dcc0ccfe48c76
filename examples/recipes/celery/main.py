"""A FastAPI process and a Celery worker: one cache, one lock, one tenant, one payment.

This is the FastAPI process; its client speaks to it without a socket between.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import httpx

from forze.testing.servers import Server, ValkeyServer

HERE = Path(__file__).parent
SECONDS = 20


class Worker(Server):
    """Celery, with two processes."""

    name: ClassVar[str] = "Worker"

    @property
    def dsn(self) -> str:
        """Of its broker."""
        return os.environ["REDIS_DSN"]

    def _command(self) -> list[str]:
        # Its own temporary files go with its directory, too.
        return [
            *("env", f"TMPDIR={self.directory}", f"PYTHONPATH={HERE}"),
            *(sys.executable, "-m", "celery", "--app", "worker", "worker", "--concurrency", "2"),
            *("--loglevel", "info", "--without-gossip", "--without-mingle", "--without-heartbeat"),
        ]

    def _ready(self) -> bool:
        return " ready." in (self.directory / "server.log").read_text()


async def tell(starting: Future[Worker]) -> None:
    """The story, once the worker is up."""
    import web
    from app import COUNTED, runtime
    from worker import ask_price, charge, greet, make_report, worker

    async with (
        runtime.scope() as ctx,  # a server would open it by the lifespan
        httpx.AsyncClient(transport=httpx.ASGITransport(web.app), base_url="http://web") as client,
        asyncio.timeout(SECONDS),
    ):
        await asyncio.wrap_future(starting)
        count = ctx.counter(COUNTED)

        async def until(what: str) -> None:
            while await count.get(what) == 0:  # noqa: ASYNC110 - another process counts
                await asyncio.sleep(0.01)

        asked = await asyncio.to_thread(ask_price.delay, "lamp")
        await until("prices")
        here = (await client.get("/prices/lamp")).json()
        there = await asyncio.to_thread(asked.get)
        print(
            "-- a price that nobody knew, asked of a task and of the web process at once: "
            f"{there} and {here}, found out {await count.get('prices')} time(s)",
            flush=True,
        )

        made = await asyncio.to_thread(make_report.delay, "monday")
        await until("reports")
        refused = await client.post("/reports/monday")
        await count.incr("refused")
        print(
            "-- a report that a task makes under a lock: "
            f"{refused.status_code} for the web process\n   {await asyncio.to_thread(made.get)}",
            flush=True,
        )

        told = []
        for headers in ({"X-Tenant": "acme"}, {}, {"X-Tenant": "bolt"}):
            order = (await client.post("/orders", headers=headers)).json()
            told.append(await asyncio.to_thread(greet.AsyncResult(order).get))
        print(f"-- three requests publish a task each: {', '.join(told)}", flush=True)

        charging = await asyncio.to_thread(charge.delay, "order-1")
        await asyncio.to_thread(charging.get)
        print(
            "-- the process that charges is killed in the middle of it: "
            f"{await count.get('attempts')} attempts, charged {await count.get('charges')} time(s)"
        )
    worker.backend.result_consumer.stop()  # Celery leaves its connections to the collector
    worker.backend.client.close()
    worker.pool.force_close_all()


def main() -> None:
    """On a server and a worker that exist only for the run."""
    print("starting Valkey and a worker ...", flush=True)
    with ValkeyServer() as valkey, ThreadPoolExecutor() as threads:
        os.environ["REDIS_DSN"] = valkey.dsn
        worker = Worker()
        try:
            asyncio.run(tell(threads.submit(worker.start)))
        finally:
            if worker.running:  # with its pool, and at once, for nothing is under way
                os.killpg(worker.pid, signal.SIGKILL)
            worker.stop()
    print("all torn down")


if __name__ == "__main__":
    main()
