"""The dashboard of the fleet: it says which pools are in trouble."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from . import pool
from .panels import (
    CHOSEN,
    CHOSEN_PROCESSES,
    ORANGE,
    RED,
    Column,
    Lines,
    Query,
    Rows,
    Stat,
    assemble,
    burned,
    burning,
    chosen,
    in_use,
    quantile,
    rate,
    share,
    slow,
    waiting,
)
from .thresholds import THRESHOLDS, Thresholds, spoken

UID: Final = "pooledhttp-overview"

_STALE: Final = rate("stale_connections_total")
# The rest of the link keeps the job and the time; pool is the row's.
_LINK: Final = (
    f"/d/{pool.UID}?var-datasource=${{datasource}}&var-job=${{__data.fields.job}}&var-pool=${{__data.fields.pool}}"
    "&${__url_time_range}"
)
_MOST: Final = 10


def _everywhere(part: str, whole: str) -> str:
    return f"sum({part}) / (sum({whole}) > 0)"


def _everywhere_slow(thresholds: Thresholds) -> str:
    bound = f'le="{float(thresholds.slow_wait_seconds)}"'
    return f"1 - {_everywhere(rate('acquire_wait_seconds_bucket', only=bound), rate('acquire_wait_seconds_count'))}"


def overview(thresholds: Thresholds = THRESHOLDS) -> Dashboard:
    """Return the dashboard."""
    failures = pool.CONNECT_FAILURES
    full = f"{in_use(thresholds)} > {thresholds.saturation:g}"
    stats = [
        Stat(
            title="Full pools",
            description="Pools whose limit is in use nearly all the time. Not 0: click on the first row of the table.",
            queries=[Query(f"count({full}) or 0 * count({in_use(thresholds)})")],
            unit="short",
            steps=[(1, RED)],
            no_value="no pool",
        ),
        Stat(
            title="No connection",
            description="Share of all acquires that ended in AcquireTimeout, or were turned away (PoolFull, "
            "PoolClosed). Red: callers see errors; the table says of which pool.",
            queries=[Query(_everywhere(pool.IN_VAIN, pool.ACQUIRES))],
            unit="percentunit",
            steps=[(thresholds.acquire_timeout_share, RED)],
        ),
        Stat(
            title="Waited too long",
            description=f"Share of all acquires that waited longer than {spoken(thresholds.slow_wait_seconds)} for a "
            f"connection, in vain or not. {burned(thresholds, thresholds.slow_wait_budget)}",
            queries=[Query(_everywhere_slow(thresholds))],
            unit="percentunit",
            steps=burning(thresholds, thresholds.slow_wait_budget),
        ),
        Stat(
            title="Cannot connect",
            description="Share of attempts to open a connection that failed. Not green: the table says to where.",
            queries=[Query(_everywhere(failures, f"{failures} + {pool.OPENED}"))],
            unit="percentunit",
            steps=[(thresholds.connect_failure_share, ORANGE), (thresholds.connect_failure_page_share, RED)],
            no_value="none tried",
        ),
        Stat(
            title="Failed requests",
            description="5xx, timeouts and errors, of all calls. "
            f"{burned(thresholds, thresholds.request_error_budget)}",
            queries=[Query(_everywhere(pool.FAILED, pool.REQUESTS))],
            unit="percentunit",
            steps=burning(thresholds, thresholds.request_error_budget),
        ),
        Stat(
            title="New connections",
            description="Share of acquires that had to open a connection. High is expensive, and most often means that "
            "the server does not keep connections alive.",
            queries=[Query(_everywhere(rate("acquires_total", only='outcome="opened"'), pool.SERVED))],
            unit="percentunit",
            steps=[(1 - thresholds.low_reuse, ORANGE)],
        ),
        Stat(
            title="Firing alerts",
            description="Alerts of pools that fire now; the list of alerts has their runbook. 0 as well where the "
            "rules are not loaded.",
            queries=[Query(
                'count(ALERTS{alertname=~"PooledHTTP.+",alertstate="firing",job=~"$job"}) '
                f"or 0 * count(pooledhttp_build_info{{{CHOSEN_PROCESSES}}})")],
            unit="short",
            steps=[(1, RED)],
            no_value="no process",
        ),
        Stat(
            title="Pools",
            description="Open pools, over all processes. Thousands: a pool for each host of the internet; give "
            "PoolManager a limit.",
            queries=[Query(f"sum(pooledhttp_pools{{{CHOSEN_PROCESSES}}})")],
            unit="short",
            no_value="none",
        ),
    ]  # fmt: skip
    table = Rows(
        title="Pools, the fullest first",
        description="One row a pool. Click on a name to look into it.",
        queries=[],
        unit="short",
        width=24,
        height=10,
        link=_LINK,
        columns=[
            Column(name="In use", expr=in_use(thresholds), unit="percentunit", steps=[(thresholds.saturation, RED)]),
            Column(
                name="Waiting",
                expr=waiting(),
                unit="short",
                steps=[(thresholds.saturation_waiting, RED)],
            ),
            Column(
                name="Wait p99",
                expr=f"{quantile(0.99, 'acquire_wait_seconds', 'job, pool')} >= 0",
                unit="s",
            ),
            Column(
                name="Waited too long",
                expr=slow(thresholds),
                unit="percentunit",
                steps=burning(thresholds, thresholds.slow_wait_budget),
            ),
            Column(
                name="No connection",
                expr=share(pool.IN_VAIN, pool.ACQUIRES),
                unit="percentunit",
                steps=[(thresholds.acquire_timeout_share, RED)],
            ),
            Column(
                name="Cannot connect",
                expr=share(failures, f"({failures} + {pool.OPENED})"),
                unit="percentunit",
                steps=[(thresholds.connect_failure_share, ORANGE), (thresholds.connect_failure_page_share, RED)],
            ),
            Column(
                name="Dead on use",
                expr=share(_STALE, pool.REUSED),
                unit="percentunit",
                steps=[(thresholds.stale_share, ORANGE)],
            ),
            Column(
                name="Leaks",
                expr=f"sum by (job, pool) (increase({chosen('leaked_connections_total')}[$__range]))",
                unit="short",
                steps=[(thresholds.some_events, RED)],
                decimals=0,
            ),
            Column(name="Reuse", expr=share(pool.REUSED, pool.SERVED), unit="percentunit"),
            Column(name="Requests", expr=pool.REQUESTS, unit="reqps"),
            Column(
                name="Failed",
                expr=share(pool.FAILED, pool.REQUESTS),
                unit="percentunit",
                steps=burning(thresholds, thresholds.request_error_budget),
            ),
        ],
    )
    return assemble(
        uid=UID,
        title="pooledhttp / Fleet",
        description="All pools of all services: which are in trouble?",
        rows=[
            ("Is any pool the problem?", stats),
            ("Which one?", [table]),
            ("Over time", [
                Lines(
                    title="The fullest pools",
                    description="Mean share of the limit that is lent. Above the line: too small, or its server is "
                    "slow.",
                    queries=[Query(f"topk({_MOST}, {in_use(thresholds)})", "{{job}} {{pool}}")],
                    unit="percentunit",
                    steps=[(thresholds.saturation, RED)],
                ),
                Lines(
                    title="Where callers wait",
                    description="Mean number of callers that wait for a connection.",
                    queries=[Query(f"topk({_MOST}, {waiting()})", "{{job}} {{pool}}")],
                    unit="short",
                    steps=[(thresholds.saturation_waiting, RED)],
                ),
                Lines(
                    title="Where connecting fails",
                    description="Failures to connect per second; the dashboard of the pool has the reasons.",
                    queries=[Query(f"topk({_MOST}, {failures})", "{{job}} {{pool}}")],
                    unit="ops",
                ),
                Lines(
                    title="Most requests",
                    description="Calls per second, of the busiest pools.",
                    queries=[Query(f"topk({_MOST}, {pool.REQUESTS})", "{{job}} {{pool}}")],
                    unit="reqps",
                ),
                Lines(
                    title="Most failed requests",
                    description="5xx, timeouts and errors per second, of the worst pools.",
                    queries=[Query(f"topk({_MOST}, {pool.FAILED})", "{{job}} {{pool}}")],
                    unit="reqps",
                ),
                Lines(
                    title="Pools without a name of their own",
                    description="Pools folded into _other, because a process has 99 names already. Not 0: give "
                    "pools names (name=), or these dashboards do not show them apart.",
                    queries=[Query(
                        f"sum by (job) (increase(pooledhttp_label_overflow_total{{{CHOSEN_PROCESSES}}}"
                        "[$__rate_interval]))", "{{job}}")],
                    unit="short",
                ),
                Lines(
                    title="Connections",
                    description="Lent, free and being opened, in all pools, and what they may have together.",
                    queries=[
                        Query(f"sum by (state) (pooledhttp_connections{{{CHOSEN}}})", "{{state}}"),
                        Query(f"sum(pooledhttp_connections_max{{{CHOSEN}}})", "maximum"),
                    ],
                    unit="short",
                    width=12,
                ),
                Lines(
                    title="Versions",
                    description="Scraped processes, or groups of them, by the version of pooledhttp. None: nothing is "
                    "scraped.",
                    queries=[Query(
                        f"count by (version) (pooledhttp_build_info{{{CHOSEN_PROCESSES}}})", "{{version}}")],
                    unit="short",
                    width=12,
                ),
            ]),
        ],
    )  # fmt: skip
