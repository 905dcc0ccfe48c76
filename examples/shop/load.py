"""Customers: they browse, look closely, order, order twice, and watch for anything that is wrong.

What a read may return is known here, because every write goes through here or is read here: a
revision that was acknowledged, or seen by a read that had ended, is a floor under each read that
starts afterwards, at either replica.
"""

from __future__ import annotations

import asyncio
import bisect
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
from scoreboard import TIERS, Score

PRODUCTS = 100
CATEGORIES = ("books", "garden", "kitchen", "music", "toys")
LIMITED, LIMITED_STOCK = 5, 20
THINKS_SECONDS = 0.03
"""How long a customer thinks between two requests, on average."""
ATTEMPTS = 80

Replicas = list[httpx.AsyncClient]
Answer = httpx.Response | None


@asynccontextmanager
async def clients(addresses: list[str], token: str, customers: int) -> AsyncIterator[Replicas]:
    """One for each replica."""
    limits = httpx.Limits(max_connections=customers)
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=each, auth=("load", token), timeout=30, limits=limits)
            )
            for each in addresses
        ]


async def stock_up(replicas: Replicas) -> list[str]:
    """Put the products into the catalogue, the first of them in a limited edition; their ids."""

    async def add(number: int) -> str:
        limited = number < LIMITED
        product = {
            "name": f"No. {number}{' (limited)' if limited else ''}",
            "category": CATEGORIES[number % len(CATEGORIES)],
            "price": random.randint(100, 500),
            "stock": LIMITED_STOCK if limited else 100,
            "refill": 0 if limited else 100,
        }
        answer = await replicas[number % len(replicas)].post("/products", json=product)
        return str(answer.raise_for_status().json()["id"])

    return await asyncio.gather(*(add(each) for each in range(PRODUCTS)))


