"""The shop, started by its one command as its users start it: it sells, and leaves nothing."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import pytest
from tests.integration.recipes import RECIPES, left_behind, started

SHOP = RECIPES.parent / "shop"

HOLDS = (
    "no read was older than a write acknowledged before it",
    "the L1 was never behind",
    "no request failed that may not",
    "nobody was told to come back without need",
    "no order was placed twice",
    "every acknowledged order is in the books",
    "the worker confirmed every order",
    "each was charged once, and its amount",
    "nothing was sold that was not there",
)
SEEN_OPEN = "every replica saw the circuit of the payments open"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What is compiled once is used by every program of every shop."""
    compiled = str(tmp_path_factory.mktemp("compiled"))
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}


def checked(output: str) -> None:
    """All that must hold held."""
    assert [each for each in HOLDS if f"✓ {each}" not in output] == [], output
    assert "✗" not in output
    assert figure(r"errors +(\d+) failed", output) == 0
    assert figure(r"orders +([\d,]+) placed", output) > 0
    assert figure(r"stale reads +0 of ([\d,]+)", output) > 0


def figure(pattern: str, output: str) -> int:
    found = re.search(pattern, output)
    assert found, output
    return int(found[1].replace(",", ""))


def test_it_sells_by_one_command(short_path: Path, environment: Mapping[str, str]) -> None:
    command = "main.py", "--seconds", "2"
    with started("../shop", short_path, *command, environment=environment) as process:
        output, errors = process.communicate(timeout=90)
    assert (process.returncode, errors) == (0, ""), output
    checked(output)
    assert output.endswith("all torn down\n")
    assert left_behind(short_path) == []


def test_it_goes_on_through_its_outages_and_stays_open_until_ctrl_c(
    short_path: Path, environment: Mapping[str, str]
) -> None:
    command = "main.py", "--seconds", "4", "--chaos", "--stay"
    with started("../shop", short_path, *command, environment=environment) as process:
        assert process.stdout is not None
        output = read_until("open until Ctrl-C", process.stdout)
        checked(output)
        assert "payments fail" in output
        assert "Valkey is dead" in output
        assert f"✓ {SEEN_OPEN}" in output
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, ""), output
    assert output.endswith("all torn down\n")
    assert left_behind(short_path) == []


def test_killed_in_the_middle_it_leaves_nothing(
    short_path: Path, environment: Mapping[str, str]
) -> None:
    with started("../shop", short_path, environment=environment) as process:
        assert process.stdout is not None
        read_until(" orders, ", process.stdout)
        process.kill()
        until = time.monotonic() + 20
        while (left := left_behind(short_path)) and time.monotonic() < until:
            time.sleep(0.05)
    assert left == []


def test_ctrl_c_while_it_starts_leaves_nothing(
    short_path: Path, environment: Mapping[str, str]
) -> None:
    with started("../shop", short_path, environment=environment) as process:
        until = time.monotonic() + 60
        while not list(short_path.glob("forze-replica-*")) and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, ""), output
    assert output.endswith("all torn down\n")
    assert left_behind(short_path) == []


def read_until(text: str, output: IO[str]) -> str:
    """The lines up to one that holds ``text``."""
    lines = []
    for line in output:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"ended without {text!r}: {''.join(lines)}")


def test_the_justfiles_know_it() -> None:
    for where in (SHOP, SHOP.parents[1]):
        listed = subprocess.run(
            ["just", "--list"], cwd=where, capture_output=True, text=True, check=True
        ).stdout
        assert "--chaos" in listed or "Ctrl-C" in listed
