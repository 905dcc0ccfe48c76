"""What a project with Docker is built of and run with; read here, since nothing can be built."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped,unused-ignore]

from forze_cli.project import Parts, Project, render

FULL = Parts(redis=True, celery=True, docker=True, database=True, auth=True)
SMALL = Parts(docker=True, auth=True)
RELEASED = "forze[{extras}]>=1.0"


def made(directory: Path, parts: Parts, requirement: str = RELEASED) -> Path:
    render(Project(name="my-shop", parts=parts, forze_requirement=requirement), directory)
    return directory


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("full"), FULL)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(params=["full", "small"])
def project(request: pytest.FixtureRequest) -> Path:
    chosen: Path = request.getfixturevalue(request.param)
    return chosen


def services(project: Path) -> dict[str, dict[str, Any]]:
    compose = yaml.safe_load((project / "docker-compose.yml").read_text())
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


def needed(project: Path, recipe: str) -> set[str]:
    """Variables without which compose says: run this recipe."""
    text = (project / "docker-compose.yml").read_text()
    return set(re.findall(rf"\$\{{(\w+):\?run just {recipe}\}}", text))


def test_each_part_has_its_services(full: Path, small: Path) -> None:
    assert set(services(full)) == {"app", "worker", "beat", "redis", "postgres", "schema"}
    assert set(services(small)) == {"app"}


def test_servers_are_waited_for_until_they_answer_and_the_tables_until_they_are_made(
    full: Path,
) -> None:
    all_of_them = services(full)
    for name in ("app", "worker", "beat"):
        waits = {other: how["condition"] for other, how in all_of_them[name]["depends_on"].items()}
        assert waits == {"redis": "service_healthy", "schema": "service_completed_successfully"}
    assert all_of_them["schema"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert all_of_them["schema"]["restart"] == "no"
    for name in ("redis", "postgres"):
        assert all_of_them[name]["healthcheck"]["test"]
        assert all_of_them[name]["volumes"]


def test_nothing_is_published_to_the_world(project: Path) -> None:
    published = [port for each in services(project).values() for port in each.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_no_password_has_a_default(full: Path, small: Path) -> None:
    assert needed(full, "env") == {"REDIS_PASSWORD", "POSTGRES_PASSWORD"}
    assert needed(small, "env") == {"AUTH_SECRET"}
    assert needed(small, "password") == {"AUTH_PASSWORD_HASH"}
    defaults = set(re.findall(r"\$\{(\w+):-", (small / "docker-compose.yml").read_text()))
    assert defaults == {"AUTH_USERNAME"}
    redis = services(full)["redis"]["command"]
    assert redis[redis.index("--requirepass") + 1] == "${REDIS_PASSWORD:?run just env}"


def test_what_stands_in_env_reaches_the_containers(project: Path) -> None:
    settings = re.findall(r"^(?:# )?([A-Z_]+)=", (project / ".env.example").read_text(), re.M)
    compose = (project / "docker-compose.yml").read_text()
    image = (project / "Dockerfile").read_text()
    assert settings
    assert [name for name in settings if name not in compose + image] == []


def test_the_image_gets_what_is_named_and_no_secret(project: Path) -> None:
    ignored = (project / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert not [line for line in ignored if line.startswith("!.")]
    image = (project / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", image, re.M)
    named = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert {each.rstrip("*") for line in copied for each in line.split()} == named
    assert re.findall(r"^USER (\w+)", image[image.rindex("FROM ") :], re.M) == ["app"]


@pytest.mark.skipif(shutil.which("just") is None, reason="just is not installed")
def test_secrets_are_made_once_for_their_owner_alone(full: Path) -> None:
    def just_env() -> int:
        return subprocess.run(["just", "env"], cwd=full, timeout=60, check=False).returncode

    assert just_env() == 0
    env = full / ".env"
    text = env.read_text()
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    secrets = dict(re.findall(r"^(\w+)=([\w-]{32,})$", text, re.M))
    assert secrets.keys() == needed(full, "env")
    assert len(set(secrets.values())) == len(secrets)

    assert just_env() != 0
    assert env.read_text() == text
    assert ".env" in (full / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("requirement", "context", "copied"),
    [
        ("forze[{extras}] @ file:///src/forze", "/src/forze", "src /src/forze/src"),
        (
            "forze[{extras}] @ file:///wheels/forze-1.0-py3-none-any.whl",
            "/wheels",
            "forze-1.0-py3-none-any.whl /wheels/",
        ),
    ],
    ids=["folder", "wheel"],
)
def test_a_forze_of_this_machine_comes_along(
    tmp_path: Path, requirement: str, context: str, copied: str
) -> None:
    project = made(tmp_path, Parts(docker=True), requirement)

    build = services(project)["app"]["build"]
    assert build["additional_contexts"] == {"forze": context}
    image = (project / "Dockerfile").read_text()
    assert f"COPY --from=forze {copied}\n" in image
    assert image.index("--from=forze") < image.index("uv sync")
    assert "--from=forze" not in image[image.rindex("FROM ") :]


def test_a_forze_of_a_repository_is_fetched_with_git(tmp_path: Path) -> None:
    project = made(tmp_path, Parts(docker=True), "forze[{extras}] @ git+https://host/forze@abc")

    image = (project / "Dockerfile").read_text()
    assert "install --yes --no-install-recommends git" in image
    assert "additional_contexts" not in services(project)["app"]["build"]


def test_a_released_forze_needs_neither(project: Path) -> None:
    image = (project / "Dockerfile").read_text()
    assert "--from=forze" not in image
    assert " git" not in image
    assert image.startswith("# syntax=docker/dockerfile:1\n")
