"""The names that the processes of one `PROMETHEUS_MULTIPROC_DIR` share, so that all of them together keep the limit.

Each process would else admit as many of its own, and a file that has a label once never loses it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import BinaryIO, Final

from pooledhttp.uncut import uncut

from .fleet import MOST_NAMES

try:
    import fcntl
except ImportError:  # a platform without file locks: each process has names of its own
    fcntl = None  # type: ignore[assignment]

# Lies beside prometheus_client's own files, which end in .db; whoever empties the folder before a start empties it too.
_FILE: Final = "pooledhttp_names.txt"
# How long to wait for the file's lock, which a process holds for a moment, and how often to look, in seconds.
_PATIENCE: Final = 1.0
_LOOK: Final = 0.005


class SharedNames:
    """The first names of all processes that write into one folder.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: str) -> None:
        self._path = Path(folder, _FILE)
        self._known: set[str] = set()
        self._patience = _PATIENCE

    def admit(self, name: str) -> bool:
        """Return whether a name is among the first so many; what was once admitted stays so."""
        if name not in self._known and len(self._known) < MOST_NAMES:
            try:
                # A child that is forked meanwhile would keep the lock for all its life.
                with uncut:
                    self._known |= self._add(name)
                self._patience = _PATIENCE
            except OSError:  # the folder is gone, or full: nothing else can be written there either
                self._known.add(name)
                self._patience = 0.0  # whoever keeps the lock, a process that was stopped perhaps, keeps it for longer
        return name in self._known

    def renew_after_fork(self) -> None:
        """Do nothing: there is no lock but that of the file, which a fork waits for."""

    def _add(self, name: str) -> set[str]:
        with os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b") as file:
            _lock(file, self._patience)
            try:
                content = file.read()
                known = [_decoded(line) for line in content.splitlines()]
                if name not in known and len(known) < MOST_NAMES:
                    # A line a name: a newline in one would make two of it.  On a full disk the last one may be cut off.
                    start = b"\n" if content and not content.endswith(b"\n") else b""
                    file.write(start + name.encode("unicode_escape") + b"\n")
                    file.flush()
                    known.append(name)
            finally:
                _unlock(file)
        return {each for each in known[:MOST_NAMES] if each is not None}


def _decoded(line: bytes) -> str | None:
    """Return the name of a line; ``None`` for one that somebody has damaged."""
    try:
        return line.decode("unicode_escape")
    except UnicodeDecodeError:
        return None


def _lock(file: BinaryIO, patience: float) -> None:
    """Lock a file among processes, and among the threads of this one.

    Args:
        file: The file, opened by the caller alone.
        patience: How long to wait at most, in seconds.

    Raises:
        OSError: Another one, stopped by a debugger perhaps, has held it for too long.
    """
    if fcntl is None:
        return
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(_LOOK)  # nothing tells when it is free but a wait without a bound
        else:
            return


def _unlock(file: BinaryIO) -> None:
    """Let go of it: to close the file is not enough where another process has inherited it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)
