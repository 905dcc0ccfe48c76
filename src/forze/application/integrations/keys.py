"""Names as key parts: percent-encoded, so that no two sequences of parts spell one key."""

from __future__ import annotations

import re
from urllib.parse import quote

from forze.errors import ValidationError

is_plain = re.compile(r"[A-Za-z0-9_.~:-]+").fullmatch
"""Whether text is a key part as it is."""


def encode_part(part: str, what: str = "key") -> str:
    """``part`` with everything but letters, digits and ``_.~:-`` percent-encoded (UTF-8).

    Raises :class:`ValidationError` naming ``what`` for a part that is empty, or not text.
    """
    if not isinstance(part, str):
        raise ValidationError(f"a {what} must be text, not {type(part).__name__}", field=what)
    if is_plain(part):
        return part
    if not part:
        raise ValidationError(f"the {what} is empty; give one that names something", field=what)
    return quote(part, safe=":", errors="surrogatepass")
