"""Which policy suits the accesses: each runs a small shadow of the cache, and their hits decide.

No policy suits all accesses: loops and scans need frequency, moving work needs recency, most of
the web something between. A hill climber over the window's size (Einziger, Eytan, Friedman,
Manes: Adaptive Software Cache Management, Middleware 2018) compares the hit ratio with that of
the time before, and takes a change of the accesses for an effect of its last step. Shadows
compare the policies over the same accesses.

A shadow sees only the keys of a sample, chosen by their hash, and is as much smaller as the
sample is: its hit ratio is then about that of the whole (Waldspurger et al., SHARDS, FAST 2015).
It stores hashes only, and knows neither expiry nor invalidation: it measures the reuse of keys.
Scores fade, so the contest follows the accesses. A change of policy costs the entries that the
new one would have kept and the old one did not; so, as with hiring or buying, it is made only
when what staying has cost, the lead in hits, is as much: a quarter of the shadow's entries. Where
nothing was decided yet there is less to lose, and a few hits of difference decide.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from random import Random
from typing import cast

from forze.application.integrations.document.l1.segments import Entry, Policy, Segments
from forze.application.integrations.document.l1.sketch import FrequencySketch

CONTESTANTS = (Policy.RECENCY, Policy.REUSE, Policy.FREQUENCY)

_SMALLEST_SHADOW = 48
_SPARSEST_SAMPLE = 16
_SAMPLE_SHIFT = 48
_ROUND_PER_ENTRY = 0.25
_SHORTEST_ROUND = 16
_FADING = 0.995
SWITCH = 0.25
_FIRST_LEAD = 4
_SWITCH_COST_PER_ENTRY = 0.25
_ENTRY: Entry = (None, math.inf)


def _itself(seen: Hashable) -> int:
    return cast(int, seen)


class Contest:
    """Watches a sample of the accesses, and names the policy that serves them best.

    ``sample`` is a mask: a hash without any of its bits is of the sample.
    """

    __slots__ = (
        "_hits",
        "_left",
        "_round",
        "_scores",
        "_shadows",
        "_switch_cost",
        "best",
        "sample",
    )

    def __init__(self, capacity: int, sketch: FrequencySketch, random: Random) -> None:
        one_in = 1
        while one_in < _SPARSEST_SAMPLE and capacity // (2 * one_in) >= _SMALLEST_SHADOW:
            one_in *= 2
        room = capacity // one_in
        self.sample = (one_in - 1) << _SAMPLE_SHIFT
        self.best = Policy.UNDECIDED
        self._shadows = [Segments(room, policy, sketch, _itself, random) for policy in CONTESTANTS]
        self._hits = [0] * len(CONTESTANTS)
        self._scores = [0.0] * len(CONTESTANTS)
        self._switch_cost = room * _SWITCH_COST_PER_ENTRY
        self._round = self._left = max(_SHORTEST_ROUND, int(room * _ROUND_PER_ENTRY))

    def watch(self, seen: int) -> bool:
        """Let every shadow serve an access of the sample; whether ``best`` changed."""
        for place, shadow in enumerate(self._shadows):
            if shadow.use(seen) is None:
                shadow.admit(seen, seen, _ENTRY, 0.0)
            else:
                self._hits[place] += 1
        self._left -= 1
        if self._left:
            return False
        self._left = self._round
        return self._judge()

    def _judge(self) -> bool:
        """Add the round to the scores; whether another policy is now the best."""
        self._scores = [
            score * _FADING + hits for score, hits in zip(self._scores, self._hits, strict=True)
        ]
        self._hits = [0] * len(CONTESTANTS)
        scores = dict(zip(CONTESTANTS, self._scores, strict=True))
        leader = max(scores, key=scores.__getitem__)
        if self.best is Policy.UNDECIDED:
            lead, needed = scores[leader] - min(self._scores), float(_FIRST_LEAD)
        else:
            lead, needed = scores[leader] - scores[self.best], self._switch_cost
        if lead <= needed:
            return False
        self.best = leader
        return True
