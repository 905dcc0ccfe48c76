"""A process that calls a payment service under the policies of its fleet.

``python worker.py REDIS_DSN``: it does what the lines of its standard input say (``burst``,
``fail``, ``watch``, ``hang``, ``pay``) and prints a line for each.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

from forze.application.contracts.resilience import (
    CircuitBreakerStrategy,
    RateLimitStrategy,
    ResiliencePolicy,
    ResiliencePort,
)
from forze.application.execution import (
    DepsPlan,
    ExecutionRuntime,
    LifecyclePlan,
    ResilienceDepsModule,
)
from forze.errors import CircuitOpen, Throttled
from forze_redis import (
    RedisClient,
    RedisDepsModule,
    redis_circuit_breaker_store,
    redis_lifecycle_step,
    redis_rate_limit_store,
)

HALF_A_SECOND = timedelta(seconds=0.5)
POLICIES = {
    "mail": ResiliencePolicy(rate_limit=RateLimitStrategy(permits=10, per=60)),
    "payments": ResiliencePolicy(
        circuit_breaker=CircuitBreakerStrategy(
            failure_ratio=0.3, min_throughput=5, break_duration=1
        )
    ),
}


async def accepted() -> None:
    """The service, when it is well."""


async def failing() -> None:
    """The service, when it is not."""
    raise ConnectionRefusedError("the payment service is down")


async def hanging() -> None:
    """The service, when it does not answer."""
    say("probes, and waits for an answer")
    await asyncio.Event().wait()


async def burst(resilience: ResiliencePort) -> None:
    """A hundred calls at once."""
    calls = (resilience.run("mail", accepted) for _ in range(100))
    results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [each for each in results if isinstance(each, Throttled)]
    say(f"{100 - len(refused)} of 100 calls went through")


async def fail(resilience: ResiliencePort) -> None:
    """Call the failing service until that is refused."""
    for failures in range(100):
        try:
            await resilience.run("payments", failing)
        except ConnectionRefusedError:
            opened = time.time()
        except CircuitOpen:
            say(f"opened the circuit with {failures} failures, at {opened:.4f}")
            return


async def watch(resilience: ResiliencePort) -> None:
    """Make good calls until one is refused."""
    made = 0
    await resilience.run("payments", accepted)
    say("calls too, and sees no failure")
    while True:
        try:
            await resilience.run("payments", accepted)
        except CircuitOpen:
            say(f"refused after {made} good calls, at {time.time():.4f}")
            return
        made += 1
        await asyncio.sleep(0.005)


async def hang(resilience: ResiliencePort) -> None:
    """Get the probe, and no answer."""
    await until_admitted(resilience, hanging)


async def pay(resilience: ResiliencePort) -> None:
    """Call until it is let through."""
    refusals = await until_admitted(resilience, accepted)
    [view] = [each for each in resilience.breakers() if each.key == ("payments", None)]
    say(f"paid, after {refusals} refusals; the circuit is {view.state}")


async def until_admitted(resilience: ResiliencePort, call: Callable[[], Awaitable[None]]) -> int:
    """Come back when the refusals say, or a little earlier; how many there were."""
    refusals = 0
    while True:
        try:
            await resilience.run("payments", call)
            return refusals
        except CircuitOpen as refusal:
            refusals += 1
            wait = refusal.retry_after or HALF_A_SECOND  # None: closed by hand only
            await asyncio.sleep(min(wait, HALF_A_SECOND).total_seconds())


async def serve(dsn: str) -> None:
    """Do what is said, line by line."""
    redis = RedisClient()
    runtime = ExecutionRuntime(
        deps=DepsPlan.from_modules(
            RedisDepsModule(client=redis),
            ResilienceDepsModule(
                POLICIES,
                breaker_store=redis_circuit_breaker_store(redis, namespace="recipe:breaker"),
                rate_limit_store=redis_rate_limit_store(redis, namespace="recipe:limit"),
            ),
        ),
        lifecycle=LifecyclePlan.from_steps(redis_lifecycle_step(dsn=dsn)),
    )
    tasks = {each.__name__: each for each in (burst, fail, watch, hang, pay)}
    async with runtime.scope() as ctx:
        say("is ready")
        while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
            await tasks[word](ctx.resilience)


def say(text: str) -> None:
    """One line, at once."""
    print(text, flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="log: %(message)s")
    asyncio.run(serve(sys.argv[1]))
