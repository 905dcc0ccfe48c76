"""Two tenants on two servers: kept apart, one of them down, one of them given a new password."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from app import CLOSING, INVOICES, NUMBERS, InvoiceCreate, InvoiceUpdate, redis_module, runtime

from forze.application.execution import ExecutionContext
from forze.errors import ConfigurationError, NotFoundError, TenantRequired
from forze.testing.servers import ValkeyServer
from forze_redis import RedisClient, RedisConfig, RoutedRedisClient, acl_rules


class Vault:
    """Where the passwords are: the function that the client asks for a tenant's endpoint."""

    def __init__(self, servers: dict[str, ValkeyServer]) -> None:
        self._servers = servers
        self._passwords = dict.fromkeys(servers, "spring")
        self.asked = 0
        for tenant in servers:
            self._set(tenant, "spring")

    async def dsn_of(self, tenant: str) -> str | None:
        """The tenant's DSN, None for one that is no customer."""
        self.asked += 1
        server = self._servers.get(tenant)
        if server is None:
            return None
        return f"redis://app:{self._passwords[tenant]}@127.0.0.1:{server.port}/0"

    def change(self, tenant: str, password: str) -> None:
        """From now on only this password opens the tenant's server."""
        self._set(tenant, password)
        self._passwords[tenant] = password

    def _set(self, tenant: str, password: str) -> None:
        rules = ("reset", "on", f">{password}", "~*", "&*", "+@all")
        self._servers[tenant].ask("ACL", "SETUSER", "app", *rules)


async def apart(ctx: ExecutionContext, client: RoutedRedisClient) -> None:
    """One id, one number, one lock, for two tenants."""
    with ctx.bind_tenant("acme"):
        invoice = await ctx.document.command(INVOICES).create(InvoiceCreate(total=100))
        await ctx.document.query(INVOICES).get(invoice.id)
    with ctx.bind_tenant("umbrella"):
        try:
            await ctx.document.query(INVOICES).get(invoice.id)
        except NotFoundError:
            print("  umbrella asks for acme's invoice: there is none")

    async def close_the_month(tenant: str) -> int:
        with ctx.bind_tenant(tenant):
            async with ctx.dlock_scope(CLOSING).scope("month"):
                await asyncio.sleep(0.05)
                return await ctx.counter(NUMBERS).incr()

    numbers = await asyncio.gather(*map(close_the_month, ("acme", "umbrella")))
    print(f"  both close the month at once, each under its own lock: invoice numbers {numbers}")
    print(f"  clients that are open: {', '.join(sorted(client.clients))}")
    try:
        await ctx.counter(NUMBERS).incr()
    except TenantRequired as refused:
        print(f"  without a tenant: {refused}")
    with ctx.bind_tenant("nobody"):
        try:
            await ctx.counter(NUMBERS).incr()
        except ConfigurationError as refused:
            print(f"  of nobody we have heard of: {refused}")


async def one_is_down(ctx: ExecutionContext, servers: dict[str, ValkeyServer]) -> None:
    """umbrella's server stands still for a second and a half."""
    docs, query = ctx.document.command(INVOICES), ctx.document.query(INVOICES)
    invoices = {}
    for tenant in servers:
        with ctx.bind_tenant(tenant):
            invoices[tenant] = await docs.create(InvoiceCreate(total=1))
    servers["umbrella"].pause()

    async def read(tenant: str) -> tuple[int, float]:
        reads, slowest, until = 0, 0.0, time.perf_counter() + 1.5
        with ctx.bind_tenant(tenant):
            while time.perf_counter() < until:
                began = time.perf_counter()
                await query.get(invoices[tenant].id)
                slowest = max(slowest, time.perf_counter() - began)
                reads += 1
                await asyncio.sleep(0.001)
        return reads, slowest * 1000

    (fast, its), (slow, other) = await asyncio.gather(read("acme"), read("umbrella"))
    print(f"  acme:     {fast:5} reads, the slowest {its:6.1f} ms")
    print(f"  umbrella: {slow:5} reads, the slowest {other:6.1f} ms, none failed")
    with ctx.bind_tenant("umbrella"):
        written = invoices["umbrella"]
        await docs.update(written.id, written.rev, InvoiceUpdate(total=2))
        print(f"  it reads what it writes: total {(await query.get(written.id)).total}")
    servers["umbrella"].resume()


async def rotation(ctx: ExecutionContext, client: RoutedRedisClient, vault: Vault) -> None:
    """Three new passwords while twenty requests at a time go on."""
    done, stop = 0, asyncio.Event()

    async def requests() -> None:
        nonlocal done
        with ctx.bind_tenant("acme"):
            while not stop.is_set():
                await ctx.counter(NUMBERS).incr("load")
                done += 1

    load = [asyncio.create_task(requests()) for _ in range(20)]
    for password in ("summer", "autumn", "winter"):
        await asyncio.sleep(0.1)
        vault.change("acme", password)
        await client.rotate("acme")
    stop.set()
    await asyncio.gather(*load)
    with ctx.bind_tenant("acme"):
        counted = await ctx.counter(NUMBERS).get("load")
    print(f"  {done} requests over three rotations, {counted} counted, none failed")


async def a_user_per_tenant(server: ValkeyServer) -> None:
    """A user who may do everything the application does, for one tenant."""
    rules = acl_rules(redis_module(RoutedRedisClient()), tenant="acme")
    server.ask("ACL", "SETUSER", "acme", "on", ">secret", *rules)
    print(
        f"  ACL SETUSER acme on >secret {' '.join(each for each in rules if each[0] in '~&')} ..."
    )
    config = RedisConfig(username="acme", password="secret")
    async with await RedisClient().connect(server.dsn, config) as client:
        print(f"  its own key:     {await client.call('GET', 'app:numbers/acme/load')!r}")
        try:
            await client.call("GET", "app:numbers/umbrella/load")
        except ConfigurationError as refused:
            print(f"  another tenant's: {refused}")


async def tell(servers: dict[str, ValkeyServer]) -> None:
    vault, client = Vault(servers), RoutedRedisClient()
    async with runtime(client, vault.dsn_of).scope() as ctx:
        story: dict[str, Callable[[], Awaitable[None]]] = {
            "apart": lambda: apart(ctx, client),
            "one is down": lambda: one_is_down(ctx, servers),
            "rotation": lambda: rotation(ctx, client, vault),
            "a user per tenant": lambda: a_user_per_tenant(servers["acme"]),
        }
        for title, step in story.items():
            print(f"\n{title}")
            await step()
    print(f"\nthe vault was asked {vault.asked} times")


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    with ValkeyServer() as one, ValkeyServer() as two:
        asyncio.run(tell({"acme": one, "umbrella": two}))
