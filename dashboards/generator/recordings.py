"""The recording rules: what the alerts read, and what one's own panels may.

What holds in every one of them:

* Counters are made rates before they are added up, and added up before they are divided: a mean of shares is no share.
* How full a pool is comes from the time that its connections were lent, since the gauge sees only scrapes; and from
  the gauge where the time tells nothing, or too much: of leases that do not end, and when long ones do.  So does the
  number of callers that wait.
* Labels are kept by name (`by`, `without`), never lost by `ignoring`.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent, indent
from typing import Final

from .thresholds import Thresholds

# The outcomes of a call that count against its budget.
FAILED: Final = "5xx|timeout|error"

# What is recorded though no alert asks for it, and the question it answers; the file's head lists them.
FOR_USERS: Final = {
    "job_pool:pooledhttp_acquire_wait_seconds:p99_rate5m": "how long do callers wait for a connection?",
    "job_pool:pooledhttp_connection_use_seconds_sum:rate5m": "how many connections are in use, and how many would do?",
    "job_pool:pooledhttp_connection_use_seconds:p99_rate5m": "how long is a connection lent?",
    "job_pool:pooledhttp_request_duration_seconds:p99_rate5m": "how long do calls take?",
    "job_pool_reason:pooledhttp_connections_closed:rate5m": "who ends the connections, and why?",
}


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording rule: `expr`, kept under the name `record`."""

    record: str
    expr: str

    def as_rule(self) -> dict[str, object]:
        """Return it in the words of a rule file."""
        return {"record": self.record, "expr": trimmed(self.expr)}


def recordings(thresholds: Thresholds) -> dict[str, list[Recording]]:
    """Return the recording rules by their group."""
    return {"pooledhttp-rates": _rates(thresholds), "pooledhttp-budgets": _budgets(thresholds)}


def trimmed(expr: str) -> str:
    """Return an expression without the margin that it has in the source."""
    return dedent(expr).strip()


def _rate(level: str, metric: str, window: str = "5m") -> Recording:
    """Record the rate of a counter, added up over all labels but those of a level (``job_pool_outcome``)."""
    labels = level.replace("_", ", ")
    return Recording(
        record=f"{level}:{metric.removesuffix('_total')}:rate{window}",
        expr=f"sum by ({labels}) (rate({metric}[{window}]))",
    )


def _distribution(metric: str) -> list[Recording]:
    """Record the rates of a histogram's buckets, and its 99th percentile from them."""
    buckets = _rate("job_pool_le", f"{metric}_bucket")
    p99 = f"histogram_quantile(0.99, {buckets.record})"
    return [buckets, Recording(record=f"job_pool:{metric}:p99_rate5m", expr=p99)]


def _greater(labels: str, counted: str, seen: str) -> str:
    """Return the greater of what was counted and what scrapes saw, or the one there is."""
    return dedent(f"""
        max by ({labels}) (
          label_replace({counted}, "way", "counted", "", "")
          or label_replace({seen}, "way", "seen", "", "")
        )
        """).strip()


# What is open where it is scraped now, by the mean of its limit; `in_use` in panels.py says why.
_LIMIT: Final = "job_instance_pool:pooledhttp_connections_max:avg5m"


def _in_use(thresholds: Thresholds, level: str, summed: str, limit: str) -> Recording:
    """Record the share of the limit that is in use, seen both ways and no more than all; `summed` makes the level."""
    counted = summed.format("job_instance_pool:pooledhttp_connection_use_seconds_sum:rate5m")
    long = summed.format("job_instance_pool:pooledhttp_long_leases:increase5m")
    seen = summed.format("job_instance_pool:pooledhttp_connections_active:avg5m")
    lent = _greater(level.replace("_", ", "), f"{counted} unless {long} > {thresholds.some_events:g}", seen)
    return Recording(
        record=f"{level}:pooledhttp_in_use_per_max:ratio_rate5m",
        expr=f"clamp_max(\n{indent(lent, '  ')}\n  / {limit},\n  1\n)",
    )


