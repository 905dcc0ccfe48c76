"""The cached-reads recipe, run as its users run it, and interrupted as they interrupt it."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import sys
import termios
import time
from pathlib import Path
from xml.etree import ElementTree

import asyncpg
import pytest
from tests.integration.recipes import RECIPES, left_behind, started

from forze.testing.servers import ValkeyServer


def _rows(output: str) -> list[tuple[str, str, str, int]]:
    """The story's table: step, outcome, answered by, commands."""
    rows = re.findall(r"^(\S.*?)  +(\S.*?)  +(\S.*?)  +(\d+) +[\d.]+ ms$", output, re.MULTILINE)
    return [(step, outcome, where, int(commands)) for step, outcome, where, commands in rows]


def test_it_tells_the_story_and_leaves_nothing(short_path: Path) -> None:
    with started("cache_reads", short_path) as process:
        output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, ""), output
    assert _rows(output) == [
        ("create", "Widget, price 10", "PostgreSQL", 0),
        ("get", "price 10: a miss, fills", "PostgreSQL", 2),
        ("get again", "price 10: a hit", "the cache", 1),
        ("cache.get", "price 10: the same entry", "the cache", 1),
        ("update", "price 12: invalidates", "PostgreSQL", 2),
        ("get", "price 12: a miss, fills", "PostgreSQL", 2),
        ("get again", "price 12: a hit", "the cache", 1),
    ]
    assert "cache_scenario: price 12" in output
    assert "older spelling: price 25" in output
    for step in ("Hot documents", "Push", "A scan", "Early refresh", "Lifetimes"):
        assert re.search(rf"^{step}.*\n-+$", output, re.MULTILINE), step
    assert left_behind(short_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("seen", "room"), [(30, 60), (240, 320)], ids=["before", "amid the story"])
def test_interrupted_it_tears_down(
    short_path: Path, number: signal.Signals, seen: int, room: int
) -> None:
    """Its standard output is a pipe with too little room for the story: it cannot end first."""
    read_end, write_end = os.pipe()
    size = fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write_end, b"." * (size - room))
    with (
        started("cache_reads", short_path, stdout=write_end) as process,
        open(read_end, "rb") as output,
    ):
        os.close(write_end)
        deadline = time.monotonic() + 60
        while _unread(read_end) < size - room + seen:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        printed = output.read().decode()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, printed + errors
    assert errors == ""
    assert "torn down" in printed
    assert left_behind(short_path) == []


def _unread(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_failing_it_says_why_and_tears_down(short_path: Path) -> None:
    with started(
        "cache_reads", short_path, environment={"REDIS_DSN": "redis://127.0.0.1:1/0"}
    ) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "127.0.0.1:1" in errors
    assert "Traceback" not in errors
    assert left_behind(short_path) == []


async def test_on_servers_of_the_users_own_it_starts_none_and_cleans_up(
    short_path: Path, postgres_dsn: str, own_valkey: ValkeyServer
) -> None:
    theirs = {"POSTGRES_DSN": postgres_dsn, "REDIS_DSN": own_valkey.dsn}
    with started("cache_reads", short_path, environment=theirs) as process:
        output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, ""), output
    assert "yours" in output
    assert left_behind(short_path) == []
    connection = await asyncpg.connect(postgres_dsn)
    try:
        schemas = await connection.fetch("SELECT nspname FROM pg_namespace")
    finally:
        await connection.close()
    assert [row["nspname"] for row in schemas if "forze_cache_reads" in row["nspname"]] == []
    assert b"pointer" not in own_valkey.ask("KEYS", "*")


# -- the steps, each by itself ----------------------------------------------------


def _told(short_path: Path, *step: str) -> str:
    """What a step prints; it ends well, says nothing else, and leaves nothing."""
    with started("cache_reads", short_path, *step) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, ""), output
    assert output.endswith("\nall torn down\n")
    assert left_behind(short_path) == []
    return output


def _figures(pattern: str, output: str) -> list[float]:
    """The groups of the one line that matches, as numbers."""
    found = re.search(pattern, output, re.MULTILINE)
    assert found, output
    return [float(each.replace(",", "")) for each in found.groups()]


