"""What a child process does with what it has inherited: close its copies of our sockets, then begin anew.

`os.fork` copies the descriptors and the memory, but only the thread that called it.  A child that went on using an
inherited connection would mix its bytes with the parent's, and one that ended it properly (close_notify, ``shutdown``)
would end it for the parent too; locks may be held by threads that exist only in the parent.

So every socket that is opened for a pool is noted here from its first moment on, and so is every object that has to
begin anew (pools, managers, ...).  In a child the sockets go first: each gives up its descriptor, which is closed and
nothing else, so the peer does not see a thing.  Then each object is asked to `renew_after_fork`.

Its rule: no fork and no thread waits here without a bound.  The short steps that a fork must not cut in two are marked
by `uncut`; it waits for those of other threads, and they let it go first, for a second at most.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
import weakref
from threading import get_ident, get_native_id
from types import TracebackType

from .hints import Final, Protocol

# How long a fork and the steps of other threads wait for each other, in seconds, and how often they look.  A step takes
# a millisecond, or as long as a busy machine makes of it.
_PATIENCE: Final = 1.0
_LOOK: Final = 0.0002
# How many threads that were about to end are remembered before those that have are looked for.
_MOST_ENDING: Final = 16


class Renewable(Protocol):
    """What has locks or numbers that are not a child's."""

    def renew_after_fork(self) -> None:
        """Begin anew; runs in the child, in its only thread, when the inherited sockets are closed."""


# Weak: to be noted keeps nobody alive.  A fork finds both whole, since each change is one step of the interpreter.
# A socket's number and inode stand with it, since it drops the number before the kernel has closed it.
_sockets: weakref.WeakKeyDictionary[socket.socket, tuple[int, int]] = weakref.WeakKeyDictionary()
_renewables: weakref.WeakSet[Renewable] = weakref.WeakSet()
# The TLS states of inherited sockets, never freed: SSL_free takes locks that nobody may be left to release.
_orphans: list[object] = []


# Made when the first socket speaks TLS; for `_prepare_openssl`.
_tls_context: ssl.SSLContext | None = None


def register(renewable: Renewable) -> None:
    """Have an object begin anew in each child process; it is held weakly."""
    _renewables.add(renewable)


def note_socket(sock: socket.socket) -> None:
    """Have a socket's copy closed in each child process; it is held weakly."""
    global _tls_context  # noqa: PLW0603  # most programs need none
    if _tls_context is None and isinstance(sock, ssl.SSLSocket):
        _tls_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    descriptor = sock.fileno()
    _sockets[sock] = descriptor, os.fstat(descriptor).st_ino


def is_noted(sock: socket.socket) -> bool:
    """Tell whether a socket's copy will be closed in a child process."""
    return sock in _sockets


class _Uncut:
    """Marks a step that a fork in another thread must not cut in two; it may be nested.

    One is the birth of a socket: the kernel has made it, and no object knows its number yet.  The other is what OpenSSL
    does in a handshake, with locks of the context and of the library: a child that inherits one of them locked would
    hang in its own first handshake, where no timeout and no signal gets it out.  Threads of our own have a third, their
    end: see `end_thread`.
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
                time.sleep(_LOOK)
                self._depths[thread] = 1

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        thread = get_ident()
        depth = self._depths.pop(thread, 1) - 1
        if depth > 0:
            self._depths[thread] = depth

    def end_thread(self) -> None:
        """Do the last step of a thread that has used OpenSSL.

        What follows is none of Python's: OpenSSL frees what it keeps for the thread, under a lock that every other
        thread takes when it comes to OpenSSL for the first time.  So a fork waits until the kernel has no such thread.
        """
        if _tls_context is None:
            return
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


uncut: Final = _Uncut()


def _prepare_openssl() -> None:
    """Have OpenSSL make what it keeps for each thread, for this one, before it is the only thread of a child.

    It does so when a thread calls it first, under a lock that is also taken by each thread that ends.
    """
    if _tls_context is not None:
        try:
            _tls_context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost").do_handshake()
        except ssl.SSLError:  # it wants to read what nobody sends
            pass


def _before_fork() -> None:
    _prepare_openssl()
    uncut.before_fork()


def _close_copy(sock: socket.socket, descriptor: int, inode: int) -> None:
    """Close a child's copy of a socket, and nothing else: the connection is the parent's."""
    if isinstance(sock, ssl.SSLSocket):
        # Without its TLS state, the object tells its users that it is closed.  OpenSSL would go on reading from the
        # bare number, which may be another file's by then.
        _orphans.append(sock._sslobj)  # type: ignore[attr-defined]  # there is no public way to it
        sock._sslobj = None  # type: ignore[attr-defined]  # as above
    sock.detach()
    try:
        is_open = os.fstat(descriptor).st_ino == inode
    except OSError:
        return
    if is_open:
        os.close(descriptor)


def _begin_anew() -> None:
    faults: list[BaseException] = []
    uncut.renew_after_fork()
    for sock, (descriptor, inode) in list(_sockets.items()):
        try:
            _close_copy(sock, descriptor, inode)
        except BaseException as fault:  # noqa: BLE001  # the others come first
            faults.append(fault)
    _sockets.clear()
    for renewable in list(_renewables):
        try:
            renewable.renew_after_fork()
        except BaseException as fault:  # noqa: BLE001  # as above
            faults.append(fault)
    if faults:
        # The interpreter shows what an at-fork handler raises, and goes on.
        raise BaseExceptionGroup("not everything that was inherited could be left behind", faults)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=uncut.after_fork, after_in_child=_begin_anew)
