"""Which policy suits the accesses: each runs a small shadow of the cache, and their hits decide.

No policy suits all accesses: loops and scans need frequency, moving work needs recency, most of
the web something between. A hill climber over the window's size (Einziger, Eytan, Friedman,
Manes: Adaptive Software Cache Management, Middleware 2018) compares the hit ratio with that of
the time before, and takes a change of the accesses for an effect of its last step. Shadows
compare the policies over the same accesses.

A shadow sees only the keys of a sample, chosen by their hash, and is as much smaller as the
sample is: its hit ratio is then about that of the whole (Waldspurger et al., SHARDS, FAST 2015).
It stores hashes only, and knows neither expiry nor invalidation: it measures the reuse of keys.

The first choice is made when best and worst differ by more than chance: by one and a half
standard deviations of the difference of two such counts. Afterwards a change costs the entries
that the new policy would have kept and the old one did not, so it is made only when staying has
cost as much, half the shadow's entries in hits; and no score falls further behind than that, or
the past would outweigh the present (work functions: Borodin, Linial, Saks, An optimal on-line
algorithm for metrical task systems, JACM 1992). Half as much leads back to ``RECENCY``, which the
store promises not to fall far below.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from random import Random

from forze.application.integrations.document.l1.segments import Entry, Policy, Segments
from forze.application.integrations.document.l1.sketch import FrequencySketch

CONTESTANTS = (Policy.RECENCY, Policy.REUSE, Policy.FREQUENCY)

_SMALLEST_SHADOW = 48
_SPARSEST_SAMPLE = 16
_SAMPLE_SHIFT = 48
_ROUND_PER_ENTRY = 0.25
_SHORTEST_ROUND = 16
_DOUBT_DEVIATIONS = 1.5
_CHANGE_COST_PER_ENTRY = 0.5
_RETURN_COST_PER_ENTRY = 0.25
_ENTRY: Entry = (None, math.inf)


def _itself(seen: Hashable) -> int:
    return seen  # type: ignore[return-value]  # the keys of a shadow are hashes


class Contest:
    """Watches a sample of the accesses, and names the policy that serves them best.

    ``sample`` is a mask: a hash without any of its bits is of the sample.
    """

    __slots__ = (
        "_accesses_per_round",
        "_frequency",
        "_hits",
        "_left",
        "_recent",
        "_reuse",
        "_room",
        "_round",
        "_scores",
        "_sketch",
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
        self._room = room
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._reuse = Segments(room, Policy.REUSE, sketch, _itself, random)
        self._frequency = Segments(room, Policy.FREQUENCY, sketch, _itself, random)
        self._hits = [0] * len(CONTESTANTS)
        self._scores = [0.0] * len(CONTESTANTS)
        self._sketch = sketch
        self._round = self._left = max(_SHORTEST_ROUND, int(room * _ROUND_PER_ENTRY))
        self._accesses_per_round = self._round * one_in

    def watch(self, seen: int) -> bool:
        """Let every shadow serve an access of the sample; whether ``best`` changed."""
        hits = self._hits
        recent = self._recent
        if seen in recent:
            recent.move_to_end(seen)
            hits[0] += 1
        else:
            recent[seen] = None
            if len(recent) > self._room:
                recent.popitem(False)
        if self._reuse.use(seen) is not None:
            hits[1] += 1
        else:
            self._reuse.admit(seen, seen, _ENTRY, 0.0)
        if self._frequency.use(seen) is not None:
            hits[2] += 1
        else:
            self._frequency.admit(seen, seen, _ENTRY, 0.0)
        self._left -= 1
        if self._left:
            return False
        self._left = self._round
        self._sketch.age(self._accesses_per_round)
        return self._judge()

    def _judge(self) -> bool:
        """Add the round to the scores; whether another policy is now the best."""
        scores = [score + hits for score, hits in zip(self._scores, self._hits, strict=True)]
        self._scores = scores
        self._hits = [0] * len(CONTESTANTS)
        top, bottom = max(scores), min(scores)
        leader = CONTESTANTS[scores.index(top)]
        if self.best is Policy.UNDECIDED:
            if top - bottom <= _DOUBT_DEVIATIONS * math.sqrt(top + bottom):
                return False
            changes = True
        else:
            returns = leader is Policy.RECENCY
            cost = _RETURN_COST_PER_ENTRY if returns else _CHANGE_COST_PER_ENTRY
            behind = top - scores[CONTESTANTS.index(self.best)]
            changes = leader is not self.best and behind >= cost * self._room
        if changes:
            self.best = leader
        furthest = _CHANGE_COST_PER_ENTRY * self._room
        self._scores = [max(score, top - furthest) for score in scores]
        return changes
