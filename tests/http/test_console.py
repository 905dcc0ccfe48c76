"""The console: what it tells over HTTP, and what a real browser makes of it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi import Depends, FastAPI
from playwright.async_api import Browser, Page, ViewportSize, async_playwright
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
from tests.http.serving import client_of

from forze.application.contracts.idempotency import IdempotencySnapshot
from forze.errors import ConfigurationError
from forze.testing.servers import ValkeyServer
from forze_fastapi import console, open_to_everyone, runtime_lifespan

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
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for all of this."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: nobody looked at the console")
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(loop_scope="module")
async def one(valkey_dsn: str) -> AsyncIterator[Replica]:
    """A replica."""
    async with replica(valkey_dsn, database()) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def two(valkey_dsn: str) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas over one database and one cache."""
    shared = database()
    async with replica(valkey_dsn, shared) as here, replica(valkey_dsn, shared) as there:
        yield here, there


@dataclass
class Look:
    """A page that somebody looks at, and what it asked and said meanwhile."""

    page: Page
    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    async def until_shown(self, where: str, what: str) -> None:
        """Wait until ``where`` holds this text. The page's seconds pass as fast as they can."""
        found = self.page.locator(where, has_text=what)
        await until(lambda: self._after_a_second(found.count), f"{what!r} in {where!r}")

    async def until_gone(self, where: str, what: str) -> None:
        """Wait until no ``where`` holds this text."""
        found = self.page.locator(where, has_text=what)
        await until(lambda: self._after_a_second(found.count, none=True), f"no {what!r}")

    async def _after_a_second(
        self, count: Callable[[], Awaitable[int]], *, none: bool = False
    ) -> bool:
        if bool(await count()) is not none:
            return True
        await self.page.clock.run_for(1000)
        return False

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
    browser: Browser, at: Replica, *, path: str = "/console/", **context: Any
) -> AsyncIterator[Look]:
    """Open the console, signed in; nothing may go wrong in it."""
    opened = await browser.new_context(
        http_credentials={"username": USER, "password": PASSWORD}, viewport=DESK, **context
    )
    page = await opened.new_page()
    await page.clock.install()
    look = Look(page)
    page.on("request", lambda request: look.requests.append(request.url))
    page.on("console", lambda message: look.said.append(message.text))
    page.on("pageerror", lambda error: look.said.append(str(error)))
    try:
        await page.goto(at.address + path)
        await look.until_shown("#pulse", "Live")
        yield look
        assert look.said == []
        assert [each for each in look.requests if not each.startswith((at.address, "data:"))] == []
    finally:
        await opened.close()


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
            refused = await client.post(
                "/api/invalidate", json={"document": "products", "id": str(uuid4())}
            )
            assert refused.status_code == 401


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


async def test_it_can_be_mounted_too_and_stands_in_no_schema(valkey_dsn: str) -> None:
    runtime = runtime_of(valkey_dsn, database())
    app = FastAPI(lifespan=runtime_lifespan(runtime))
    app.mount("/inside", console(runtime, dependencies=[Depends(open_to_everyone)]))
    app.include_router(
        console(runtime, dependencies=[Depends(open_to_everyone)]), prefix="/console"
    )
    async with client_of(app) as client:
        for prefix in ("/inside", "/console"):
            page = await client.get(prefix, follow_redirects=True)
            assert page.status_code == 200
            assert page.url.path == f"{prefix}/"
            assert (await client.get(f"{prefix}/api/overview")).json()["documents"]
        assert (await client.get("/openapi.json")).json()["paths"] == {}


