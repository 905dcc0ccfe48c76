"""A project asks for the forze that made it."""

from __future__ import annotations

import json
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import forze_cli.origin
from forze.errors import ConfigurationError
from forze_cli.origin import forze_requirement, requirement_of

ROOT = Path(__file__).resolve().parents[2]


def installed(directory: Path, recorded: dict[str, Any] | None) -> PathDistribution:
    """What an installer leaves of forze 0.1.0."""
    (directory / "METADATA").write_text("Metadata-Version: 2.4\nName: forze\nVersion: 0.1.0\n")
    if recorded is not None:
        (directory / "direct_url.json").write_text(json.dumps(recorded))
    return PathDistribution(directory)


@pytest.mark.parametrize(
    ("recorded", "wanted"),
    [
        (None, "forze[redis,cli]>=0.1.0"),
        (
            {"url": "file:///srv/my%20forze", "dir_info": {"editable": True}},
            "forze[redis,cli] @ file:///srv/my%20forze",
        ),
        (
            {"url": "file:///srv/forze", "dir_info": {}},
            "forze[redis,cli] @ file:///srv/forze",
        ),
        (
            {"url": "file:///srv/mono", "dir_info": {}, "subdirectory": "libs/forze"},
            "forze[redis,cli] @ file:///srv/mono#subdirectory=libs/forze",
        ),
        (
            {"url": "file:///tmp/forze-0.1.0-py3-none-any.whl", "archive_info": {"hashes": {}}},
            "forze[redis,cli] @ file:///tmp/forze-0.1.0-py3-none-any.whl",
        ),
        (
            {
                "url": "https://example.org/forze.git",
                "vcs_info": {"vcs": "git", "requested_revision": "main", "commit_id": "ab12"},
            },
            "forze[redis,cli] @ git+https://example.org/forze.git@ab12",
        ),
        (
            {
                "url": "ssh://git@example.org/mono.git",
                "vcs_info": {"vcs": "git", "commit_id": "ab12"},
                "subdirectory": "forze",
            },
            "forze[redis,cli] @ git+ssh://git@example.org/mono.git@ab12#subdirectory=forze",
        ),
    ],
)
def test_from_where_it_was_installed(
    tmp_path: Path, recorded: dict[str, Any] | None, wanted: str
) -> None:
    found = requirement_of(installed(tmp_path, recorded), ("redis", "cli"))

    assert found == wanted
    assert Requirement(found).extras == {"redis", "cli"}


def test_without_extras(tmp_path: Path) -> None:
    assert requirement_of(installed(tmp_path, None), ()) == "forze>=0.1.0"


def test_this_one_is_installed_from_its_repository() -> None:
    assert forze_requirement("redis") == f"forze[redis] @ {ROOT.as_uri()}"


def test_another_distribution_of_the_name_is_never_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = installed(tmp_path, None)
    monkeypatch.setattr(forze_cli.origin, "distribution", lambda _name: other)

    with pytest.raises(ConfigurationError, match="is not installed"):
        forze_requirement("redis")
