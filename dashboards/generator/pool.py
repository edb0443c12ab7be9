"""The dashboard of a pool: it says whether the pool is the problem, and which part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from .panels import (
    CHOSEN,
    ORANGE,
    RED,
    Heat,
    Lines,
    Panel,
    Query,
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

UID: Final = "pooledhttp-pool"

ACQUIRES: Final = rate("acquires_total")
# What callers got no connection by: AcquireTimeout; PoolFull, or PoolClosed.
UNSERVED: Final = 'outcome=~"timeout|rejected"'
IN_VAIN: Final = rate("acquires_total", only=UNSERVED)
REUSED: Final = rate("acquires_total", only='outcome="reused"')
RAISED: Final = rate("stale_connections_total", only='outcome="raised"')
SERVED: Final = rate("acquires_total", only='outcome=~"reused|opened"')
OPENED: Final = rate("connect_duration_seconds_count")
CONNECT_FAILURES: Final = rate("connect_failures_total")
REQUESTS: Final = rate("requests_total")
RETRIES: Final = rate("retries_total")
FAILED: Final = rate("requests_total", only='outcome=~"5xx|timeout|error"')


def pool(thresholds: Thresholds = THRESHOLDS) -> Dashboard:
    """Return the dashboard."""
    return assemble(
        uid=UID,
        title="pooledhttp / Pool",
        description="One pool, or a few: whether it is the problem, and where its time goes.",
        rows=[
            ("Is the pool the problem?", verdict(thresholds)),
            ("Requests", _requests(thresholds)),
            ("Saturation", _saturation(thresholds)),
            ("Life cycle", _life_cycle(thresholds)),
            ("Errors", _errors(thresholds)),
            ("Where the time goes", _time()),
        ],
    )


def verdict(thresholds: Thresholds = THRESHOLDS) -> Sequence[Stat]:
    """Return the first row: from left to right, full, waiting, unreachable, stale, forgotten."""
    budget_of_waiting = burned(thresholds, thresholds.slow_wait_budget)
    return [
        Stat(
            title="In use",
            description="The share of its limit that the fullest chosen pool has lent, as a mean over time. Red: "
            "all is "
            "lent nearly all the time. If calls are slow (below), it is the server; if not, raise maxsize.",
            queries=[Query(f"max({in_use(thresholds)})")],
            unit="percentunit",
            steps=[(thresholds.saturation, RED)],
        ),
        Stat(
            title="Callers waiting",
            description="Mean number of callers that wait for a connection, in the pool where it is greatest. Red: "
            "calls "
            "are late because of the pool. See who holds the connections: pool.explain() in a worker.",
            queries=[Query(f"max({waiting()})")],
            unit="short",
            steps=[(thresholds.saturation_waiting, RED)],
        ),
        Stat(
            title="Waited too long",
            description=f"Share of acquires that waited longer than {spoken(thresholds.slow_wait_seconds)} for a "
            f"connection, in vain or not, in the pool where it is greatest. {budget_of_waiting} Green while calls are "
            "slow: the pool is not the problem.",
            queries=[Query(f"max({slow(thresholds)})")],
            unit="percentunit",
            steps=burning(thresholds, thresholds.slow_wait_budget),
        ),
        Stat(
            title="No connection",
            description="Share of acquires that ended in AcquireTimeout, or were turned away at once (PoolFull, "
            "PoolClosed), in the pool where it is greatest. Red: callers see errors. Look at In use and Leaks: the "
            "pool is too small, or somebody does not give back.",
            queries=[Query(f"max({share(IN_VAIN, ACQUIRES)})")],
            unit="percentunit",
            steps=[(thresholds.acquire_timeout_share, RED)],
        ),
        Stat(
            title="Cannot connect",
            description="Share of attempts to open a connection that failed, in the pool where it is greatest. Not "
            "green: the server, its name, its certificate or a proxy; the reasons are under Errors.",
            queries=[Query(f"max({share(CONNECT_FAILURES, f'({CONNECT_FAILURES} + {OPENED})')})")],
            unit="percentunit",
            steps=[(thresholds.connect_failure_share, ORANGE), (thresholds.connect_failure_page_share, RED)],
            no_value="none tried",
        ),
        Stat(
            title="Dead on use",
            description="Share of requests over kept-alive connections that met one which the server had closed. "
            "Orange "
            "(all): set idle_timeout below the server's keep-alive. Red (raised): callers see it, since their requests "
            "may not be sent twice.",
            queries=[
                Query(f"max({share(rate('stale_connections_total'), REUSED)})", "all"),
                Query(
                    f"max({share(RAISED, REUSED)})",
                    "raised",
                    warn=thresholds.stale_raised_share,
                ),
            ],
            unit="percentunit",
            steps=[(thresholds.stale_share, ORANGE)],
        ),
        Stat(
            title="Oldest lease",
            description="How long the connection that has been lent longest has been. Red: a call hangs, or code "
            "forgot "
            "to give back. pool.explain() names the thread; leak_after= logs the stack of the borrower.",
            queries=[Query(f"max({chosen('oldest_lease_seconds')})")],
            unit="s",
            steps=[(thresholds.stuck_lease_seconds, RED)],
            no_value="no pool",
        ),
        Stat(
            title="Leaks",
            description="Leases that lasted longer than leak_after, and connections collected while lent, within the "
            "time that the dashboard shows: one that leaked stays leaked. Red: code does not give back. The log has "
            "the stack, with leak_after=.",
            queries=[Query(f"sum(increase({chosen('leaked_connections_total')}[$__range]))")],
            unit="short",
            steps=[(thresholds.some_events, RED)],
            decimals=0,
            no_value="no pool",
        ),
    ]


def _requests(thresholds: Thresholds) -> Sequence[Panel]:
    return [
        Lines(
            title="Requests by outcome",
            description="Calls of request() and stream() per second, by how they ended. Errors and timeouts that rise "
            "alone point at the network or the pool, 5xx at the server.",
            queries=[Query(rate("requests_total", "outcome"), "{{outcome}}")],
            unit="reqps",
            stacked=True,
        ),
        Lines(
            title="Share of failed requests",
            description="5xx, timeouts and errors, of all calls. Compare with Is the pool the problem?: green there "
            "and high here is the server. Lines: the budget, and where its two alerts call.",
            queries=[Query(share(FAILED, REQUESTS), "{{pool}}")],
            unit="percentunit",
            steps=burning(thresholds, thresholds.request_error_budget),
            greatest=1,
        ),
        Lines(
            title="How long calls take",
            description="Quantiles of whole calls, waiting for a connection and between attempts included. Compare "
            "with "
            "Waiting for a connection: what is not waiting is the server and the network.",
            queries=[
                Query(quantile(q, "request_duration_seconds"), legend)
                for q, legend in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
            ],
            unit="s",
        ),
        Heat(
            title="Calls by duration",
            description="How calls are spread over durations. Two bands: two kinds of calls, or some that meet a limit "
            "or a retry.",
            queries=[Query(rate("request_duration_seconds_bucket", "le"), "{{le}}")],
            unit="s",
            width=6,
        ),
        Lines(
            title="Retries, of all calls",
            description="What retries add to the load of the server, as a share of the calls. Above the line: it is "
            "unwell, and gets that much more to do; see what had failed, beside.",
            queries=[Query(share(RETRIES, REQUESTS), "{{pool}}")],
            unit="percentunit",
            steps=[(thresholds.retry_share, RED)],
            width=6,
        ),
        Lines(
            title="Tried again",
            description="Attempts after the first per second, by what had failed before. They add to the load of a "
            "server that is unwell: if they stay high, lower attempts or the budget of Retry.",
            queries=[Query(rate("retries_total", "reason"), "{{reason}}")],
            unit="reqps",
            stacked=True,
            width=6,
        ),
        Lines(
            title="Not tried again",
            description="Calls with a Retry that ended in a failure, by what stood against one more attempt. budget: "
            "the budget protects the server, which is what it is for.",
            queries=[Query(rate("retries_refused_total", "reason"), "{{reason}}")],
            unit="reqps",
            stacked=True,
            width=6,
        ),
    ]


def _saturation(thresholds: Thresholds) -> Sequence[Panel]:
    return [
        Lines(
            title="Connections",
            description="Lent, free and being opened, at the moments of the scrapes; together they never exceed the "
            "maximum. Free ones all the time: the pool is large enough.",
            queries=[
                Query(f"sum by (state) ({chosen('connections')})", "{{state}}"),
                Query(f"sum({chosen('connections_max')})", "maximum"),
            ],
            unit="short",
        ),
        Lines(
            title="In use, of the limit",
            description="Mean share of the limit that is lent. Above the line: raise maxsize, or make calls shorter.",
            queries=[Query(in_use(thresholds), "{{pool}}")],
            unit="percentunit",
            steps=[(thresholds.saturation, RED)],
        ),
        Lines(
            title="Callers waiting",
            description="How many wait for a connection: the mean over time, as in the first row, and those at the "
            "moments of the scrapes. Above the line, the pool is what makes calls late.",
            queries=[
                Query(waiting(), "{{pool}}, mean"),
                Query(f"sum by (job, pool) ({chosen('pending_acquires')})", "{{pool}}, now"),
            ],
            unit="short",
            steps=[(thresholds.saturation_waiting, RED)],
        ),
        Lines(
            title="Waiting for a connection",
            description="Quantiles of the wait for a connection or a slot, in vain or not, connecting not included. "
            "Above the line a wait is too long; the first row has the share of those.",
            queries=[
                Query(quantile(q, "acquire_wait_seconds"), legend)
                for q, legend in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
            ],
            unit="s",
            steps=[(thresholds.slow_wait_seconds, RED)],
        ),
        Heat(
            title="Waits by duration",
            description="How waits are spread. The lowest band are those that did not wait at all.",
            queries=[Query(rate("acquire_wait_seconds_bucket", "le"), "{{le}}")],
            unit="s",
        ),
        Lines(
            title="Acquires by outcome",
            description="Each acquire ends in one way. timeout: no connection in time; rejected: too many waited "
            "already, or the pool is closed; error: connecting failed.",
            queries=[Query(rate("acquires_total", "outcome"), "{{outcome}}")],
            unit="ops",
            stacked=True,
        ),
    ]


def _life_cycle(thresholds: Thresholds) -> Sequence[Panel]:
    return [
        Lines(
            title="Opened and closed",
            description="Connections per second. Few is good: each one opened costs a handshake. Many closed by "
            "server_close: the server does not keep connections alive.",
            queries=[Query(OPENED.replace("sum by (job, pool) ", "sum"), "opened"),
                     Query(rate("connections_closed_total", "reason"), "closed: {{reason}}")],
            unit="ops",
        ),
        Lines(
            title="Served by a kept-alive connection",
            description="Share of acquires that needed no new connection. Below the line: see why connections end, "
            "and compare the idle limits of both sides.",
            queries=[Query(share(REUSED, SERVED), "{{pool}}")],
            unit="percentunit",
            steps=[(thresholds.low_reuse, RED)],
            greatest=1,
        ),
        Lines(
            title="Leases per connection",
            description="How often a connection is lent before it ends. Near 1: keep-alive does not work.",
            queries=[Query(share(SERVED, OPENED), "{{pool}}")],
            unit="short",
        ),
        Lines(
            title="How long connecting takes",
            description="Resolving, connecting, tunnel and TLS, of the connections that were opened. Above the line: "
            "the resolver, the network, or a server that is slow to accept.",
            queries=[
                Query(quantile(q, "connect_duration_seconds"), legend)
                for q, legend in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
            ],
            unit="s",
            steps=[(thresholds.slow_connect_seconds, RED)],
        ),
        Heat(
            title="Leases by duration",
            description="How long connections are lent. The highest bands are what fills a pool.",
            queries=[Query(rate("connection_use_seconds_bucket", "le"), "{{le}}")],
            unit="s",
        ),
        Lines(
            title="Given back unread",
            description="Connections that came back with an unread body: the rest was read (drained), or the "
            "connection was closed. Read bodies to their end, or close them.",
            queries=[Query(rate("drains_total", "outcome"), "{{outcome}}")],
            unit="ops",
        ),
    ]  # fmt: skip


def _errors(thresholds: Thresholds) -> Sequence[Panel]:
    return [
        Lines(
            title="Failures to connect",
            description="Per second, by reason. dns: the name; refused: nobody listens; timeout: the way there; tls: "
            "certificate or protocol; proxy: CONNECT was refused.",
            queries=[Query(rate("connect_failures_total", "reason"), "{{reason}}")],
            unit="ops",
            stacked=True,
        ),
        Lines(
            title="Dead on use",
            description="Requests that met a connection which the server had closed: retried were sent again, raised "
            "reached the caller. Set idle_timeout below the server's keep-alive.",
            queries=[Query(rate("stale_connections_total", "outcome"), "{{outcome}}")],
            unit="ops",
            stacked=True,
        ),
        Lines(
            title="Ended by an error",
            description="Connections per second that did not end well, by reason. leftover, unsolicited: the server "
            "writes what nobody asked for; truncated, timeout: answers do not come whole.",
            queries=[
                Query(
                    rate(
                        "connections_closed_total",
                        "reason",
                        'reason=~"error|timeout|truncated|leftover|unsolicited|unread|leaked|stale_.+"',
                    ),
                    "{{reason}}",
                )
            ],
            unit="ops",
            stacked=True,
        ),
        Lines(
            title="Oldest lease",
            description="Age of the connection that has been lent longest. A line that climbs for minutes is one call "
            "that hangs, or a connection that nobody gives back.",
            queries=[Query(f"max by (job, pool) ({chosen('oldest_lease_seconds')})", "{{pool}}")],
            unit="s",
            steps=[(thresholds.stuck_lease_seconds, RED)],
        ),
        Lines(
            title="Leaks",
            description="Leases over leak_after, and connections collected while lent. Any is a bug of the "
            "program: the "
            "log has the stack of the borrower, with leak_after=.",
            queries=[
                Query(
                    f"sum by (job, pool) (increase({chosen('leaked_connections_total')}[$__rate_interval]))", "{{pool}}"
                )
            ],
            unit="short",
        ),
        Lines(
            title="Failed requests by kind",
            description="Calls per second that ended in 5xx, a timeout or an error: what users see.",
            queries=[Query(rate("requests_total", "outcome", 'outcome=~"5xx|timeout|error"'), "{{outcome}}")],
            unit="reqps",
            stacked=True,
        ),
    ]


def _time() -> Sequence[Panel]:
    spent = [
        Query(f"sum(rate(pooledhttp_{metric}_sum{{{CHOSEN}}}[$__rate_interval]))", legend)
        for metric, legend in (
            ("acquire_wait_seconds", "waiting"),
            ("connect_duration_seconds", "connecting"),
            ("connection_use_seconds", "in use"),
        )
    ]
    whole = " + ".join(query.expr for query in spent)
    return [
        Lines(
            title="Seconds per second",
            description="How much time per second all callers together spend waiting for a connection, connecting, and "
            "using one. The thickest layer is where to begin.",
            queries=spent,
            unit="s",
            stacked=True,
            width=12,
        ),
        Lines(
            title="Shares of the time",
            description="The same as shares. Waiting: the pool; connecting: churn or a slow network; in use: the "
            "server "
            "and the program itself.",
            queries=[Query(share(query.expr, f"({whole})"), query.legend) for query in spent],
            unit="percentunit",
            stacked=True,
            greatest=1,
            width=12,
        ),
    ]
