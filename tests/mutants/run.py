"""Plants each fault of ``mutants.toml`` in a copy of the sources and runs the test beside it.

::

    python -m tests.mutants.run [--tests-passed] [name part ...]

A mutant is caught when its test fails by an assertion while the copy still imports and the
tests under ``healthy`` still pass. Anything else (the text to replace is not there exactly
once, the test errors before it asserts, the test passes) is a failure of the run.

Each test runs in a process of its own, forked from one that has loaded everything but our own
packages. Copies and compiled modules are used again; of a copy only the planted file changes.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutants.toml")
SECONDS_PER_TEST = 120
SECONDS_FOR_ALL = 900
PASSED = "--tests-passed"
LOADED_ONCE = ["pydantic", "asyncpg", "redis.asyncio.cluster", "redis.asyncio.sentinel", "hiredis",
               "uuid_utils.compat", "opentelemetry.sdk.metrics", "opentelemetry.sdk.trace",
               "fastapi", "httpx", "uvicorn", "pytest", "pytest_asyncio.plugin", "hypothesis",
               "anyio.pytest_plugin"]  # fmt: skip
_ENDED = "\nexit code "  # said by the test's process: how it ends may get lost on the way here
PLAINLY = ("-qx", "-rfE", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: in ``file``, ``find`` becomes ``replace``; ``test`` has to fail."""

    name: str
    file: str
    find: str
    replace: str
    test: str


def read_list() -> tuple[list[Mutant], list[str]]:
    """The mutants, and the tests that every one of them must leave passing."""
    listed = tomllib.loads(LIST.read_text("utf-8"))
    return [Mutant(**each) for each in listed["mutant"]], listed["healthy"]


class Copies:
    """Copies of the sources, one for each test under way."""

    def __init__(self, directory: Path, count: int) -> None:
        self.compiled = directory / "compiled"
        self._free: SimpleQueue[Path] = SimpleQueue()
        self._stamp = itertools.count(1_000_000_000)
        for number in range(count):
            copy = directory / str(number)
            shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
            self._free.put(copy)

    @contextmanager
    def planted(self, mutant: Mutant) -> Iterator[Path]:
        """A copy with the fault in it, and in no other place."""
        copy = self._free.get()
        target = copy / mutant.file
        try:
            text = target.read_text("utf-8")
            found = text.count(mutant.find)
            if found != 1:
                raise SystemExit(
                    f"{mutant.name}: its text stands {found} times in {mutant.file}, not once"
                )
            target.write_text(text.replace(mutant.find, mutant.replace), "utf-8")
            stamp = next(self._stamp)  # compiled modules are told apart by their time
            os.utime(target, (stamp, stamp))
            yield copy
        finally:
            shutil.copy2(ROOT / "src" / mutant.file, target)
            self._free.put(copy)


def run(tests: list[str], source: Path, compiled: Path, output: Path) -> None:
    """Ends this process with the exit code of pytest over ``tests`` with ``source``'s packages."""
    os.setsid()
    gc.freeze()  # what was loaded once is nobody's garbage
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"PYTHONPATH": str(source), "PYTHONPYCACHEPREFIX": str(compiled)}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(compiled)
    os.chdir(ROOT)
    import pytest

    loaded = "ignore::pytest.PytestAssertRewriteWarning"
    code = pytest.main([*PLAINLY, "-W", loaded, "-o", f"pythonpath={source} {ROOT}", *tests])
    print(f"{_ENDED}{int(code)}", flush=True)
    os._exit(code)


def verdict(
    mutant: Mutant, healthy: list[str], copies: Copies, ctx: ForkServerContext
) -> str | None:
    """None if the mutant is caught as it should be, else what is wrong."""
    with copies.planted(mutant) as source, tempfile.NamedTemporaryFile() as said:
        tests = [*healthy, mutant.test]  # in this order, up to the first failure
        process = ctx.Process(target=run, args=(tests, source, copies.compiled, Path(said.name)))
        process.start()
        process.join(SECONDS_PER_TEST)
        if process.exitcode is None:
            process.kill()
            process.join()
        output, _, code = said.read().decode(errors="replace").strip().rpartition(_ENDED)
    if code == "0":
        return f"NOT CAUGHT by {mutant.test}"
    if f"FAILED {mutant.test}" not in output and f"ERROR {mutant.test}" not in output:
        return f"breaks more than its test (exit code {code}):\n{output[-2000:]}"
    if code != "1" or "error" in output.splitlines()[-1].split():
        return f"its test did not fail by an assertion:\n{output[-2000:]}"
    return None


def main(arguments: list[str]) -> int:
    """Run the mutants whose name contains one of the arguments (all without any)."""
    parts = [each for each in arguments if each != PASSED]
    mutants, healthy = read_list()
    chosen = [each for each in mutants if not parts or any(part in each.name for part in parts)]
    tests = [] if PASSED in arguments else [*healthy, *dict.fromkeys(m.test for m in chosen)]
    at_once = 2 * (os.cpu_count() or 1)  # tests wait, too
    ctx = multiprocessing.get_context("forkserver")
    ctx.set_forkserver_preload(LOADED_ONCE)
    with (
        tempfile.TemporaryDirectory(prefix="forze-mutants-") as directory,
        ThreadPoolExecutor(at_once) as pool,
    ):
        copies = Copies(Path(directory), at_once)
        unharmed = pool.submit(passing, tests) if tests else None
        wrong = sum(pool.map(lambda each: not caught(each, healthy, copies, ctx), chosen))
        code, output = (0, "") if unharmed is None else unharmed.result()
    print(f"{len(chosen) - wrong} caught, {wrong} wrong")
    if code != 0:
        print(f"without any mutant the tests must pass:\n{output[-4000:]}")
    return 1 if wrong or code else 0


def passing(tests: list[str]) -> tuple[int, str]:
    """Exit code and output of pytest over ``tests``, with nothing planted."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *PLAINLY, *tests],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_FOR_ALL, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def caught(mutant: Mutant, healthy: list[str], copies: Copies, ctx: ForkServerContext) -> bool:
    """Whether the mutant is caught; prints what was found."""
    began = time.monotonic()
    problem = verdict(mutant, healthy, copies, ctx)
    print(f"{time.monotonic() - began:5.1f}s  {mutant.name}: {problem or 'caught'}", flush=True)
    return problem is None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