def _rates(thresholds: Thresholds) -> list[Recording]:
    long = float(thresholds.long_lease_seconds)  # as prometheus_client writes it: 30.0, not 30
    return [
        # Acquires
        _rate("job_pool_outcome", "pooledhttp_acquires_total"),
        Recording(
            record="job_pool:pooledhttp_acquires:rate5m",
            expr="sum without (outcome) (job_pool_outcome:pooledhttp_acquires:rate5m)",
        ),
        # In vain: callers waited too long, or were turned away.
        Recording(
            record="job_pool:pooledhttp_unserved_acquires_per_acquires:ratio_rate5m",
            expr="""
                sum without (outcome) (job_pool_outcome:pooledhttp_acquires:rate5m{outcome=~"timeout|rejected"})
                / job_pool:pooledhttp_acquires:rate5m
                """,
        ),
        # From those opened: were there no "reused" at all, the ratio should be 0, not missing.
        Recording(
            record="job_pool:pooledhttp_reused_per_acquires:ratio_rate5m",
            expr="""
                1 -
                  sum without (outcome) (job_pool_outcome:pooledhttp_acquires:rate5m{outcome="opened"})
                / sum without (outcome) (job_pool_outcome:pooledhttp_acquires:rate5m{outcome=~"reused|opened"})
                """,
        ),
        *_distribution("pooledhttp_acquire_wait_seconds"),
        # Seconds of waiting per second: the mean number of callers that wait, those who gave up included.  Those who
        # wait without an end are in the gauge alone; of those, an instance that is gone has none any more.
        Recording(
            record="job_pool:pooledhttp_waiting:rate5m",
            expr=_greater(
                "job, pool",
                "sum by (job, pool) (rate(pooledhttp_acquire_wait_seconds_sum[5m]))",
                "sum by (job, pool) (avg_over_time(pooledhttp_pending_acquires[5m]) and pooledhttp_pending_acquires)",
            ),
        ),
        # Seconds of use per second: the mean number of connections in use.
        _rate("job_instance_pool", "pooledhttp_connection_use_seconds_sum"),
        Recording(
            record="job_pool:pooledhttp_connection_use_seconds_sum:rate5m",
            expr="sum without (instance) (job_instance_pool:pooledhttp_connection_use_seconds_sum:rate5m)",
        ),
        Recording(
            record=_LIMIT,
            expr="""
                sum by (job, instance, pool) (
                  avg_over_time(pooledhttp_connections_max[5m]) and pooledhttp_connections_max > 0
                )
                """,
        ),
        # What the scrapes saw of them.
        Recording(
            record="job_instance_pool:pooledhttp_connections_active:avg5m",
            expr='sum by (job, instance, pool) (avg_over_time(pooledhttp_connections{state="active"}[5m]))',
        ),
        # Where long leases have ended, only the scrapes are asked: `in_use` in panels.py says why.
        Recording(
            record="job_instance_pool:pooledhttp_long_leases:increase5m",
            expr=f"""
                sum by (job, instance, pool) (increase(pooledhttp_connection_use_seconds_count[5m]))
                - sum by (job, instance, pool) (increase(pooledhttp_connection_use_seconds_bucket{{le="{long}"}}[5m]))
                """,
        ),
        _in_use(thresholds, "job_instance_pool", "{}", _LIMIT),
        _in_use(
            thresholds, "job_pool", f"sum without (instance) ({{}} and {_LIMIT})", f"sum without (instance) ({_LIMIT})"
        ),
        *_distribution("pooledhttp_connection_use_seconds"),
        # Opening and ending
        *_distribution("pooledhttp_connect_duration_seconds"),
        _rate("job_pool", "pooledhttp_connect_duration_seconds_count"),
        _rate("job_pool_reason", "pooledhttp_connect_failures_total"),
        Recording(
            record="job_pool:pooledhttp_connect_failures:rate5m",
            expr="sum without (reason) (job_pool_reason:pooledhttp_connect_failures:rate5m)",
        ),
        Recording(
            record="job_pool:pooledhttp_connect_failures_per_attempts:ratio_rate5m",
            expr="""
                job_pool:pooledhttp_connect_failures:rate5m
                / (
                    job_pool:pooledhttp_connect_failures:rate5m
                  + job_pool:pooledhttp_connect_duration_seconds_count:rate5m
                )
                """,
        ),
        _rate("job_pool_reason", "pooledhttp_connections_closed_total"),
        # Few go stale, so they are looked at for longer.
        _rate("job_pool_outcome", "pooledhttp_stale_connections_total", "15m"),
        Recording(
            record="job_pool:pooledhttp_reused_acquires:rate15m",
            expr='sum by (job, pool) (rate(pooledhttp_acquires_total{outcome="reused"}[15m]))',
        ),
        # Calls
        _rate("job_pool_outcome", "pooledhttp_requests_total"),
        Recording(
            record="job_pool:pooledhttp_requests:rate5m",
            expr="sum without (outcome) (job_pool_outcome:pooledhttp_requests:rate5m)",
        ),
        *_distribution("pooledhttp_request_duration_seconds"),
        _rate("job_pool_reason", "pooledhttp_retries_total"),
        Recording(
            record="job_pool:pooledhttp_retries_per_requests:ratio_rate5m",
            expr="""
                sum without (reason) (job_pool_reason:pooledhttp_retries:rate5m)
                / job_pool:pooledhttp_requests:rate5m
                """,
        ),
    ]


def _budgets(thresholds: Thresholds) -> list[Recording]:
    """Record what is spent of the two budgets, over the windows of the burn rates.

    A wait in vain is a wait: the histogram has those that ended in AcquireTimeout too, so they are not added here.
    """
    bound = float(thresholds.slow_wait_seconds)  # as prometheus_client writes it: 1.0, not 1
    rules: list[Recording] = []
    for window in ("5m", "30m", "1h", "6h"):
        rules += [
            Recording(
                record=f"job_pool:pooledhttp_slow_acquires_per_acquires:ratio_rate{window}",
                expr=f"""
                    1 -
                      sum by (job, pool) (rate(pooledhttp_acquire_wait_seconds_bucket{{le="{bound}"}}[{window}]))
                    / sum by (job, pool) (rate(pooledhttp_acquire_wait_seconds_count[{window}]))
                    """,
            ),
            Recording(
                record=f"job_pool:pooledhttp_failed_requests_per_requests:ratio_rate{window}",
                expr=f"""
                    sum by (job, pool) (rate(pooledhttp_requests_total{{outcome=~"{FAILED}"}}[{window}]))
                    / sum by (job, pool) (rate(pooledhttp_requests_total[{window}]))
                    """,
            ),
        ]
    return [
        *rules,
        _rate("job_pool", "pooledhttp_acquires_total", "30m"),
        _rate("job_pool", "pooledhttp_requests_total", "30m"),
    ]
