"""A day of the shop: it opens, customers come, things break, the books are done, it closes."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from contextlib import nullcontext, suppress

from audit import audit, verdict
from load import Customers, clients, stock_up
from rich.console import Console
from rich.live import Live
from scoreboard import Score, board, figures, line
from stage import Stage, stage

from forze.errors import ForzeError

OUT_SECONDS, BACK_SECONDS = 1.5, 2.0
"""How long Valkey is away, and how long afterwards that may be felt."""
NOTICED_WITHIN_SECONDS = 10.0
"""How long the payment provider is away at most, if the replicas do not notice."""

console = Console(highlight=False)


def a_day(asked: Namespace) -> int:
    """From nothing to nothing; the exit status."""
    console.print("starting PostgreSQL, Valkey, two replicas and a worker ...")
    try:
        with stage() as shop:
            tell_addresses(shop)
            return 0 if asyncio.run(trade(shop, asked)) else 1
    except ForzeError as error:
        console.print(f"failed: {error}", style="red")
        return 1
    finally:
        console.print("all torn down")


async def trade(shop: Stage, asked: Namespace) -> bool:
    """Customers for a while, then the books; whether all is well."""
    async with (
        clients(shop.addresses, shop.console_token, asked.customers) as replicas,
        asyncio.TaskGroup() as beside,
    ):
        supervisor = beside.create_task(supervise(shop))
        products = await stock_up(replicas)
        score = Score(asked.seconds)
        customers = Customers(replicas, products, score)
        async with asyncio.TaskGroup() as group:
            group.create_task(show(score, customers))
            group.create_task(customers.watch_the_console())
            for number in range(asked.customers):
                group.create_task(customers.shop(buys=number % 2 == 0))
            if asked.chaos:
                await chaos(shop, score)
            await asyncio.sleep(score.seconds - score.elapsed)
            customers.welcome = False
        books = await audit(shop.postgres.dsn, customers)
        good = summary(score, verdict(score, books, len(replicas) if asked.chaos else 0))
        if not good:
            shop.tell_logs()
        if asked.stay:
            await stay(shop, customers)
        supervisor.cancel()
    return good


async def supervise(shop: Stage) -> None:
    """Start the worker and its clock again where they have ended, as an init system would: not
    each loss of its broker is survived by Celery."""
    while True:
        for each in (shop.worker, shop.clock):
            await asyncio.to_thread(each.start)
        await asyncio.sleep(0.5)


async def chaos(shop: Stage, score: Score) -> None:
    """The payment provider goes away until every replica knows; then Valkey is killed."""
    await asyncio.sleep(score.seconds / 4)
    score.event = "[red]payments fail"
    await shop.set_payments(up=False)
    with suppress(TimeoutError):
        async with asyncio.timeout(NOTICED_WITHIN_SECONDS):
            await score.noticed_by(len(shop.replicas))
    await shop.set_payments(up=True)
    score.event = "[red]Valkey is dead"
    await asyncio.to_thread(shop.valkey.kill)
    await asyncio.sleep(OUT_SECONDS)
    await asyncio.to_thread(shop.valkey.start)
    score.event = "[green]Valkey is back"
    await asyncio.sleep(BACK_SECONDS)
    score.event = ""


async def stay(shop: Stage, customers: Customers) -> None:
    """A customer now and then, until Ctrl-C; they finish what they have begun."""
    console.print("\nopen until Ctrl-C, with a customer now and then", style="bold")
    tell_addresses(shop)
    customers.welcome = True
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(customers.shop(thinks=0.2))
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        customers.welcome = False


async def show(score: Score, customers: Customers) -> None:
    """The board, live; without a terminal a line each second."""
    terminal = Live(console=console, auto_refresh=False, transient=True)
    with terminal if console.is_terminal else nullcontext() as live:
        while customers.welcome:
            if live is not None:
                live.update(board(score), refresh=True)
            else:
                console.print(line(score), soft_wrap=True)
            await asyncio.sleep(0.1 if live else 1.0)


def summary(score: Score, checks: dict[str, bool]) -> bool:
    """Print what happened, and each thing that must hold; whether all of it did."""
    console.print(figures(score))
    for text, holds in checks.items():
        console.print(f"{'[green]✓' if holds else '[red]✗'} {text}")
    for failure in score.failures[:10]:
        console.print(failure, style="red", markup=False)
    return all(checks.values())


def tell_addresses(shop: Stage) -> None:
    """Where to look."""
    for number, address in enumerate(shop.addresses, 1):
        inside = address.replace("//", f"//staff:{shop.console_token}@")
        console.print(f"replica {number}  {address}/docs")
        console.print(f"  console  {inside}/console/", soft_wrap=True)
