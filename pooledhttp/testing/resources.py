"""The audit of what a test leaves behind: descriptors, threads, and the counters of a pool.

Its one job is to compare: what was open when the audit was made, with what is open when it is checked.  It closes
nothing, and it knows a pool only as something with ``stats()``.

Its rule: what is about to end is waited for, with a bound; what is left then is named, each socket with its addresses.
(The file is not called audit.py since ``pooledhttp.testing.audit`` is the fixture.  PYTEST_DONT_REWRITE: see the
package.)
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, Self


class SupportsStats(Protocol):
    """A pool, as far as the audit cares."""

    def stats(self) -> object:
        """Return an object with the int attributes idle, leased, opening, waiting and maxsize."""


class ResourceAudit:
    """What was open when it was made (descriptors, threads), and whether it is so again.

    As a context manager it checks at the end of the block, unless the block raised.
    """

    def __init__(self) -> None:
        """Remember the open descriptors and the live threads of this process."""
        self._descriptors = _open_descriptors()
        self._threads = set(threading.enumerate())
        self._pools: list[SupportsStats] = []

    def watch(self, pool: SupportsStats) -> None:
        """Have the counters of a pool looked at by each `check`, before anything else; it is not closed."""
        self._pools.append(pool)

    def check(self, timeout: float = 5.0) -> None:
        """Wait until no descriptor and no thread is left that was not there at the start.

        Args:
            timeout: The bound in seconds.

        Raises:
            AssertionError: Some were left (the text says which), or a watched pool failed `check_pool`.
        """
        for pool in self._pools:
            self.check_pool(pool)
        end = time.monotonic() + timeout
        pause = threading.Event()  # never set: Event.wait lets the other threads finish
        while surplus := self._surplus():
            if time.monotonic() > end:
                text = "\n  ".join([f"left over after {timeout:g} s:", *(describe() for describe in surplus)])
                raise AssertionError(text)
            gc.collect()
            pause.wait(0.01)

    def check_pool(self, pool: SupportsStats) -> None:
        """Check that a pool at rest adds up: nothing leased, opening or waited for, nothing lost.

        Args:
            pool: Its ``stats()`` has the ints idle, leased, opening, waiting and maxsize, and may have opened
                (an int) and closed (ints by reason).

        Raises:
            AssertionError: It does not add up; the text holds the numbers.
            TypeError: One of the numbers is missing.
        """
        stats = pool.stats()
        idle, leased, opening, waiting, maxsize = (
            _number(stats, name) for name in ("idle", "leased", "opening", "waiting", "maxsize")
        )
        text = f"{idle} idle, {leased} leased, {opening} opening, {waiting} waiting of {maxsize}"
        if idle + leased + opening > maxsize:
            raise AssertionError(f"more connections than maxsize: {text}")
        if leased or opening or waiting:
            raise AssertionError(f"the pool is not at rest: {text}")
        closed = getattr(stats, "closed", None)
        if isinstance(closed, Mapping) and hasattr(stats, "opened"):
            opened, ended = _number(stats, "opened"), sum(closed.values())
            if opened != ended + idle + leased:
                raise AssertionError(f"{opened} opened is not {ended} closed + {idle} idle + {leased} leased")

    def __enter__(self) -> Self:
        """Return the audit; it was taken when it was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Check, unless the block raised."""
        if error is None:
            self.check()

    def _surplus(self) -> list[Callable[[], str]]:
        """Return one describer per surplus thing: looking into a socket is for the failure only."""
        descriptors = sorted(_open_descriptors().items() - self._descriptors.items())
        threads = [thread for thread in threading.enumerate() if thread not in self._threads]
        return [
            *(functools.partial(_describe_descriptor, number, link) for number, link in descriptors),
            *(functools.partial("thread {!r}".format, thread) for thread in threads),
        ]


def _open_descriptors() -> dict[int, str]:
    """Return what each open descriptor is, by number; the one that the listing itself used is not there."""
    directory = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found = {}
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
            status = os.fstat(int(name))
            try:
                found[int(name)] = os.readlink(f"{directory}/{name}")
            except OSError:  # no links here (macOS)
                found[int(name)] = f"mode {status.st_mode:o}, inode {status.st_ino}"
    return found


def _describe_descriptor(number: int, link: str) -> str:
    text = f"descriptor {number}: {link}"
    with contextlib.suppress(OSError):  # it may close meanwhile, or be connected to nobody
        if stat.S_ISSOCK(os.fstat(number).st_mode):
            with socket.socket(fileno=os.dup(number)) as sock:  # what closes here is the copy
                text += f", {sock.family.name} {sock.getsockname()}"
                text += f" -> {sock.getpeername()}"
    return text


def _number(stats: object, name: str) -> int:
    value = getattr(stats, name, None)
    if not isinstance(value, int):
        raise TypeError(f"stats() of a watched pool needs an int {name!r}, has {value!r}")
    return value
