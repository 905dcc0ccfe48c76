"""Every project that ``forze new`` can make is rendered and checked; a covering few are lived in.

::

    python -m tests.cli.matrix [--all]

All 32 combinations are rendered, parsed, linted, and imported, each in a process of its own.
Six are made as a user makes them, by the command of a wheel of this working tree in an
environment of its own, then installed with uv, and their own tests run there: all parts at
once, and each part with its neighbour round a circle. So of any two parts each of the four
combinations (neither, either, both) is lived in; with ``--all`` it is all 32. The fullest is
type-checked; from the one with Redis and Docker the first answer out of the cache is timed.

Three things happen at a time. Each is bounded in time; any failure is a failure of the run.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from tests.cli.rendered import every_combination, name_of

from forze_cli.project import Parts

ROOT = Path(__file__).resolve().parents[2]
CIRCLE = ("auth", "celery", "docker", "redis", "database")
FULLEST = Parts(redis=True, celery=True, docker=True, database=True, auth=True)
TIMED = Parts(docker=True, redis=True)
AT_A_TIME = 3  # on two cores: servers and workers are often waited for
SECONDS_PER_STEP = 180
SECONDS_TO_FIRST_HIT = 60


class StepFailed(Exception):
    """A step of a project failed; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Line:
    """What was done, and how it went."""

    name: str
    seconds: float
    problem: str | None


def covering() -> list[Parts]:
    """All parts at once, and each with its neighbour in ``CIRCLE``."""
    pairs = zip(CIRCLE, (*CIRCLE[1:], CIRCLE[0]), strict=True)
    return [FULLEST, *(Parts(**dict.fromkeys(pair, True)) for pair in pairs)]


