"""The pools of a process as the metrics see them: which there are, under which label, and what the gone ones left.

Its rule: a counter never goes down, whatever becomes of its pool.  So a pool is held weakly, but its `Tally` strongly;
when the pool is gone, the tally is added to what its label has retired.

The fleet's lock is never held while a pool's is taken: copy the list under it, then ask.

A pool in which nothing has happened is not asked again: many processes look once a second, and most pools of a process
that has thousands are quiet.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from pooledhttp.stats import AcquireOutcome, CloseReason, PoolStats, Tally, freeze, together

from .families import DISTRIBUTIONS, OVERFLOW_LABEL

if TYPE_CHECKING:
    from pooledhttp.pool import ConnectionPool

# How many pools may be watched before the dead ones are looked for; doubled with the living, so that it stays cheap.
_FIRST_SWEEP: Final = 64
# Names are label values, and a label value costs about 100 series for the life of the process: tenants' host names must
# not fill the server's memory.  Names are counted, not pools, and none is ever forgotten.
MOST_NAMES: Final = 99  # and the overflow label: a hundred values
# So many pools of a label are remembered as one sum.  The more, the less memory; but one that changes has the others of
# its block asked, too.
_BLOCK: Final = 8


class LabelNames(Protocol):
    """Decides which names become label values."""

    def admit(self, name: str) -> bool:
        """Return whether a name may be one; it stays so for ever.  Any thread may ask, also in the middle of this."""

    def renew_after_fork(self) -> None:
        """Begin anew in a child process, whose names are those of its parent."""


class OwnNames:
    """The names of one process, first come."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._lock = threading.RLock()  # reentrant for the same reason as the fleet's

    def admit(self, name: str) -> bool:
        """Return whether a name is among the first so many."""
        with self._lock:
            if name not in self._names and len(self._names) < MOST_NAMES:
                self._names.add(name)
            return name in self._names

    def renew_after_fork(self) -> None:
        """Forget the lock, which a thread of the parent may have held."""
        self._lock = threading.RLock()


@dataclass(frozen=True, slots=True)
class Totals:
    """What all pools of a process have to show.

    Attributes:
        by_label: Their numbers, those of one label added up.
        sums: Of the histograms, by metric and label, none less than it was before.
        open_pools: How many pools are open.
        folded: How many names have had to share the overflow label so far.
    """

    by_label: Mapping[str, PoolStats]
    sums: Mapping[tuple[str, str], float]
    open_pools: int
    folded: int


@dataclass(eq=False, slots=True)
class _Watched:
    """A pool as its fleet remembers it."""

    pool: weakref.ref[ConnectionPool]
    tally: Tally
    label: str
    folded: str  # the name that has become the overflow label; "": none
    block: int  # of those of its label
    reused: int = 0  # the most acquires of this outcome that were shown; guarded by the fleet's lock

    def remains(self) -> PoolStats:
        """Return what a pool that is gone leaves behind."""
        stats = freeze(self.tally, name=self.label)  # nobody else changes it any more
        # Leases that lasted were shown as reused acquires, and nobody is left to count their end.
        acquires = {**stats.acquires, AcquireOutcome.REUSED: max(stats.acquires[AcquireOutcome.REUSED], self.reused)}
        # Its idle connections died with it, and those on lease are no pool's any more.
        closed = dict(stats.closed)
        closed[CloseReason.POOL_CLOSED] += max(stats.opened - sum(closed.values()), 0)
        return stats.replace(acquires=acquires, closed=closed)


@dataclass(frozen=True, slots=True)
class _Block:
    """Some pools of one label as they were seen last.

    Attributes:
        marks: Who they are, and what tells that nothing has happened in them since.
        stats: Their sum.
    """

    marks: tuple[tuple[_Watched, object], ...]
    stats: PoolStats