async def test_the_page_is_shut_to_everything_else(one: Replica) -> None:
    async with signed_in(one) as client:
        page = await client.get("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert re.search(r"script-src 'sha256-[\w+/=]+';", policy)
        assert "frame-ancestors 'none'" in policy
        for path in ("/", "/api/overview"):
            headers = (await client.get(path)).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
        text = page.text
        assert not re.search(r"""(?:src|href)=["'](?!data:)""", text)
        assert "innerHTML" not in text
        assert not re.search(r"""\son\w+=""", text)


async def test_other_sites_can_ask_nothing(one: Replica) -> None:
    body = {"document": "products", "id": str(await one.product())}
    async with signed_in(one) as client:
        assert (await client.post("/api/invalidate", json=body)).status_code == 403
        for site in ("cross-site", "same-site"):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors", **INTENDED}
            assert (await client.get("/api/overview", headers=headers)).status_code == 403
            refused = await client.post("/api/invalidate", json=body, headers=headers)
            assert refused.status_code == 403
        followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert (await client.get("/", headers=followed)).status_code == 200
        done = await client.post("/api/invalidate", json=body, headers=INTENDED)
        assert done.json() == {"told": True}


# -- what it tells -------------------------------------------------------------


async def test_the_overview_counts_what_happens(one: Replica) -> None:
    before = await told(one, "overview")
    pk = await one.product()
    for _ in range(5):
        await one.ctx.document.query(PRODUCTS).get(pk)
    after = await told(one, "overview")
    assert [each["name"] for each in after["documents"]] == ["products", "orders", "invoices"]
    first, products = before["documents"][0], after["documents"][0]
    assert first["since_start"]["reads"] == {"l1": 0, "cache": 0, "shared": 0, "source": 0}
    reads, ratios = (products["since_start"][name] for name in ("reads", "hit_ratios"))
    # What was filled is pushed to the process that filled it as well, and may go once more.
    assert reads["l1"] + reads["cache"] == 4
    assert (reads["shared"], reads["source"]) == (0, 1)
    assert ratios["l1"] == reads["l1"] / 5
    assert ratios["all"] == 0.8
    assert products["minute"]["reads"] == reads
    assert products["loads"]["of"] == 1
    assert 0 < products["loads"]["p50_seconds"] <= products["loads"]["p99_seconds"]
    assert products["l1"]["capacity"] == 512
    assert products["counts"]["fills"] == 1
    (server,) = after["servers"]
    assert (server["name"], server["ok"]) == ("redis", True)
    assert server["facts"]["pushes"] == "on"
    assert [each["name"] for each in after["policies"]] == ["bank", "mail"]
    assert (after["locks"], after["claims"]) == ([], [])


async def test_the_latency_of_pushes_is_measured_while_somebody_looks(one: Replica) -> None:
    async def measured() -> bool:
        pushes: list[Any] = (await told(one, "overview"))["pushes"]
        return bool(pushes) and 0 < pushes[0]["seconds"] < 20

    await until(measured)
    assert (await told(one, "overview"))["pushes"][0]["name"] == "redis_client"


async def test_it_gives_no_secrets_away(one: Replica) -> None:
    key = "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"
    async with one.ctx.idempotency(PAYMENTS).claim("pay", key, "hash"):
        everything = json.dumps(await told(one, "overview"))
    assert "sk_live_" in everything
    assert key not in everything
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
        gone = await asked(document="products", id=str(uuid4()), compare="true")
        assert (gone.json()["compared"], gone.json()["source"]) == (True, None)


async def test_invalidating_reaches_every_process(two: tuple[Replica, Replica]) -> None:
    here, there = two
    pk = await here.product()
    for each in two:
        await kept(each, pk)
    body = {"document": "products", "id": str(pk)}
    async with signed_in(here) as client:
        done = await client.post("/api/invalidate", json=body, headers=INTENDED)
        assert done.json() == {"told": True}

    async def gone() -> bool:
        found = await told(there, "explain", document="products", id=str(pk))
        return bool(found["l1"]["state"] == "absent" and found["entry"]["state"] == "absent")

    await until(gone)


async def test_invalidating_while_the_cache_is_away_is_owed(own_valkey: ValkeyServer) -> None:
    async with replica(own_valkey.dsn, database()) as at:
        pk = await at.product()
        await at.ctx.document.query(PRODUCTS).get(pk)
        own_valkey.kill()
        key = {"document": "products", "id": str(pk)}

        async def away() -> bool:
            return (await told(at, "explain", **key))["entry"] is None

        await until(away)
        async with signed_in(at) as client:
            done = await client.post("/api/invalidate", json=key, headers=INTENDED)
        assert done.json() == {"told": False}
        found = await told(at, "explain", **key)
        assert (found["journal"], found["next"]["reason"]) == (True, "journal")
        assert found["l1"]["state"] == "absent"


# -- what is seen --------------------------------------------------------------


async def test_numbers_move_as_documents_are_read(browser: Browser, one: Replica) -> None:
    async with looking(browser, one) as look:
        card = '[data-name="products"]'
        await look.until_shown(f"{card} dd", "0 / 512")
        pks = [await one.product(f"p{number}") for number in range(2)]
        for pk in pks:
            await kept(one, pk)
        await look.until_shown(f"{card} dd", "2 / 512")
        await look.until_shown(f"{card} .big", "%")
        await look.page.locator(f"{card} summary").click()
        await look.until_shown(f"{card} .counts div", "fills")
        await look.until_shown("#servers tr", "valkey")


async def test_a_lock_with_its_token_comes_and_goes(browser: Browser, one: Replica) -> None:
    async with looking(browser, one) as look, AsyncExitStack() as held:
        await look.until_shown("#locks", "No lock is held")
        scopes = one.ctx.dlock_scope(JOBS)
        lock = await held.enter_async_context(scopes.scope("reindex"))
        await held.enter_async_context(one.ctx.idempotency(PAYMENTS).claim("pay", "k1", "hash"))
        await look.until_shown("#locks td", str(lock.token))
        await look.until_shown("#locks tr", "reindex")
        await look.until_shown("#claims tr", "pay")
        await held.aclose()
        await look.until_shown("#locks", "No lock is held")
        await look.until_shown("#claims", "1 run")


async def test_an_open_circuit_is_seen(browser: Browser, one: Replica) -> None:
    async with looking(browser, one) as look:
        await look.until_shown("#circuits tr", "not called yet")
        await one.fail("bank")
        await look.until_shown("#circuits td", "open")
        await look.until_shown(".banner", "Circuit bank is open since")
        assert await look.page.title() == "! forze console"


async def test_a_key_is_searched_watched_and_invalidated(
    browser: Browser, two: tuple[Replica, Replica]
) -> None:
    here, there = two
    pk = await here.product()
    async with looking(browser, here) as look:
        await look.search("products", pk)
        await look.until_shown(".said", "answered by the source: nothing cached")
        assert await look.page.get_by_label("Watch its reads").is_checked()
        for each in two:
            await kept(each, pk)
        await here.ctx.document.query(PRODUCTS).get(pk)
        await look.until_shown(".said", "answered by this process: rev 1")
        await look.until_shown(".reads li", "nothing cached")
        await look.until_shown(".reads li", "kept in this process")
        await look.until_shown(".station.cache", "version 1")
        await look.page.get_by_role("button", name="Compare with the source").click()
        await look.until_shown(".station.source", "rev 1")
        await look.until_shown(".station.source", "the same")
        await there.ctx.document.command(PRODUCTS).update(pk, 1, ProductUpdate(price=2))
        await look.until_shown(".said", "answered by the source")
        await there.ctx.document.query(PRODUCTS).get(pk)
        await look.until_shown(".said", "answered by the cache: version 2")
        await look.page.get_by_role("button", name="Invalidate").click()
        await look.page.get_by_role("button", name="Really, for every process?").click()
        await look.until_shown("#note", "Invalidated")
        await look.until_shown(".said", "answered by the source: nothing cached")
        found = await told(there, "explain", document="products", id=str(pk))
        assert found["entry"]["state"] == "absent"
        await look.search("products", "no such id")
        await look.until_shown("#found [role=alert]", "not the id of a document")
        look.said = [each for each in look.said if "422" not in each]
    async with looking(browser, here, path=f"/console/#document=products&id={pk}") as again:
        await again.until_shown(".said", "answered by")


async def test_an_outage_and_its_end_are_seen(browser: Browser, own_valkey: ValkeyServer) -> None:
    async with replica(own_valkey.dsn, database()) as at, looking(browser, at) as look:
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


async def test_a_process_that_is_gone_is_said_to_be(browser: Browser, valkey_dsn: str) -> None:
    async with AsyncExitStack() as running, AsyncExitStack() as watched:
        at = await running.enter_async_context(replica(valkey_dsn, database()))
        look = await watched.enter_async_context(looking(browser, at))
        await running.aclose()
        await look.until_shown(".banner.bad", "This process does not answer")
        await look.until_shown("#pulse", "No answer")
        look.said.clear()  # the browser says of each request that nobody answered


async def test_what_is_shown_is_text_and_nothing_else(browser: Browser, one: Replica) -> None:
    evil = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'"&'
    claim = one.ctx.idempotency(PAYMENTS).claim("<b>pay</b>", "<i>k</i>", "hash")
    async with (
        looking(browser, one) as look,
        one.ctx.dlock_scope(JOBS).scope(evil),
        claim,
    ):
        await look.until_shown("#locks td", evil)
        await look.until_shown("#claims td", "<b>pay</b>")
        await one.fail("bank")
        await look.search("products", evil)
        await look.until_shown("#found [role=alert]", "not the id of a document")
        assert await look.page.evaluate("window.hacked") is None
        assert await look.page.locator("td img, td b, td script").count() == 0
        look.said = [each for each in look.said if "422" not in each]


async def test_it_fits_a_phone_and_can_be_read_by_day_and_by_night(
    browser: Browser, one: Replica
) -> None:
    """Every control has a name, every table a caption, and text stands out enough."""
    long = "a-key-without-a-place-to-break-it-" * 6
    pk = await one.product()
    await one.fail("bank")
    grounds = []
    async with one.ctx.dlock_scope(JOBS).scope(long):
        for scheme in ("light", "dark"):
            async with looking(browser, one, color_scheme=scheme) as look:
                await one.ctx.document.query(PRODUCTS).get(pk)
                await look.search("products", pk)
                await look.until_shown(".said", "answered by")
                await look.until_shown("#locks td", long)
                for width in (PHONE, 721, 900, DESK["width"]):
                    await look.page.set_viewport_size({"width": width, "height": 740})
                    assert await look.overflow() == 0, f"{scheme}, {width} px"
                ground = "getComputedStyle(document.body).backgroundColor"
                grounds.append(await look.page.evaluate(ground))
                assert all(await look.page.evaluate(NAMES))
                assert await look.page.locator("table:not(:has(caption))").count() == 0
                ratios = await look.page.evaluate(CONTRAST)
                assert min(ratios.values()) >= 4.5, ratios
    assert grounds == ["rgb(245, 244, 240)", "rgb(14, 16, 19)"]


async def test_it_stops_asking_while_nobody_can_see_it(browser: Browser, one: Replica) -> None:
    async with looking(browser, one) as look:
        await look.page.evaluate(
            "Object.defineProperty(document, 'hidden', { get: () => window.away });"
            "window.away = true; document.dispatchEvent(new Event('visibilitychange'))"
        )
        await look.until_shown("#pulse", "Paused")
        look.requests.clear()
        await look.page.clock.run_for(5000)
        assert look.requests == []
        await look.page.evaluate(
            "window.away = false; document.dispatchEvent(new Event('visibilitychange'))"
        )
        await look.until_shown("#pulse", "Live")


NAMES = """[...document.querySelectorAll("input, select, button")]
  .map((each) => (each.labels?.[0]?.textContent || each.textContent).trim())"""
"""What controls are called."""

CONTRAST = """() => {
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
  const where = [".who", "h2", ".hint", "dt", "dd", "td", "th", ".said", ".said b", ".address",
    ".danger", "button.main", "label", "summary", ".legend li", ".station h4"];
  return Object.fromEntries(where.map((each) => [each, document.querySelector(each)])
    .filter(([, node]) => node).map(([each, node]) => {
      const both = [light(getComputedStyle(node).color), light(behind(node))];
      return [each, (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05)];
    }));
}"""
"""The contrast of text and ground (WCAG 2.2, 1.4.3), by where it is."""


async def test_a_committed_answer_leaves_the_console(one: Replica) -> None:
    port = one.ctx.idempotency(PAYMENTS)
    async with port.claim("pay", "k", "hash") as claim:
        (shown,) = (await told(one, "overview"))["claims"]
        assert (shown["operation"], shown["key"], shown["generation"]) == ("pay", "k", 1)
        assert 0 < shown["left_seconds"] <= timedelta(seconds=30).total_seconds()
        await claim.complete(IdempotencySnapshot(200, "text/plain", b"ok"))
    after = await told(one, "overview")
    assert after["claims"] == []
    assert after["idempotency"][0]["counts"]["runs"] == 1
    assert OWNED.cache is not None
