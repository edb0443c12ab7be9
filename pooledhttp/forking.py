"""What a child process does with what it has inherited: close its copies of our sockets, then begin anew.

`os.fork` copies the descriptors and the memory, but only the thread that called it.  A child that went on using an
inherited connection would mix its bytes with the parent's, and one that ended it properly (close_notify, ``shutdown``)
would end it for the parent too; locks may be held by threads that exist only in the parent.

So every socket that is opened for a pool is noted here from its first moment on, and so is every object that has to
begin anew (pools, managers, ...).  In a child the sockets go first: each gives up its descriptor, which is closed and
nothing else, so the peer does not see a thing.  Then each object is asked to `renew_after_fork`.

The short steps that a fork must not cut in two are marked by `uncut`, in a room of its own.
"""

from __future__ import annotations

import os
import socket
import ssl
import weakref

from .hints import Protocol
from .uncut import uncut


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


def end_thread() -> None:
    """Do the last step of a thread of our own that may have used OpenSSL.

    What follows is none of Python's: OpenSSL frees what it keeps for the thread, under a lock that every other thread
    takes when it comes to OpenSSL for the first time.  So a fork waits until the kernel has no such thread.
    """
    if _tls_context is not None:
        uncut.end_thread()


def _prepare_openssl() -> None:
    """Have OpenSSL make what it keeps for each thread, for this one, before it is the only thread of a child.

    It does so when a thread calls it first, under a lock that is also taken by each thread that ends.
    """
    if _tls_context is not None:
        try:
            _tls_context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost").do_handshake()
        except ssl.SSLError:  # it wants to read what nobody sends
            pass


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
    # Before a fork this comes ahead of `uncut`, which was here first; in a child, behind it.
    os.register_at_fork(before=_prepare_openssl, after_in_child=_begin_anew)
