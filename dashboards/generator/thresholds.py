"""Every number that an alert goes by; panels that show the same quantity change colour at the same number.

Its one job is to hold them in one place.  Its rule: a threshold on a histogram is one of the histogram's bounds
(`pooledhttp.stats`), or Prometheus would have to guess within a bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When to call somebody; seconds, shares of 1, or events per second, as the names say.

    The factors and windows of burn rates are those of the SRE workbook's chapter on alerting: 14.4 spends 2 % of a
    month's budget in an hour, 6 spends 5 % of it in six hours.  "Least rates" keep alerts quiet where a single event
    would be a large share.
    """

    # Acquires that got no connection: they ended in AcquireTimeout, PoolFull or PoolClosed.
    acquire_timeout_share: float = 0.01
    acquire_least_rate: float = 0.1

    # Acquires that waited for a connection longer than is acceptable.
    slow_wait_seconds: float = 0.05
    slow_wait_budget: float = 0.01
    fast_burn: float = 14.4  # over 5 minutes and 1 hour
    slow_burn: float = 6.0  # over 30 minutes and 6 hours

    # Mean connections in use over the limit, and mean number of callers waiting.
    saturation: float = 0.9
    saturation_waiting: float = 0.1

    # Where leases end that lasted longer, the scrapes say how many are in use: time is counted when a lease ends, and
    # much of these leases' time is from before the window.
    long_lease_seconds: float = 30.0

    # The oldest lease.
    stuck_lease_seconds: float = 300.0

    # Connections that could not be opened, of all that were tried.
    connect_failure_share: float = 0.05
    connect_failure_page_share: float = 0.5
    connect_failure_least_rate: float = 0.05

    # 99 of 100 connections are opened faster.
    slow_connect_seconds: float = 1.0
    connect_least_rate: float = 0.05

    # Acquires that were served by a kept-alive connection, of all that were served.
    low_reuse: float = 0.5
    reuse_least_rate: float = 1.0

    # Requests that met a dead kept-alive connection, of those sent over one.  At the least rate, the share is about one
    # event in the 15 minutes that are looked at; for the raised ones a tenth of the share needs ten times the rate.
    stale_share: float = 0.01
    stale_raised_share: float = 0.001
    stale_least_rate: float = 0.1
    stale_raised_least_rate: float = 1.0

    # Calls that ended in 5xx, in a timeout or in an error.
    request_error_budget: float = 0.01
    request_least_rate: float = 0.1

    # Attempts after the first, of all calls: what retries add to the load of a server that is unwell.  Half of what the
    # budget of `Retry` allows by default: a share that the budget keeps retries below would never be passed.
    retry_share: float = 0.1
    retry_least_rate: float = 0.1

    # Things that nobody should see even one of, as `increase` tells them: it extrapolates, so that one is a little more
    # than 1, and a difference of two increases a little more or less than it should be.
    some_events: float = 0.5

    # One worker's share of its limit in use, while all workers together have plenty left.
    skew_worker: float = 0.9
    skew_fleet: float = 0.5


THRESHOLDS: Final = Thresholds()


def spoken(seconds: float) -> str:
    """Return a time as it is said."""
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"
