"""Every short recipe, run as its users run it: it succeeds, it leaves nothing behind.

Each recipe asserts what it shows, so its exit status is the verdict.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
SHORT = sorted(each.parent.name for each in RECIPES.glob("*/main.py"))
SHORT.remove("cache_reads")  # in test_recipe

recipe = pytest.mark.parametrize("name", SHORT)


def started(name: str, directory: Path) -> subprocess.Popen[str]:
    directory.chmod(0o755)  # PostgreSQL's own user has to enter it
    return subprocess.Popen(
        [sys.executable, "-u", "-W", "error", "main.py"],
        cwd=RECIPES / name,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={
            **{key: value for key, value in os.environ.items() if not key.endswith("_DSN")},
            "TMPDIR": str(directory),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )


def working_in(directory: Path) -> list[str]:
    """The command lines of processes that mention ``directory``."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                lines.append((entry / "cmdline").read_text(errors="replace").replace("\0", " "))
            except OSError:
                continue
    return [line for line in lines if str(directory) in line]


def test_there_are_recipes() -> None:
    assert {"counters", "idempotency", "locks", "search_snapshots", "tenants"} <= set(SHORT)


@recipe
def test_it_shows_what_it_promises(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("r")
    for folder in (directory.parent, directory.parent.parent):
        folder.chmod(0o755)
    with started(name, directory) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors == ""
    assert len(output.splitlines()) > 5
    assert working_in(directory) == []
    assert list(directory.iterdir()) == []


@recipe
def test_interrupted_it_leaves_nothing_behind(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("r")
    for folder in (directory.parent, directory.parent.parent):
        folder.chmod(0o755)
    with started(name, directory) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode != 0
    deadline = time.monotonic() + 10
    while (left := working_in(directory)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    assert list(directory.iterdir()) == []
