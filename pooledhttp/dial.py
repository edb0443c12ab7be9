"""From an origin to a connected socket: resolve, staggered connect, bind, Unix socket, TLS.

One `ConnectDeadline` bounds all of it together, over every address; `socket.create_connection` gives its timeout
to each address anew and does not bound resolving at all.  Several addresses are tried in the manner of Happy
Eyeballs (RFC 8305): the next one starts a quarter of a second after the one before it, or at once when that one
failed, and the first to connect wins.  Every socket that is not returned is closed, whatever is raised; one that is
opened for a pool is known to `forking` as long as it lives.
"""

from __future__ import annotations

import codecs
import errno
import math
import os
import select
import selectors
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Sequence

from . import forking
from .errors import SourcePortsExhausted
from .frozen import Frozen
from .hints import Any, Final
from .origin import SourceAddress
from .timeouts import ConnectDeadline, is_wake_up
from .uncut import uncut

# RFC 8305 section 8: the recommended Connection Attempt Delay, in seconds.
_ATTEMPT_DELAY: Final = 0.25
# epoll counts milliseconds in a C int, which ends at 24.8 days; an hour later the loop just goes round again.
_LONGEST_SELECT: Final = 3600.0
# poll() counts milliseconds in one too, and here a wait is one call: 23 days.
_LONGEST_POLL: Final = 2e6
# Resolvers that hang hold a thread each; beyond this many a further call waits for one of them instead of adding one.
_MAX_RESOLVERS: Final = 32
_NO_PORT_LEFT: Final = frozenset({errno.EADDRNOTAVAIL, errno.EADDRINUSE})
_IN_PROGRESS: Final = frozenset(
    {0, errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS)}
)

SocketOption = tuple[int, int, int] | tuple[int, int, bytes]
_Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]


