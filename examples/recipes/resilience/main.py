"""Two processes share one limit and one circuit, which does not stick when a probe is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

from forze.testing.servers import ValkeyServer

WORKER = Path(__file__).with_name("worker.py")


async def run(dsn: str) -> None:
    """The story."""
    async with worker("first", dsn) as first, worker("second", dsn) as second:
        await both(first.said("ready"), second.said("ready"))
        print("-- a limit of 10 a minute, and both send 100 calls at once")
        first.tell("burst")
        second.tell("burst")
        through = await both(first.said("went through"), second.said("went through"))
        total = sum(int(line.split()[0]) for line in through)
        print(f"-- {total} of 200 went through")

        print("-- the payment service fails for the first process only")
        second.tell("watch")
        await second.said("no failure")
        first.tell("fail")
        opened, seen = await both(first.said("opened"), second.said("refused"))
        print(f"-- the second knew {(when(seen) - when(opened)) * 1000:.0f} ms later")

        print("-- the service is back; the first process probes it, and is killed (SIGKILL)")
        first.tell("hang")
        await first.said("probes")
        first.process.kill()
        second.tell("pay")
        closed = await second.said("paid")
    if total != 10 or "closed" not in closed:
        raise SystemExit("the two processes did not share their state")


async def both(one: Awaitable[str], other: Awaitable[str]) -> tuple[str, str]:
    """What both say, in whichever order."""
    first, second = await asyncio.gather(one, other)
    return first, second


def when(line: str) -> float:
    """The time that a line tells."""
    told = re.search(r"at (\d+\.\d+)", line)
    assert told is not None
    return float(told[1])


class Worker:
    """A process that is told what to do, and whose lines are passed on as it says them."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self.process = process

    def tell(self, word: str) -> None:
        """Have it do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())

    async def said(self, words: str) -> str:
        """Pass on what it says up to a line with ``words``; that line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            while line := (await self.process.stdout.readline()).decode().strip():
                print(f"{self._name:>8}: {line}", flush=True)
                if words in line:
                    return line
        raise SystemExit(f"the {self._name} worker ended before it said {words!r}")


@contextlib.asynccontextmanager
async def worker(name: str, *arguments: str) -> AsyncIterator[Worker]:
    """A worker that does not outlive the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(WORKER),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ},
        start_new_session=True,
    )
    try:
        yield Worker(name, process)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


def main() -> None:
    """On a server that exists only for the run."""
    with ValkeyServer() as valkey:
        asyncio.run(run(valkey.dsn))
    print("all torn down")


if __name__ == "__main__":
    main()
