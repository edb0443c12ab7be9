"""The alerts: when somebody is called, and what they are told.

What holds in every one of them:

* An alert on a share has a least rate beside it, or a single bad event in the night would be half of all.
* `pooledhttp_oldest_lease_seconds` is the longest of its workers already: its maximum is taken, never its sum.
* It says which job and which pool: no label is lost on the way from the recording rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from .recordings import trimmed
from .thresholds import Thresholds, spoken

Severity = Literal["critical", "warning", "info"]

RUNBOOK: Final = "https://github.com/pooledhttp/pooledhttp/blob/main/dashboards/runbook.md"

# The paths of the dashboards by their uid, with what narrows them down to an alert's labels.
_OVERVIEW: Final = "/d/pooledhttp-overview?var-job={{ $labels.job | urlquery }}"
_POOL: Final = "/d/pooledhttp-pool?var-pool={{ $labels.pool | urlquery }}&var-job={{ $labels.job | urlquery }}"
_WORKERS: Final = "/d/pooledhttp-workers?var-pool={{ $labels.pool | urlquery }}&var-job={{ $labels.job | urlquery }}"

_WHERE: Final = "Pool {{ $labels.pool }} of {{ $labels.job }}"


@dataclass(frozen=True, kw_only=True)
class Links:
    """Where the links of an alert lead.

    Attributes:
        runbook: The page that the name of an alert is an anchor of.
        grafana: What stands before the path of a dashboard, like ``https://grafana.example.net``; empty: only the path.
    """

    runbook: str = RUNBOOK
    grafana: str = ""


LINKS: Final = Links()


@dataclass(frozen=True, kw_only=True)
class Alert:
    """An alert; `lasting` is how long it must hold before anybody is told, empty for at once."""

    name: str
    severity: Severity
    expr: str
    lasting: str
    summary: str
    description: str
    dashboard: str = _POOL

    def as_rule(self, links: Links) -> dict[str, object]:
        """Return it in the words of a rule file."""
        return {
            "alert": self.name,
            "expr": trimmed(self.expr),
            **({"for": self.lasting} if self.lasting else {}),
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{links.runbook}#{self.name.lower()}",
                "dashboard_url": links.grafana + self.dashboard,
            },
        }


def alerts(thresholds: Thresholds) -> dict[str, list[Alert]]:
    """Return the alerts by their group."""
    return {
        "pooledhttp-acquiring": _acquiring(thresholds),
        "pooledhttp-leases": _leases(thresholds),
        "pooledhttp-opening": _opening(thresholds),
        "pooledhttp-calling": _calling(thresholds),
        "pooledhttp-watching": _watching(thresholds),
    }


def _burn(ratio: str, guard: str, *, budget: float, least: float, factor: float, short: str, long: str) -> str:
    """Ask whether a budget burns in both windows: in the long one, so that it matters, in the short, so that it ends.

    The least rate is asked of the short window, which has the fewer events.
    """
    return f"""
        {ratio}:ratio_rate{short} > {factor:g} * {budget:g}
        and {ratio}:ratio_rate{long} > {factor:g} * {budget:g}
        and {guard}:rate{short} > {least:g}
        """


def _acquiring(t: Thresholds) -> list[Alert]:
    slow = "job_pool:pooledhttp_slow_acquires_per_acquires"
    unserved = "job_pool:pooledhttp_unserved_acquires_per_acquires:ratio_rate5m"
    waiting = "job_pool:pooledhttp_waiting:rate5m"
    limit = spoken(t.slow_wait_seconds)
    waited = f"{{{{ $value | humanizePercentage }}}} of the acquires waited longer than {limit} for a connection"
    budget = f"{t.slow_wait_budget * 100:g} % may"
    return [
        Alert(
            name="PooledHTTPAcquireTimeouts",
            severity="critical",
            expr=f"""
                {unserved} > {t.acquire_timeout_share:g}
                and job_pool:pooledhttp_acquires:rate5m > {t.acquire_least_rate:g}
                """,
            lasting="5m",
            summary=f"{_WHERE} has no connection for its callers.",
            description="{{ $value | humanizePercentage }} of the acquires of the last 5 minutes ended in "
            "AcquireTimeout, or were turned away (PoolFull, PoolClosed): these calls failed without a byte being sent.",
        ),
        Alert(
            name="PooledHTTPAcquireWaitBudgetBurn",
            severity="critical",
            expr=_burn(
                slow,
                "job_pool:pooledhttp_acquires",
                budget=t.slow_wait_budget,
                least=t.acquire_least_rate,
                factor=t.fast_burn,
                short="5m",
                long="1h",
            ),
            lasting="2m",
            summary=f"{_WHERE} keeps many callers waiting.",
            description=f"{waited} over 5 minutes, and as many over 1 hour, where {budget}: at this pace 2 % of a "
            "month's budget are gone in an hour.",
        ),
        Alert(
            name="PooledHTTPAcquireWaitBudgetBurn",
            severity="warning",
            expr=_burn(
                slow,
                "job_pool:pooledhttp_acquires",
                budget=t.slow_wait_budget,
                least=t.acquire_least_rate,
                factor=t.slow_burn,
                short="30m",
                long="6h",
            ),
            lasting="15m",
            summary=f"{_WHERE} keeps callers waiting.",
            description=f"{waited} over 30 minutes, and as many over 6 hours, where {budget}: at this pace 5 % of a "
            "month's budget are gone in six hours.",
        ),
        # Where nobody may wait (max_waiters=0), callers are turned away instead.  The mean of 5 minutes takes nearly as
        # long to rise: with 5 more, one that hangs is told of before its leases are called stuck.
        Alert(
            name="PooledHTTPPoolSaturated",
            severity="warning",
            expr=f"""
                job_pool:pooledhttp_in_use_per_max:ratio_rate5m > {t.saturation:g}
                and ({waiting} > {t.saturation_waiting:g} or {unserved} > {t.acquire_timeout_share:g})
                """,
            lasting="5m",
            summary=f"{_WHERE} is full, and callers wait or are turned away.",
            description="{{ $value | humanizePercentage }} of all allowed connections were in use on average over the "
            "last 5 minutes: every further call, or every slower answer, becomes waiting or an error.",
        ),
    ]


def _leases(t: Thresholds) -> list[Alert]:
    return [
        Alert(
            name="PooledHTTPLeaseStuck",
            severity="warning",
            expr=f"max by (job, pool) (pooledhttp_oldest_lease_seconds) > {t.stuck_lease_seconds:g}",
            lasting="5m",
            summary=f"{_WHERE} has a connection that does not come back.",
            description="The oldest lease has lasted {{ $value | humanizeDuration }}: a call hangs, or code forgot to "
            "give the connection back, and the pool is one smaller until then.",
        ),
        Alert(
            name="PooledHTTPConnectionLeak",
            severity="warning",
            expr=f"sum by (job, pool) (increase(pooledhttp_leaked_connections_total[15m])) > {t.some_events:g}",
            lasting="",
            summary=f"{_WHERE} leaks connections.",
            description='About {{ $value | printf "%.0f" }} leases of the last 15 minutes were not given back in time, '
            "or never: code somewhere takes connections and forgets them.",
        ),
    ]


def _opening(t: Thresholds) -> list[Alert]:
    failing = "job_pool:pooledhttp_connect_failures_per_attempts:ratio_rate5m"
    guard = f"and job_pool:pooledhttp_connect_failures:rate5m > {t.connect_failure_least_rate:g}"
    served = 'sum without (outcome) (job_pool_outcome:pooledhttp_acquires:rate5m{outcome=~"reused|opened"})'
    stale = "job_pool_outcome:pooledhttp_stale_connections:rate15m"
    reused = "job_pool:pooledhttp_reused_acquires:rate15m"
    failed = "{{ $value | humanizePercentage }} of the attempts of the last 5 minutes to open a connection failed"
    return [
        Alert(
            name="PooledHTTPConnectFailures",
            severity="critical",
            expr=f"{failing} > {t.connect_failure_page_share:g}\n{guard}",
            lasting="5m",
            summary=f"{_WHERE} cannot reach its server.",
            description=f"{failed}: calls go on only over what is still open.",
        ),
        Alert(
            name="PooledHTTPConnectFailures",
            severity="warning",
            expr=f"{failing} > {t.connect_failure_share:g}\n{guard}",
            lasting="5m",
            summary=f"{_WHERE} often cannot open a connection.",
            description=f"{failed}: some calls fail or are tried again, and a part of the way to the server is broken.",
        ),
        Alert(
            name="PooledHTTPConnectSlow",
            severity="warning",
            expr=f"""
                job_pool:pooledhttp_connect_duration_seconds:p99_rate5m > {t.slow_connect_seconds:g}
                and job_pool:pooledhttp_connect_duration_seconds_count:rate5m > {t.connect_least_rate:g}
                """,
            lasting="10m",
            summary=f"{_WHERE} is slow to open connections.",
            description="The slowest 1 % of the connections opened in the last 5 minutes took "
            "{{ $value | humanizeDuration }} or longer for name, connection, tunnel and TLS together: each new one "
            "delays a call.",
        ),
        Alert(
            name="PooledHTTPReuseRatioLow",
            severity="warning",
            expr=f"""
                job_pool:pooledhttp_reused_per_acquires:ratio_rate5m < {t.low_reuse:g}
                and {served} > {t.reuse_least_rate:g}
                """,
            lasting="15m",
            summary=f"{_WHERE} opens connections instead of reusing them.",
            description="Only {{ $value | humanizePercentage }} of the acquires of the last 5 minutes got a kept-alive "
            "connection: the others paid for a handshake.",
        ),
        Alert(
            name="PooledHTTPStaleConnections",
            severity="critical",
            expr=f"""
                sum without (outcome) ({stale}{{outcome="raised"}})
                / {reused}
                > {t.stale_raised_share:g}
                and {reused} > {t.stale_raised_least_rate:g}
                """,
            lasting="15m",
            summary=f"{_WHERE} fails calls on dead connections.",
            description="{{ $value | humanizePercentage }} of the requests of the last 15 minutes over a kept-alive "
            "connection failed because it was dead: the server closed it first, and they could not be sent again.",
        ),
        Alert(
            name="PooledHTTPStaleConnections",
            severity="info",
            expr=f"""
                sum without (outcome) ({stale})
                / {reused}
                > {t.stale_share:g}
                and {reused} > {t.stale_least_rate:g}
                """,
            lasting="15m",
            summary=f"{_WHERE} often meets dead connections.",
            description="{{ $value | humanizePercentage }} of the requests of the last 15 minutes over a kept-alive "
            "connection found it dead: the server closes idle connections sooner than the pool does.",
        ),
    ]


def _calling(t: Thresholds) -> list[Alert]:
    failed = "job_pool:pooledhttp_failed_requests_per_requests"
    ended = "{{ $value | humanizePercentage }} of the calls ended in 5xx, a timeout or an error"
    budget = f"{t.request_error_budget * 100:g} % may"
    return [
        Alert(
            name="PooledHTTPRequestErrors",
            severity="critical",
            expr=_burn(
                failed,
                "job_pool:pooledhttp_requests",
                budget=t.request_error_budget,
                least=t.request_least_rate,
                factor=t.fast_burn,
                short="5m",
                long="1h",
            ),
            lasting="2m",
            summary=f"{_WHERE}: many calls fail.",
            description=f"{ended} over 5 minutes, and as many over 1 hour, where {budget}: at this pace 2 % of a "
            "month's budget are gone in an hour.",
        ),
        Alert(
            name="PooledHTTPRequestErrors",
            severity="warning",
            expr=_burn(
                failed,
                "job_pool:pooledhttp_requests",
                budget=t.request_error_budget,
                least=t.request_least_rate,
                factor=t.slow_burn,
                short="30m",
                long="6h",
            ),
            lasting="15m",
            summary=f"{_WHERE}: calls fail.",
            description=f"{ended} over 30 minutes, and as many over 6 hours, where {budget}: at this pace 5 % of a "
            "month's budget are gone in six hours.",
        ),
        Alert(
            name="PooledHTTPRetriesHigh",
            severity="warning",
            expr=f"""
                job_pool:pooledhttp_retries_per_requests:ratio_rate5m > {t.retry_share:g}
                and job_pool:pooledhttp_requests:rate5m > {t.retry_least_rate:g}
                """,
            lasting="10m",
            summary=f"{_WHERE} tries many calls again.",
            description="Retries of the last 5 minutes add {{ $value | humanizePercentage }} to the calls: the server "
            "is unwell, and gets that much more to do.",
        ),
    ]


def _watching(t: Thresholds) -> list[Alert]:
    overflow = "pooledhttp_label_overflow_total"
    return [
        Alert(
            name="PooledHTTPWorkerSkew",
            severity="info",
            expr=f"""
                job_instance_pool:pooledhttp_in_use_per_max:ratio_rate5m > {t.skew_worker:g}
                and on (job, pool) job_pool:pooledhttp_in_use_per_max:ratio_rate5m < {t.skew_fleet:g}
                """,
            lasting="15m",
            summary=f"{_WHERE} is full on {{{{ $labels.instance }}}} alone.",
            description="{{ $labels.instance }} used {{ $value | humanizePercentage }} of its connections on average "
            "over the last 5 minutes, while the job as a whole has plenty left: the work is not spread evenly.",
            dashboard=_WORKERS,
        ),
        # Pools are often made before the first scrape, which then shows them as no increase: hence the second line.
        Alert(
            name="PooledHTTPLabelOverflow",
            severity="info",
            expr=f"""
                sum by (job) (
                  increase({overflow}[15m]) > {t.some_events:g}
                  or {overflow} unless {overflow} offset 15m
                ) > {t.some_events:g}
                """,
            lasting="",
            summary="{{ $labels.job }} has more pools than names for them.",
            description='About {{ $value | printf "%.0f" }} names of pools of the last 15 minutes were shown together '
            "as _other: numbers by pool are no longer complete.",
            dashboard=_OVERVIEW,
        ),
        # No configuration needed: a job that had the metrics an hour ago is one that should have them.
        Alert(
            name="PooledHTTPMetricsAbsent",
            severity="warning",
            expr="""
                group by (job) (last_over_time(pooledhttp_build_info[1h]))
                unless group by (job) (last_over_time(pooledhttp_build_info[5m]))
                """,
            lasting="5m",
            summary="{{ $labels.job }} no longer shows its pools.",
            description="No worker has shown pooledhttp_build_info for 5 minutes, and within the last hour there was "
            "one: no other alert on these pools can fire.",
            dashboard=_OVERVIEW,
        ),
    ]
