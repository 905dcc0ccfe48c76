"""The cached-reads recipe, run as its users run it, and interrupted as they interrupt it."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from forze.testing.servers import ValkeyServer

RECIPE = Path(__file__).parents[2] / "examples" / "recipes" / "cache_reads"


@contextmanager
def _started(
    tmp_path: Path, *, stdout: int = subprocess.PIPE, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """The recipe as a process whose temporary files are all in ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-W", "error", str(RECIPE / "main.py")],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **{name: value for name, value in os.environ.items() if not name.endswith("_DSN")},
            "TMPDIR": str(tmp_path),
            **environment,
        },
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _left_behind(tmp_path: Path) -> list[str]:
    """Processes that work in ``tmp_path``, and files in it."""
    running = [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and str(tmp_path) in _command_line(entry)
    ]
    return [*running, *(each.name for each in tmp_path.iterdir())]


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _rows(output: str) -> list[tuple[str, str, str, int]]:
    """The story's table: step, outcome, answered by, commands."""
    rows = re.findall(r"^(\S.*?)  +(\S.*?)  +(\S.*?)  +(\d+) +[\d.]+ ms$", output, re.MULTILINE)
    return [(step, outcome, where, int(commands)) for step, outcome, where, commands in rows]


@pytest.fixture
def open_tmp_path(tmp_path: Path) -> Path:
    """A temporary directory that PostgreSQL's own user can enter, with a short name."""
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.owner() == Path.home().owner() and folder != Path("/tmp"):
            folder.chmod(0o755)
    return tmp_path


def test_it_tells_the_story_and_leaves_nothing(open_tmp_path: Path) -> None:
    with _started(open_tmp_path) as process:
        output, errors = process.communicate(timeout=60)
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
    assert _left_behind(open_tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("seen", "room"), [(30, 60), (240, 320)], ids=["before", "amid the story"])
def test_interrupted_it_tears_down(
    open_tmp_path: Path, number: signal.Signals, seen: int, room: int
) -> None:
    """Its standard output is a pipe with too little room for the story: it cannot end first."""
    read_end, write_end = os.pipe()
    size = fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write_end, b"." * (size - room))
    with _started(open_tmp_path, stdout=write_end) as process, open(read_end, "rb") as output:
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
    assert _left_behind(open_tmp_path) == []


def _unread(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_failing_it_says_why_and_tears_down(open_tmp_path: Path) -> None:
    with _started(open_tmp_path, REDIS_DSN="redis://127.0.0.1:1/0") as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "127.0.0.1:1" in errors
    assert "Traceback" not in errors
    assert _left_behind(open_tmp_path) == []


async def test_on_servers_of_the_users_own_it_starts_none_and_cleans_up(
    open_tmp_path: Path, postgres_dsn: str, own_valkey: ValkeyServer
) -> None:
    began = time.monotonic()
    with _started(open_tmp_path, POSTGRES_DSN=postgres_dsn, REDIS_DSN=own_valkey.dsn) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, ""), output
    assert "yours" in output
    assert time.monotonic() - began < 30
    assert _left_behind(open_tmp_path) == []
    connection = await asyncpg.connect(postgres_dsn)
    try:
        schemas = await connection.fetch("SELECT nspname FROM pg_namespace")
    finally:
        await connection.close()
    assert "forze_cache_reads" not in {row["nspname"] for row in schemas}
    assert b"pointer" not in own_valkey.ask("KEYS", "*")
