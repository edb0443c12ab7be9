"""Prometheus: the collector of one process, and the only room that knows prometheus_client.

Nothing in the path of a request comes here.  A pool is made known once, by `watch`; when the registry is scraped, the
collector asks every pool for its frozen numbers, adds up those that share a label, and writes them down as families.

Its rule: a counter never goes down, whatever becomes of its pool.  So a pool is held weakly, but its `Tally` strongly;
when the pool is gone, the tally is added to what its label has retired.

The collector's lock is never held while a pool's is taken: copy the list under it, then ask.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from . import __version__
from .stats import AcquireOutcome, CloseReason, HistogramStats, PoolStats, Tally, freeze

if TYPE_CHECKING:
    from .pool import ConnectionPool

# Names are label values, and a label value costs about 100 series for the life of the process: tenants' host names must
# not fill the server's memory.  Names are counted, not pools, and none is ever forgotten.
_MOST_NAMES: Final = 100
_OVERFLOW_LABEL: Final = "_other"
# How many pools may be watched before the dead ones are looked for; doubled with the living, so that it stays cheap.
_FIRST_SWEEP: Final = 64


class Registry(Protocol):
    """What is needed of a `prometheus_client.CollectorRegistry`; it must be hashable and weakly referable too."""

    def register(self, collector: Collector) -> None:
        """Add a collector."""


def watch(pool: ConnectionPool, tally: Tally, *, registry: Registry | Literal["default"] | None) -> None:
    """Show a pool's numbers in a registry from now on; its counters stay there when the pool is gone.

    Args:
        pool: The pool, held weakly.
        tally: Its counters, which outlive it here.
        registry: Where; ``"default"`` is prometheus_client's global one, ``None`` nowhere.

    Raises:
        ValueError: Another collector has our metrics' names in this registry.
    """
    if registry is not None:
        _registered_collector(REGISTRY if isinstance(registry, str) else registry).watch(pool, tally)


def collector_of(registry: Registry | Literal["default"]) -> PoolCollector | None:
    """Return the collector that shows pools in a registry, for instance to unregister it; ``None`` before the first."""
    with _lock:
        return _collectors.get(REGISTRY if isinstance(registry, str) else registry)


# --- what a scrape shows ----------------------------------------------------------------------------------------------

_Totals: TypeAlias = Mapping[str, PoolStats]  # by label
_Sums: TypeAlias = Mapping[tuple[str, str], float]  # of histograms, by field of PoolStats and label


@dataclass(frozen=True, slots=True)
class _Number:
    """A gauge or counter with one value per pool."""

    kind: type[GaugeMetricFamily | CounterMetricFamily]
    name: str
    read: Callable[[PoolStats], float]
    documentation: str

    def family(self, totals: _Totals) -> Metric:
        family = self.kind(self.name, self.documentation, labels=["pool"])
        for label, stats in totals.items():
            family.add_metric([label], self.read(stats))
        return family


@dataclass(frozen=True, slots=True)
class _Split:
    """A gauge or counter that a second label splits by a closed set of values; all are there from the start."""

    kind: type[GaugeMetricFamily | CounterMetricFamily]
    name: str
    by: str
    read: Callable[[PoolStats], Mapping[str, int]]
    documentation: str

    def family(self, totals: _Totals) -> Metric:
        family = self.kind(self.name, self.documentation, labels=["pool", self.by])
        for label, stats in totals.items():
            for value, count in self.read(stats).items():
                family.add_metric([label, value], count)
        return family


@dataclass(frozen=True, slots=True)
class _Distribution:
    """A histogram per pool."""

    name: str
    field: str
    documentation: str

    def family(self, totals: _Totals, sums: _Sums) -> Metric:
        family = HistogramMetricFamily(self.name, self.documentation, labels=["pool"])
        for label, stats in totals.items():
            family.add_metric([label], _buckets(getattr(stats, self.field)), sums[self.field, label])
        return family


def _buckets(histogram: HistogramStats) -> list[tuple[str, float]]:
    """Return upper bounds and how many observations are at or below them, as Prometheus wants it."""
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


def _states(stats: PoolStats) -> dict[str, int]:
    # "opening" is here rather than in a gauge of its own, because the limit holds for the three together.
    return {"active": stats.leased, "idle": stats.idle, "opening": stats.opening}


_NUMBERS: Final = (
    _Split(
        GaugeMetricFamily,
        "pooledhttp_connections",
        "state",
        _states,
        "Connections lent (active), free (idle) and being opened (opening); together they never exceed the maximum.",
    ),
    _Number(
        GaugeMetricFamily,
        "pooledhttp_connections_max",
        attrgetter("maxsize"),
        "The most connections the open pools may have.",
    ),
    _Number(
        GaugeMetricFamily,
        "pooledhttp_pending_acquires",
        attrgetter("waiting"),
        "Callers waiting for a connection.",
    ),
    _Number(
        GaugeMetricFamily,
        "pooledhttp_oldest_lease_seconds",
        attrgetter("oldest_lease_seconds"),
        "Age of the longest current lease; 0 without one.",
    ),
    _Split(
        CounterMetricFamily,
        "pooledhttp_acquires_total",
        "outcome",
        attrgetter("acquires"),
        "Acquires, by how they ended; each ends in exactly one way.",
    ),
    _Split(
        CounterMetricFamily,
        "pooledhttp_connect_failures_total",
        "reason",
        attrgetter("connect_failures"),
        "Connections that could not be opened, by reason.",
    ),
    _Split(
        CounterMetricFamily,
        "pooledhttp_connections_closed_total",
        "reason",
        attrgetter("closed"),
        "Connections that ended, by reason.",
    ),
    _Split(
        CounterMetricFamily,
        "pooledhttp_stale_connections_total",
        "outcome",
        attrgetter("stale"),
        "Requests that met a dead kept-alive connection, by what became of them.",
    ),
    _Split(
        CounterMetricFamily,
        "pooledhttp_drains_total",
        "outcome",
        attrgetter("drains"),
        "Connections given back with an unread body, by what became of it.",
    ),
    _Number(
        CounterMetricFamily,
        "pooledhttp_leaked_connections_total",
        attrgetter("leaked"),
        "Leases that lasted longer than leak_after, and connections that were garbage-collected while lent.",
    ),
    _Split(
        CounterMetricFamily,
        "pooledhttp_requests_total",
        "outcome",
        attrgetter("requests"),
        "Calls of request and stream, by the class of the status or the failure; however often they were tried.",
    ),
    _Split(
        CounterMetricFamily,
        "pooledhttp_retries_total",
        "reason",
        attrgetter("retries"),
        "Attempts after the first, by what had failed before.",
    ),
    _Split(
        CounterMetricFamily,
        "pooledhttp_retries_refused_total",
        "reason",
        attrgetter("retries_refused"),
        "Calls with retries that were not tried again after a failure that is, by what stood against it.",
    ),
)

_DISTRIBUTIONS: Final = (
    _Distribution(
        "pooledhttp_acquire_wait_seconds",
        "wait",
        "Waiting for a connection or a slot, connecting not included; no wait falls into the first bucket.",
    ),
    _Distribution("pooledhttp_connection_use_seconds", "use", "From acquire to release."),
    _Distribution(
        "pooledhttp_connect_duration_seconds",
        "connect",
        "Resolving, connecting, tunnel and TLS of the connections that were opened.",
    ),
    _Distribution(
        "pooledhttp_request_duration_seconds",
        "request",
        "Calls of request and stream, waiting for a connection and between attempts included.",
    ),
)


# --- collecting it ----------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Watched:
    """A pool as its collector remembers it."""

    pool: weakref.ref[ConnectionPool]
    tally: Tally
    label: str
    reused: int = 0  # the most acquires of this outcome that were shown; guarded by the collector's lock

    def remains(self) -> PoolStats:
        """Return what a pool that is gone leaves behind."""
        stats = freeze(self.tally, name=self.label)
        # Leases that lasted were shown as reused acquires, and nobody is left to count their end.
        acquires = {**stats.acquires, AcquireOutcome.REUSED: max(stats.acquires[AcquireOutcome.REUSED], self.reused)}
        # Its idle connections died with it, and those on lease are no pool's any more.
        closed = dict(stats.closed)
        closed[CloseReason.POOL_CLOSED] += max(stats.opened - sum(closed.values()), 0)
        return stats.replace(acquires=acquires, closed=closed)


class PoolCollector(Collector):
    """Shows any number of pools in one registry; `watch` makes and registers it."""

    def __init__(self) -> None:
        # Guards everything below.  Never under it: a pool's lock.  Reentrant, because the garbage collector may run a
        # finalizer under it, and that may be anybody's code: one that makes a pool, say.
        self._lock = threading.RLock()
        self._watched: dict[_Watched, None] = {}  # in the order of watching
        self._retired: dict[str, PoolStats] = {}  # what the pools that are gone have left, by label
        self._sums: dict[tuple[str, str], float] = {}  # the histograms' sums as they were shown last
        self._names: set[str] = set()
        self._folded = 0  # pools that share the overflow label
        self._sweep_at = _FIRST_SWEEP

    def watch(self, pool: ConnectionPool, tally: Tally) -> None:
        """Show a pool from now on."""
        # A name with a lone surrogate would break the whole exposition, not just its line.
        label = pool.name.encode("utf-8", "replace").decode("utf-8")
        with self._lock:
            if label not in self._names:
                if len(self._names) < _MOST_NAMES:
                    self._names.add(label)
                else:
                    label = _OVERFLOW_LABEL
                    self._folded += 1
            self._watched[_Watched(weakref.ref(pool), tally, label)] = None
            due = list(self._watched) if len(self._watched) >= self._sweep_at else []
        if due:
            # Outside the lock: looking may make us the last to hold a pool, and it would be taken down right here.
            self._retire([watched for watched in due if watched.pool() is None])

    def renew_after_fork(self) -> None:
        """Begin anew in a child process: the counts so far are the parent's, and it is the parent that shows them."""
        self._lock = threading.RLock()
        self._watched = {watched: None for watched in list(self._watched) if watched.pool() is not None}
        for watched in self._watched:
            watched.reused = 0  # the pools set their tallies to zero themselves
        self._retired = {}
        self._sums = {}

    def describe(self) -> list[Metric]:
        """Return the families without samples, so that a clash of names is seen without asking any pool."""
        families = _families({}, {}, open_pools=0, folded=0)
        for family in families:
            family.samples = []
        return families

    def collect(self) -> list[Metric]:
        """Return the numbers of all pools at this moment."""
        with self._lock:
            watched_pools = list(self._watched)
        pools = [(watched, watched.pool()) for watched in watched_pools]
        self._retire([watched for watched, pool in pools if pool is None])
        with self._lock:
            # The living cannot be among them: they are held until the end of this call.
            totals = dict(self._retired)
            folded = self._folded
        open_pools = 0
        for watched, pool in pools:
            if pool is not None:
                open_pools += not pool.is_closed
                _add(totals, watched.label, self._ask(pool, watched))
        return _families(totals, self._raise_sums(totals), open_pools=open_pools, folded=folded)

    def _ask(self, pool: ConnectionPool, watched: _Watched) -> PoolStats:
        """Return a living pool's numbers."""
        try:
            stats = pool.stats()
        except Exception:  # noqa: BLE001  # a pool may have its user's clock; one that fails must not blind the others
            stats = freeze(watched.tally, name=watched.label)
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
                    _add(self._retired, watched.label, watched.remains())
            self._sweep_at = max(_FIRST_SWEEP, 2 * len(self._watched))

    def _raise_sums(self, totals: _Totals) -> _Sums:
        """Return the histograms' sums, none less than it was shown before.

        A pool that retires changes the order in which floats are added, and with it the last bit of their sum.  To
        Prometheus the least step down is a restart, and the whole sum anew.
        """
        with self._lock:
            shown = self._sums
            for field in (distribution.field for distribution in _DISTRIBUTIONS):
                for label, stats in totals.items():
                    key = (field, label)
                    shown[key] = max(shown.get(key, 0.0), getattr(stats, field).sum)
            return dict(shown)


