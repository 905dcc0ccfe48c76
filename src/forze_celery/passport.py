"""What a message says of its publisher: the tenant and the principal.

One header of Celery's protocol, a JSON object. It is written into every message, empty where
nobody is bound: a retry, which repeats the headers of its message, then stays what it was,
whatever is bound where it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from forze.application.contracts.tenancy import bind_exactly, current_principal, current_tenant
from forze.errors import ValidationError

HEADER: Final = "forze"
"""The name of the header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passport:
    """For whom a message was published; for nobody, unless it says so."""

    tenant: str | None = None
    principal: str | None = None

    @classmethod
    def of_caller(cls) -> Passport:
        """Who is bound here."""
        return cls(tenant=current_tenant(), principal=current_principal())

    @classmethod
    def read(cls, header: object) -> Passport:
        """What a header says; none at all is nobody. Raises ``ValidationError``."""
        if header is None:
            return cls()
        if not isinstance(header, Mapping):
            raise _malformed("it is no object")
        return cls(tenant=_name(header, "tenant"), principal=_name(header, "principal"))

    def header(self) -> dict[str, str]:
        """It as a header: what is said, and nothing for what is not."""
        said = {"tenant": self.tenant, "principal": self.principal}
        return {name: value for name, value in said.items() if value is not None}

    def bound(self) -> AbstractContextManager[None]:
        """Bind exactly this for the length of a ``with`` block."""
        return bind_exactly(self.tenant, self.principal)


def _name(header: Mapping[object, object], what: str) -> str | None:
    value = header.get(what)
    if value is None or (isinstance(value, str) and value):
        return value
    raise _malformed(f"its {what} is no text, or empty")


def _malformed(why: str) -> ValidationError:
    return ValidationError(
        f"the message's header {HEADER!r} is malformed: {why}; nothing was run. It is written by "
        "attach_portal of whoever publishes: do not write it by hand",
        field=HEADER,
    )
