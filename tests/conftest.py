"""Brings the fixtures `scripted_server` and `audit` to every test, and sees to it that they do not take long together.

Tests collect garbage, some of them after each line that they try, and the audit does while it waits.  So what is there
before a file's first test, sixteen thousand tests among it, is kept out of that: 0.2 seconds become one millisecond.

A thread that is measured runs at half its speed (CPython 3.11), whoever's lines it runs.  So nothing is measured in the
process that hands out the tests and runs none, nor in tests that are marked `unmeasured`: those that go over the same
lines a thousand times, which other tests show to be covered, and those of other folders than the package.  The bound on
what has to be covered is the same, and is met without them.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator

import pytest

pytest_plugins = ["pooledhttp.testing"]

# The files that take longest, the longest first.  Processes that share the files out among them take these up first
# (`make unit`): whichever was begun last would keep one of them at work long after the other.  Those that look at a
# clock do not run beside the first, which keeps two processors busy by itself.
LONGEST = (
    "test_rules", "test_properties", "test_security", "test_interruptions", "test_live", "test_contention",
    "test_nginx", "test_uploads", "test_pool_machine", "test_bridge", "test_demo", "test_multiprocess",
    "test_dashboards", "test_transport", "test_gevent", "test_fork", "test_memory", "test_wire", "test_races",
    "test_bad_input", "test_benchmarks", "test_metrics", "test_fork_servers", "test_layers", "test_pool_faults",
)  # fmt: skip


class _Coverage:
    """What measures this process, if anything does, to be stopped and started."""

    # Tells a process of Python that it is to be measured (coverage's `patch = ["subprocess"]`).
    VARIABLE = "COVERAGE_PROCESS_CONFIG"

    def __init__(self) -> None:
        # Nobody who is not measured has to have it, or to load it.
        self._coverage = sys.modules["coverage"].Coverage.current() if "coverage" in sys.modules else None
        self._for_children = os.environ.get(self.VARIABLE)
        self._is_on = self._coverage is not None

    def switch(self, *, on: bool) -> None:
        """Measure this process and those that it starts, or do not."""
        if self._coverage is None or on is self._is_on:
            return
        self._is_on = on
        if on:
            self._coverage.start()
        else:
            self._coverage.stop()
        if self._for_children is not None:
            os.environ.pop(self.VARIABLE, None)  # `start` sets it
            if on:
                os.environ[self.VARIABLE] = self._for_children


_coverage = _Coverage()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    if session.config.pluginmanager.has_plugin("dsession"):  # of pytest-xdist: its processes run the tests
        _coverage.switch(on=False)
    _set_aside_what_is_there()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    _coverage.switch(on=item.get_closest_marker("unmeasured") is None)
    result = yield
    if nextitem is not None and nextitem.path != item.path:
        _set_aside_what_is_there()
    return result


def _set_aside_what_is_there() -> None:
    gc.collect()
    gc.freeze()
