"""What new projects promise, kept where they lie: by their own tests, and by starting them.

All their tests, in environments of their own, are the matrix's (``tests/cli/matrix.py``).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import forze
from forze_cli.project import Parts, Project, render

SECONDS = 120


def made(directory: Path, parts: Parts) -> Path:
    render(Project(name="shop", parts=parts, forze_requirement="forze[{extras}]"), directory)
    return directory


def python(project: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in the project, with the forze of this process."""
    forze_here = str(Path(forze.__file__).parents[1])
    ours = {"PYTHONPATH": forze_here, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, env={**os.environ, **ours, **variables},
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    return done


CACHED_AND_SIGNED_IN = {
    "test_the_second_read_is_from_the_cache",
    "test_what_was_cached_before_a_write_is_not_read_after_it",
    "test_articles_are_there_while_redis_is_away",
    "test_articles_do_not_wait_for_redis_while_it_is_silent",
    "test_too_many_writes_are_refused",
    "test_redis_answers",
    "test_redis_is_down",
    "test_all_sessions_of_a_user_are_ended_at_once",
    "test_nobody_is_signed_out_while_redis_is_away",
    "test_passwords_cannot_be_tried_without_end",
    "test_a_wrong_name_takes_as_long_as_a_wrong_password",
}
TOKENS = {
    "test_a_token_ends",
    "test_a_token_needs_all_its_claims",
    "test_a_token_that_somebody_else_signed_is_worth_nothing",
    "test_only_those_who_signed_in_write",
}


@pytest.mark.parametrize(
    ("parts", "promised"),
    [(Parts(redis=True, auth=True), CACHED_AND_SIGNED_IN), (Parts(auth=True), TOKENS)],
    ids=["sessions", "tokens"],
)
def test_a_project_passes_its_own_tests(tmp_path: Path, parts: Parts, promised: set[str]) -> None:
    plugins = ["-p", "pytest_asyncio.plugin", "-p", "no:cacheprovider"]

    done = python(made(tmp_path, parts), "-m", "pytest", "-rA", *plugins)

    assert done.returncode == 0
    assert promised <= set(re.findall(r"^PASSED tests/\w+\.py::(\w+)", done.stdout, re.M))


def test_a_project_runs_on_the_python_that_made_it(tmp_path: Path) -> None:
    project = made(tmp_path, Parts(docker=True))

    this = "{}.{}".format(*sys.version_info)
    assert f'requires-python = "=={this}.*"' in (project / "pyproject.toml").read_text()
    assert f"FROM python:{this}-slim" in (project / "Dockerfile").read_text()


def test_what_is_scheduled_is_known_to_workers(tmp_path: Path) -> None:
    as_a_worker_does = (
        "from app.core.celery import celery_app as app;"
        "app.loader.import_default_modules();"
        "print(*(each['task'] in app.tasks for each in app.conf.beat_schedule.values()))"
    )

    done = python(made(tmp_path, Parts(celery=True)), "-c", as_a_worker_does)

    assert done.stdout.split() == ["True"]


def test_production_does_not_start_without_its_secrets(tmp_path: Path) -> None:
    project = made(tmp_path, Parts(auth=True))
    start = ("-c", "import app.core.settings")

    refused = python(project, *start, ENVIRONMENT="production", AUTH_SECRET="", NO_COLOR="1")
    started = python(
        project, *start, ENVIRONMENT="production", AUTH_SECRET="x" * 32,
        AUTH_PASSWORD_HASH="$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA",
    )  # fmt: skip

    assert refused.returncode != 0
    assert "production needs AUTH_PASSWORD_HASH and AUTH_SECRET" in refused.stderr
    assert started.returncode == 0
