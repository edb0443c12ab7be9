"""What /metrics shows, and what it has to show.

Its one job is to make the two comparable: the samples that a pool's own numbers promise, and those that a scrape over
HTTP brings.  Its rule: the endpoint is the one a user would start, and it is read as Prometheus would.  No other file
of the demo knows prometheus_client, and this one does only when called.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .options import CALL_SECONDS, HOST

if TYPE_CHECKING:
    from pooledhttp.stats import HistogramStats, PoolStats

# A sample's name and its labels, sorted.
Key = tuple[str, tuple[tuple[str, str], ...]]


def _key(name: str, labels: Mapping[str, str]) -> Key:
    # Bounds are compared as numbers: "1" and "1.0" are the same one.
    return name, tuple(sorted((label, str(float(text)) if label == "le" else text) for label, text in labels.items()))


def expected_samples(stats: PoolStats) -> dict[Key, float]:
    """Return what /metrics has to show of a pool that is open and at rest."""
    found: dict[Key, float] = {}

    def put(name: str, value: float, **labels: str) -> None:
        found[_key(f"pooledhttp_{name}", {"pool": stats.name, **labels})] = value

    def put_histogram(name: str, histogram: HistogramStats) -> None:
        below = 0
        for bound, count in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
            below += count
            put(f"{name}_bucket", below, le=str(bound))
        put(f"{name}_count", histogram.count)
        put(f"{name}_sum", histogram.sum)

    put("connections", stats.leased, state="active")
    put("connections", stats.idle, state="idle")
    put("connections", stats.opening, state="opening")
    put("connections_max", stats.maxsize)
    put("pending_acquires", stats.waiting)
    put("oldest_lease_seconds", stats.oldest_lease_seconds)
    put("leaked_connections_total", stats.leaked)
    for name, label, counts in (
        ("acquires_total", "outcome", stats.acquires),
        ("connect_failures_total", "reason", stats.connect_failures),
        ("connections_closed_total", "reason", stats.closed),
        ("stale_connections_total", "outcome", stats.stale),
        ("drains_total", "outcome", stats.drains),
        ("requests_total", "outcome", stats.requests),
    ):
        for kind, count in counts.items():
            put(name, count, **{label: kind})
    put_histogram("acquire_wait_seconds", stats.wait)
    put_histogram("connection_use_seconds", stats.use)
    put_histogram("connect_duration_seconds", stats.connect)
    put_histogram("request_duration_seconds", stats.request)
    return found


def differences(expected: Mapping[Key, float], scraped: Mapping[Key, float]) -> list[str]:
    """Return where /metrics does not say what the pools say, one line each."""
    lines = []
    for key, value in expected.items():
        shown = scraped.get(key)
        if shown != value:
            labels = ",".join(f'{label}="{text}"' for label, text in key[1])
            lines.append(
                f"{key[0]}{{{labels}}} is {'missing' if shown is None else f'{shown:g}'}, the pool has {value:g}"
            )
    return lines


def scrape(port: int) -> dict[Key, float]:
    """Fetch our own /metrics, as Prometheus would.

    Raises:
        OSError, HTTPException: It could not be had.
    """
    from prometheus_client.parser import text_string_to_metric_families

    from pooledhttp.conn import HTTPConnection

    conn = HTTPConnection(HOST, port, timeout=CALL_SECONDS)
    try:
        conn.request("GET", "/metrics")
        text = conn.getresponse().read().decode()
    finally:
        conn.close()
    return {
        _key(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextlib.contextmanager
def metrics_endpoint(port: int, address: str = HOST) -> Iterator[int]:
    """Serve the default registry, as a program of a user would; gives the port.

    Args:
        port: TCP port; 0: any free one.
        address: The local address; an empty one: all of them.

    Raises:
        ModuleNotFoundError: prometheus_client is not installed.
        OSError: The port cannot be had.
    """
    from prometheus_client import start_http_server

    server, thread = start_http_server(port, addr=address)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
