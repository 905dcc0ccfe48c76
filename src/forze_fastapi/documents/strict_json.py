"""Request bodies that are JSON, and nothing that only some parsers take for it.

What Python's parser lets through would come out as something else further down, or fail there:
``NaN`` and ``Infinity`` (no JSON at all; stored, they are answered as ``null``), numbers too large
for a float, a name given twice in one object (the last silently wins), text with a NUL (which
PostgreSQL cannot hold) or with half of a surrogate pair (which is no Unicode text).

Source: RFC 8259, sections 4, 6, 8; RFC 7493 (I-JSON), sections 2.1 to 2.3.
"""

from __future__ import annotations

import json
import re
from math import isinf
from typing import Any, Final, NoReturn

_UNHELD: Final = re.compile("[\x00\ud800-\udfff]")
_SUSPECT: Final = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


class NotJSON(ValueError):
    """The body is no JSON that can be held; the text says why and quotes nothing of it."""


def strict_json(body: bytes) -> Any:
    """The value of ``body``; raises :class:`NotJSON`."""
    try:
        value = json.loads(
            body.decode(),
            parse_constant=_no_number,
            parse_float=_finite,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError as error:
        raise NotJSON(f"it is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise NotJSON("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise NotJSON(f"{error.msg}, line {error.lineno} column {error.colno}") from None
    except NotJSON:
        raise
    except ValueError:  # an integer of more digits than Python reads
        raise NotJSON("a number is too long") from None
    if _SUSPECT.search(body):
        _check_text(value)
    return value


def _no_number(name: str) -> NoReturn:
    raise NotJSON(f"{name} is no number in JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if isinf(number):
        raise NotJSON("a number is too large")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise NotJSON("an object has one name twice")
    return members


def _check_text(value: Any) -> None:
    if isinstance(value, str):
        if _UNHELD.search(value):
            raise NotJSON("a text holds a NUL, or half of a surrogate pair")
    elif isinstance(value, dict):
        for name, each in value.items():
            _check_text(name)
            _check_text(each)
    elif isinstance(value, list):
        for each in value:
            _check_text(each)
