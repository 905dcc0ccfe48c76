"""The right to refresh a value early, and a connection that is lost."""

from __future__ import annotations

import asyncio

from forze.application.contracts.cache import Aging, CacheSpec, Fill, Miss
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze.application.integrations.document.codec import seal
from forze.errors import BackendError
from forze.testing.proxy import RespProxy
from forze.testing.servers import ValkeyServer
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step

SPEC = CacheSpec(name="things", early_refresh_beta=1.0)
BODY = seal(b"{}", 5)


async def test_a_token_of_a_lost_connection_is_elected_no_more(valkey: ValkeyServer) -> None:
    """P5: it could not fill, so it keeps nobody else from refreshing."""
    valkey.ask("FLUSHALL")
    module = RedisDepsModule(client=RedisClient(), caches={"things": {"namespace": "app"}})
    async with RespProxy(valkey.port) as proxy:
        runtime = ExecutionRuntime(
            deps=DepsPlan.from_modules(module),
            lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=proxy.dsn)),
        )
        async with runtime.scope() as ctx:
            pointers = ctx.cache(SPEC).pointers("schema01")
            address, token = pointers.address("k"), pointers.token()
            assert await pointers.read(address, token) is Miss.LEASED
            assert await pointers.fill([Fill(address, token, 1, BODY, 60_000)]) == [True]
            proxy.cut()
            async with asyncio.timeout(10):
                while True:
                    try:
                        found = await pointers.read(address, pointers.token())
                        break
                    except BackendError:
                        await asyncio.sleep(0.01)
            assert isinstance(found, Aging)
            assert not await pointers.elect(address, token)
            assert await pointers.elect(address, pointers.token())
