"""The catalogue: every metric of a pool, its kind, its closed labels, and where in `PoolStats` its numbers are.

Its one job is to say what is shown, once for all who show it: the collector of one process, the bridge of several.  It
knows neither prometheus_client nor pools.  A metric is added here, and in docs/metrics.md; the tests ask for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Final, Literal

from pooledhttp.stats import HistogramStats, PoolStats


class Kind(StrEnum):
    """What Prometheus takes a number for."""

    GAUGE = "gauge"
    COUNTER = "counter"


# How a gauge of several processes becomes one; those of a dead process do not count.
Merge = Literal["livesum", "livemax"]


@dataclass(frozen=True, slots=True)
class Numbers:
    """A gauge or counter; with `by`, split by a second label with a closed set of values, all there from the start.

    Attributes:
        kind: Gauge or counter.
        name: As Prometheus shows it.
        read: Takes the numbers out of a pool's: by value of the second label, or under ``""`` without one.
        documentation: One sentence.
        by: Name of the second label; ``""``: none.
        merge: How those of several processes become one; counters are always added.
    """

    kind: Kind
    name: str
    read: Callable[[PoolStats], Mapping[str, float]]
    documentation: str
    by: str = ""
    merge: Merge = "livesum"


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram.

    Attributes:
        name: As Prometheus shows it.
        read: Takes it out of a pool's numbers.
        documentation: One sentence.
    """

    name: str
    read: Callable[[PoolStats], HistogramStats]
    documentation: str


@dataclass(frozen=True, slots=True)
class Single:
    """A number of the process, without the label of a pool."""

    kind: Kind
    name: str
    documentation: str


def _one(field: str) -> Callable[[PoolStats], Mapping[str, float]]:
    read = attrgetter(field)
    return lambda stats: {"": read(stats)}


def _states(stats: PoolStats) -> dict[str, float]:
    # "opening" is here rather than in a gauge of its own, because the limit holds for the three together.
    return {"active": stats.leased, "idle": stats.idle, "opening": stats.opening}


NUMBERS: Final = (
    Numbers(
        Kind.GAUGE,
        "pooledhttp_connections",
        _states,
        "Connections lent (active), free (idle) and being opened (opening); together they never exceed the maximum.",
        by="state",
    ),
    Numbers(
        Kind.GAUGE,
        "pooledhttp_connections_max",
        _one("maxsize"),
        "The most connections the open pools may have.",
    ),
    Numbers(
        Kind.GAUGE,
        "pooledhttp_pending_acquires",
        _one("waiting"),
        "Callers waiting for a connection.",
    ),
    Numbers(
        Kind.GAUGE,
        "pooledhttp_oldest_lease_seconds",
        _one("oldest_lease_seconds"),
        "Age of the longest current lease; 0 without one.",
        merge="livemax",
    ),
    Numbers(
        Kind.COUNTER,
        "pooledhttp_acquires_total",
        attrgetter("acquires"),
        "Acquires, by how they ended; each ends in exactly one way.",
        by="outcome",
    ),
    Numbers(
        Kind.COUNTER,
        "pooledhttp_connect_failures_total",
        attrgetter("connect_failures"),
        "Connections that could not be opened, by reason.",
        by="reason",
    ),
    Numbers(
        Kind.COUNTER,
        "pooledhttp_connections_closed_total",
        attrgetter("closed"),
        "Connections that ended, by reason.",
        by="reason",
    ),
    Numbers(
        Kind.COUNTER,
        "pooledhttp_stale_connections_total",
        attrgetter("stale"),
        "Requests that met a dead kept-alive connection, by what became of them.",
        by="outcome",
    ),
    Numbers(
        Kind.COUNTER,
        "pooledhttp_drains_total",
        attrgetter("drains"),
        "Connections given back with an unread body, by what became of it.",
        by="outcome",
    ),
    Numbers(
        Kind.COUNTER,
        "pooledhttp_leaked_connections_total",
        _one("leaked"),
        "Leases that lasted longer than leak_after, and connections that were garbage-collected while lent.",
    ),
    Numbers(
        Kind.COUNTER,
        "pooledhttp_requests_total",
        attrgetter("requests"),
        "Calls of request and stream, by the class of the status or the failure; however often they were tried.",
        by="outcome",
    ),
    Numbers(
        Kind.COUNTER,
        "pooledhttp_retries_total",
        attrgetter("retries"),
        "Attempts after the first, by what had failed before.",
        by="reason",
    ),
    Numbers(
        Kind.COUNTER,
        "pooledhttp_retries_refused_total",
        attrgetter("retries_refused"),
        "Calls with retries that were not tried again after a failure that is, by what stood against it.",
        by="reason",
    ),
)

DISTRIBUTIONS: Final = (
    Distribution(
        "pooledhttp_acquire_wait_seconds",
        attrgetter("wait"),
        "Waits for a connection or a slot, those in vain too, connecting not included; no wait is in the first bucket.",
    ),
    Distribution("pooledhttp_connection_use_seconds", attrgetter("use"), "From acquire to release."),
    Distribution(
        "pooledhttp_connect_duration_seconds",
        attrgetter("connect"),
        "Resolving, connecting, tunnel and TLS of the connections that were opened.",
    ),
    Distribution(
        "pooledhttp_request_duration_seconds",
        attrgetter("request"),
        "Calls of request and stream, waiting for a connection and between attempts included.",
    ),
)

# What a pool that shares a label for want of names is called.
OVERFLOW_LABEL: Final = "_other"

POOLS: Final = Single(Kind.GAUGE, "pooledhttp_pools", "Pools that are open.")
OVERFLOW: Final = Single(
    Kind.COUNTER,
    "pooledhttp_label_overflow_total",
    f"Names of pools that are shown as {OVERFLOW_LABEL}, because there were too many.",
)
BUILD_INFO: Final = Single(Kind.GAUGE, "pooledhttp_build_info", "The version of pooledhttp; always 1.")
