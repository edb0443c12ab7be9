"""Brings the fixtures `scripted_server` and `audit` to every test, and sees to it that they do not take long together.

Tests collect garbage, some of them after each line that they try, and the audit does while it waits.  So what is there
before a file's first test, sixteen thousand tests among it, is kept out of that: 0.2 seconds become one millisecond.
"""

from __future__ import annotations

import gc
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    _set_aside_what_is_there()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    result = yield
    if nextitem is not None and nextitem.path != item.path:
        _set_aside_what_is_there()
    return result


def _set_aside_what_is_there() -> None:
    gc.collect()
    gc.freeze()
