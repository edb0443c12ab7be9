"""Steps that a fork must not cut in two: a fork waits for those of other threads, and they let it go first.

Its rule: no fork and no thread waits here without a bound, which is a second.  It is the one room that is imported with
the package itself, whose first use imports the others in such a step; so it needs next to nothing.
"""

from __future__ import annotations

import os
import time
from _thread import get_ident, get_native_id  # `threading` has them from there, and is dear to import

# How long a fork and the steps of other threads wait for each other, in seconds, and how often they look.  A step takes
# a millisecond, or as long as a busy machine makes of it.
_PATIENCE = 1.0
_LOOK = 0.0002
# How many threads that were about to end are remembered before those that have are looked for.
_MOST_ENDING = 16


class _Uncut:
    """Marks a step that a fork in another thread must not cut in two; it may be nested.

    One is the birth of a socket: the kernel has made it, and no object knows its number yet.  The other is what OpenSSL
    does in a handshake, with locks of the context and of the library: a child that inherits one of them locked would
    hang in its own first handshake, where no timeout and no signal gets it out.  Threads of our own have a third, their
    end: see `forking.end_thread`.  And an import: a child that inherits a half imported module waits for ever for the
    thread that was importing it.
    """

    def __init__(self) -> None:
        # Both by thread.  A thread writes only its own entries, each in one step, so there is no lock to inherit.
        self._depths: dict[int, int] = {}
        self._forks: dict[int, float] = {}  # until when they are let go first, by the monotonic clock
        self._ending: dict[int, None] = {}  # the kernel's numbers of threads that are about to end

    def __enter__(self) -> None:
        thread = get_ident()
        depth = self._depths.get(thread, 0)
        # The mark comes before the look for forks, and they do it the other way round: one of the two sees the other.
        self._depths[thread] = depth + 1
        if self._forks and not depth:
            end = time.monotonic() + _PATIENCE
            while time.monotonic() < min(end, max(list(self._forks.values()), default=0.0)):
                self._depths.pop(thread, None)
                time.sleep(_LOOK)  # to be woken would take a lock, which a child could inherit; so too below
                self._depths[thread] = 1

    def __exit__(self, *_: object) -> None:
        thread = get_ident()
        depth = self._depths.pop(thread, 1) - 1
        if depth > 0:
            self._depths[thread] = depth

    def end_thread(self) -> None:
        """Have a fork wait for the end of this thread, which is about to come."""
        with self:
            if len(self._ending) >= _MOST_ENDING:
                for thread in list(self._ending):
                    if not _is_thread(thread):
                        self._ending.pop(thread, None)
            self._ending[get_native_id()] = None

    def before_fork(self) -> None:
        """Wait until no other thread is inside, or at its end; whoever has been there for too long is forgotten."""
        me = get_ident()  # the handler of a signal may fork inside
        self._forks[me] = until = time.monotonic() + _PATIENCE
        while others := [thread for thread in list(self._depths) if thread != me]:
            if time.monotonic() >= until:
                for thread in others:  # most likely an exception came between the block and its mark
                    self._depths.pop(thread, None)
                break
            time.sleep(_LOOK)
        self._ending.pop(get_native_id(), None)  # of a greenlet, which ends without its thread
        for thread in list(self._ending):
            while _is_thread(thread) and time.monotonic() < until:
                time.sleep(_LOOK)
            self._ending.pop(thread, None)

    def after_fork(self) -> None:
        """Let the others go on; runs in the parent."""
        self._forks.pop(get_ident(), None)

    def renew_after_fork(self) -> None:
        """Forget the threads that exist only in the parent."""
        self._depths.clear()
        self._forks.clear()
        self._ending.clear()


def _is_thread(number: int) -> bool:
    """Tell whether the kernel has a thread of this process by this number; where there is no /proc, it is not said."""
    return os.path.exists(f"/proc/self/task/{number}")  # noqa: PTH110  # pathlib is dear to import


uncut = _Uncut()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=uncut.before_fork, after_in_parent=uncut.after_fork, after_in_child=uncut.renew_after_fork
    )
