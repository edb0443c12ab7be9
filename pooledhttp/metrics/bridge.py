"""Several processes: carries each one's numbers into the files of `PROMETHEUS_MULTIPROC_DIR`.

prometheus_client asks no collector there; a scrape reads what the counters, gauges and histograms of all processes have
written into memory-mapped files.  So a thread of each process looks at its pools once a second and adds to the real
instruments what is new.  The pools themselves know nothing of it, and no request waits for a file.

What holds:

* A process is shown from its first attempt to open a connection on: a parent that only forks has no part in the gauges.
* No thread is alive across a fork.  The parent's is stopped before and started again behind it, and a child begins with
  nothing counted: what it inherited is the parent's to show.
* What is lost with a process that is killed is what came since the last look: a second's worth.
* What goes wrong with the files costs the metrics, and nobody waits for it without a bound.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pooledhttp import log
from pooledhttp.stats import Tally

from .families import OVERFLOW_LABEL
from .fleet import Fleet, LabelNames
from .flusher import Flusher
from .instruments import Instruments

if TYPE_CHECKING:
    from pooledhttp.pool import ConnectionPool

# What flush() and the end of a process wait at most for a look that is under way, what a fork does, and what a caller
# who opens a connection does, in seconds.
_PATIENCE: Final = 5.0
_FORK_PATIENCE: Final = 1.0
_CALLER_PATIENCE: Final = 0.1
# What must be free in the folder before something new is written there, in bytes, and what a label needs of it.  The
# files have holes: a process that writes into one while the file system is full is killed by SIGBUS.
_ROOM: Final = 1 << 20
_ROOM_FOR_LABEL: Final = 1 << 16
# How long a process whose files have failed goes on with what it has before it makes everything anew, at first and at
# most, in seconds: prometheus_client forgets nothing that was ever made.
_FIRST_RENEWAL: Final = 1.0
_LAST_RENEWAL: Final = 300.0


class _FileIsGone(OSError):
    """What is written is read by nobody any more."""


class Bridge:
    """Shows the pools of this process in the files that a scrape reads; there is one a process.

    Args:
        names: Decides which names become label values.
        folder: Where the files are.
        is_child: Whether this process was forked when there was no bridge yet, see `_is_child`.

    Raises:
        OSError: The folder is not there, or not to be written to.
    """

    def __init__(self, names: LabelNames, folder: str, *, is_child: bool) -> None:
        self._fleet = Fleet(names)
        self._folder = folder
        self._instruments: Instruments | None = None
        # In a child, prometheus_client's own lock may have been taken by a thread of the parent, for ever: there, only
        # the flusher goes near it.
        self._is_child = is_child
        self._begin()
        if not is_child:
            try:
                self._ready()
            except OSError as fault:
                if fault.errno != errno.ENOSPC:
                    raise
                self._complain(f"{fault}; still trying")
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork_in_parent, after_in_child=self._begin_anew
            )

    def _begin(self) -> None:
        # Guards the instruments and what they were told: one look at a time.  A thread that hangs in it, because a
        # fork left one of prometheus_client's own locks taken, is nobody's but the metrics' loss: all others wait with
        # a bound.  Reentrant, since the garbage collector may run anybody's code under it.
        self._lock = threading.RLock()
        # Guards the thread: that there is one, and none across a fork.
        self._thread_lock = threading.RLock()
        self._flusher: Flusher | None = None
        self._is_at_work = False  # has tried to open a connection, and has not come to its end
        self._forks: dict[int, list[threading.RLock]] = {}  # under way: what the thread that forks has taken
        self._file: tuple[Path, int] | None = None  # one of our files, and its inode, once it has been written
        self._has_failed = False  # the instruments may be of no use any more
        self._renew_at = 0.0  # by the monotonic clock
        self._renew_after = _FIRST_RENEWAL
        self._has_complained = False

    # --- what comes from the pools ------------------------------------------------------------------------

    def watch(self, pool: ConnectionPool, tally: Tally) -> Callable[[], None]:
        """Show a pool from now on; return what is to be called before it opens a connection."""
        label = self._fleet.watch(pool, tally)
        if not self._is_child:
            self._guarded(lambda: self._introduce(label))
        return self.be_at_work

    def be_at_work(self) -> None:
        """See to it that the pools of this process are looked at; called often, and cheap."""
        if self._flusher is None or not self._flusher.is_alive:
            self._is_at_work = True  # whoever has the lock, a fork perhaps, looks at this when he lets it go
            if self._thread_lock.acquire(timeout=_CALLER_PATIENCE):
                try:
                    self._start()
                finally:
                    self._thread_lock.release()

    def _start(self) -> Flusher | None:
        """Return the thread that looks, and start it if need be; the lock of threads is the caller's."""
        if self._flusher is None or not self._flusher.is_alive:
            self._flusher = None
            # At the end of the interpreter there are no new threads; close() will look once more.
            with contextlib.suppress(RuntimeError):
                self._flusher = Flusher(self._look)
                self._close_with_process()
        return self._flusher

    def _close_with_process(self) -> None:
        """Come to an end with a child of multiprocessing, or of celery's like of it, which run no atexit."""
        for name in ("multiprocessing.util", "billiard.util"):
            util = sys.modules.get(name)
            if util is not None:
                util.Finalize(None, self.close, exitpriority=0)

    # --- a look -------------------------------------------------------------------------------------------

    def flush(self, seconds: float = _PATIENCE) -> bool:
        """Write down what is new since the last look; return whether that was done within so many seconds."""
        until = time.monotonic() + seconds
        while (flusher := self._flusher) is not None and flusher.is_alive:
            went_well = flusher.look_now(until - time.monotonic())
            if went_well is not None:
                return went_well
            # It was ended meanwhile, by a fork or by close().
        if not self._is_child:
            return self._guarded(self._show, max(until - time.monotonic(), 0.0))
        if not self._thread_lock.acquire(timeout=max(until - time.monotonic(), 0.0)):
            return False
        try:
            flusher = self._start()
        finally:
            self._thread_lock.release()
        return flusher is not None and flusher.look_now(until - time.monotonic()) is True

    def close(self) -> None:
        """Write down what is new, and take this process out of the gauges; a further connection brings it back."""
        has_lock = self._thread_lock.acquire(timeout=_PATIENCE)
        self._is_at_work = False
        flusher, self._flusher = self._flusher, None
        if has_lock:
            self._thread_lock.release()
        if flusher is not None:
            flusher.end(_PATIENCE)
        elif not self._is_child:
            self._guarded(self._show)

    def _look(self) -> bool:
        return self._guarded(self._show)

    def _guarded(self, write: Callable[[], None], seconds: float = _PATIENCE) -> bool:
        """Write under the lock; return whether it went well.  What goes wrong with files is not the pools' trouble."""
        if not self._lock.acquire(timeout=seconds):
            return False
        try:
            write()
        except _FileIsGone as fault:
            self._complain(f"{fault}; they come back with the next start of this process")
            return False
        except Exception as fault:  # noqa: BLE001  # a full disk, no descriptors: said once, tried again
            self._has_failed = True
            self._complain(f"{type(fault).__name__}: {fault}; still trying")
            return False
        finally:
            self._lock.release()
        return True

    def _complain(self, what: str) -> None:
        if not self._has_complained:
            self._has_complained = True
            log.warning(f"the metrics of this process cannot be written to PROMETHEUS_MULTIPROC_DIR ({what})")

    def _introduce(self, label: str) -> None:
        """Let every series of a label exist, at 0."""
        instruments = self._ready([label])
        if label == OVERFLOW_LABEL:
            instruments.show_folded(self._fleet.folded)

    def _show(self) -> None:
        if self._file is not None and _inode(self._file[0]) != self._file[1]:
            raise _FileIsGone(f"{self._file[0].name} was removed")
        totals = self._fleet.totals()
        self._ready(totals.by_label).show(totals, has_gauges=self._is_at_work)
        if self._file is None:
            path = Path(self._folder, f"counter_{os.getpid()}.db")
            inode = _inode(path)  # there is none of this name where prometheus_client was told to use another number
            self._file = None if inode is None else (path, inode)

    def _ready(self, labels: Collection[str] = ()) -> Instruments:
        """Return instruments with these labels.

        Raises:
            OSError: There are none to be had.
        """
        instruments = self._instruments
        must_renew = instruments is None or (self._has_failed and time.monotonic() >= self._renew_at)
        unknown = labels if instruments is None or must_renew else instruments.unknown(labels)
        if must_renew or unknown or self._file is None:  # the first look of a child makes new files
            self._want_room(len(unknown))
        if instruments is None or must_renew:
            self._renew_at = time.monotonic() + self._renew_after
            self._renew_after = min(2 * self._renew_after, _LAST_RENEWAL)
            # A value whose file could not be opened when it was to be, in a child, never tries again.
            self._instruments = instruments = Instruments(before=instruments)
            self._has_failed = False
        for label in unknown:
            instruments.introduce(label)
        return instruments

    def _want_room(self, labels: int) -> None:
        """Raise an `OSError` if the folder is too full for so many labels more."""
        room = os.statvfs(self._folder)
        if room.f_bavail * room.f_frsize < _ROOM + labels * _ROOM_FOR_LABEL:
            raise OSError(errno.ENOSPC, "less than a megabyte is free", self._folder)

    # --- forks --------------------------------------------------------------------------------------------
    #
    # Several threads may fork at the same time, each with its own calls of these three; what an exception of a signal's
    # handler does here, the interpreter shows, and forks.

    def _before_fork(self) -> None:
        """Stop the thread: a child would inherit the locks that it holds, and Python warns of forks beside threads."""
        held = self._forks[threading.get_ident()] = []
        _take(self._thread_lock, held)
        flusher, self._flusher = self._flusher, None
        if flusher is not None:
            flusher.end(_FORK_PATIENCE)
        _take(self._lock, held)  # somebody may be making a pool, or flushing without the thread

    def _after_fork_in_parent(self) -> None:
        held = self._forks.pop(threading.get_ident(), [])
        try:
            if self._is_at_work:
                self.be_at_work()
        finally:
            for lock in reversed(held):
                with contextlib.suppress(RuntimeError):  # see _take
                    lock.release()

    def _begin_anew(self) -> None:
        """Begin in a child process with nothing counted and nothing shown, and without a thread."""
        is_cut = self._lock not in self._forks.get(threading.get_ident(), ())
        self._fleet.renew_after_fork()
        if is_cut:  # somebody of the parent was in the middle of a look, and holds locks in there
            self._instruments = None
        elif self._instruments is not None:
            self._instruments.begin_anew()
        self._is_child = True
        self._begin()


def _take(lock: threading.RLock, held: list[threading.RLock]) -> None:
    """Take a lock for a fork, and note it."""
    # Before it is taken: the exception of a signal's handler may come as soon as it is.  One that is noted and was not
    # taken refuses to be released.
    held.append(lock)
    if not lock.acquire(timeout=_FORK_PATIENCE):
        held.remove(lock)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
