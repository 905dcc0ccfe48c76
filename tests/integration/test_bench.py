"""A part of the bench from end to end, so short that its times say nothing: that it measures what
it says, and that what it counts is right."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench.parts import operations
from bench.peers import Peers
from bench.report import Report
from bench.run import Run
from bench.workload import prepare, servers

ROOT = Path(__file__).parents[2]
SHORT = ("--rounds", "1", "--seconds", "0.02", "--peers", "none")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``just bench reads`` wrote its figures."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "bench", "reads", *SHORT, "--out", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    return folder


@pytest.fixture(scope="module")
def found(out: Path) -> Any:
    """The figures."""
    return json.loads((out / "reads.json").read_text())


def test_everybody_who_is_there_is_measured(found: Any) -> None:
    everybody = {"uvloop": {"forze", "redis-py", "PostgreSQL"}, "asyncio": {"forze", "redis-py"}}
    for loop, callers in (
        ("uvloop", "1 caller"),
        ("uvloop", "256 callers"),
        ("asyncio", "1 caller"),
    ):
        part = found["parts"][f"reads through Redis, {loop}"]
        figures = part[f"{loop}, {callers}"]["figures"]
        assert set(figures) == everybody[loop]
        assert all(each["median"] > 0 and len(each["readings"]) == 1 for each in figures.values())


def test_a_hit_is_one_command_and_in_process_none(found: Any) -> None:
    """None: who sends any is left out of that comparison."""
    part = found["parts"]["commands per read"]
    assert part["redis-py"]["value"] == 1
    assert part["forze"]["value"] + part["forze: on another's flight"]["value"] == pytest.approx(1)
    figures = found["parts"]["reads in process"]["a hit in process"]["figures"]
    assert set(figures) == {"forze LRU", "forze W-TinyLFU", "async dict"}


def test_what_is_nearer_is_cheaper(found: Any) -> None:
    """By so much that no busy machine turns it round."""
    near = found["parts"]["reads in process"]["a hit in process"]["figures"]
    far = found["parts"]["reads through Redis, uvloop"]["uvloop, 1 caller"]["figures"]
    assert near["async dict"]["median"] < near["forze LRU"]["median"] < far["forze"]["median"]


def test_who_was_left_out_and_what_is_not_known_for_it_is_said(found: Any) -> None:
    assert found["not measured"]["cashews"] == "left out by --peers"
    known = {each["what"]: each["met"] is not None for each in found["targets"]}
    assert len(known) == 4
    assert [what for what, is_known in known.items() if is_known] == [
        "cached read, 32 callers, both on uvloop: times redis-py GET"
    ]


def test_the_plots_show_us(out: Path) -> None:
    names = {each.name for each in out.glob("*.svg")}
    assert names == {"reads-uvloop.svg", "reads-asyncio.svg", "reads-in-process.svg"}
    for name in names:
        texts = (each.text or "" for each in ElementTree.parse(out / name).iter())
        assert any("forze" in text for text in texts)


def test_commands_of_single_operations_are_as_promised(tmp_path: Path) -> None:
    report = Report({})
    report.begin("operations", "")
    with servers() as at:
        ids = asyncio.run(prepare(at))
        peers = Peers(report, ids, (), valkey=at.valkey.dsn, postgres=at.postgres.dsn)
        run = Run(at, ids, peers, report, rounds=1, seconds=0.02, full=False, traces=None)
        asyncio.run(operations.measure_commands(run))
    report.write(tmp_path, "commands")
    targets = json.loads((tmp_path / "commands.json").read_text())["targets"]
    assert [each["found"] for each in targets] == [2, 1, 2, 2, 1, 2, 1, 1]
    assert all(each["met"] for each in targets)
