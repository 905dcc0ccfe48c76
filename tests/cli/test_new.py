"""``forze new``: a whole project, or nothing."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import socket
import sys
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import NoReturn

import pytest
import yaml  # type: ignore[import-untyped,unused-ignore]
from packaging.requirements import Requirement
from plumbum import local
from tests.cli.conftest import Forze
from tests.cli.matrix import covering

import forze_cli.command
import forze_cli.project
from forze.errors import ConflictError, ValidationError
from forze_cli.command import PARTS, USUAL
from forze_cli.names import check_name
from forze_cli.placing import place
from forze_cli.project import TEMPLATE, Parts, Project, load_renderer, render
from forze_cli.signals import ENDING

PLAIN = Project(name="shop", parts=Parts(redis=True), forze_requirement="forze[{extras}]>=0.1.0")


def contents(directory: Path) -> dict[str, bytes | None]:
    """Everything below ``directory``; None for folders."""
    return {
        str(each.relative_to(directory)): each.read_bytes() if each.is_file() else None
        for each in directory.rglob("*")
    }


def test_what_is_named_is_in_and_the_rest_is_out(here: Path, forze: Forze) -> None:
    done = forze("new", "my-shop", "--redis", "--celery")

    assert done.exit_code == 0
    assert os.listdir(here) == ["my-shop"]
    made = contents(here / "my-shop")
    assert {"app/core/redis.py", "app/core/celery.py", "app/main.py", "justfile"} <= made.keys()
    assert not {"Dockerfile", "docker-compose.yml"} & made.keys()
    assert (
        tomllib.loads((here / "my-shop/pyproject.toml").read_text())["project"]["name"] == "my-shop"
    )


def test_without_a_terminal_nothing_is_asked_and_all_is_out(here: Path, forze: Forze) -> None:
    done = forze("new", "shop")

    assert done.exit_code == 0
    assert done.stdout.startswith(
        "made shop with nothing but FastAPI\n(what it can have: forze new"
    )
    assert "app/core/redis.py" not in contents(here / "shop")


def test_one_part_refused_is_one_part_named(here: Path, forze: Forze) -> None:
    assert forze("new", "shop", "--no-celery").exit_code == 0
    assert "app/core/redis.py" not in contents(here / "shop")


TERMINAL, PIPE = (SimpleNamespace(isatty=lambda answer=each: answer) for each in (True, False))


@pytest.mark.parametrize(
    ("stdin", "stderr"),
    [(None, None), (None, TERMINAL), (TERMINAL, PIPE)],
    ids=["closed", "no input", "unseen"],
)
def test_a_question_that_nobody_sees_or_answers_is_not_asked(
    here: Path, forze: Forze, monkeypatch: pytest.MonkeyPatch, stdin: object, stderr: object
) -> None:
    monkeypatch.setattr("forze_cli.command.sys", SimpleNamespace(stdin=stdin, stderr=stderr))

    assert forze("new", "shop").exit_code == 0
    assert forze("new").exit_code == 2
    assert os.listdir(here) == ["shop"]


def test_yes_is_redis(here: Path, forze: Forze) -> None:
    assert forze("new", "shop", "--yes").exit_code == 0
    assert "app/core/redis.py" in contents(here / "shop")


def test_without_a_terminal_the_name_is_not_asked_for(here: Path, forze: Forze) -> None:
    done = forze("new", "--redis")

    assert done.exit_code == 2
    assert "forze new NAME" in done.stderr
    assert os.listdir(here) == []


def test_what_comes_next_is_said(here: Path, forze: Forze) -> None:
    done = forze("new", "shop", "--redis", "--auth")

    assert done.stdout.startswith("made shop with redis, auth\n")
    assert "  cd shop\n  just dev " in done.stdout
    assert "names the forze of this machine, file:///" in done.stdout
    assert done.stderr == ""


def test_into_another_folder(here: Path, forze: Forze) -> None:
    (here / "some where").mkdir()

    done = forze("new", "shop", "--no-redis", "--into", "some where")

    assert done.exit_code == 0
    assert "cd 'some where/shop'" in done.stdout
    assert "app/main.py" in contents(here / "some where" / "shop")


@pytest.mark.parametrize("into", ["nowhere", "x" * 300], ids=["nowhere", "too long"])
def test_into_no_folder(here: Path, forze: Forze, into: str) -> None:
    done = forze("new", "shop", "--no-redis", "--into", into)

    assert done.exit_code == 1
    assert f"{into} is no folder" in done.stderr
    assert os.listdir(here) == []


def test_a_bad_name_writes_nothing(here: Path, forze: Forze) -> None:
    done = forze("new", "1shop", "--redis")

    assert done.exit_code == 1
    assert done.stderr.startswith("forze new: '1shop' cannot name a project")
    assert os.listdir(here) == []


def _folder(place: Path) -> None:
    place.mkdir()
    (place / "mine").write_text("mine")


@pytest.mark.parametrize(
    "occupy",
    [
        _folder,
        Path.mkdir,
        Path.touch,
        lambda place: place.symlink_to("nothing"),
        lambda place: place.symlink_to("."),
    ],
    ids=["folder", "empty folder", "file", "dangling link", "link"],
)
@pytest.mark.parametrize("late", [False, True], ids=["before", "meanwhile"])
def test_what_is_there_stays(
    here: Path,
    forze: Forze,
    monkeypatch: pytest.MonkeyPatch,
    occupy: Callable[[Path], None],
    late: bool,
) -> None:
    def render(_project: Project, directory: Path) -> None:
        (directory / "app").mkdir()
        occupy(here / "shop")

    if late:
        monkeypatch.setattr(forze_cli.command, "render", render)
    else:
        occupy(here / "shop")
    done = forze("new", "shop", "--redis")

    assert done.exit_code == 1
    assert "exists already" in done.stderr
    assert os.listdir(here) == ["shop"]
    kept = (here / "shop").lstat().st_mode
    (here / "like").mkdir()
    occupy(here / "like" / "shop")
    assert (here / "like" / "shop").lstat().st_mode == kept
    if occupy is _folder or occupy is Path.mkdir:
        assert contents(here / "shop") == contents(here / "like" / "shop")


@pytest.mark.parametrize("number", ENDING, ids=lambda each: each.name)
@pytest.mark.parametrize("moment", ["load_renderer", "render"])
def test_a_signal_leaves_nothing(
    here: Path, forze: Forze, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, moment: str
) -> None:
    def interrupted(*_: object) -> None:
        for directory in here.iterdir():
            (directory / "half").write_text("")
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # impatient

    monkeypatch.setattr(forze_cli.command, moment, interrupted)
    done = forze("new", "shop", "--redis")

    assert done.exit_code == 128 + number
    assert os.listdir(here) == []


def test_a_signal_while_cleaning_up_leaves_nothing(
    here: Path, forze: Forze, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half(Exception):
        pass

    def fails(_project: Project, directory: Path) -> NoReturn:
        (directory / "half").write_text("")
        raise Half

    def cleaned(directory: Path, *, ignore_errors: bool) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.unlink(directory / "half")
        os.rmdir(directory)
        assert ignore_errors

    monkeypatch.setattr(forze_cli.command, "render", fails)
    monkeypatch.setattr("forze_cli.placing.shutil.rmtree", cleaned)
    done = forze("new", "shop", "--redis")

    assert isinstance(done.exception, Half)
    assert os.listdir(here) == []


def test_a_signal_that_comes_too_late_changes_nothing(
    here: Path, forze: Forze, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = forze_cli.command._say_what_next

    def interrupted(project: Project, target: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        say(project, target)

    monkeypatch.setattr(forze_cli.command, "_say_what_next", interrupted)
    done = forze("new", "shop", "--redis")

    assert done.exit_code == 0
    assert "app/main.py" in contents(here / "shop")


def test_a_full_disk_leaves_nothing(
    here: Path, forze: Forze, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_project: Project, directory: Path) -> NoReturn:
        (directory / "half").write_text("")
        raise OSError(errno.ENOSPC, "No space left on device", str(directory / "whole"))

    monkeypatch.setattr(forze_cli.command, "render", full)
    done = forze("new", "shop", "--redis")

    assert done.exit_code == 1
    assert done.stderr.startswith("forze new: cannot write ")
    assert done.stderr.endswith(": No space left on device\n")
    assert os.listdir(here) == []


@pytest.mark.parametrize(("name", "code"), [("shop", 0), ("1shop", 1)])
def test_signals_are_whose_they_were(here: Path, forze: Forze, name: str, code: int) -> None:
    before = [signal.getsignal(each) for each in ENDING]

    assert forze("new", name, "--redis").exit_code == code
    assert [signal.getsignal(each) for each in ENDING] == before


def test_in_another_thread(here: Path, forze: Forze) -> None:
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(forze, "new", "shop", "--redis").result()

    assert done.exit_code == 0
    assert "app/main.py" in contents(here / "shop")


def test_of_two_at_once_one_makes_it(here: Path) -> None:
    both_are_written = Barrier(2, timeout=30)

    def wait() -> None:
        both_are_written.wait()

    def make(mine: str) -> bool:
        def fill(directory: Path) -> None:
            (directory / mine).touch()

        try:
            place(here / "shop", fill, wait)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(make, ("one", "two")))

    assert sorted(made) == [False, True]
    assert os.listdir(here) == ["shop"]
    assert os.listdir(here / "shop") == ["one" if made[0] else "two"]


@pytest.mark.parametrize(
    "problem",
    [BrokenPipeError(), UnicodeEncodeError("ascii", "ö", 0, 1, "")],
    ids=["closed", "ascii"],
)
def test_nobody_listens_and_the_project_is_there_all_the_same(
    here: Path, forze: Forze, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def said(_text: str) -> NoReturn:
        raise problem

    streams = SimpleNamespace(stdin=None, stdout=None, stderr=None)
    monkeypatch.setattr("forze_cli.command.sys", streams)
    monkeypatch.setattr("forze_cli.command.typer.echo", said)

    assert forze("new", "shop", "--redis").exit_code == 0
    assert "app/main.py" in contents(here / "shop")
    with streams.stdout as instead:  # what could not be written is not tried again at the end
        assert instead.name == os.devnull


def test_files_are_as_anybody_would_make_them(here: Path) -> None:
    (here / "ours").mkdir()
    (here / "ours" / "file").touch()
    made = here / "shop"

    place(made, partial(render, PLAIN), lambda: None)

    assert made.stat().st_mode == (here / "ours").stat().st_mode
    assert (made / "justfile").stat().st_mode == (here / "ours" / "file").stat().st_mode


def test_the_renderer_is_of_an_extra(
    here: Path, forze: Forze, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forze_cli.command, "load_renderer", load_renderer)
    monkeypatch.setitem(sys.modules, "copier", None)
    done = forze("new", "shop", "--redis")

    assert done.exit_code == 1
    assert "needs copier" in done.stderr
    assert "pip install 'forze[cli]'" in done.stderr
    assert os.listdir(here) == []


def test_rendering_needs_no_network_and_nobody_s_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("there is no network")

    settings = tmp_path / "settings.yml"
    settings.write_text("defaults: [broken")
    monkeypatch.setenv("COPIER_SETTINGS_PATH", str(settings))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("one", "two"):
        render(PLAIN, tmp_path / name)

    assert "app/main.py" in contents(tmp_path / "one")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_somebody_s_repository_is_not_the_template_s(tmp_path: Path) -> None:
    repository = tmp_path / ".git"
    for name in ("objects", "refs"):
        (repository / name).mkdir(parents=True)
    (repository / "HEAD").write_text("ref: refs/heads/main\n")

    with local.env(GIT_DIR=str(repository)):  # as in a hook
        render(PLAIN, tmp_path / "shop")

    assert "app/main.py" in contents(tmp_path / "shop")


def test_a_template_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from copier.errors import UnsafeTemplateError

    (tmp_path / "template").mkdir()
    (tmp_path / "template" / "copier.yml").write_text(f"_tasks: ['touch {tmp_path}/ran']\n")
    monkeypatch.setattr(forze_cli.project, "TEMPLATE", tmp_path / "template")

    with pytest.raises(UnsafeTemplateError):
        render(PLAIN, tmp_path / "shop")
    assert not (tmp_path / "ran").exists()


def test_no_project_is_called_like_what_it_needs(
    tmp_path: Path, copied: Callable[[Project, Path], None]
) -> None:
    everything = Parts(**dict.fromkeys(Parts.names(), True))
    for parts in (everything, Parts(auth=True)):
        copied(replace(PLAIN, parts=parts), tmp_path / str(len(parts.chosen())))
    for pyproject in tmp_path.glob("*/pyproject.toml"):
        wanted = tomllib.loads(pyproject.read_text())
        for each in (*wanted["project"]["dependencies"], *wanted["dependency-groups"]["dev"]):
            with pytest.raises(ValidationError, match="projects need"):
                check_name(Requirement(each).name)


def test_of_any_two_parts_every_combination_is_lived_in() -> None:
    lived_in = covering()

    for two in itertools.combinations(Parts.names(), 2):
        assert len({tuple(getattr(parts, each) for each in two) for parts in lived_in}) == 4


def test_the_template_asks_what_the_command_asks() -> None:
    asked = yaml.safe_load((TEMPLATE / "copier.yml").read_text())
    questions = {name: each for name, each in asked.items() if not name.startswith("_")}

    assert questions.keys() == PLAIN.answers().keys()
    assert list(PARTS) == Parts.names()
    assert {name: questions[name]["default"] for name in PARTS} == {
        name: getattr(USUAL, name) for name in PARTS
    }
