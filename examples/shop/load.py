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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
from scoreboard import Score

PRODUCTS = 100
CATEGORIES = ("books", "garden", "kitchen", "music", "toys")
LIMITED, LIMITED_STOCK = 5, 20
ATTEMPTS = 80

Answer = httpx.Response | None


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

    def __init__(self, replicas: list[httpx.AsyncClient], score: Score) -> None:
        self._replicas = replicas
        self._score = score
        self._floors = Floors()
        self._products: list[str] = []
        self._popularity: list[float] = []
        self.limited: list[str] = []
        self.orders: list[str] = []
        """The ids of all that were acknowledged."""
        self.welcome = True
        self.unanswered = 0
        """Customers who left before they were told whether their order was placed."""

    async def fill_the_shelves(self) -> None:
        """Put the products into the catalogue; a few of them in a limited edition."""
        self._products = await asyncio.gather(*(self._new(each) for each in range(PRODUCTS)))
        self.limited = self._products[:LIMITED]
        self._popularity = [1 / rank for rank in range(1, PRODUCTS + 1)]

    async def _new(self, number: int) -> str:
        limited = number < LIMITED
        product = {
            "name": f"{'Limited e' if limited else 'E'}dition {number}",
            "category": CATEGORIES[number % len(CATEGORIES)],
            "price": 100 + number,
            "stock": LIMITED_STOCK if limited else 100,
            "refill": 0 if limited else 100,
        }
        answer = await self._replicas[number % 2].post("/products", json=product)
        answer.raise_for_status()
        return str(answer.json()["id"])

    async def shop(self, pause: float = 0.0) -> None:
        """One customer, for as long as it is welcome."""
        me = f"customer-{uuid4().hex[:8]}"
        habits: dict[Callable[[str], Awaitable[None]], int] = {
            self.browse: 60,
            self.look_closely: 20,
            self.search: 4,
            self.order: 10,
            self.follow: 4,
            self.reprice: 1,
            self.report: 1,
        }
        while self.welcome:
            (habit,) = random.choices(list(habits), list(habits.values()))
            await habit(me)
            await asyncio.sleep(pause)

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

    async def search(self, me: str) -> None:
        """Two pages of a search that stands still."""
        query = f"/products?category={random.choice(CATEGORIES)}&sort=price&limit=10"
        answer = await self._read(query, me, frozen=True)
        if answer is not None and (cursor := answer.json()["next_cursor"]):
            await self._read(f"{query}&cursor={cursor}", me, frozen=True)

    async def order(self, me: str) -> None:
        """Order something, and now and then press the button twice."""
        wanted = {"product_id": self._some_product(), "quantity": random.randint(1, 3)}
        if random.random() < 0.1:
            wanted["product_id"] = random.choice(self.limited)
        key = uuid4().hex
        twice = random.random() < 0.2
        self.unanswered += 1
        placed = await asyncio.gather(
            *(self._until_answered("/orders", key, wanted, me) for _ in range(1 + twice))
        )
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
            self._score.counts["repriced"] += 1

    async def report(self, me: str) -> None:
        """The sales so far."""
        await self._read("/reports/sales", me)

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

    async def _read(self, path: str, me: str, *, frozen: bool = False) -> Answer:
        """A read, which must not fail; a search that is frozen in Valkey may have to wait for it,
        or to begin anew where it is gone."""
        answer = await self._send("GET", path, me)
        if answer is not None and answer.status_code == 200:
            return answer
        if answer is not None and answer.status_code == 429:
            self._score.counts["throttled"] += 1
        elif answer is not None and frozen and answer.status_code in (410, 503):
            self._score.come_back()
        else:
            self._score.failed("GET", path, answer)
        return None

    async def _until_answered(self, path: str, key: str, body: Any, me: str) -> Answer:
        """A write under its key, again for as long as it is told to come back: that is safe."""
        for _ in range(ATTEMPTS):
            answer = await self._send("POST", path, me, json=body, headers={"Idempotency-Key": key})
            if answer is not None and answer.status_code in (201, 409) and not _in_progress(answer):
                self._score.counts["sold out"] += answer.status_code == 409
                return answer
            if answer is not None and answer.status_code not in (409, 503):
                self._score.failed("POST", path, answer)
                return None
            self._score.come_back()
            hint = 1.0 if answer is None else float(answer.headers.get("Retry-After", 1))
            await asyncio.sleep(min(hint, 0.25))
        self._score.failed("POST", path, answer)
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


def _in_progress(answer: httpx.Response) -> bool:
    return "Retry-After" in answer.headers


@asynccontextmanager
async def clients(addresses: list[str]) -> AsyncIterator[list[httpx.AsyncClient]]:
    """One for each replica."""
    async with AsyncExitStack() as stack:
        made = (httpx.AsyncClient(base_url=each, timeout=30) for each in addresses)
        yield [await stack.enter_async_context(each) for each in made]


async def watch_tiers(replicas: list[httpx.AsyncClient], score: Score, token: str) -> None:
    """Ask the console of each replica now and then who answered the reads."""
    while True:
        counts: Counter[str] = Counter()
        for each in replicas:
            answer = await each.get("/console/api/overview", auth=("load", token))
            for document in answer.json()["documents"]:
                reads = document["since_start"]["reads"]
                counts.update({tier: many or 0 for tier, many in reads.items()})
        score.tiers = counts
        await asyncio.sleep(0.5)
