"""Draws the console's pictures for the documentation: ``python -m tests.http.console_pictures``.

A replica is put to work, on a Valkey of its own, and looked at; then its Valkey dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

from playwright.async_api import Browser, ViewportSize, async_playwright
from tests.http.console_world import (
    JOBS,
    ORDERS,
    PASSWORD,
    PAYMENTS,
    PRODUCTS,
    USER,
    ProductCreate,
    ProductUpdate,
    Replica,
    database,
    replica,
)

from forze.testing.servers import ValkeyServer

PICTURES: Final = Path(__file__).parents[2] / "docs" / "pictures"
DESK: Final[ViewportSize] = {"width": 1180, "height": 650}
KEY: Final[ViewportSize] = {"width": 1180, "height": 780}
PHONE: Final[ViewportSize] = {"width": 390, "height": 844}
DOCUMENTS: Final = "section:has(#documents)"
SEARCH: Final = "section:has(#search)"
WARM_SECONDS: Final = 45.0
OUTAGE_SECONDS: Final = 3.0


async def _busy(at: Replica, products: list[UUID], orders: list[UUID]) -> None:
    """Reads of a shop, with now and then a change of price; until cancelled."""
    read, change = at.ctx.document.query(PRODUCTS), at.ctx.document.command(PRODUCTS)
    dice = random.Random(7)
    for turn in range(1_000_000):
        for _ in range(dice.randint(6, 22) + turn // 40):
            await read.get(products[min(len(products) - 1, int(dice.expovariate(0.15)))])
        await at.ctx.document.query(ORDERS).get(dice.choice(orders))
        if turn % 40 == 0:
            found = await read.get(dice.choice(products))
            await change.update(found.id, found.rev, ProductUpdate(price=turn))
        await asyncio.sleep(0.05)


async def _line(at: Replica, wait: timedelta) -> None:
    async with at.ctx.dlock_scope(JOBS).scope("reindex", wait=wait):
        await asyncio.sleep(wait.total_seconds())


async def _pay(at: Replica) -> None:
    async with at.ctx.idempotency(PAYMENTS).claim("POST /payments", "7d1f0c2b-55aa-4e01", "hash"):
        await asyncio.Event().wait()


@asynccontextmanager
async def _at_work(server: ValkeyServer) -> AsyncIterator[tuple[Replica, UUID]]:
    """A replica that has something to show, and a product that is often read."""
    async with replica(server.dsn, database()) as at, contextlib.AsyncExitStack() as stack:
        products = [await at.product(f"product {number}") for number in range(60)]
        write = at.ctx.document.command(ORDERS)
        orders = [(await write.create(ProductCreate(name="order"))).id for _ in range(200)]
        await at.fail("mail", 1)
        hour = timedelta(hours=1)
        work = [_busy(at, products, orders), _line(at, hour), _line(at, hour), _pay(at)]
        tasks = [asyncio.ensure_future(each) for each in work]
        stack.callback(lambda: [each.cancel() for each in tasks])
        yield at, products[1]


async def _picture(
    browser: Browser, at: Replica, pk: UUID, name: str, scheme: str, size: ViewportSize, top: str
) -> None:
    """What is seen from the element ``top`` on, after a change of the product that is explained."""
    context = await browser.new_context(
        viewport=size,
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
        http_credentials={"username": USER, "password": PASSWORD},
    )
    page = await context.new_page()
    await page.goto(f"{at.address}/console/#document=products&id={pk}")
    await page.locator(".said").wait_for()
    await page.wait_for_timeout(1000)
    found = await at.ctx.document.query(PRODUCTS).get(pk)
    await at.ctx.document.command(PRODUCTS).update(
        pk, found.rev, ProductUpdate(price=found.price + 1)
    )
    await page.wait_for_timeout(500)
    await page.get_by_role("button", name="Compare with the source").click()
    await page.wait_for_timeout(3000)
    await page.locator(top).evaluate("each => each.scrollIntoView()")
    await page.screenshot(path=PICTURES / f"{name}.png")
    await context.close()


async def main() -> None:
    """Draw them."""
    PICTURES.mkdir(exist_ok=True)
    with ValkeyServer() as server:
        async with _at_work(server) as (at, pk), async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            await _picture(browser, at, pk, "console-light", "light", DESK, DOCUMENTS)
            await asyncio.sleep(WARM_SECONDS)
            await _picture(browser, at, pk, "console-light", "light", DESK, DOCUMENTS)
            await _picture(browser, at, pk, "console-key", "light", KEY, SEARCH)
            await _picture(browser, at, pk, "console-phone", "light", PHONE, SEARCH)
            await at.fail("bank")
            server.kill()
            await asyncio.sleep(OUTAGE_SECONDS)
            await _picture(browser, at, pk, "console-dark", "dark", DESK, "body")
            await browser.close()
    for each in sorted(PICTURES.glob("console-*.png")):
        print(f"{each.relative_to(PICTURES.parents[1])}: {each.stat().st_size // 1000} kB")


if __name__ == "__main__":
    asyncio.run(main())