class Fleet:
    """Any number of pools.

    Args:
        names: Decides which of their names become label values.
    """

    def __init__(self, names: LabelNames) -> None:
        # Guards everything below.  Never under it: a pool's lock.  Reentrant, because the garbage collector may run a
        # finalizer under it, and that may be anybody's code: one that makes a pool, say.
        self._lock = threading.RLock()
        self._names = names
        self._watched: dict[_Watched, None] = {}  # in the order of watching
        self._retired: dict[str, PoolStats] = {}  # what the pools that are gone have left, by label
        self._sums: dict[tuple[str, str], float] = {}  # the histograms' sums as they were shown last
        self._blocks: dict[tuple[str, int], _Block] = {}  # what is remembered, replaced as a whole
        self._made: Counter[str] = Counter()  # pools by label, those that are gone included
        self._folded = 0  # names that share the overflow label
        self._folded_now: Counter[str] = Counter()  # pools by such a name, as long as they are watched
        self._sweep_at = _FIRST_SWEEP

    def watch(self, pool: ConnectionPool, tally: Tally) -> str:
        """Count a pool in from now on; return its label."""
        # A name with a lone surrogate would break the whole exposition, not just its line.
        label = pool.name.encode("utf-8", "replace").decode("utf-8")
        # May wait for another process, so it is not under the lock.
        label, folded = (label, "") if self._names.admit(label) else (OVERFLOW_LABEL, pool.name)
        with self._lock:
            if folded:
                # Threads that ask a manager for a new origin at once make a pool each, of which one is kept.
                self._folded += not self._folded_now[folded]
                self._folded_now[folded] += 1
            block = self._made[label] // _BLOCK
            self._made[label] += 1
            self._watched[_Watched(weakref.ref(pool), tally, label, folded, block)] = None
            due = list(self._watched) if len(self._watched) >= self._sweep_at else []
        if due:
            # Outside the lock: looking may make us the last to hold a pool, and it would be taken down right here.
            self._retire([watched for watched in due if watched.pool() is None])
        return label

    def renew_after_fork(self) -> None:
        """Begin anew in a child process: the counts so far are the parent's, and it is the parent that shows them."""
        self._lock = threading.RLock()
        self._names.renew_after_fork()
        self._watched = {watched: None for watched in list(self._watched) if watched.pool() is not None}
        for watched in self._watched:
            watched.reused = 0  # the pools set their tallies to zero themselves
        self._retired = {}
        self._sums = {}
        self._blocks = {}
        self._folded = 0
        self._folded_now = Counter(watched.folded for watched in self._watched if watched.folded)

    def has_counted(self) -> bool:
        """Whether any pool has anything to show but zeros, or may have; as far as can be seen without their locks."""
        with self._lock:
            return bool(self._retired) or any(watched.tally.events for watched in self._watched)

    def totals(self) -> Totals:
        """Return the numbers of all pools at this moment."""
        with self._lock:
            watched_pools = list(self._watched)
        pools = [(watched, watched.pool()) for watched in watched_pools]
        self._retire([watched for watched, pool in pools if pool is None])
        with self._lock:
            # The living cannot be among them: they are held until the end of this call.
            parts = {label: [stats] for label, stats in self._retired.items()}
            folded = self._folded
            before = self._blocks
        members: dict[tuple[str, int], list[tuple[_Watched, ConnectionPool]]] = {}
        open_pools = 0
        for watched, pool in pools:
            if pool is not None:
                open_pools += not pool.is_closed
                members.setdefault((watched.label, watched.block), []).append((watched, pool))
        blocks = {key: self._look(pools_of_it, before.get(key)) for key, pools_of_it in members.items()}
        for (label, _), block in blocks.items():
            parts.setdefault(label, []).append(block.stats)
        self._blocks = blocks
        by_label = {label: together(stats) for label, stats in parts.items()}
        return Totals(by_label, self._raise_sums(by_label), open_pools, folded)

    def _look(self, members: list[tuple[_Watched, ConnectionPool]], before: _Block | None) -> _Block:
        """Return a block as it is now: the same one if nothing has happened in it."""
        # Before they are asked: what happens in between changes the mark that is taken next.
        marks = tuple((watched, pool.mark()) for watched, pool in members)
        if before is not None and before.marks == marks:
            return before
        return _Block(marks, together([self._ask(pool, watched) for watched, pool in members]))

    def _ask(self, pool: ConnectionPool, watched: _Watched) -> PoolStats:
        """Return a living pool's numbers."""
        try:
            stats = pool.stats()
        except Exception:  # noqa: BLE001  # a pool may have its user's clock; one that fails must not blind the others
            stats = pool.stats_at(None)
        if pool.is_closed:
            stats = stats.replace(maxsize=0)
        # This counter holds leases under way.  One that is interrupted while it begins ends up in another outcome.
        reused = stats.acquires[AcquireOutcome.REUSED]
        with self._lock:
            watched.reused = shown = max(reused, watched.reused)
        if shown > reused:
            stats = stats.replace(acquires={**stats.acquires, AcquireOutcome.REUSED: shown})
        return stats

    def _retire(self, gone: Iterable[_Watched]) -> None:
        """Add what the pools that are gone have left to their labels' totals, and forget them."""
        with self._lock:
            for watched in gone:
                if watched in self._watched:  # else another thread was first
                    del self._watched[watched]
                    if watched.folded:
                        left = self._folded_now.pop(watched.folded, 1) - 1
                        if left:
                            self._folded_now[watched.folded] = left
                    _add(self._retired, watched.label, watched.remains())
            self._sweep_at = max(_FIRST_SWEEP, 2 * len(self._watched))

    def _raise_sums(self, by_label: Mapping[str, PoolStats]) -> Mapping[tuple[str, str], float]:
        """Return the histograms' sums, none less than it was shown before.

        A pool that retires changes the order in which floats are added, and with it the last bit of their sum.  To
        Prometheus the least step down is a restart, and the whole sum anew.
        """
        with self._lock:
            shown = self._sums
            for distribution in DISTRIBUTIONS:
                for label, stats in by_label.items():
                    key = (distribution.name, label)
                    shown[key] = max(shown.get(key, 0.0), distribution.read(stats).sum)
            return dict(shown)


def _add(totals: dict[str, PoolStats], label: str, stats: PoolStats) -> None:
    before = totals.get(label)
    totals[label] = stats if before is None else before + stats
