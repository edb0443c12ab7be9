"""Several processes: carries each one's numbers into the files of `PROMETHEUS_MULTIPROC_DIR`.

prometheus_client asks no collector there; a scrape reads what the counters, gauges and histograms of all processes have
written into memory-mapped files.  So a thread of each process looks at its pools once a second and adds to the real
instruments what is new.  The pools themselves know nothing of it, and no request waits for a file.

What holds:

* A process is shown from its first attempt to open a connection on, or the first acquire that fails without one: a
  parent that only forks has no part in the gauges.
* Only a thread of our own looks.  What a user's thread may be in, or may be hit by, does no harm to a look then: a lock
  of prometheus_client's, a finalizer, the exception of a signal.  Whoever wants a look asks for it, and waits with a
  bound.  The one exception is the end of the interpreter, which starts no thread any more.  Where none can be had
  before, that is told, and tried again by whoever next opens a connection, fails to get one, or asks.
* No look goes on across a fork.  The parent's thread is stopped before and started again behind it, and a child begins
  with nothing counted: what it inherited is the parent's to show.
* What is lost with a process that is killed is what came since the last look: a second's worth.
* What goes wrong with the files costs the metrics, and no request.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pooledhttp import log
from pooledhttp.stats import Tally

from .fleet import Fleet, LabelNames
from .flusher import Flusher
from .instruments import Instruments

if TYPE_CHECKING:
    from pooledhttp.pool import ConnectionPool

# What flush() and the end of a process wait at most for a look, what a fork does for one that is under way, and what
# somebody who makes a pool does, in seconds.
_PATIENCE: Final = 5.0
_FORK_PATIENCE: Final = 1.0
_MAKER_PATIENCE: Final = 0.1
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


class _FolderIsFull(OSError):
    """What is there can be written to, and nothing new be made."""


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
        _check(folder)
        self._fleet = Fleet(names)
        self._folder = Path(folder).absolute()
        self._instruments: Instruments | None = None
        # In a child, prometheus_client's own lock may have been taken by a thread of the parent, for ever: no thread of
        # the user's goes near it there, and ours does when it has to.
        self._is_child = is_child
        self._begin()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork_in_parent, after_in_child=self._begin_anew
            )

    def _begin(self) -> None:
        # Held by a look, and by a fork.  Whoever hangs in a look, because a fork left one of prometheus_client's own
        # locks taken, costs the metrics, and a fork a second.  Reentrant, for a fork in the handler of a signal that
        # came during a fork.
        self._lock = threading.RLock()
        self._looking: int | None = None  # the thread that looks
        self._forks: dict[int, list[list[threading.RLock]]] = {}  # under way, by thread: what each has taken
        self._flusher: Flusher | None = None
        self._is_at_work = False  # has tried to open a connection, and has not come to its end
        self._ends_with: set[str] = set()  # the modules that call close() at the end of the process
        self._file: tuple[Path, int] | None = None  # one of our files, and its inode, once it has been written
        self._has_inherited = False  # the instruments have shown what the parent has counted
        self._has_failed = False  # the instruments may be of no use any more
        self._renew_at = 0.0  # by the monotonic clock
        self._renew_after = _FIRST_RENEWAL
        self._has_told: set[str] = set()  # of what kinds of trouble, since the last look that went well
        self._is_ending = False  # the process comes to its end, and may have no new thread any more
        self._unanswered_since: float | None = None  # when somebody asked for a look, and has waited for it in vain

    # --- what comes from the pools ------------------------------------------------------------------------

    def watch(self, pool: ConnectionPool, tally: Tally) -> Callable[[], None]:
        """Show a pool from now on; return what is to be called before it opens a connection, or has failed to get one.

        Every series of its label is there when this returns, at 0, so that `rate()` sees the first event; in a child,
        which adds to what its parent shows, from the first connection on.
        """
        label = self._fleet.watch(pool, tally)
        if not self._is_child and (self._instruments is None or not self._instruments.knows(label)):
            self.flush(_MAKER_PATIENCE)
        return self.be_at_work

    def be_at_work(self) -> None:
        """See to it that the pools of this process are looked at; called often, and cheap."""
        self._is_at_work = True  # the thread goes on for it, see _goes_on
        if self._flusher is None or not self._flusher.is_running:
            flusher = self._new_flusher()
            if not self._start(flusher):
                self._tell_of_no_thread()

    def _new_flusher(self) -> Flusher:
        # Two threads that come here at once may make two of them; the one that is not known then ends after one look.
        self._flusher = flusher = Flusher(self._look, self._goes_on)
        return flusher

    def _start(self, flusher: Flusher) -> bool:
        """Start a thread that looks; return whether there is one.

        There is none at the end of the interpreter, nor where the system allows this process no more of them.
        """
        try:
            flusher.start()
        except RuntimeError:
            return False
        self._is_ending = False
        self._close_with_process()
        return True

    def _tell_of_no_thread(self) -> None:
        if not self._is_ending:
            self._complain("thread", "no thread can be started; tried again with the next connection")

    def _goes_on(self, flusher: Flusher) -> bool:
        return self._is_at_work and self._flusher is flusher

    def _close_with_process(self) -> None:
        """Come to an end with a child of multiprocessing, or of celery's like of it, which run no atexit."""
        for name in ("multiprocessing.util", "billiard.util"):
            finalize = getattr(sys.modules.get(name), "Finalize", None)  # None too while another thread imports it
            if finalize is not None and name not in self._ends_with:
                self._ends_with.add(name)
                finalize(None, self.close, exitpriority=0)

    # --- a look -------------------------------------------------------------------------------------------

    def flush(self, seconds: float = _PATIENCE) -> bool:
        """Write down what is new since the last look; return whether that was done within so many seconds."""
        if self._looking == threading.get_ident():
            return False  # a look called somebody who called this: it cannot be waited for
        since = time.monotonic()
        until = since + seconds
        while (remaining := until - time.monotonic()) >= 0:
            flusher = self._flusher
            if flusher is not None and flusher.is_running:
                request = flusher.ask()
            else:
                flusher = self._new_flusher()
                request = flusher.ask()  # before it starts: if nothing is at work, it looks but once
                if not self._start(flusher):
                    self._tell_of_no_thread()
                    return self._is_ending and not self._is_child and self._look(remaining)
            went_well = request.wait(remaining)
            if went_well is not None:
                if self._unanswered_since is None and time.monotonic() >= until:
                    self._unanswered_since = since
                return went_well
            # It was ended meanwhile, by a fork or by close().
        return False

    def close(self) -> None:
        """Write down what is new, and take this process out of the gauges; a further connection brings it back.

        The end of a process may come here several times, and behind a `flush` of the user's: they have one patience
        together, else a lock that hangs would outlast that of whoever has told the process to end.
        """
        self._is_at_work = False
        if self._is_child and self._flusher is None and not self._fleet.has_counted():
            return  # nothing of it is shown
        self._is_ending = True
        waited = 0.0 if self._unanswered_since is None else time.monotonic() - self._unanswered_since
        if not self.flush(max(_PATIENCE - waited, 0.0)) and not self._has_told:
            self._complain("end", "the last look did not come to its end")

    def _look(self, seconds: float = _PATIENCE) -> bool:
        """Show everything; return whether it went well.  What goes wrong with files is not the pools' trouble."""
        lock = self._lock  # a fork in here leaves another one to the child
        if not lock.acquire(timeout=seconds):
            self._complain("slow", "a look at the pools does not come to its end")
            return False
        try:
            self._looking = threading.get_ident()
            self._show()
        except _FileIsGone as fault:
            self._complain("gone", f"{fault}; they come back with the next start of this process")
            return False
        except _FolderIsFull as fault:
            self._complain("full", f"{fault}; still trying")
            return False
        except Exception as fault:  # noqa: BLE001  # no descriptors, no memory: said once, tried again
            self._has_failed = True
            self._complain(type(fault).__name__, f"{type(fault).__name__}: {fault}; still trying")
            return False
        finally:
            self._looking = None
            lock.release()
        self._has_told = set()
        self._unanswered_since = None
        return True

    def _complain(self, kind: str, what: str) -> None:
        """Say once what is wrong, until all is well again; trouble of another kind is said again."""
        if kind not in self._has_told:
            self._has_told.add(kind)
            with contextlib.suppress(Exception):  # of the user's own filters: the thread goes on
                log.warning(f"the metrics of this process cannot be written to PROMETHEUS_MULTIPROC_DIR ({what})")

    def _show(self) -> None:
        if self._file is not None and _inode(self._file[0]) != self._file[1]:
            raise _FileIsGone(f"{self._file[0].name} was removed")
        totals = self._fleet.totals()
        instruments = self._renewed()
        fault: Exception | None = None
        for label in totals.by_label:
            if not instruments.knows(label):
                try:
                    self._want_room(_ROOM + _ROOM_FOR_LABEL)
                    instruments.introduce(label)
                except Exception as met:  # noqa: BLE001  # the others come first
                    fault = fault or met
        instruments.show(totals, has_gauges=self._is_at_work)
        if self._file is None:
            path = self._folder / f"counter_{os.getpid()}.db"
            inode = _inode(path)  # there is none of this name where prometheus_client was told to use another number
            self._file = None if inode is None else (path, inode)
        if fault is not None:
            raise fault

    def _renewed(self) -> Instruments:
        """Return the instruments, made anew where they are of no use any more.

        Raises:
            OSError: There are none to be had.
        """
        instruments = self._instruments
        must_renew = instruments is None or (self._has_failed and time.monotonic() >= self._renew_at)
        if instruments is not None and self._has_inherited:  # not in the fork: it takes some time, and few come here
            instruments.begin_anew()
        self._has_inherited = False
        if must_renew or self._file is None:  # the first look of a child makes new files
            self._want_room(_ROOM)
        if instruments is None or must_renew:
            self._renew_at = time.monotonic() + self._renew_after
            self._renew_after = min(2 * self._renew_after, _LAST_RENEWAL)
            # A value whose file could not be opened when it was to be, in a child, never tries again.
            self._instruments = instruments = Instruments(before=instruments)
            self._has_failed = False
        return instruments

    def _want_room(self, wanted: int) -> None:
        """Raise `_FolderIsFull` if the folder has less room than so many bytes."""
        if not hasattr(os, "statvfs"):  # Windows, where a full disk is an error like another
            return
        room = os.statvfs(self._folder)
        # A file system in memory without a limit says that it has no blocks at all.
        if room.f_blocks and room.f_bavail * (room.f_frsize or room.f_bsize) < wanted:
            raise _FolderIsFull(errno.ENOSPC, "less than a megabyte is free", str(self._folder))

    # --- forks --------------------------------------------------------------------------------------------
    #
    # Several threads may fork at the same time, each with its own calls of these three, and one thread may by itself:
    #
    #     fork: _before_fork takes the lock (once)
    #         a signal comes; its handler forks: _before_fork takes the lock again (twice, it is reentrant)
    #         the inner child: _begin_anew; the inner parent: _after_fork_in_parent gives back what it took (once)
    #     fork goes on: its child, its parent, which gives back the rest
    #
    # So what was taken is noted for each fork, the innermost last, by thread.  What an exception of a signal's handler
    # does here, the interpreter shows, and forks.

    def _before_fork(self) -> None:
        """Stop the thread: a child would inherit the locks that it holds, and Python warns of forks beside threads."""
        held: list[threading.RLock] = []
        self._forks.setdefault(threading.get_ident(), []).append(held)
        if self._flusher is not None:
            self._flusher.end(_FORK_PATIENCE)
        _take(self._lock, held)  # another thread may start one meanwhile, which waits here

    def _after_fork_in_parent(self) -> None:
        mine = self._forks.get(threading.get_ident(), [])
        held = mine.pop() if mine else []
        if not mine:
            self._forks.pop(threading.get_ident(), None)
        try:
            if self._is_at_work:
                self.be_at_work()
        finally:
            for lock in reversed(held):
                with contextlib.suppress(RuntimeError):  # see _take
                    lock.release()

    def _begin_anew(self) -> None:
        """Begin in a child process with nothing counted and nothing shown, and without a thread."""
        is_cut = self._looking is not None
        self._fleet.renew_after_fork()
        if is_cut:  # somebody of the parent was in the middle of a look, and may hold locks in there
            self._instruments = None
        self._is_child = True
        self._begin()
        self._has_inherited = True


def _take(lock: threading.RLock, held: list[threading.RLock]) -> None:
    """Take a lock for a fork, and note it."""
    # Before it is taken: the exception of a signal's handler may come as soon as it is.  One that is noted and was not
    # taken refuses to be released.
    held.append(lock)
    if not lock.acquire(timeout=_FORK_PATIENCE):
        held.remove(lock)


def _check(folder: str) -> None:
    """Raise an `OSError` if a folder is not there, or not to be written to."""
    if not stat.S_ISDIR(os.stat(folder).st_mode):  # noqa: PTH116  # a Path would do the same
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