class Floors:
    """For each document, which revisions were known by when."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[list[int], list[float]]] = {}

    def known(self, id: str, rev: int) -> None:
        """``rev`` was acknowledged, or read, by now."""
        revs, since = self._known.setdefault(id, ([], []))
        if not revs or rev > revs[-1]:
            revs.append(rev)
            since.append(time.monotonic())

    def behind(self, id: str, rev: int, began: float) -> float:
        """For how long a later one had been known when the read of ``rev`` began; 0: it had not."""
        revs, since = self._known.get(id, ([], []))
        later = bisect.bisect_right(revs, rev)
        return max(0.0, began - since[later]) if later < len(revs) else 0.0


class Customers:
    """Everybody who is in the shop."""

    def __init__(self, replicas: Replicas, products: list[str], score: Score) -> None:
        self._replicas = replicas
        self._score = score
        self._floors = Floors()
        self._products = products
        self._popularity = [1 / rank for rank in range(1, len(products) + 1)]
        self.limited = products[:LIMITED]
        self.orders: list[str] = []
        """The ids of all that were acknowledged."""
        self.unanswered = 0
        """Customers who left before they were told whether their order was placed."""
        self.welcome = True

    async def shop(self, *, buys: bool = True, thinks: float = THINKS_SECONDS) -> None:
        """One customer, for as long as it is welcome; some only look around."""
        me = f"customer-{uuid4().hex[:8]}"
        habits: dict[Callable[[str], Awaitable[None]], int] = {
            self.browse: 60,
            self.look_closely: 20,
            self.search: 4,
            self.order: 20 if buys else 0,
            self.follow: 4,
            self.check_the_bill: 4,
            self.reprice: 1,
            self.report: 1,
        }
        while self.welcome:
            (habit,) = random.choices(list(habits), list(habits.values()))
            await habit(me)
            await asyncio.sleep(random.uniform(0, 2 * thinks))

    # -- habits --------------------------------------------------------------

    async def browse(self, me: str) -> None:
        """The catalogue, from the L1: a push late at most."""
        product, began = self._some_product(), time.monotonic()
        answer = await self._read(f"/products/{product}", me)
        if answer is not None:
            self._score.counts["browsed"] += 1
            behind = self._floors.behind(product, answer.json()["rev"], began)
            if behind:
                self._score.behind(behind * 1000)

    async def look_closely(self, me: str) -> None:
        """The offer, from Valkey: never stale."""
        await self._read_exactly("/products/{}/offer", self._some_product(), me)

    async def follow(self, me: str) -> None:
        """What became of an order."""
        if self.orders:
            await self._read_exactly("/orders/{}", random.choice(self.orders[-50:]), me)

    async def check_the_bill(self, me: str) -> None:
        """What the payment provider has charged; it may not answer."""
        if self.orders:
            order = random.choice(self.orders[-50:])
            await self._read(f"/orders/{order}/bill", me, excused={503, 504})

    async def search(self, me: str) -> None:
        """Two pages of a search that stands still. It is kept in Valkey: it may have to wait for
        it, or to begin anew where it is gone."""
        query = f"/products?category={random.choice(CATEGORIES)}&sort=price&limit=10"
        answer = await self._read(query, me, excused={429, 503, 504})
        if answer is not None and (cursor := answer.json()["next_cursor"]):
            await self._read(f"{query}&cursor={cursor}", me, excused={410, 429, 503, 504})

    async def order(self, me: str) -> None:
        """Order something, and now and then press the button twice."""
        wanted = {"product_id": self._some_product(), "quantity": random.randint(1, 3)}
        if random.random() < 0.1:
            wanted["product_id"] = random.choice(self.limited)
        key = uuid4().hex
        twice = random.random() < 0.2
        self.unanswered += 1
        placed = await asyncio.gather(*(self._place(key, wanted, me) for _ in range(1 + twice)))
        self.unanswered -= 1
        orders = [each.json() for each in placed if each is not None and each.status_code == 201]
        if orders:
            self._score.counts["orders"] += 1
            self.orders.append(orders[0]["id"])
            self._floors.known(orders[0]["id"], orders[0]["rev"])
        if len(orders) == 2:
            self._score.counts["replayed" if orders[0] == orders[1] else "placed twice"] += 1

    async def reprice(self, me: str) -> None:
        """The shop's own hand: a new price, on top of the revision that was seen."""
        product = self._some_product()
        seen = await self._read(f"/products/{product}/offer", me)
        if seen is None:
            return
        change = {"rev": seen.json()["rev"], "price": random.randint(100, 500)}
        answer = await self._send("PATCH", f"/products/{product}", me, json=change)
        if answer is not None and answer.status_code == 200:
            self._floors.known(product, answer.json()["rev"])

    async def report(self, me: str) -> None:
        """The sales so far."""
        await self._read("/reports/sales", me)

    async def watch_the_console(self) -> None:
        """Ask each replica now and then who answered its reads, and how its circuits stand."""
        while self.welcome:
            answered: Counter[str] = Counter()
            for number, replica in enumerate(self._replicas):
                overview = (await replica.get("/console/api/overview")).raise_for_status().json()
                for document in overview["documents"]:
                    reads = document["since_start"]["reads"]
                    answered.update({tier: reads[tier] or 0 for tier in TIERS})
                if any(each["state"] == "open" for each in overview["circuits"]):
                    self._score.noticed.add(number)
            self._score.tiers = answered
            await asyncio.sleep(0.25)

    # -- requests ------------------------------------------------------------

    async def _read_exactly(self, path: str, id: str, me: str) -> None:
        began = time.monotonic()
        answer = await self._read(path.format(id), me)
        if answer is None:
            return
        rev = answer.json()["rev"]
        self._score.counts["checked"] += 1
        if self._floors.behind(id, rev, began):
            self._score.counts["stale"] += 1
        self._floors.known(id, rev)

    async def _read(self, path: str, me: str, *, excused: Collection[int] = ()) -> Answer:
        """A read, which must not fail but with a status that is excused."""
        answer = await self._send("GET", path, me)
        if answer is not None and answer.status_code == 200:
            return answer
        if answer is None or answer.status_code not in excused:
            self._score.failed("GET", path, answer)
        elif answer.status_code == 429:
            self._score.counts["throttled"] += 1
        else:
            self._score.come_back()
        return None

    async def _place(self, key: str, wanted: Any, me: str) -> Answer:
        """An order under its key, again for as long as it is told to come back: that is safe."""
        headers, broken = {"Idempotency-Key": key}, False
        for _ in range(ATTEMPTS):
            broken |= bool(self._score.event)  # a claim that was lost then holds the key up longer
            answer = await self._send("POST", "/orders", me, json=wanted, headers=headers)
            status = 503 if answer is None else answer.status_code
            hint = None if answer is None else answer.headers.get("Retry-After")
            if status == 201 or (status == 409 and hint is None):
                self._score.counts["sold out"] += status == 409
                return answer
            if status not in (409, 503, 504):
                break
            self._score.come_back(excused=broken)
            await asyncio.sleep(min(float(hint or 1), 0.25))
        self._score.failed("POST", "/orders", answer)
        return None

    async def _send(
        self, method: str, path: str, me: str, *, headers: Any = None, json: Any = None
    ) -> Answer:
        began = time.monotonic()
        try:
            return await random.choice(self._replicas).request(
                method, path, headers={"X-Customer": me, **(headers or {})}, json=json
            )
        except httpx.TransportError:
            return None
        finally:
            self._score.request((time.monotonic() - began) * 1000)

    def _some_product(self) -> str:
        (product,) = random.choices(self._products, self._popularity)
        return product
