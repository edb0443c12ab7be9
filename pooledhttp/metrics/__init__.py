"""Prometheus: shows the pools of a process in a registry, or those of many processes in their common files.

Nothing in the path of a request comes here.  A pool is made known once, by `watch`.  In one process a collector asks
the pools when the registry is scraped.  Where ``PROMETHEUS_MULTIPROC_DIR`` is set, prometheus_client reads files
instead, and a bridge keeps those of this process up to date; call `flush` where a worker ends, so that its last second
is not lost.

From below: `families` (what is shown), `fleet` (which pools there are), and for one process `collector`.  For several:
`names` (what they agree on), `instruments` (what is in the files), `flusher` (the thread), `bridge`, and `everybody`
(what is scraped).  These are all of pooledhttp that knows prometheus_client.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from prometheus_client import REGISTRY, CollectorRegistry, values

from pooledhttp import log
from pooledhttp.uncut import uncut

from .collector import PoolCollector

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from pooledhttp.pool import ConnectionPool
    from pooledhttp.stats import Tally

    from .bridge import Bridge
    from .everybody import Elsewhere

__all__ = ["Registry", "collector_of", "flush", "multiprocess_registry", "watch"]


class Registry(Protocol):
    """What is needed of a `prometheus_client.CollectorRegistry`; it must be hashable and weakly referable too."""

    def register(self, collector: Collector) -> None:
        """Add a collector."""


def watch(
    pool: ConnectionPool, tally: Tally, *, registry: Registry | Literal["default"] | None
) -> Callable[[], None] | None:
    """Show a pool's numbers in a registry from now on; its counters stay there when the pool is gone.

    Args:
        pool: The pool, held weakly.
        tally: Its counters, which outlive it here.
        registry: Where; ``"default"`` is prometheus_client's global one, ``None`` nowhere.

    Returns:
        What the pool has to call before it opens a connection, and when it could not lend one, or ``None``.

    Raises:
        ValueError: Another collector has our metrics' names in this registry.
        OSError: ``PROMETHEUS_MULTIPROC_DIR`` cannot be written to.
    """
    if registry is None:
        return None
    collector = _registered_collector(REGISTRY if isinstance(registry, str) else registry)
    if isinstance(collector, PoolCollector):
        collector.watch(pool, tally)
        return None
    return _the_bridge().watch(pool, tally)


def flush(seconds: float = 5.0) -> bool:
    """Write what the pools of this process have counted since the last second into the files of all processes.

    For the end of a worker that runs no `atexit`, or is about to be killed: gunicorn's ``worker_exit``, celery's
    ``worker_process_shutdown``.  Does nothing in a single process, whose numbers are read when they are asked for.
    Not for a handler of signals: it takes locks.

    Args:
        seconds: How long to wait at most.

    Returns:
        Whether all is written.
    """
    bridge = _bridge
    return bridge is None or bridge.flush(seconds)


def multiprocess_registry(folder: str | None = None) -> CollectorRegistry:
    """Return a registry that shows all processes of a folder, for whoever serves /metrics.

    It is a registry with prometheus_client's `MultiProcessCollector`, and at each scrape it first takes away the gauges
    of processes that do not exist any more.  So it belongs on the machine, and into the container, of those processes.

    Args:
        folder: Where their files are; ``None``: ``PROMETHEUS_MULTIPROC_DIR``.

    Raises:
        KeyError: Neither is given.
        ValueError: There is no such folder.
    """
    from .everybody import multiprocess_registry

    return multiprocess_registry(folder)


def collector_of(registry: Registry | Literal["default"]) -> PoolCollector | Elsewhere | None:
    """Return the collector that shows pools in a registry, for instance to unregister it; ``None`` before the first."""
    with _lock:
        return _collectors.get(REGISTRY if isinstance(registry, str) else registry)


# --- one collector a registry, one bridge a process -------------------------------------------------------------------

# Guards what follows, and that a collector is registered once.  Reentrant, because the garbage collector may run
# anybody's code under it: some that makes a pool, say.
_lock = threading.RLock()
# Weak, for registries come and go in tests; a collector does not know its registry, and so does not keep it alive.
_collectors: weakref.WeakKeyDictionary[Registry, PoolCollector | Elsewhere] = weakref.WeakKeyDictionary()
_bridge: Bridge | None = None
_is_child = False  # has been forked since this was imported


def _registered_collector(registry: Registry) -> PoolCollector | Elsewhere:
    with _lock:
        collector = _collectors.get(registry)
        if collector is None or not _is_registered(registry, collector):
            collector = collector or _new_collector(registry)
            registry.register(collector)
            _collectors[registry] = collector
        return collector


def _new_collector(registry: Registry) -> PoolCollector | Elsewhere:
    if not _is_multiprocess():
        return PoolCollector()
    from .everybody import Elsewhere

    return Elsewhere(registry)


def _is_multiprocess() -> bool:
    """Tell whether the numbers belong into the files of many processes."""
    # prometheus_client decides this once, when it is imported; what the environment says now may be another matter.
    if _bridge is not None or not getattr(values.ValueClass, "_multiprocess", False):
        return _bridge is not None
    if not _folder():
        log.warning(
            "PROMETHEUS_MULTIPROC_DIR is empty, or was removed from the environment: the pools of this process are "
            "shown by itself; prometheus_client's own metrics are not of much use so: name a folder, or unset it"
        )
        return False
    return True


def _folder() -> str:
    """Return the folder of many processes; ``""``, as a template without its value leaves it, is none."""
    environment = os.environ
    return environment.get("PROMETHEUS_MULTIPROC_DIR") or environment.get("prometheus_multiproc_dir") or ""


def _the_bridge() -> Bridge:
    global _bridge  # noqa: PLW0603  # the files are the process's, and so is the bridge
    with _lock:
        if _bridge is None:
            with uncut:
                from .bridge import Bridge
                from .names import SharedNames

            folder = _folder()
            _bridge = Bridge(SharedNames(folder), folder, is_child=_is_child)
        return _bridge


def _is_registered(registry: Registry, collector: Collector) -> bool:
    # Somebody may have unregistered it, and there is no public way to ask; a registry of another make is trusted.
    collectors = getattr(registry, "_collector_to_names", None)
    return collectors is None or collector in collectors


def _begin_anew() -> None:
    # A thread that exists only in the parent may hold the lock.
    global _lock, _is_child  # noqa: PLW0603  # a lock cannot be freed for its lost owner, only replaced
    _lock = threading.RLock()
    _is_child = True
    for collector in list(_collectors.values()):
        if isinstance(collector, PoolCollector):
            collector.renew_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
