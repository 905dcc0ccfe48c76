"""The console: what it tells over HTTP, and what a real browser makes of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import monotonic
from typing import Any, Literal
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import Depends, FastAPI
from playwright.async_api import (
    BrowserContext,
    HttpCredentials,
    Page,
    Route,
    ViewportSize,
    async_playwright,
)
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.http.console_world import (
    JOBS,
    ORDERS,
    OWNED,
    PASSWORD,
    PAYMENTS,
    PRODUCTS,
    USER,
    ProductCreate,
    ProductUpdate,
    Replica,
    database,
    replica,
    runtime_of,
)

from forze.application.contracts.idempotency import IdempotencySnapshot
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.errors import ConfigurationError
from forze.testing.proxy import RespProxy
from forze.testing.servers import ValkeyServer
from forze.testing.serving import serving
from forze_fastapi import console, open_to_everyone, runtime_lifespan
from forze_fastapi.console import gathering
from forze_redis import RedisDepsModule, RoutedRedisClient, routed_redis_lifecycle_step

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
)
PATIENCE_SECONDS = 20
DESK: ViewportSize = {"width": 1280, "height": 900}
PHONE = 360
INTENDED = {"X-Forze-Console": "1"}

pytestmark = pytest.mark.asyncio(loop_scope="module")


# -- the world -----------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(valkey: ValkeyServer) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas over one database and one cache, shared by all tests that stop nothing."""
    valkey.ask("FLUSHALL")
    shared = database()
    async with replica(valkey.dsn, shared) as here, replica(valkey.dsn, shared) as there:
        yield here, there


