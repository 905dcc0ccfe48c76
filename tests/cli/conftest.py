"""The command in this process, in a folder of its own; each project is rendered once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import forze_cli.command
from forze_cli.command import app
from forze_cli.project import Project, render

Forze = Callable[..., Result]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and we are in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("REDIS_CONNECTION_URL", "CELERY_BROKER_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Project, Path], None]:
    """Renders as the command does, equal projects once."""

    @cache
    def rendered(project: Project) -> Path:
        directory = tmp_path_factory.mktemp(project.name)
        render(project, directory)
        return directory

    def copy(project: Project, directory: Path) -> None:
        shutil.copytree(rendered(project), directory, dirs_exist_ok=True)

    return copy


@pytest.fixture
def forze(
    here: Path, monkeypatch: pytest.MonkeyPatch, copied: Callable[[Project, Path], None]
) -> Forze:
    """Runs ``forze`` with the given arguments, ``here`` and without a terminal."""
    monkeypatch.setattr(forze_cli.command, "load_renderer", lambda: None)
    monkeypatch.setattr(forze_cli.command, "render", copied)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), prog_name="forze")

    return run