class Dialer(Frozen):
    """How to reach one origin (or the proxy in front of it).

    Attributes:
        host: Name or IP literal to connect to.
        port: TCP port.
        source_addresses: Local (host, port) pairs to bind, tried in turn; port 0 is any.  Empty: the kernel chooses.
        socket_options: Further ``setsockopt`` arguments, set before connecting.
        uds: Path of a Unix socket to connect to instead, or ``None``.
        is_shut_by_fork: Whether a child process closes its copies of the sockets; else they are its user's business.
    """

    host: str
    port: int
    source_addresses: tuple[SourceAddress, ...] = ()
    socket_options: tuple[SocketOption, ...] = ()
    uds: str | None = None
    is_shut_by_fork: bool = True

    def dial(self, deadline: ConnectDeadline) -> socket.socket:
        """Return a connected socket, without TCP delay and without a timeout.

        Raises:
            ConnectTimeout: It took too long (`TotalTimeout`: the call's total is used up).
            socket.gaierror: The name does not resolve.
            SourcePortsExhausted: No source address has a port left.
            OSError: Every address refused; the last one's error.
        """
        if self.uds is not None:
            return self._dial_unix(self.uds, deadline)
        addresses = resolve(self.host, self.port, deadline)
        sources: tuple[SourceAddress | None, ...] = self.source_addresses or (None,)
        exhausted: OSError
        for source in sources:
            try:
                return self._race(addresses, source, deadline)
            except OSError as fault:
                if fault.errno not in _NO_PORT_LEFT:
                    raise
                exhausted = fault
        if isinstance(exhausted, _NotLocal):
            raise exhausted
        tried = ", ".join(source[0] if source else "this machine" for source in sources)
        raise SourcePortsExhausted(
            exhausted.errno,
            f"no source port is left on {tried} for {self.host}:{self.port} ({os.strerror(exhausted.errno or 0)}); "
            f"reuse connections (a larger maxsize, a longer idle_timeout), widen net.ipv4.ip_local_port_range, or "
            f"give further source addresses",
        ) from exhausted

    def _dial_unix(self, path: str, deadline: ConnectDeadline) -> socket.socket:
        sock = self._new_socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)
        try:
            sock.settimeout(None)  # socket.setdefaulttimeout() may have been called
            left = deadline.begin("connecting")
            if left is not None:
                # With a timeout of Python's, which makes it non-blocking, Linux would not wait for a full backlog.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(left), _micros(left)))
            sock.connect(path)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 0))
        except BlockingIOError:
            sock.close()
            raise deadline.exceeded() from None
        except BaseException:
            sock.close()
            raise
        return sock

    def _race(
        self, addresses: Sequence[_Address], source: SourceAddress | None, deadline: ConnectDeadline
    ) -> socket.socket:
        if len(addresses) == 1:
            return self._connect_one(addresses[0], source, deadline)
        return _Race(self, addresses, source, deadline).run()

    def _connect_one(self, address: _Address, source: SourceAddress | None, deadline: ConnectDeadline) -> socket.socket:
        sock = self._prepare(address, source)
        try:
            sock.settimeout(deadline.begin("connecting"))
            sock.connect(address[4])
            sock.settimeout(None)
        except TimeoutError as fault:
            sock.close()
            if not is_wake_up(fault):
                raise  # the kernel's own limit, or a signal's handler
            raise deadline.exceeded() from None
        except BaseException:
            sock.close()
            raise
        return sock

    def _prepare(self, address: _Address, source: SourceAddress | None) -> socket.socket:
        """Return an unconnected socket with its options set, bound if a source address fits."""
        family, kind, protocol, _, _ = address
        sock = self._new_socket(family, kind, protocol)
        try:
            # A request leaves in one send; waiting to fill a segment (RFC 896) would only delay it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for level, option, value in self.socket_options:
                sock.setsockopt(level, option, value)
            if source is not None:
                if source[1] == 0 and hasattr(socket, "IP_BIND_ADDRESS_NO_PORT"):
                    # The port is chosen at connect, where it need only be free for this peer, not for all.
                    sock.setsockopt(socket.SOL_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind(source)
        except BaseException as fault:
            sock.close()
            if isinstance(fault, OSError) and fault.errno == errno.EADDRNOTAVAIL and source is not None:
                raise _NotLocal(fault.errno, f"source address {source[0]} is not an address of this machine") from None
            raise
        return sock

    def _new_socket(self, family: socket.AddressFamily, kind: socket.SocketKind, protocol: int) -> socket.socket:
        if not self.is_shut_by_fork:
            return socket.socket(family, kind, protocol)
        with uncut:
            sock = socket.socket(family, kind, protocol)
            forking.note_socket(sock)
        return sock


def _micros(seconds: float) -> int:
    return max(int(seconds % 1 * 1e6), 1)  # a timer of zero would mean "for ever"


class _NotLocal(OSError):
    """The source address belongs to another machine: the next one may not, but no port is short."""


class _Race:
    """Attempts to several addresses, staggered; the first to connect wins and the others are closed."""

    def __init__(
        self, dialer: Dialer, addresses: Sequence[_Address], source: SourceAddress | None, deadline: ConnectDeadline
    ) -> None:
        self._dialer = dialer
        self._waiting = list(_interleave(addresses))
        self._source = source
        self._deadline = deadline
        self._fault: OSError | None = None

    def _failed(self, fault: OSError) -> None:
        # "Cannot assign address" is what a family that is switched off says, and gaierror what a source address of
        # the other family does; any other failure tells more.
        if self._fault is None or self._fault.errno in _NO_PORT_LEFT or isinstance(self._fault, socket.gaierror):
            self._fault = fault

    def run(self) -> socket.socket:
        """Return the socket that connected first, or raise the most telling failure."""
        with selectors.DefaultSelector() as selector:
            winner: socket.socket | None = None
            try:
                winner = self._first(selector)
            finally:
                for key in list(selector.get_map().values()):
                    if key.fileobj is not winner:
                        key.fileobj.close()  # type: ignore[union-attr]  # only sockets are registered
        winner.settimeout(None)
        return winner

    def _first(self, selector: selectors.BaseSelector) -> socket.socket:
        while True:
            if self._waiting and (winner := self._start(selector, self._waiting.pop(0))):
                return winner
            if not selector.get_map():
                if self._waiting:
                    continue
                assert self._fault is not None  # every attempt ended, so at least one failed
                raise self._fault
            left = self._deadline.begin("connecting")
            pause = _ATTEMPT_DELAY if self._waiting else _LONGEST_SELECT
            for key, _ in selector.select(pause if left is None else min(pause, left)):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not error:
                    return sock
                selector.unregister(sock)
                sock.close()
                self._failed(OSError(error, os.strerror(error)))

    def _start(self, selector: selectors.BaseSelector, address: _Address) -> socket.socket | None:
        try:
            sock = self._dialer._prepare(address, self._source)
        except OSError as fault:
            self._failed(fault)
            return None
        try:
            sock.setblocking(False)
            error = sock.connect_ex(address[4])
            if error in _IN_PROGRESS:
                selector.register(sock, selectors.EVENT_WRITE)
                return sock if error == 0 else None
        except OSError as fault:
            self._failed(fault)
            sock.close()
            return None
        except BaseException:
            sock.close()
            raise
        sock.close()
        self._failed(OSError(error, os.strerror(error)))
        return None


def _interleave(addresses: Sequence[_Address]) -> list[_Address]:
    """Alternate the families, beginning with the resolver's favourite (RFC 8305 section 4)."""
    favourite = addresses[0][0]
    first = [address for address in addresses if address[0] == favourite]
    other = [address for address in addresses if address[0] != favourite]
    mixed = []
    while first or other:
        mixed += first[:1] + other[:1]
        first, other = first[1:], other[1:]
    return mixed


class _Resolvers(threading.BoundedSemaphore):
    """The places for threads that resolve; all are free in a child process, which has none of these threads."""

    def __init__(self) -> None:
        super().__init__(_MAX_RESOLVERS)
        forking.register(self)

    def renew_after_fork(self) -> None:
        """Begin anew in a child process."""
        super().__init__(_MAX_RESOLVERS)


_resolvers: threading.BoundedSemaphore = _Resolvers()


def resolve(host: str, port: int, deadline: ConnectDeadline) -> Sequence[_Address]:
    """Resolve a name within the deadline; an IP literal is never looked up.

    ``getaddrinfo`` cannot be interrupted.  Where a deadline bounds it, it runs in a short-lived daemon thread that
    is left behind when time is up; without a deadline it runs here.

    Raises:
        socket.gaierror: The name does not resolve.
        ConnectTimeout: Resolving took too long.
    """
    left = deadline.begin("resolving")
    if left is None or _is_literal(host):
        return _look_up(host, port)
    if not _resolvers.acquire(timeout=left):
        raise deadline.exceeded()
    answer: list[Sequence[_Address] | BaseException] = []
    done = threading.Lock()
    done.acquire()

    def look_up() -> None:
        try:
            answer.append(_look_up(host, port))
        except BaseException as fault:  # noqa: BLE001  # raised again where it belongs
            answer.append(fault)
        finally:
            _resolvers.release()
            done.release()

    try:
        left = deadline.begin("resolving") or left  # waiting for a resolver has used some of it
        resolver = threading.Thread(target=look_up, name=f"pooledhttp-resolve-{host}", daemon=True)
        resolver.start()
    except BaseException:
        _resolvers.release()
        raise
    if not done.acquire(timeout=left):
        raise deadline.exceeded()
    resolver.join()
    outcome = answer.pop()
    if isinstance(outcome, BaseException):
        try:
            raise outcome
        finally:
            del outcome  # the frame in the traceback would hold it, and it the frame
    return outcome


def _look_up(host: str, port: int) -> Sequence[_Address]:
    if "encodings.idna" not in sys.modules:
        # getaddrinfo would import it, and a child that is forked meanwhile would wait for ever for that to be over.
        with uncut:
            codecs.lookup("idna")
    found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    if not found:
        raise OSError("getaddrinfo returned no address")
    return found


def _is_literal(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except (OSError, ValueError):
            continue
        return True
    return False


def create_connection(
    address: tuple[str, int],
    timeout: float | object | None = None,
    source_address: SourceAddress | None = None,
) -> socket.socket:
    """Return a connected socket: `socket.create_connection`, but with one timeout over all addresses.

    Args:
        address: Host and port.
        timeout: Seconds for connecting, and then the socket's timeout; ``None`` is unbounded.
        source_address: Local (host, port) to bind, or ``None``.

    Raises:
        OSError: See `Dialer.dial`.
    """
    host, port = address
    seconds = timeout if isinstance(timeout, (int, float)) else None
    if timeout is GLOBAL_DEFAULT_TIMEOUT:
        seconds = socket.getdefaulttimeout()
    sources = () if source_address is None else (source_address,)
    deadline = ConnectDeadline(seconds, what=f"{host}:{port}")
    sock = Dialer(host=host, port=port, source_addresses=sources, is_shut_by_fork=False).dial(deadline)
    sock.settimeout(seconds)
    return sock


# The default of every documented `timeout`: "whatever socket.setdefaulttimeout() said".  urllib.request passes
# this very object, so it has to be this one.
GLOBAL_DEFAULT_TIMEOUT: Final[object] = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]  # see above


def default_tls_context() -> ssl.SSLContext:
    """Return a client context that verifies certificate and host name, and speaks http/1.1 (RFC 7301)."""
    with uncut:
        context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    context.post_handshake_auth = True  # a server may ask for a client's certificate later (RFC 8446 section 4.6.2)
    # Python still falls back on it where a certificate names nobody; RFC 9110 section 4.3.4 says never.
    context.hostname_checks_common_name = False
    return context


def start_tls(
    sock: socket.socket, context: ssl.SSLContext, *, server_hostname: str | None, deadline: ConnectDeadline
) -> ssl.SSLSocket:
    """Wrap a connected socket in TLS and shake hands within the deadline; on failure the socket is closed.

    Raises:
        ConnectTimeout: The handshake took too long.
        ssl.SSLError: It failed; `ssl.SSLCertVerificationError` when the certificate is not the host's.
        OSError: The socket's own errors.
    """
    secured: socket.socket = sock
    try:
        previous = sock.gettimeout()
        deadline.begin("the TLS handshake")
        with uncut:
            secured = tls = context.wrap_socket(
                sock, server_hostname=server_hostname, suppress_ragged_eofs=False, do_handshake_on_connect=False
            )
            if forking.is_noted(sock):
                forking.note_socket(tls)
        tls.settimeout(0)
        _shake_hands(tls, previous, deadline)
        tls.settimeout(previous)
    except BaseException as fault:
        secured.close()
        _close_half_made(fault)
        if isinstance(fault, OSError) and fault.errno == errno.ENOTCONN:
            # The reset has been told of already, and asking again says only that nobody is there.
            raise ConnectionResetError(
                errno.ECONNRESET, "the peer reset the connection before the handshake"
            ) from fault
        raise
    return tls


def _close_half_made(fault: BaseException) -> None:
    """Close the socket that `ssl` was making when it failed.

    Up to 3.12 `SSLSocket._create` takes the descriptor out of the plain socket and, if the peer has reset the
    connection by then, raises without closing what it has put it into.  Only the traceback still knows that socket.
    """
    trace = fault.__traceback__
    if trace is not None:
        trace = trace.tb_next  # our caller's frame knows both; a look at its names would have it hold the fault
    while trace is not None:
        made = trace.tb_frame.f_locals.get("self")
        if isinstance(made, ssl.SSLSocket):
            made.close()
        trace = trace.tb_next


def _shake_hands(sock: ssl.SSLSocket, timeout: float | None, deadline: ConnectDeadline) -> None:
    """Shake hands on a non-blocking socket, and wait outside OpenSSL: see `forking` for why.

    Args:
        sock: The socket.
        timeout: The longest wait for the peer, in seconds; ``None`` is unbounded.
        deadline: When it must be over.

    Raises:
        ConnectTimeout: The peer was silent for too long.
    """
    while True:
        try:
            with uncut:
                sock.do_handshake()
            return
        except ssl.SSLWantReadError:
            is_read = True
        except ssl.SSLWantWriteError:
            is_read = False
        left = deadline.begin("the TLS handshake")
        if left is None or (timeout is not None and timeout < left):
            left = timeout
        if not _is_ready(sock, left, is_read=is_read):
            raise deadline.exceeded()


def _is_ready(sock: socket.socket, seconds: float | None, *, is_read: bool) -> bool:
    """Wait until a socket can be read from, or written to; return whether it can, within the seconds."""
    if not hasattr(select, "poll"):
        readers, writers = ([sock], []) if is_read else ([], [sock])
        return any(select.select(readers, writers, writers, seconds))
    poll = select.poll()
    poll.register(sock, select.POLLIN if is_read else select.POLLOUT)
    # Rounded up, or the last millisecond would be spent in going round.
    return bool(poll.poll(None if seconds is None else math.ceil(min(seconds, _LONGEST_POLL) * 1e3)))
