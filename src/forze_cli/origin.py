"""Which forze a new project asks for: the one that made it.

Another distribution may be called forze, too. Where this one came from is on record beside its
metadata (`direct_url.json <https://packaging.python.org/en/latest/specifications/direct-url/>`_,
PEP 610): a folder, an archive, or a repository is named in the requirement as such (PEP 508);
without a record it came from the index that the project will be installed from.
"""

from __future__ import annotations

import json
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from forze.errors import ConfigurationError

_NAME = "forze"
_ENTRY_POINT = "forze_cli:main"


def forze_requirement(*extras: str) -> str:
    """The requirement that installs this very forze with ``extras``.

    ConfigurationError if it was not installed, only found on the path.
    """
    return requirement_of(_installed(), extras)


def requirement_of(found: Distribution, extras: tuple[str, ...]) -> str:
    """The requirement that installs ``found`` again, from where it came, with ``extras``."""
    name = f"{_NAME}[{','.join(extras)}]" if extras else _NAME
    recorded = found.read_text("direct_url.json")
    if recorded is None:
        return f"{name}>={found.version}"
    return f"{name} @ {_reference(json.loads(recorded))}"


def _installed() -> Distribution:
    try:
        found = distribution(_NAME)
    except PackageNotFoundError:
        found = None
    if found is None or all(each.value != _ENTRY_POINT for each in found.entry_points):
        raise ConfigurationError(
            "the running forze is not installed, so a new project could not name it; "
            "install it: python -m pip install 'forze[cli]'",
            name=_NAME,
        )
    return found


def _reference(recorded: dict[str, Any]) -> str:
    """Of a record of PEP 610, the URL of PEP 508: ``git+https://...@commit#subdirectory=...``."""
    url = str(recorded["url"])
    if vcs := recorded.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    if part := recorded.get("subdirectory"):
        url += f"#subdirectory={part}"
    return url
