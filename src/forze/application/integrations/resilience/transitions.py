"""What is said when a circuit moves or a store comes and goes: once each, and not per call."""

from __future__ import annotations

import logging
from typing import Final

from forze.application.contracts.resilience import BreakerState, PolicyKey

LOGGER: Final = logging.getLogger("forze.resilience")

_REFUSING: Final = (BreakerState.OPEN, BreakerState.FORCED_OPEN)


def key_text(key: PolicyKey) -> str:
    """A policy and its route, for people."""
    name, route = key
    return name if route is None else f"{name} ({route})"


def log_transition(key: PolicyKey, was: BreakerState, state: BreakerState, generation: int) -> None:
    """A circuit has moved: a warning where calls are refused now."""
    LOGGER.log(
        logging.WARNING if state in _REFUSING else logging.INFO,
        "the circuit of %s is %s (was %s), generation %d",
        key_text(key),
        state.replace("_", " "),
        was.replace("_", " "),
        generation,
    )
