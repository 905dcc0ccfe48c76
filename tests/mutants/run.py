"""Plants each fault of ``mutants.toml`` in a copy of the sources and runs the test beside it.

::

    python -m tests.mutants.run [--tests-passed] [name part ...]

A mutant is caught when its test fails by an assertion while the copy still imports and the
tests under ``healthy`` still pass. Anything else (the text to replace is not there exactly
once, the test errors before it asserts, the test passes) is a failure of the run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutants.toml")
SECONDS_PER_TEST = 120
SECONDS_FOR_ALL = 900
PASSED = "--tests-passed"


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


def plant(mutant: Mutant, source: Path) -> None:
    """Apply the fault to the copy under ``source``."""
    target = source / mutant.file
    text = target.read_text("utf-8")
    found = text.count(mutant.find)
    if found != 1:
        raise SystemExit(f"{mutant.name}: its text stands {found} times in {mutant.file}, not once")
    target.write_text(text.replace(mutant.find, mutant.replace), "utf-8")


def run(tests: list[str], source: Path, seconds: float = SECONDS_PER_TEST) -> tuple[int, str]:
    """Exit code and output of pytest over ``tests`` with the packages of ``source``."""
    # The copy goes in front of the installed packages.
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-qx", "-rfE", "--no-header", "-p", "no:cacheprovider",
         "-o", f"pythonpath={source} {ROOT}", *tests],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def verdict(mutant: Mutant, healthy: list[str], copy: Path) -> str | None:
    """None if the mutant is caught as it should be, else what is wrong."""
    source = copy / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    plant(mutant, source)
    code, output = run([*healthy, mutant.test], source)  # in this order, up to the first failure
    if code == 0:
        return f"NOT CAUGHT by {mutant.test}"
    if f"FAILED {mutant.test}" not in output and f"ERROR {mutant.test}" not in output:
        return f"breaks more than its test:\n{output[-2000:]}"
    if code != 1 or "error" in output.splitlines()[-1].split():
        return f"its test did not fail by an assertion:\n{output[-2000:]}"
    return None


def main(arguments: list[str]) -> int:
    """Run the mutants whose name contains one of the arguments (all without any)."""
    parts = [each for each in arguments if each != PASSED]
    mutants, healthy = read_list()
    chosen = [each for each in mutants if not parts or any(part in each.name for part in parts)]
    tests = [] if PASSED in arguments else [*healthy, *dict.fromkeys(m.test for m in chosen)]
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:  # tests wait, too
        unharmed = pool.submit(run, tests, ROOT / "src", SECONDS_FOR_ALL) if tests else None
        wrong = sum(pool.map(lambda each: not caught(each, healthy), chosen))
    print(f"{len(chosen) - wrong} caught, {wrong} wrong")
    code, output = (0, "") if unharmed is None else unharmed.result()
    if code != 0:
        print(f"without any mutant the tests must pass:\n{output[-4000:]}")
    return 1 if wrong or code else 0


def caught(mutant: Mutant, healthy: list[str]) -> bool:
    """Whether the mutant is caught; prints what was found."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="forze-mutant-") as copy:
        problem = verdict(mutant, healthy, Path(copy))
    print(f"{time.monotonic() - began:5.1f}s  {mutant.name}: {problem or 'caught'}", flush=True)
    return problem is None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
