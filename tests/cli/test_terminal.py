"""The command as a process, and at a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.conftest import Forze
from tests.cli.terminal import PATIENCE_SECONDS, Terminal

from forze_cli.command import PARTS
from forze_cli.signals import ENDING

CTRL_C, CTRL_D = "\x03", "\x04"


def test_questions_have_sensible_answers(here: Path) -> None:
    with Terminal("new", directory=here) as terminal:
        terminal.wait_for("Name of the project")
        terminal.type("shop\n")
        for part, answer in zip(PARTS, ("\n", "\n", "y\n", "n\n", "\n"), strict=True):
            terminal.wait_for(PARTS[part])
            terminal.type(answer)
        assert terminal.end() == 0

    assert "made shop with redis, docker" in terminal.shown
    assert os.listdir(here) == ["shop"]
    assert (here / "shop" / "Dockerfile").exists()
    assert not (here / "shop" / "app" / "core" / "celery.py").exists()


def test_an_empty_name_is_asked_for_again(here: Path) -> None:
    with Terminal("new", "--no-redis", directory=here) as terminal:
        terminal.wait_for("Name of the project")
        terminal.type("\n")
        terminal.wait_for("it is empty")
        terminal.wait_for("Name of the project: ")
        terminal.type("shop\n")
        assert terminal.end() == 0

    assert os.listdir(here) == ["shop"]


def test_ctrl_c_at_a_question(here: Path) -> None:
    with Terminal("new", "shop", directory=here) as terminal:
        terminal.wait_for(PARTS["redis"])
        while terminal.process.poll() is None:  # a question hears it once it waits for the answer
            terminal.type(CTRL_C)
            time.sleep(0.05)
        assert terminal.end() == 128 + signal.SIGINT

    assert "Traceback" not in terminal.shown
    assert os.listdir(here) == []


def test_ctrl_d_at_a_question(here: Path) -> None:
    with Terminal("new", directory=here) as terminal:
        terminal.wait_for("Name of the project")
        terminal.type("1shop\n")
        terminal.wait_for("begins with a letter")
        terminal.type("shop\n")
        terminal.wait_for(PARTS["redis"])
        terminal.type(CTRL_D)
        assert terminal.end() == 1

    assert "Traceback" not in terminal.shown
    assert os.listdir(here) == []


def test_ctrl_c_while_it_is_made(here: Path) -> None:
    with Terminal("new", "shop", "--redis", directory=here) as terminal:
        terminal.wait_for("making shop")
        terminal.type(CTRL_C)
        code = terminal.end()

    assert "Traceback" not in terminal.shown
    assert "\x1b[?25h" in terminal.shown  # the cursor is back
    assert (code, os.listdir(here)) in [(128 + signal.SIGINT, []), (0, ["shop"])]  # or too late


def _python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip


def test_help_loads_no_renderer_and_no_driver() -> None:
    program = "import sys, forze_cli.command; print(*{each.split('.')[0] for each in sys.modules})"
    loaded = set(_python(program).stdout.split())

    assert "typer" in loaded
    assert not {"copier", "jinja2", "yaml", "pydantic", "redis", "asyncpg", "fastapi"} & loaded


def test_help_names_every_part(forze: Forze) -> None:
    said = forze("new", "--help").stdout

    assert "Usage: forze new" in said
    assert all(f"--{part}" in said and f"--no-{part}" in said for part in PARTS)


@pytest.mark.parametrize("number", ENDING, ids=lambda each: each.name)
def test_while_the_process_ends_a_signal_makes_no_failure_of_a_success(
    number: signal.Signals,
) -> None:
    done = _python(f"""
import atexit, os, runpy, sys
atexit.register(lambda: os.kill(os.getpid(), {int(number)}))
sys.argv[1:] = ["--version"]
runpy.run_module("forze_cli", run_name="__main__")
""")

    assert done.returncode == 0
    assert done.stdout.startswith("forze 0.")


def test_the_command_line_is_of_an_extra() -> None:
    done = _python("import sys; sys.modules['typer'] = None; import forze_cli; forze_cli.main()")

    assert done.returncode == 1
    assert done.stderr == (
        "forze: the command line needs typer, of an extra: python -m pip install 'forze[cli]'\n"
    )