def main(arguments: list[str]) -> int:
    """Run it all; the exit code."""
    began = time.monotonic()
    lived_in = every_combination() if "--all" in arguments else covering()
    with tempfile.TemporaryDirectory(prefix="forze-matrix-") as name:
        lines = list(_all(Path(name), lived_in))
    wrong = [each for each in lines if each.problem]
    print(f"{len(lived_in)} lived in: {', '.join(name_of(each) for each in lived_in)}")
    print(f"{len(lines) - len(wrong)} right, {len(wrong)} wrong, {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


def _all(directory: Path, lived_in: list[Parts]) -> Iterator[Line]:
    """Everything there is to do, as it is done."""
    rendered = directory / "rendered"
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        installing = pool.submit(_timed, "wheel built and installed", lambda: _install(directory))
        rendering = pool.submit(_timed, "32 rendered and parsed", lambda: _render_all(rendered))
        waiting = {installing, rendering}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for each in done:
                line = each.result()
                print(f"{line.seconds:6.1f} s  {line.name}: {line.problem or 'ok'}", flush=True)
                yield line
            if installing in done and installing.result().problem is None:
                waiting |= {pool.submit(_live_in, parts, directory) for parts in lived_in}
            if rendering in done:
                waiting.add(pool.submit(_timed, "32 linted", lambda: _lint(rendered)))
                waiting.add(pool.submit(_timed, "32 imported", lambda: _import(rendered)))


def _timed(name: str, step: Callable[[], object]) -> Line:
    began = time.monotonic()
    problem = None
    try:
        step()
    except StepFailed as error:
        problem = str(error)
    except Exception:
        problem = traceback.format_exc()
    return Line(name, time.monotonic() - began, problem)


def _render_all(directory: Path) -> None:
    # Copier asks Git about each template, if there is one; here that would take most of the time.
    _run([sys.executable, "-m", "tests.cli.rendered", str(directory)], ROOT, PATH="")


def _lint(directory: Path) -> None:
    ruff = [sys.executable, "-m", "ruff"]
    _run([*ruff, "check", "--no-cache", "."], directory)
    _run([*ruff, "format", "--no-cache", "--check", "."], directory)


def _import(directory: Path) -> None:
    _run([sys.executable, "-m", "tests.cli.imported", str(directory)], ROOT)


def _install(directory: Path) -> None:
    """The command ``forze`` of a wheel of this working tree, in ``directory / "tool"``."""
    _run(["uv", "build", "--quiet", "--wheel", "--out-dir", str(directory / "dist"), str(ROOT)])
    (wheel,) = (directory / "dist").glob("*.whl")
    _run(["uv", "venv", "--quiet", "--python", sys.executable, str(directory / "tool")])
    python = directory / "tool" / "bin" / "python"
    wanted = f"forze[cli] @ {wheel.as_uri()}"
    _run(["uv", "pip", "install", "--quiet", "--python", str(python), wanted])


def _live_in(parts: Parts, directory: Path) -> Line:
    """Make the project as its user would, and run its tests."""
    said = ""

    def live() -> None:
        nonlocal said
        began = time.monotonic()
        project = directory / name_of(parts)
        flags = [f"--{each}" for each in parts.chosen()] or ["--no-redis"]
        _run([str(directory / "tool" / "bin" / "forze"), "new", project.name, *flags], directory)
        _run(["just", "setup"], project)
        if parts == TIMED:
            said = f"first hit after {_seconds_to_first_hit(project, began):.0f} s; "
        said += _run(["just", "test", "-q", "-W", "error"], project).strip().splitlines()[-1]
        if parts == FULLEST:
            said += "; " + _run(["just", "lint"], project).strip().splitlines()[-1]

    line = _timed(name_of(parts), live)
    return replace(line, name=f"{line.name} ({said})" if said else line.name)


def _seconds_to_first_hit(project: Path, began: float) -> float:
    """Serve the project with ``just dev`` until the second request is answered from the cache."""
    command = ["just", "dev", "--port", "0"]
    with subprocess.Popen(
        command, cwd=project, env=_environment(), stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    ) as server:  # fmt: skip
        watchdog = threading.Timer(SECONDS_TO_FIRST_HIT, os.killpg, (server.pid, signal.SIGKILL))
        watchdog.start()
        said = []
        try:
            assert server.stderr is not None
            for line in server.stderr:
                said.append(line)
                if found := re.search(r"running on (http://\S+)", line):
                    break
            else:
                raise StepFailed("".join(said))
            url = f"{found[1]}/articles/welcome"
            with httpx.Client(transport=httpx.HTTPTransport(retries=6), timeout=10) as client:
                answers = [client.get(url) for _ in range(2)]  # the port is there before the server
            seconds = time.monotonic() - began
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGINT)
            server.communicate()
            watchdog.cancel()
    states = [each.headers.get("cache-status", "") for each in answers]
    if not states[1].endswith("; hit") or answers[0].json() != answers[1].json():
        raise StepFailed(f"the second answer is not the cache's: {states}")
    if seconds > SECONDS_TO_FIRST_HIT:
        raise StepFailed(f"the first answer from the cache took {seconds:.0f} s")
    return seconds


def _run(command: Sequence[str], directory: Path | None = None, **variables: str) -> str:
    """The output of ``command``; StepFailed with it if it failed or took too long."""
    process = subprocess.Popen(
        command, cwd=directory, env=_environment() | variables, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=SECONDS_PER_STEP)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        output += f"\nstopped after {SECONDS_PER_STEP} s"
    if process.returncode != 0:
        raise StepFailed(f"{' '.join(command)} ({process.returncode}):\n{output[-4000:]}")
    return output


def _environment() -> dict[str, str]:
    """Ours, without what belongs to our own environment or would stand in for a server."""
    ours = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONPYCACHEPREFIX", "UV_PROJECT_ENVIRONMENT"}
    servers = {"REDIS_CONNECTION_URL", "CELERY_BROKER_URL", "DATABASE_URL"}
    kept = {name: value for name, value in os.environ.items() if name not in ours | servers}
    return kept | {"UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
