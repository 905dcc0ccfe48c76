"""The whole shop by one command: servers, two replicas, a worker, customers, and the books.

``python main.py [--seconds 10] [--chaos] [--stay]``. Everything it starts is gone when it ends,
on Ctrl-C and on failure too. The exit status is 0 when nothing went wrong that may not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from audit import Books, audit
from load import Customers, clients, watch_tiers
from rich.console import Console
from rich.live import Live
from scoreboard import Score, board, figures, line
from stage import Stage, stage

from forze.errors import ForzeError

OUT_SECONDS, BACK_SECONDS = 1.5, 2.0
"""How long Valkey is away, and how long afterwards that may be felt."""
BUDGET = 0.01
"""The share of requests that may be answered with 503 and ``Retry-After`` at other times."""
L1_BOUND_MS = 3_000
"""What a process that has lost its pushes may be behind (``staleness_bound_seconds``)."""

console = Console(highlight=False)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="how long the customers come")
    parser.add_argument("--customers", type=int, default=16, help="how many at once")
    parser.add_argument("--chaos", action="store_true", help="kill Valkey in the middle of it")
    parser.add_argument("--stay", action="store_true", help="stay open until Ctrl-C")
    return parser.parse_args()


async def run(shop: Stage, asked: argparse.Namespace) -> bool:
    """Customers for a while, then the books; whether all is well."""
    score = Score(asked.seconds)
    async with clients(shop.addresses) as replicas:
        customers = Customers(replicas, score)
        await customers.fill_the_shelves()
        score.restart()
        watch = watch_tiers(replicas, score, shop.console_token)
        async with shown(score), shopping(customers, asked.customers), beside(watch):
            if asked.chaos:
                await chaos(shop, score)
            await asyncio.sleep(max(0.0, asked.seconds - score.elapsed))
        books = await audit(shop.postgres.dsn, customers)
        good = summary(score, books)
        if not good:
            shop.tell_logs()
        if asked.stay:
            console.print("\nopen until Ctrl-C, with a customer now and then", style="bold")
            tell_addresses(shop)
            async with shopping(customers, 2, pause=0.1):
                await asyncio.Event().wait()
    return good


async def chaos(shop: Stage, score: Score) -> None:
    """Kill Valkey a third into the run, and start it again a little later."""
    await asyncio.sleep(score.seconds / 3)
    score.event, score.excused = "[red]· Valkey is dead", True
    await asyncio.to_thread(shop.valkey.kill)
    await asyncio.sleep(OUT_SECONDS)
    await asyncio.to_thread(shop.valkey.start)
    score.event = "[green]· Valkey is back"
    await asyncio.sleep(BACK_SECONDS)
    score.excused = False


@asynccontextmanager
async def beside(*work: Coroutine[Any, Any, None], patience: float = 0.0) -> AsyncIterator[None]:
    """``work`` goes on for the length of the block, and ``patience`` seconds beyond it at most;
    what it raises is raised at the end."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        await asyncio.wait(tasks, timeout=patience)
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


@asynccontextmanager
async def shopping(customers: Customers, many: int, pause: float = 0.0) -> AsyncIterator[None]:
    """So many customers, for the length of the block; each finishes what it has begun."""
    customers.welcome = True
    async with beside(*(customers.shop(pause) for _ in range(many)), patience=5.0):
        try:
            yield
        finally:
            customers.welcome = False


@asynccontextmanager
async def shown(score: Score) -> AsyncIterator[None]:
    """The board, live; without a terminal a line each second."""

    async def draw(live: Live | None) -> None:
        while True:
            if live is not None:
                live.update(board(score), refresh=True)
            else:
                console.print(line(score))
            await asyncio.sleep(0.1 if live else 1.0)

    terminal = Live(console=console, auto_refresh=False, transient=True)
    with terminal if console.is_terminal else contextlib.nullcontext() as live:
        async with beside(draw(live)):
            yield


def summary(score: Score, books: Books) -> bool:
    """Print what happened, and each thing that must hold; whether all of it did."""
    console.print(figures(score))
    checks = {
        "no read was older than a write acknowledged before it": score["stale"] == 0,
        f"the L1 was never behind for more than {L1_BOUND_MS:,} ms": (
            score.longest_behind_ms <= L1_BOUND_MS
        ),
        "no request failed that may not": score["failed"] == 0,
        "nobody was told to come back without need": (
            score["without need"] <= BUDGET * len(score.took_ms)
        ),
        "no order was placed twice": score["placed twice"] == 0 and books.surplus == 0,
        "every acknowledged order is in the books": books.missing == 0,
        "the worker confirmed every order": books.unconfirmed == 0 and score["orders"] > 0,
        "each was charged once, and its amount": books.charged_wrongly == 0,
        "nothing was sold that was not there": books.oversold == 0,
    }
    for text, holds in checks.items():
        console.print(f"{'[green]✓' if holds else '[red]✗'} {text}")
    for failure in score.failures[:10]:
        console.print(failure, style="red")
    return all(checks.values())


def tell_addresses(shop: Stage) -> None:
    """Where to look."""
    for number, address in enumerate(shop.addresses, 1):
        inside = address.replace("//", f"//staff:{shop.console_token}@")
        console.print(f"replica {number}  {address}/docs")
        console.print(f"  console  {inside}/console/", soft_wrap=True)


async def performed(shop: Stage, asked: argparse.Namespace) -> int:
    """:func:`run`, stopped in good order by Ctrl-C and SIGTERM; the exit status."""
    task = asyncio.create_task(run(shop, asked))
    stopped_by: list[int] = []

    def stop(number: int) -> None:
        stopped_by.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return 0 if await task else 1
    except asyncio.CancelledError:
        return 0 if asked.stay else 128 + stopped_by[0]


def main() -> int:
    """Everything, from nothing to nothing; the exit status."""
    asked = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console.print("starting PostgreSQL, Valkey, two replicas and a worker ...")
    try:
        with stage() as shop:
            tell_addresses(shop)
            status = asyncio.run(performed(shop, asked))
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except ForzeError as error:
        console.print(f"failed: {error}", style="red")
        status = 1
    console.print("all torn down")
    return status


if __name__ == "__main__":
    sys.exit(main())
