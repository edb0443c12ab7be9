"""The dashboard of the workers: it says whether one of them is different."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from . import pool
from .panels import CHOSEN_PROCESSES, RED, Lines, Query, Stat, assemble, chosen, in_use, rate, share, waiting
from .thresholds import THRESHOLDS, Thresholds

UID: Final = "pooledhttp-workers"

_EACH: Final = "{{instance}} {{pool}}"
_BY: Final = "job, instance, pool"
_PROCESSES: Final = f"pooledhttp_build_info{{{CHOSEN_PROCESSES}}}"
_LENT: Final = chosen("connections", 'state="active"')


def workers(thresholds: Thresholds = THRESHOLDS) -> Dashboard:
    """Return the dashboard."""
    # Of those that are there: the others' rates fall, and with them the mean.
    acquires = f"{rate('acquires_total', 'job, instance')} and on (job, instance) {_PROCESSES}"
    return assemble(
        uid=UID,
        title="pooledhttp / Workers",
        description="The same by instance: is the load uneven, is one worker stuck?",
        rows=[
            ("Is one of them different?", [
                Stat(
                    title="Fullest worker",
                    description="Share of its limit that the fullest worker has lent. Red while the mean is low: one "
                    "worker is stuck, or gets too much of the load.",
                    queries=[Query(f"max({in_use(thresholds, _BY)})", "fullest")],
                    unit="percentunit",
                    steps=[(thresholds.skew_worker, RED)],
                    width=6,
                ),
                Stat(
                    title="All workers together",
                    description="Share of the limit that all workers together have lent.",
                    queries=[Query(f"max({in_use(thresholds)})", "mean")],
                    unit="percentunit",
                    steps=[(thresholds.saturation, RED)],
                    width=6,
                ),
                Stat(
                    title="Busiest worker's share of the load",
                    description="Acquires of the busiest worker over those of a mean one. Far above 1: a load balancer "
                    "that does not balance.",
                    queries=[Query(f"max({acquires}) / (avg({acquires}) > 0)")],
                    unit="none",
                    width=6,
                ),
                Stat(
                    title="Oldest lease",
                    description="In the worker that has the oldest. Red: a call hangs there, or code forgot to give "
                    "back.",
                    queries=[Query(f"max({chosen('oldest_lease_seconds')})")],
                    unit="s",
                    steps=[(thresholds.stuck_lease_seconds, RED)],
                    no_value="no pool",
                    width=6,
                ),
            ]),
            ("By instance", [
                Lines(
                    title="In use, of the limit",
                    description="Mean share of its own limit that each worker has lent. One line at the top and the "
                    "others low: restart that worker, after a stack dump.",
                    queries=[Query(in_use(thresholds, _BY), _EACH)],
                    unit="percentunit",
                    steps=[(thresholds.skew_worker, RED)],
                ),
                Lines(
                    title="Callers waiting",
                    description="Mean number of callers that wait for a connection, in each worker.",
                    queries=[Query(waiting(_BY), _EACH)],
                    unit="short",
                    steps=[(thresholds.saturation_waiting, RED)],
                ),
                Lines(
                    title="Acquires",
                    description="Per second, in each worker: how the load is spread.",
                    queries=[Query(rate("acquires_total", _BY), _EACH)],
                    unit="ops",
                ),
                Lines(
                    title="Connections lent",
                    description="At the moments of the scrapes, in each worker.",
                    queries=[Query(f"sum by ({_BY}) ({_LENT})", _EACH)],
                    unit="short",
                ),
                Lines(
                    title="No connection",
                    description="Share of each worker's acquires that ended in AcquireTimeout, or were turned away "
                    "(PoolFull, PoolClosed).",
                    queries=[Query(
                        share(rate("acquires_total", _BY, pool.UNSERVED), rate("acquires_total", _BY)), _EACH)],
                    unit="percentunit",
                    steps=[(thresholds.acquire_timeout_share, RED)],
                ),
                Lines(
                    title="Failures to connect",
                    description="Per second, in each worker. In one only: its network, its resolver, or its "
                    "certificates.",
                    queries=[Query(rate("connect_failures_total", _BY), _EACH)],
                    unit="ops",
                ),
                Lines(
                    title="Oldest lease",
                    description="In each worker. A line that climbs: a call hangs there, or code forgot to give back.",
                    queries=[Query(f"max by ({_BY}) ({chosen('oldest_lease_seconds')})", _EACH)],
                    unit="s",
                    steps=[(thresholds.stuck_lease_seconds, RED)],
                ),
                Lines(
                    title="Requests",
                    description="Calls per second, in each worker.",
                    queries=[Query(rate("requests_total", _BY), _EACH)],
                    unit="reqps",
                ),
                Lines(
                    title="Open pools",
                    description="In each worker. Growing without an end: a pool is made for each call or each host.",
                    queries=[Query(f"sum by (job, instance) (pooledhttp_pools{{{CHOSEN_PROCESSES}}})", "{{instance}}")],
                    unit="short",
                ),
            ]),
        ],
    )  # fmt: skip