def test_hot_documents_are_read_without_a_command(short_path: Path) -> None:
    output = _told(short_path, "hot_documents.py")
    reads, commands, _ = _figures(
        r"^([\d,]+) more reads: (\d+) commands to the cache, ([\d.]+) us each$", output
    )
    assert (reads, commands) == (10_000, 0)
    assert "price 12 written; the writer reads 12" in output
    assert "another replica still reads 10" in output
    (late,) = _figures(r"^([\d.]+) s after the write it reads 12", output)
    assert late < 1.5
    assert "hits=10000" in output
    assert "{'products': '99.98%'}" in output


def test_a_push_reaches_the_other_process(short_path: Path) -> None:
    output = _told(short_path, "push.py")
    writer, reader = _figures(r"^process (\d+) writes, process (\d+) reads from its L1$", output)
    assert writer != reader
    _, p99 = _figures(r"seen by the other ([\d.]+) ms .*\(median\), ([\d.]+) ms \(p99\)$", output)
    assert p99 < 1_000, "an entry would live for a minute"
    (flushed,) = _figures(r"^its connection cut: ([\d.]+) ms later its L1 was empty$", output)
    assert flushed < 1_000
    (again,) = _figures(r"^connected again: the next write seen after ([\d.]+) ms$", output)
    assert again < 1_000


def test_interrupted_the_other_process_ends_too(short_path: Path) -> None:
    with started("cache_reads", short_path, "push.py") as process:
        assert process.stdout is not None
        line = next(each for each in process.stdout if each.startswith("process "))
        other = Path("/proc", line.split()[4])
        assert other.exists()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (128 + signal.SIGINT, "")
    assert not other.exists()
    assert left_behind(short_path) == []


def test_a_scan_leaves_the_hot_set_to_tiny_lfu(short_path: Path) -> None:
    output = _told(short_path, "scan.py")
    (lru,) = _figures(r"^lru_l1_store +hot reads in process: +(\d+)%", output)
    (tiny_lfu,) = _figures(r"^tiny_lfu_l1_store +hot reads in process: +(\d+)%", output)
    assert tiny_lfu > lru + 30
    assert output.count("L1Stats(size=100, capacity=100") == 2


def test_early_refresh_spares_the_readers_and_draws_it(short_path: Path) -> None:
    drawing = short_path / "drawn.svg"
    with started("cache_reads", short_path, "early_refresh.py", str(drawing)) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, ""), output
    row = r" +[\d,]+ +(\d+) +(\d+) +[\d.]+ ms +[\d.]+ ms$"
    loads, waited = _figures(rf"^off{row}", output)
    assert loads >= 3
    assert waited >= 5 * loads, "each expiry holds up many readers"
    loads, elected = _figures(rf"^early_refresh_beta=1\.0{row}", output)
    assert loads >= 3
    assert elected < waited / 2
    loads, held_up = _figures(rf"^the same, in the background{row}", output)
    assert loads >= 3
    assert held_up < waited / 2
    assert _outline(drawing) == _outline(RECIPES / "cache_reads" / "early_refresh.svg")
    drawing.unlink()
    assert left_behind(short_path) == []


def _outline(drawing: Path) -> list[str]:
    """The heading and the rows of a drawing, without their figures."""
    texts = ElementTree.parse(drawing).iter("{http://www.w3.org/2000/svg}text")
    return [
        re.sub(r"\d+ reads", "reads", each.text or "")
        for each in texts
        if re.search(r"reads", each.text or "")
    ]


def test_lifetimes_are_what_the_rules_say(short_path: Path) -> None:
    output = _told(short_path, "lifetimes.py")
    lives = re.findall(r"ago: cached for +(\d+) s$", output, re.MULTILINE)
    for life, rule in zip(map(int, lives), (30, 360, 3_600), strict=True):
        assert 0.9 * rule - 2 <= life <= rule + 1
    rows = re.findall(r"s: body ([\d.]+) s, at most ([\d.]+) s$", output, re.MULTILINE)
    bodies, caps = zip(*((float(body), float(cap)) for body, cap in rows), strict=True)
    assert len(rows) >= 4
    assert list(caps) == sorted(caps, reverse=True), "reads do not touch the cap"
    assert bodies[2] > bodies[0] - 0.2, "the window moves with the reads"
    assert max(bodies) <= 0.5
    assert "loaded anew, because of the cap" in output
    assert "gone, loaded again" in output