@pytest.fixture
def one(two: tuple[Replica, Replica]) -> Replica:
    """The first of them."""
    return two[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signed_in_browser() -> AsyncIterator[BrowserContext]:
    """One Chromium for all of this, in which somebody has signed in."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: nobody looked at the console")
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        known = HttpCredentials(username=USER, password=PASSWORD)
        yield await chromium.new_context(http_credentials=known, viewport=DESK)
        await chromium.close()


@dataclass
class Look:
    """A page that somebody looks at, and what it asked and said meanwhile."""

    page: Page
    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    async def until_shown(self, where: str, what: str) -> None:
        """Wait until ``where`` holds this text. The page's seconds pass as fast as they can."""
        await self._until(where, what, lambda found: found > 0)

    async def until_gone(self, where: str, what: str = "") -> None:
        """Wait until no ``where`` holds this text."""
        await self._until(where, what, lambda found: found == 0)

    async def _until(self, where: str, what: str, holds: Callable[[int], bool]) -> None:
        found = self.page.locator(where, has_text=what)

        async def after_a_second() -> bool:
            if holds(await found.count()):
                return True
            await self.page.clock.run_for(1000)
            return False

        await until(after_a_second, f"{what!r} in {where!r}")

    async def search(self, kind: str, pk: UUID | str) -> None:
        """Look for a document, by the keyboard."""
        await self.page.get_by_label("Kind").select_option(kind)
        await self.page.get_by_label("Id", exact=True).fill(str(pk))
        await self.page.keyboard.press("Enter")

    async def overflow(self) -> int:
        """Pixels that stand out of the page on the right."""
        found: int = await self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return found


@asynccontextmanager
async def looking(
    browser: BrowserContext, address: str, path: str = "/console/"
) -> AsyncIterator[Look]:
    """Open the console; nothing may go wrong in it, and it asks nobody else."""
    page = await browser.new_page()
    await page.clock.install()
    look = Look(page)
    page.on("request", lambda request: look.requests.append(request.url))
    page.on("console", lambda message: look.said.append(message.text))
    page.on("pageerror", lambda error: look.said.append(str(error)))
    try:
        await page.goto(address + path)
        await look.until_shown("#pulse", "Live")
        yield look
        assert look.said == []
        assert [each for each in look.requests if not each.startswith((address, "data:"))] == []
    finally:
        await page.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_page(
    signed_in_browser: BrowserContext, two: tuple[Replica, Replica]
) -> AsyncIterator[Look]:
    """The page of the first replica, open for all tests that leave it as it was."""
    async with looking(signed_in_browser, two[0].address) as look:
        yield look


@pytest.fixture
def look(open_page: Look) -> Iterator[Look]:
    """It, and whether anything went wrong in it."""
    yield open_page
    assert open_page.said == []


def signed_in(at: Replica, auth: tuple[str, str] | None = (USER, PASSWORD)) -> httpx.AsyncClient:
    """A client that knows the password; without TLS, whose set-up takes longer than a test."""
    return httpx.AsyncClient(
        base_url=f"{at.address}/console", auth=auth, timeout=20, verify=False, trust_env=False
    )


async def told(at: Replica, path: str, **params: Any) -> Any:
    """What the API answers."""
    async with signed_in(at) as client:
        answer = await client.get(f"/api/{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()


async def until(holds: Callable[[], Awaitable[bool]], what: str = "it") -> None:
    """Wait until it holds."""
    give_up = monotonic() + PATIENCE_SECONDS
    while not await holds():
        assert monotonic() < give_up, f"waited in vain for {what}"
        await asyncio.sleep(0.02)


async def kept(at: Replica, pk: UUID) -> None:
    """Read a product until the process keeps it: its own fill is pushed to it as well."""

    async def there() -> bool:
        await at.ctx.document.query(PRODUCTS).get(pk)
        found = await told(at, "explain", document="products", id=str(pk))
        return bool(found["l1"]["state"] == "kept")

    await until(there)


# -- who is let in -------------------------------------------------------------


async def test_nobody_is_let_in_without_the_dependency(one: Replica) -> None:
    paths = ("/", "/api/overview", f"/api/explain?document=products&id={uuid4()}")
    for auth in (None, (USER, "wrong")):
        async with signed_in(one, auth) as client:
            for path in paths:
                assert (await client.get(path)).status_code == 401
            refused = await client.post("/api/invalidate", content=b"{", headers=INTENDED)
            assert refused.status_code == 401
            assert refused.headers["cache-control"] == "no-store"
            for method in ("HEAD", "OPTIONS", "POST", "DELETE"):
                answer = await client.request(method, "/")
                assert answer.status_code == 405
                assert "forze" not in answer.text


async def test_a_console_without_a_dependency_is_a_mistake() -> None:
    runtime = runtime_of("redis://127.0.0.1:1/0", database())
    with pytest.raises(ConfigurationError, match="open_to_everyone"):
        console(runtime)
    with pytest.raises(ConfigurationError, match="open_to_everyone"):
        console(runtime, dependencies=[])
    for nonsense in (None, open_to_everyone, [open_to_everyone], [None], "admin"):
        with pytest.raises(ConfigurationError, match="Depends"):
            console(runtime, dependencies=nonsense)  # type: ignore[arg-type]
    assert console(runtime, dependencies=[Depends(open_to_everyone)]).routes


async def test_it_stands_wherever_it_is_put(
    signed_in_browser: BrowserContext, valkey_dsn: str
) -> None:
    """Included or mounted, below an application that knows its own root; in no schema."""
    runtime = runtime_of(valkey_dsn, database())
    app, everyone = FastAPI(), [Depends(open_to_everyone)]
    app.mount("/inside", console(runtime, dependencies=everyone))
    app.include_router(console(runtime, dependencies=everyone), prefix="/a/console")
    behind = Starlette(routes=[Mount("/shop", app)], lifespan=runtime_lifespan(runtime))
    async with serving(behind) as address:
        for path in ("/shop/inside", "/shop/a/console/"):
            async with looking(signed_in_browser, address, path) as look:
                await look.until_shown("h3", "products")
        async with httpx.AsyncClient(base_url=address) as client:
            assert (await client.get("/shop/openapi.json")).json()["paths"] == {}


async def test_it_answers_at_an_address_with_a_password_in_it(
    one: Replica, signed_in_browser: BrowserContext
) -> None:
    """A browser asks nothing at an address that has one, so the page must leave it out."""
    page = await signed_in_browser.new_page()
    await page.goto(one.address.replace("//", f"//{USER}:{PASSWORD}@") + "/console/")
    pulse = page.locator("#pulse", has_text="Live")
    await pulse.wait_for(timeout=20_000)
    assert await pulse.is_visible()
    await page.close()


async def test_the_page_is_shut_to_everything_else(one: Replica) -> None:
    async with signed_in(one) as client:
        page = await client.get("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert re.search(r"script-src 'sha256-[\w+/=]+';", policy)
        assert "frame-ancestors 'none'" in policy
        for path in ("/", "/api/overview", "/api/explain?document=nothing&id=1"):
            headers = (await client.get(path)).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
        text = page.text
        assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
        assert "innerHTML" not in text
        assert not re.search(r"""\son\w+=""", text)


async def test_other_sites_can_ask_nothing(one: Replica) -> None:
    key = {"document": "products", "id": str(await one.product())}
    async with signed_in(one) as client:
        assert (await client.post("/api/invalidate", params=key)).status_code == 403
        for site in ("cross-site", "same-site"):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors", **INTENDED}
            assert (await client.get("/api/overview", headers=headers)).status_code == 403
            refused = await client.post("/api/invalidate", params=key, headers=headers)
            assert refused.status_code == 403
        followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert (await client.get("/", headers=followed)).status_code == 200
        framed = {**followed, "Sec-Fetch-Dest": "iframe"}
        assert (await client.get("/", headers=framed)).status_code == 403
        done = await client.post("/api/invalidate", params=key, headers=INTENDED)
        assert done.json() == {"told": True}


# -- what it tells -------------------------------------------------------------


async def test_the_overview_counts_what_happens(one: Replica) -> None:
    before = await told(one, "overview")
    pk = await one.product()
    for _ in range(5):
        await one.ctx.document.query(PRODUCTS).get(pk)
    after = await told(one, "overview")
    assert [each["name"] for each in after["documents"]] == ["products", "orders", "invoices"]
    assert [each["tenant_aware"] for each in after["documents"]] == [False, False, True]
    first, products = before["documents"][0], after["documents"][0]
    then, now = (each["since_start"]["reads"] for each in (first, products))
    reads = {tier: now[tier] - then[tier] for tier in now}
    # What was filled is pushed to the process that filled it as well, and may go once more.
    assert reads["l1"] + reads["cache"] == 4
    assert (reads["shared"], reads["source"]) == (0, 1)
    ratios = products["since_start"]["hit_ratios"]
    assert ratios["l1"] == now["l1"] / sum(now.values())
    assert ratios["all"] == 1 - now["source"] / sum(now.values())
    assert products["minute"]["reads"] == {tier: now[tier] for tier in now}
    assert products["loads"]["of"] == first["loads"]["of"] + 1
    assert 0 < products["loads"]["p50_seconds"] <= products["loads"]["p99_seconds"]
    assert products["l1"]["capacity"] == 512
    assert products["counts"]["fills"] == first["counts"]["fills"] + 1
    (server,) = after["servers"]
    assert (server["name"], server["ok"]) == ("redis", True)
    assert server["facts"]["pushes"] == "on"
    assert [each["name"] for each in after["policies"]] == ["bank", "mail"]
    assert (after["locks"], after["claims"]) == ([], [])


async def test_what_is_too_much_to_show_is_counted(
    one: Replica, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "MOST_ROWS", 2)
    locks = one.ctx.dlock(JOBS)
    held = [await locks.acquire(f"k{number}", "me") for number in range(4)]
    found = await told(one, "overview")
    assert [each["key"] for each in found["locks"]] == ["k0", "k1"]
    assert found["totals"]["locks"] == 4
    await look.until_shown("#n-locks", "2 of 4, the longest")
    for each in held:
        assert each is not None
        await locks.release(each)
    await look.until_gone("#n-locks", "of")


async def test_the_latency_of_pushes_is_measured_while_somebody_looks(one: Replica) -> None:
    async def measured() -> bool:
        pushes: list[Any] = (await told(one, "overview"))["pushes"]
        return bool(pushes) and 0 < pushes[0]["seconds"] < 20

    await until(measured)
    assert (await told(one, "overview"))["pushes"][0]["name"] == "redis_client"


async def test_it_gives_no_secrets_away(one: Replica) -> None:
    key = "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"
    port = one.ctx.idempotency(PAYMENTS)
    async with port.claim("pay", key, "hash"), port.claim("pay", "pin1", "hash"):
        everything = json.dumps(await told(one, "overview"), ensure_ascii=False)
    assert '"sk_live_…"' in everything
    assert key not in everything
    assert '"pi…"' in everything
    assert PASSWORD not in everything


async def test_every_state_of_a_key_is_explained(one: Replica) -> None:
    pk = str(await one.product())
    order = (await one.ctx.document.command(ORDERS).create(ProductCreate(name="o"))).id
    query = one.ctx.document.query(ORDERS)
    (kind,) = [each for each in one.ctx.document.kinds() if each.spec is ORDERS]
    assert kind.coordinator is not None
    pointers, address = kind.coordinator.outlet.pointers, kind.coordinator.address(order)

    async def explained() -> tuple[str, str, str]:
        found = await told(one, "explain", document="orders", id=str(order))
        return found["entry"]["state"], found["next"]["answered_by"], found["next"]["reason"]

    assert await explained() == ("absent", "source", "absent")
    token = pointers.token()
    await pointers.read(address, token)
    assert await explained() == ("lease", "cache", "lease_held")
    pointers.give_back([address], token)
    await query.get(order)
    assert await explained() == ("value", "cache", "hit")
    await pointers.intend([address], "w1")
    assert await explained() == ("intent", "source", "intent")
    await pointers.done([address], "w1")
    await kept(one, UUID(pk))
    found = await told(one, "explain", document="products", id=pk, compare=True)
    assert (found["l1"]["state"], found["l1"]["rev"]) == ("kept", 1)
    assert found["next"] == {"answered_by": "l1", "reason": "l1", "says": "kept in this process"}
    assert (found["compared"], found["source"]["rev"]) == (True, 1)
    assert found["reads"] is None


async def test_what_another_server_or_model_left_is_told_apart(
    one: Replica, valkey: ValkeyServer
) -> None:
    order = (await one.ctx.document.command(ORDERS).create(ProductCreate(name="o"))).id
    await one.ctx.document.query(ORDERS).get(order)
    pointer = f"shop:orders/cache/pointer/{order}"
    written = valkey.ask("GET", pointer).decode().split("\r\n")[1]
    generation, schema = written[1:9], written[9:17]
    for tag, reason in (
        (f"othergen{schema}", "other_generation"),
        (f"{generation}otherone", "other_schema"),
    ):
        valkey.ask("SET", pointer, f"V{tag}1")
        found = await told(one, "explain", document="orders", id=str(order), watch=True)
        assert found["next"]["reason"] == reason
        await one.ctx.document.query(ORDERS).get(order)
        found = await told(one, "explain", document="orders", id=str(order), watch=True)
        last = found["reads"][0]
        assert (last["answered_by"], last["outcome"]) == ("source", "filled")
        assert last["reason"] == reason
    valkey.ask("UNLINK", f"shop:orders/cache/body/{order}/1")
    assert (await told(one, "explain", document="orders", id=str(order)))["next"][
        "reason"
    ] == "body_gone"


async def test_what_cannot_be_explained_is_said(one: Replica) -> None:
    async with signed_in(one) as client:

        async def asked(**params: str) -> httpx.Response:
            return await client.get("/api/explain", params=params)

        assert (await asked(document="nothing", id=str(uuid4()))).status_code == 404
        assert (await asked(document="products", id="no-id")).status_code == 422
        missing = await asked(document="invoices", id=str(uuid4()))
        assert missing.status_code == 422
        assert "tenant" in missing.json()["detail"]
        found = await asked(document="invoices", id=str(uuid4()), tenant="acme")
        assert found.json()["address"].startswith("shop:invoices/cache/pointer/acme/")
        odd = await asked(document="invoices", id=str(uuid4()), tenant="*/../ {x}")
        assert odd.json()["address"].startswith("shop:invoices/cache/pointer/%2A%2F..%2F%20%7Bx%7D")
        gone = await asked(document="products", id=str(uuid4()), compare="true")
        assert (gone.json()["compared"], gone.json()["source"]) == (True, None)


async def test_a_tenant_without_a_server_is_no_outage() -> None:
    routed = RedisDepsModule(
        client=RoutedRedisClient(),
        caches={"invoices": {"namespace": "shop:invoices", "tenant_aware": True}},
    )
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(database(), routed),
        lifecycle=LifecyclePlan.from_steps(
            routed_redis_lifecycle_step(dsn_of={"acme": "redis://x"})
        ),
        specs=[OWNED],
    )
    app = FastAPI()
    app.include_router(console(runtime, dependencies=[Depends(open_to_everyone)]))
    asgi = httpx.ASGITransport(app)
    async with runtime.scope(), httpx.AsyncClient(transport=asgi, base_url="http://shop") as client:
        key = {"document": "invoices", "id": str(uuid4()), "tenant": "forged"}
        refused = await client.get("/api/explain", params=key)
    assert refused.status_code == 422
    assert "no server is known for this tenant" in refused.json()["detail"]


async def _gone(at: Replica, pk: UUID) -> bool:
    found = await told(at, "explain", document="products", id=str(pk))
    return bool(found["l1"]["state"] == "absent" and found["entry"]["state"] == "absent")


async def _invalidate(at: Replica, pk: UUID) -> bool:
    async with signed_in(at) as client:
        key = {"document": "products", "id": str(pk)}
        answer = await client.post("/api/invalidate", params=key, headers=INTENDED)
    return bool(answer.json()["told"])


async def test_invalidating_reaches_every_process(two: tuple[Replica, Replica]) -> None:
    here, there = two
    pk = await here.product()
    for each in two:
        await kept(each, pk)
    assert await _invalidate(here, pk)
    await until(lambda: _gone(there, pk))


async def test_invalidating_while_the_cache_is_away_is_owed(
    two: tuple[Replica, Replica], valkey: ValkeyServer
) -> None:
    _, there = two
    async with RespProxy(valkey.port) as proxy, replica(proxy.dsn, there.database) as cut_off:
        pk = await there.product()
        for each in (there, cut_off):
            await kept(each, pk)
        proxy.refuse()
        proxy.cut()
        key = {"document": "products", "id": str(pk)}

        async def away() -> bool:
            return (await told(cut_off, "explain", **key))["entry"] is None

        await until(away)
        assert not await _invalidate(cut_off, pk)
        found = await told(cut_off, "explain", **key)
        assert (found["journal"], found["next"]["reason"]) == (True, "journal")
        assert found["l1"]["state"] == "absent"
        assert (await told(there, "explain", **key))["l1"]["state"] == "kept"
        await proxy.accept()
        await until(lambda: _gone(there, pk))
        found = await told(cut_off, "explain", **key)
        assert (found["journal"], found["next"]["reason"]) == (False, "absent")


# -- what is seen --------------------------------------------------------------


async def test_numbers_move_as_documents_are_read(one: Replica, look: Look) -> None:
    card = '[data-name="products"]'
    for _ in range(2):
        await kept(one, await one.product())
    size = (await told(one, "overview"))["documents"][0]["l1"]["size"]
    assert size >= 2
    await look.until_shown(f"{card} dd", f"{size} / 512")
    await look.until_shown(f"{card} .big", "%")
    await look.page.locator(f"{card} summary").click()
    await look.until_shown(f"{card} .counts div", "fills")
    await look.until_shown("#servers tr", "valkey")
    await look.page.get_by_role("link", name="Servers").click()
    assert await look.page.evaluate("document.activeElement.id") == "t-servers"


async def test_a_lock_with_its_token_comes_and_goes(one: Replica, look: Look) -> None:
    runs = one.ctx.idempotency(PAYMENTS).stats().runs
    async with AsyncExitStack() as held:
        await look.until_shown("#locks", "No lock is held")
        scopes = one.ctx.dlock_scope(JOBS)
        lock = await held.enter_async_context(scopes.scope("reindex"))
        await held.enter_async_context(one.ctx.idempotency(PAYMENTS).claim("pay", "k1", "hash"))
        await look.until_shown("#locks td", str(lock.token))
        await look.until_shown("#locks tr", "reindex")
        await look.until_shown("#claims tr", "pay")
    await look.until_shown("#locks", "No lock is held")
    await look.until_shown("#claims", f"{runs + 1} run,")
    assert await look.page.locator("#locks td", has_text="reindex").count() == 0


async def test_an_open_circuit_is_seen(one: Replica, look: Look) -> None:
    await look.until_shown("#circuits tr", "not called yet")
    await one.fail("bank")
    await look.until_shown("#circuits td", "open")
    await look.until_shown(".banner", "Circuit bank is open since")
    assert await look.page.title() == "! forze console"


async def test_a_key_is_searched_watched_and_invalidated(
    two: tuple[Replica, Replica], look: Look
) -> None:
    here, there = two
    pk, page = await here.product(), look.page
    await look.search("products", pk)
    await look.until_shown(".said", "answered by the source: nothing cached")
    assert await page.get_by_label("Watch its reads").is_checked()
    for each in two:
        await kept(each, pk)
    await here.ctx.document.query(PRODUCTS).get(pk)
    await look.until_shown(".said", "answered by this process: rev 1")
    await look.until_shown(".reads li", "nothing cached")
    await look.until_shown(".reads li", "kept in this process")
    await look.until_shown(".station.cache", "version 1")
    await page.get_by_role("button", name="Compare with the source").click()
    await look.until_shown(".station.source", "rev 1")
    await look.until_shown(".station.source", "the cache had" + "the same")
    async with ExecutionRuntime(deps=DepsPlan.from_modules(here.database)).scope() as alien:
        uncached = alien.document.command(replace(PRODUCTS, cache=None))
        await uncached.update(pk, 1, ProductUpdate(price=7))
    await page.get_by_role("button", name="Compare with the source").click()
    await look.until_shown(".station.source .bad", "an older one: 1")
    await there.ctx.document.command(PRODUCTS).update(pk, 2, ProductUpdate(price=2))
    await look.until_shown(".said", "answered by the source")
    await there.ctx.document.query(PRODUCTS).get(pk)
    await look.until_shown(".said", "answered by the cache: version 3")
    await page.get_by_role("button", name="Invalidate").click()
    await page.get_by_role("button", name="Really, for every process?").click()
    await look.until_shown("#note", "Invalidated")
    await look.until_shown(".said", "answered by the source: nothing cached")
    found = await told(there, "explain", document="products", id=str(pk))
    assert found["entry"]["state"] == "absent"
    await look.search("products", "no such id")
    await look.until_shown("#found [role=alert]", "not the id of a document")
    await page.evaluate(f"location.hash = 'document=products&id={pk}'")
    await look.until_shown(".said", "answered by")
    # Until then the page asked for that one every second, and the browser says so of each.
    look.said[:] = [each for each in look.said if "422" not in each]


async def test_an_outage_and_its_end_are_seen(
    signed_in_browser: BrowserContext, own_valkey: ValkeyServer
) -> None:
    async with AsyncExitStack() as running, AsyncExitStack() as watched:
        at = await running.enter_async_context(replica(own_valkey.dsn, database()))
        look = await watched.enter_async_context(looking(signed_in_browser, at.address))
        await look.until_shown("#servers tr", "answers")
        own_valkey.kill()
        await look.until_shown(".banner.bad", "redis is away since")
        await look.until_shown('[data-name="products"] dd', "away")
        pk = await at.product()
        assert (await at.ctx.document.query(PRODUCTS).get(pk)).name == "tea"
        own_valkey.start()
        await look.until_shown(".banner.good", "redis is back. It was away for")
        await look.until_gone(".banner.bad", "redis")
        await look.until_shown("#servers tr", "answers")
        await running.aclose()
        await look.until_shown(".banner.bad", "This process does not answer")
        await look.until_shown("#pulse", "No answer")
        look.said.clear()  # the browser says of each request that nobody answered


@pytest.mark.parametrize(
    ("status", "answer", "shown"),
    [
        (500, '{"detail": "It is broken."}', "The console fails. It is broken."),
        (200, "<html>", "nothing that this page understands"),
        (200, "{}", "do not fit together"),
        (401, "{}", "You are not let in any more"),
    ],
)
async def test_what_goes_wrong_is_said_and_ends(
    one: Replica, look: Look, status: int, answer: str, shown: str
) -> None:
    pk, page = await one.product(), look.page
    await look.search("products", pk)
    await look.until_shown(".said", "answered by")

    async def refuse(route: Route) -> None:
        await route.fulfill(status=status, body=answer, content_type="application/json")

    await page.route("**/api/*", refuse)
    await look.until_shown(".banner.bad", shown)
    assert await page.locator(".said").count() == 1, "what was known is no longer shown"
    await page.unroute("**/api/*")
    if status == 401:  # by then it asks no more
        await page.reload()
    await look.until_gone(".banner.bad")
    await look.until_shown(".said", "answered by")
    look.said.clear()


async def test_answers_of_several_processes_are_told_apart(one: Replica, look: Look) -> None:
    async def elsewhere(route: Route) -> None:
        answer = await route.fetch()
        found = await answer.json()
        found["process"]["pid"] = 7
        await route.fulfill(json=found)

    await look.until_gone(".banner", "Several processes")
    await look.page.route("**/api/overview", elsewhere)
    await look.until_shown(".banner", "process 7")
    await look.page.unroute("**/api/overview")
    await look.until_shown("#who", f"process {os.getpid()}")
    await look.page.clock.fast_forward(31_000)
    await look.until_gone(".banner", "Several processes")
    assert await look.page.locator("#who", has_text="process 7").count() == 0


async def test_what_is_shown_is_text_and_nothing_else(one: Replica, look: Look) -> None:
    evil = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'"&'
    turned = "\u202etxet\u200b"
    claim = one.ctx.idempotency(PAYMENTS).claim("<b>pay</b>", "<i>k</i>", "hash")
    scopes = one.ctx.dlock_scope(JOBS)
    async with scopes.scope(evil), scopes.scope(turned), claim:
        await look.until_shown("#locks td", evil)
        await look.until_shown("#locks td", "\\u202etxet\\u200b")
        await look.until_shown("#claims td", "<b>pay</b>")
        await look.search("products", evil)
        await look.until_shown("#found [role=alert]", "not the id of a document")
        assert await look.page.evaluate("window.hacked") is None
        assert await look.page.locator("td img, td b, td script").count() == 0
        look.said = [each for each in look.said if "422" not in each]


async def test_it_fits_a_phone_and_can_be_read_by_day_and_by_night(
    one: Replica, look: Look
) -> None:
    """Every control has a name, every table a caption, and text stands out enough."""
    long, page = "a-key-without-a-place-to-break-it-" * 6, look.page
    pk = await one.product()
    await one.fail("bank")
    async with one.ctx.dlock_scope(JOBS).scope(long):
        await look.search("products", pk)
        await look.until_shown(".said", "answered by")
        await one.ctx.document.query(PRODUCTS).get(pk)
        await look.until_shown("#locks td", long)
        assert all(await page.evaluate(NAMES))
        assert await page.locator("table:not(:has(caption))").count() == 0
        for width in (PHONE, 721, 900, DESK["width"]):
            await page.set_viewport_size({"width": width, "height": 740})
            assert await look.overflow() == 0, f"{width} px"
        await page.set_viewport_size(DESK)
        for scheme, ground in DAY_AND_NIGHT.items():
            await page.emulate_media(color_scheme=scheme)
            color = "getComputedStyle(document.body).backgroundColor"
            assert await page.evaluate(color) == ground
            ratios = await page.evaluate(CONTRAST)
            assert {name for name, ratio in ratios.items() if ratio < 4.5} == set(), ratios
            assert min((await page.evaluate(EDGES)).values()) >= 3
        await page.emulate_media(color_scheme="light")


async def test_it_stops_asking_while_nobody_can_see_it(look: Look) -> None:
    page = look.page
    await page.evaluate(
        "Object.defineProperty(document, 'hidden', { get: () => window.away, configurable: true });"
        "window.away = true; document.dispatchEvent(new Event('visibilitychange'))"
    )
    await look.until_shown("#pulse", "Paused")
    look.requests.clear()
    await page.clock.run_for(5000)
    assert look.requests == []
    await page.evaluate(
        "window.away = false; document.dispatchEvent(new Event('visibilitychange'))"
    )
    await look.until_shown("#pulse", "Live")


DAY_AND_NIGHT: dict[Literal["light", "dark"], str] = {
    "light": "rgb(245, 244, 240)",
    "dark": "rgb(14, 16, 19)",
}

NAMES = """[...document.querySelectorAll("input, select, button")]
  .map((each) => (each.labels?.[0]?.textContent || each.textContent).trim())"""
"""What controls are called."""

_MEASURES = """
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(Number).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (!color.endsWith(", 0)")) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const ratio = (one, other) => {
    const both = [light(one), light(other)];
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  };
"""

CONTRAST = (
    "() => {"
    + _MEASURES
    + """
  const own = (node) =>
    [...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
  const seen = [...document.body.querySelectorAll("*")]
    .filter((node) => own(node) && node.checkVisibility() && !node.closest(".away, script"));
  const found = Object.fromEntries(seen.map((node) =>
    [node.tagName + "." + node.className, ratio(getComputedStyle(node).color, behind(node))]));
  const input = document.querySelector("#tenant");
  found.placeholder = ratio(getComputedStyle(input, "::placeholder").color, behind(input));
  return found;
}"""
)
"""The contrast of all text that is seen and its ground (WCAG 2.2, 1.4.3), by what it is in."""

EDGES = (
    "() => {"
    + _MEASURES
    + """
  const controls = [...document.querySelectorAll("input[type=text], select, button")];
  return Object.fromEntries(controls.map((node) => [node.id || node.textContent,
    ratio(getComputedStyle(node).borderTopColor, behind(node.parentElement))]));
}"""
)
"""The contrast of the edges of controls and what they stand on (1.4.11)."""


async def test_a_committed_answer_leaves_the_console(one: Replica) -> None:
    port = one.ctx.idempotency(PAYMENTS)
    runs = port.stats().runs
    async with port.claim("pay", "key-of-one", "hash") as claim:
        (shown,) = (await told(one, "overview"))["claims"]
        assert (shown["operation"], shown["key"], shown["generation"]) == ("pay", "key-o…", 1)
        assert 0 < shown["left_seconds"] <= timedelta(seconds=30).total_seconds()
        await claim.complete(IdempotencySnapshot(200, "text/plain", b"ok"))
    after = await told(one, "overview")
    assert after["claims"] == []
    assert after["idempotency"][0]["counts"]["runs"] == runs + 1
