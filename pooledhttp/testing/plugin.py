"""The pytest fixtures ``scripted_server`` and ``audit``: the only room of `pooledhttp.testing` that knows pytest.

The package takes both up, and so ``pytest_plugins = ["pooledhttp.testing"]`` finds them; without pytest it goes
without this file.  Its rule: servers are closed, and their failures raised, before the audit looks at what is left.
(PYTEST_DONT_REWRITE: see the package.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from .resources import ResourceAudit
from .server import ServerFactory


@pytest.fixture
def audit() -> Iterator[ResourceAudit]:
    """Take an audit before the test and check it after; ``audit.watch(pool)`` includes a pool's counters."""
    taken = ResourceAudit()
    yield taken
    taken.check()


@pytest.fixture
def scripted_server(audit: ResourceAudit) -> Iterator[ServerFactory]:
    """Make servers that are closed and checked after the test, and before the audit (hence requested here)."""
    with contextlib.ExitStack() as stack:
        yield ServerFactory(stack)
