"""Leases that last too long: where they began, who looks for them, and what the log says.

Off unless a pool has `leak_after`.  Then each lease keeps the stack of its borrower, as (code, instruction) pairs: no
frame, and so no local variable, is kept alive.  One daemon thread for the whole process looks at a pool when its oldest
lease may be due, holds pools only weakly, and ends when there is nothing left to look at.  A borrower that forgets to
give back is most often followed by silence, so waiting for the pool's next call would be waiting for ever.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
import weakref
from bisect import insort
from types import CodeType

from . import forking
from .hints import Final, Protocol

Stack = tuple[tuple[CodeType, int], ...]  # the innermost frame first: its code, and the offset of its instruction

_DEEPEST: Final = 32  # frames
_OUR_FOLDER: Final = __file__.removesuffix("leaks.py")
# After how many seconds a pool is looked at again whose last look failed: a filter of the log may raise, say.
_AFTER_FAULT: Final = 1.0


def call_stack() -> Stack:
    """Return where the caller stands: about 50 ns a frame, since lines and texts are looked up when they are shown."""
    frame = sys._getframe(1)
    stack = []
    for _ in range(_DEEPEST):
        stack.append((frame.f_code, frame.f_lasti))
        if frame.f_back is None:
            break
        frame = frame.f_back
    return tuple(stack)


def render(stack: Stack) -> str:
    """Return a stack as text, the innermost frame last, as in a traceback; our own frames are left out."""
    import linecache  # here, for the few who forget a lease

    lines = []
    for code, offset in reversed(stack):
        if code.co_filename.startswith(_OUR_FOLDER):
            continue
        number = _line_of(code, offset)
        lines.append(f'    File "{code.co_filename}", line {number}, in {code.co_qualname}')
        if text := linecache.getline(code.co_filename, number).strip():
            lines.append(f"      {text}")
    return "\n".join(lines)


def _line_of(code: CodeType, offset: int) -> int:
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return line
    return code.co_firstlineno


class Watched(Protocol):
    """What can be looked at: a pool."""

    def report_leaks(self) -> float | None:
        """Log what is overdue; return in how many seconds to look again, or ``None``."""


class _Guard:
    """The watcher's lock, and what it waits with.

    It guards what is to be looked at, and the thread.  Never under it: a pool's lock, or the log.  It may be taken
    twice: while it is held the garbage collector may run, and with it somebody's ``__del__`` that closes another pool.
    It is not entered through the condition, whose `__enter__` a signal can interrupt when it has just taken the lock.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)


class Watcher:
    """The thread that looks at pools when their leases may be due; it lives while there is something to look at."""

    def __init__(self) -> None:
        self._guards: dict[str, _Guard] = {}
        self._due: list[tuple[float, int, weakref.ref[Watched]]] = []  # by time
        self._thread: threading.Thread | None = None
        self._numbers = itertools.count()

    @property
    def _guard(self) -> _Guard:
        # Made when it is first needed: `threading` may be patched (by gevent) behind the import of this room.
        return self._guards.get("") or self._guards.setdefault("", _Guard())

    @property
    def _changed(self) -> threading.Condition:
        return self._guard.changed

    def watch(self, pool: Watched, seconds: float) -> bool:
        """Look at a pool after so many seconds; return whether somebody will (no thread may be left to do so)."""
        look = (time.monotonic() + seconds, next(self._numbers), weakref.ref(pool))
        guard = self._guard
        with guard.lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="pooledhttp-leaks", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads, or the interpreter is about to end
                    return False
                self._thread = thread
            insort(self._due, look)
            guard.changed.notify()
        return True

    def forget(self, pool: Watched) -> None:
        """Look at a pool no more."""
        guard = self._guard
        with guard.lock:
            self._due = [look for look in self._due if look[2]() not in {None, pool}]
            guard.changed.notify()

    def renew_after_fork(self) -> None:
        """Begin anew in a child process, which has no other thread."""
        self._guards = {}
        self._due = []
        self._thread = None

    def _run(self) -> None:
        guard = self._guard
        while True:
            with guard.lock:
                if not self._due:
                    self._thread = None
                    return
                left = self._due[0][0] - time.monotonic()
                if left > 0:
                    guard.changed.wait(left)
                    continue
                pool = self._due.pop(0)[2]()
            seconds = None
            if pool is not None:
                try:
                    seconds = pool.report_leaks()
                except Exception:  # noqa: BLE001  # shown; the other pools are to be looked at all the same
                    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self._thread)))
                    seconds = _AFTER_FAULT
            if pool is not None and seconds is not None:
                self.watch(pool, max(seconds, 0.01))
            del pool


watcher = Watcher()
forking.register(watcher)
