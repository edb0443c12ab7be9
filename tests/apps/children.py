"""Forked processes that report, and what a process has open.

A child reports through a pipe and leaves by ``os._exit``.  One that hangs is asked for the stacks of its threads,
killed, and its work fails with them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import select
import signal
import socket
import stat
import traceback
from collections.abc import Callable
from pathlib import Path

BOUND = 10.0


class Child:
    """A forked process that does some work and reports what came of it."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(work, writer)
        os.close(writer)

    def _live(self, work: Callable[[], object], writer: int) -> None:
        try:
            # Its handler is in C, so that it speaks for a thread that hangs in C too.
            faulthandler.register(signal.SIGUSR1, file=writer, all_threads=True)
            try:
                report = pickle.dumps((True, work()))
            except BaseException:  # noqa: BLE001  # the parent fails with it
                report = pickle.dumps((False, traceback.format_exc()))
            # Other children may hold the pipe too, so its end tells nothing, but its length does.
            os.write(writer, len(report).to_bytes(4, "big") + report)
        finally:
            os._exit(0)

    def result(self) -> object:
        """Return what the work returned, or fail with its traceback."""
        try:
            size = int.from_bytes(self._read(4), "big")
            succeeded, outcome = pickle.loads(self._read(size))
        except BaseException:
            os.kill(self.pid, signal.SIGKILL)
            raise
        finally:
            os.waitpid(self.pid, 0)
            os.close(self._reader)
        assert succeeded, f"in the child:\n{outcome}"
        return outcome

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not self._has_more(BOUND):
                os.kill(self.pid, signal.SIGUSR1)
                stacks = b""
                while self._has_more(1.0) and (piece := os.read(self._reader, 65536)):
                    stacks += piece
                raise AssertionError(f"the child hangs:\n{stacks.decode(errors='replace')}")
            piece = os.read(self._reader, size - len(data))
            assert piece, "the child ended without a word"
            data += piece
        return data

    def _has_more(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        return bool(poll.poll(seconds * 1e3))


def in_child(work: Callable[[], object]) -> object:
    """Return what some work returns in a child."""
    return Child(work).result()


def descriptors() -> dict[int, os.stat_result]:
    """Return what this process has open, by number."""
    found = {}
    for entry in Path("/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            found[int(entry.name)] = os.fstat(int(entry.name))
    return found


def connections_to(address: tuple[str, int]) -> list[int]:
    """Return the inodes of this process's sockets that are connected to an address."""
    found = []
    for descriptor, status in descriptors().items():
        if stat.S_ISSOCK(status.st_mode):
            with socket.socket(fileno=os.dup(descriptor)) as copy, contextlib.suppress(OSError):
                if copy.getpeername() == address:
                    found.append(status.st_ino)
    return sorted(found)
