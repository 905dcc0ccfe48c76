"""A worker process for the tests: charges payments once, however many of it there are.

``python idempotent_worker.py DSN LEASE_MS EFFECTS_FILE KEY... `` runs one idempotent operation per
key. The effect is one line appended to the file: ``key pid generation``. ``WORK_MS`` in the
environment is how long the work takes, before its effect.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta

from forze.application.contracts.idempotency import IdempotencySnapshot, IdempotencySpec
from forze.application.execution import DepsPlan, ExecutionRuntime, LifecyclePlan
from forze_redis import RedisClient, RedisDepsModule, redis_lifecycle_step


async def main(dsn: str, lease_ms: str, effects: str, *keys: str) -> None:
    """Run the operation of each key, one after the other."""
    spec = IdempotencySpec(
        name="payments",
        lease=timedelta(milliseconds=int(lease_ms)),
        wait=timedelta(seconds=20),
    )
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(client=RedisClient(), idempotency={"namespace": "test:payments"})
        ),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=dsn)),
    )
    async with runtime.scope() as ctx:
        port = ctx.idempotency(spec)
        for key in keys:
            async with port.claim("charge", key, "h") as claim:
                if claim.replay is not None:
                    print(key, "replayed", claim.replay.body.decode(), flush=True)
                    continue
                print(key, "began", claim.generation, claim.takeover, flush=True)
                await asyncio.sleep(int(os.environ.get("WORK_MS", "0")) / 1000)
                with open(effects, "a") as file:  # noqa: ASYNC230 - a line, for a test
                    file.write(f"{key} {os.getpid()} {claim.generation}\n")
                answer = IdempotencySnapshot(200, None, str(os.getpid()).encode())
                done = await claim.complete(answer)
                print(key, done.value, os.getpid(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