def _add(totals: dict[str, PoolStats], label: str, stats: PoolStats) -> None:
    before = totals.get(label)
    totals[label] = stats if before is None else before + stats


def _families(totals: _Totals, sums: _Sums, *, open_pools: int, folded: int) -> list[Metric]:
    return [
        *(number.family(totals) for number in _NUMBERS),
        *(distribution.family(totals, sums) for distribution in _DISTRIBUTIONS),
        GaugeMetricFamily("pooledhttp_pools", "Pools that are open.", value=open_pools),
        CounterMetricFamily(
            "pooledhttp_label_overflow_total",
            f"Pools shown as {_OVERFLOW_LABEL}, because there were too many names.",
            value=folded,
        ),
        _build_info(),
    ]


def _build_info() -> Metric:
    # A plain gauge: an Info would be read as one, but cannot be had from several processes.
    family = GaugeMetricFamily("pooledhttp_build_info", "The version of pooledhttp; always 1.", labels=["version"])
    family.add_metric([__version__], 1)
    return family


# --- one collector a registry -----------------------------------------------------------------------------------------

# Guards the mapping, and that a collector is registered once.  Reentrant for the collector's reason.
_lock = threading.RLock()
# Weak, for registries come and go in tests; a collector does not know its registry, and so does not keep it alive.
_collectors: weakref.WeakKeyDictionary[Registry, PoolCollector] = weakref.WeakKeyDictionary()


def _registered_collector(registry: Registry) -> PoolCollector:
    with _lock:
        collector = _collectors.get(registry)
        if collector is None or not _is_registered(registry, collector):
            collector = collector or PoolCollector()
            registry.register(collector)
            _collectors[registry] = collector
        return collector


def _is_registered(registry: Registry, collector: PoolCollector) -> bool:
    # Somebody may have unregistered it, and there is no public way to ask; a registry of another make is trusted.
    collectors = getattr(registry, "_collector_to_names", None)
    return collectors is None or collector in collectors


def _begin_anew() -> None:
    # A thread that exists only in the parent may hold the lock.
    global _lock  # noqa: PLW0603  # a lock cannot be freed for its lost owner, only replaced
    _lock = threading.RLock()
    for collector in list(_collectors.values()):
        collector.renew_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
