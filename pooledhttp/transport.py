"""One connected socket, its receive buffer and its time limits: every byte of an exchange passes here.

The buffer belongs to the connection, not to a response, so bytes that arrive behind a response are seen and
never lost.  It is an immutable ``bytes`` object and an offset into it: an idle connection holds none.

Time limits cost nothing while nothing is late.  On a plain blocking socket the kernel is asked to wake us at
intervals (``SO_RCVTIMEO``, ``SO_SNDTIMEO``), which is set once per connection instead of one more ``poll``
system call, and one more hand-over of the GIL, in front of every receive and send.  The wake-up decides
nothing: it makes us look at the clock, and the clock decides.  In the main thread each signal would restart the
kernel's timer, so there a plain socket is polled before it receives, and sends without waiting while there is room.
TLS, greenlet sockets and platforms without these options use ``settimeout`` under the same rule.

`FileTransport` serves sockets of other people that have only ``sendall``, ``makefile`` and ``close``; it
never reads a byte beyond what is asked for.
"""

from __future__ import annotations

import errno
import io
import math
import os
import select
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable
from threading import get_ident

from .errors import InvalidResponse, LineTooLong, ReadTimeout, RemoteDisconnected, WriteTimeout
from .hints import Final, Protocol, TypeVar, cast
from .stats import CloseReason
from .timeouts import Clock, Deadline, is_wake_up, monotonic
from .uncut import uncut
from .wire import Limits, check_unfinished_head, head_end

# What one receive asks for while a head or a short body is expected; a whole small response fits.
RECEIVE_BYTES: Final = 16384
# What one receive asks for inside a long body.
BODY_RECEIVE_BYTES: Final = 262144

# What one TLS record holds at most (RFC 8446 section 5.1).
_RECORD_BYTES: Final = 16384

# How often a wait on a plain socket looks at the clock, in seconds.  PEP 475 restarts a receive, and with it the
# kernel's timer, after every signal: a limit longer than the interval between two signals would never fire if it
# were given to the kernel whole.
_HEARTBEAT: Final = 1.0
# A timer may end this much after its deadline before it is set anew, which costs a system call.
_SLACK: Final = 0.02
# As what a wake-up may come: the kernel's timer gives EAGAIN, settimeout() gives TimeoutError.
_WAKE_UPS: Final = (BlockingIOError, TimeoutError)

# time_t and suseconds_t are both a C long where these options exist (Linux and the BSDs, 64 bit).
_HAS_KERNEL_TIMERS: Final = sys.platform in {"linux", "darwin"} and struct.calcsize("@l") == 8


class _MainThread:
    """The main thread's identity, noted so that asking for it costs nothing, and anew after a fork."""

    def __init__(self) -> None:
        self.note()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.note)

    def note(self) -> None:
        self.thread = threading.main_thread()
        self.ident = self.thread.ident


main_thread = _MainThread()
_READABLE: Final = getattr(select, "POLLIN", 1)
_WRITABLE: Final = getattr(select, "POLLOUT", 4)
# poll() takes a C int.
_LONGEST_POLL: Final = 2**31 - 1
_DONT_WAIT: Final = getattr(socket, "MSG_DONTWAIT", 0)
# What one send takes at most where nobody waits for it: more than a socket's buffer has room for, as a rule.
_SEND_BYTES: Final = 1 << 20

_Received = TypeVar("_Received", bytes, int)


class ForeignSocket(Protocol):
    """What a socket needs at least to carry an exchange."""

    def sendall(self, data: bytes, /) -> object:
        """Send everything."""

    def makefile(self, mode: str, /) -> ReadableFile:
        """Return a file to read the response from."""

    def close(self) -> object:
        """Close the socket."""


class ReadableFile(Protocol):
    """The file that a `ForeignSocket` makes."""

    def read(self, size: int, /) -> bytes:
        """Read at most size bytes; none at the end."""

    def readline(self, size: int, /) -> bytes:
        """Read one line of at most size bytes."""

    def close(self) -> object:
        """Close the file."""


class Transport:
    """A connected socket of the standard library, with its receive buffer and limits.

    Args:
        sock: The socket; it is closed by `close`.
        clock: Seconds on a monotonic clock.

    Attributes:
        sock: The socket.
        buffer: What has been received and not been taken yet, from `at` on.
        at: Offset of the first byte in `buffer` that is not taken.
        any_sent: Whether a byte was written since the flag was cleared.
        any_received: Whether a byte arrived since the flag was cleared.
        bears_cut_head: Whether a head without its blank line will do: the peer has stopped reading the request, and
            whatever it said before is better than nothing.
        is_truncated: TLS ended without close_notify: the end may be an attacker's.
        uses_kernel_timers: Whether the kernel's timers end a bounded wait; else ``poll`` or ``settimeout`` does.
    """

    __slots__ = ("_armed_read", "_armed_write", "_clock", "_deadline", "_has_two_limits", "_held", "_is_bounded",
                 "_is_tls", "_must_look", "_poll", "_polls", "_read_limit", "_read_milliseconds",
                 "_recv", "_send", "_waits", "_what", "_write_limit",
                 "any_received", "any_sent", "at", "bears_cut_head", "buffer", "is_truncated", "sock",
                 "uses_kernel_timers")  # fmt: skip

    def __init__(self, sock: socket.socket, *, clock: Clock = monotonic) -> None:
        self.sock = sock
        self.buffer = b""
        self.at = 0
        self.any_sent = False
        self.any_received = False
        self.is_truncated = False
        self.bears_cut_head = False
        self._recv: Callable[[int], bytes] = sock.recv
        self._send: Callable[[bytes], int] = sock.send
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        if self._is_tls:
            # It sends all or, when time is up, does not tell how much: so a record at a time.
            self._send = lambda data: sock.send(
                data if len(data) <= _RECORD_BYTES else memoryview(data)[:_RECORD_BYTES]
            )
        self._poll: Callable[[float | None], list[tuple[int, int]]] | None = None
        self._waits: dict[bool, Callable[[float | None], list[tuple[int, int]]]] = {}
        self._held: io.RawIOBase | None = None
        self._clock = clock
        self._is_bounded = False
        # Before each wait, look at the clock: there is a deadline, or settimeout() serves two different limits.
        self._must_look = False
        self._has_two_limits = False  # for settimeout(), which serves both directions by one
        self.uses_kernel_timers = False
        self._polls = False  # waits are by poll(), and the socket itself is never waited on
        self._read_milliseconds: float | None = None  # the read limit, as poll() takes it
        self._read_limit: float | None = None
        self._write_limit: float | None = None
        self._deadline: Deadline | None = None
        self._armed_read = math.inf
        self._armed_write = math.inf
        self._what = "the peer"

    # --- limits -------------------------------------------------------------------------------------

    def bound(self, *, read: float | None, write: float | None, deadline: Deadline | None, what: str) -> None:
        """Set the limits for what follows; without a call the socket's own timeout is the only one.

        Args:
            read: The longest silence while receiving, in seconds; ``None`` is unbounded.
            write: The longest time without the peer taking a byte, in seconds; ``None`` is unbounded.
            deadline: When everything must be over, or ``None``.
            what: The peer's name, for the errors' text.
        """
        if self._polls and read == self._read_limit and write == self._write_limit and self.sock.gettimeout() is None:
            self.renew_deadline(deadline)  # the usual case: poll() is told of each limit when it waits
            return
        if not self._is_bounded:
            self._is_bounded = True
            self._what = what
            self.uses_kernel_timers = _can_use_kernel_timers(self.sock)
            self._polls = not self.uses_kernel_timers and _can_poll(self.sock)
            self.sock.settimeout(None)
        elif self.uses_kernel_timers and get_ident() == main_thread.ident:
            # Signals are handled in the main thread, and each one restarts a kernel's timer (PEP 475).
            self._arm_read(math.inf)
            self._arm_write(math.inf)
            self.sock.settimeout(None)  # a borrower may have changed it, too
            self.uses_kernel_timers = False
            self._polls = True
            self._read_limit = self._write_limit = self._read_milliseconds = None
        elif self.has_own_timeout():
            self.sock.settimeout(None)  # a borrower changed it
            self._armed_read = self._armed_write = math.inf
            self._read_limit = self._write_limit = self._read_milliseconds = None
        self._deadline = deadline
        is_free = self.uses_kernel_timers or self._polls
        # settimeout() serves both directions: where their limits are the same, it need not be called each time.
        self._has_two_limits = not (is_free or read == write)
        self._must_look = deadline is not None or self._has_two_limits
        if read != self._read_limit:
            self._read_limit = read
            self._read_milliseconds = None if read is None else _in_milliseconds(read)
            self._arm_read(math.inf if read is None else read)
        if write != self._write_limit:
            self._write_limit = write
            self._arm_write(math.inf if write is None else write)

    def renew_deadline(self, deadline: Deadline | None) -> None:
        """Set another deadline beside the limits that `bound` has set, on a socket that nobody has touched since."""
        self._deadline = deadline
        self._must_look = deadline is not None or self._has_two_limits

    def has_own_timeout(self) -> bool:
        """Tell whether the socket's timeout is somebody else's: the documented one, or one that a borrower set."""
        if not self._is_bounded:
            return True
        timeout = self.sock.gettimeout()
        if self.uses_kernel_timers or self._polls:
            return timeout is not None
        return timeout != (None if self._armed_read == math.inf else self._armed_read)

    @property
    def is_as_bound(self) -> bool:
        """Whether the socket is open, and its timeout what `bound` has made it."""
        sock = self.sock
        if sock.fileno() < 0:
            return False
        if self.uses_kernel_timers or self._polls:
            return sock.gettimeout() is None
        return not self.has_own_timeout()

    @property
    def limits(self) -> tuple[float | None, float | None, Deadline | None]:
        """The limits in force: read, write, deadline."""
        return self._read_limit, self._write_limit, self._deadline

    def release_bounds(self) -> None:
        """Take back what `bound` has set: the socket waits for ever again."""
        if self._is_bounded:
            self._deadline = None
            self._read_limit = self._write_limit = self._read_milliseconds = None
            self._arm_read(math.inf)
            self._arm_write(math.inf)
            self._is_bounded = self._must_look = self._has_two_limits = self._polls = False

    def hurry(self, deadline: Deadline) -> tuple[bool, float | None, float | None, Deadline | None]:
        """Bound what follows by a deadline as well; return what `restore` needs."""
        read, write, previous = self._read_limit, self._write_limit, self._deadline
        was_bounded = self._is_bounded
        if not was_bounded:
            read = write = self.sock.gettimeout()
        self.bound(read=read, write=write, deadline=deadline, what=self._what)
        return was_bounded, read, write, previous

    def restore(self, previous: tuple[bool, float | None, float | None, Deadline | None]) -> None:
        """Go back to the limits before `hurry`."""
        was_bounded, read, write, deadline = previous
        if was_bounded:
            self.bound(read=read, write=write, deadline=deadline, what=self._what)
        else:
            self.release_bounds()
            self.sock.settimeout(read)

    def _arm_read(self, seconds: float) -> None:
        self._armed_read = self._arm(socket.SO_RCVTIMEO, seconds)

    def _arm_write(self, seconds: float) -> None:
        self._armed_write = self._arm(socket.SO_SNDTIMEO, seconds)

    def _arm(self, option: int, seconds: float) -> float:
        """Let waits wake up after this long at the latest; return after how long they will."""
        if self._polls:
            return math.inf  # poll() is told each time
        if not self.uses_kernel_timers:
            # One timeout for both directions: each call arms its own before it waits.
            seconds = max(seconds, 0.001)
            self.sock.settimeout(None if seconds == math.inf else seconds)
            seconds = self.sock.gettimeout() or math.inf  # in whole nanoseconds: what `has_own_timeout` will see
            self._armed_read = self._armed_write = seconds
            return seconds
        if seconds == math.inf:
            self.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", 0, 0))
            return seconds
        seconds = max(min(seconds, _HEARTBEAT), 0.001)  # zero would mean "for ever" to the kernel
        whole = int(seconds)
        self.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, int((seconds - whole) * 1e6)))
        return seconds

    def _left(self, limit: float | None, since: float, fired: type[ReadTimeout | WriteTimeout]) -> float:
        """Return how long a wait may still last, in seconds; raise when it may not."""
        now = self._clock()
        left = math.inf
        deadline = self._deadline
        if deadline is not None:
            left = deadline.at - now
            if left <= 0:
                raise deadline.exceeded()
        if limit is not None:
            until_limit = since + limit - now
            if until_limit <= 0.0005:  # the timers' resolution: not worth another wait
                did = "sent nothing" if fired is ReadTimeout else "took no byte of the request"
                raise fired(f"{self._what} {did} for {limit:.2f} s")
            left = min(left, until_limit)
        return left

    # --- sending ------------------------------------------------------------------------------------

    def send(self, data: bytes | memoryview) -> None:
        """Send everything.

        Args:
            data: Bytes-like, of one dimension and item size 1.

        Raises:
            WriteTimeout: The peer took no byte for the write limit.
            TotalTimeout: The deadline is over.
            OSError: The socket's own errors; `any_sent` tells whether a byte was written before.
        """
        if self._must_look:  # also at the first: nothing is sent when the call's time is over
            deadline = self._deadline
            if not self._polls:
                self._before_wait(self._write_limit, is_read=False)
            elif deadline is not None and deadline.at <= self._clock():
                raise deadline.exceeded()
        sent = 0
        try:
            # The type: socket.send takes any buffer.
            sent = self.sock.send(data, _DONT_WAIT) if self._polls else self._send(data)  # type: ignore[arg-type]
        except OSError as fault:
            self._go_on_sending(fault)
        if sent:
            self.any_sent = True
        if sent != len(data):
            self._send_rest(memoryview(data)[sent:])

    def _send_rest(self, rest: memoryview) -> None:
        since = self._clock() - (0.0 if self.any_sent or self._armed_write == math.inf else self._armed_write)
        while rest:
            if self._polls:
                self.wait_to_send(or_receive=False, since=since)
            elif self._is_bounded:
                self._arm_write(self._left(self._write_limit, since, WriteTimeout))
            try:
                sent = self.sock.send(rest, _DONT_WAIT) if self._polls else self._send(rest)  # type: ignore[arg-type]
            except OSError as fault:
                self._go_on_sending(fault)
                continue
            if sent:
                self.any_sent = True
                since = self._clock()
                rest = rest[sent:]

    def _go_on_sending(self, fault: OSError) -> None:
        """Raise an error of a send again, unless it only means that it is time to look at the clock."""
        if not is_wake_up(fault):
            if fault.errno is None:
                self.any_sent = True  # no system call says so, and nobody knows what the last one has sent
            raise fault
        if self.has_own_timeout():
            raise fault

    # --- sending and listening ----------------------------------------------------------------------

    @property
    def can_listen(self) -> bool:
        """Whether the socket can be asked for what has arrived without waiting for more."""
        sock = self.sock
        if not isinstance(sock, socket.socket):
            return False
        # Not one that does something to the bytes, or counts them, on their way.
        return self._is_tls or (type(sock).send is socket.socket.send and type(sock).sendall is socket.socket.sendall)

    @property
    def is_tls(self) -> bool:
        """Whether the socket encrypts."""
        return self._is_tls

    @property
    def can_send_files(self) -> bool:
        """Whether nothing stands between a file and the wire, so that the kernel can send it."""
        return hasattr(os, "sendfile") and not self._is_tls and self.can_listen

    def set_blocking(self, *, is_blocking: bool) -> bool:
        """Have the descriptor block or not, whatever the socket believes; return whether it did."""
        descriptor = self.sock.fileno()
        if descriptor < 0:
            return is_blocking  # closed meanwhile
        was_blocking = os.get_blocking(descriptor)
        if was_blocking != is_blocking:
            os.set_blocking(descriptor, is_blocking)
        return was_blocking

    def wait_to_send(self, *, or_receive: bool, since: float | None) -> bool:
        """Wait until there is much room to send (poll() calls a socket full from two thirds on).

        Args:
            or_receive: Whether to listen; without it only room to send ends the wait.
            since: When the peer took the last byte, on the monotonic clock; ``None``: look, and do not wait.

        Returns:
            Whether something can be received.

        Raises:
            WriteTimeout: The peer took no byte for the write limit.
            TotalTimeout: The deadline is over.
        """
        if or_receive and isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
            return True
        deadline = self._deadline
        if deadline is not None and deadline.remaining() <= 0:
            raise deadline.exceeded()
        if self.sock.fileno() < 0:
            raise OSError(errno.EBADF, "the socket was closed meanwhile")
        wait = self._waits.get(or_receive)
        if wait is None:
            wait = _make_poll(self.sock, _WRITABLE | _READABLE if or_receive else _WRITABLE)
            self._waits[or_receive] = wait
        try:
            events = wait(0)
        except RuntimeError:  # as in _await_arrival()
            wait = _make_poll(self.sock, _WRITABLE | _READABLE if or_receive else _WRITABLE)
            events = wait(0)
        while not events and since is not None:
            events = wait(self._milliseconds_left(since))
        if not or_receive or not events or not events[0][1] & _READABLE:
            return False
        if since is not None and not events[0][1] & _WRITABLE:
            self._milliseconds_left(since)  # what it says byte by byte is no reason to wait for ever
        return True

    def _milliseconds_left(self, since: float) -> int | None:
        """Return how long poll() may wait for room to send; raise when it may not."""
        if self._is_bounded:
            left = self._left(self._write_limit, since, WriteTimeout)
            return None if left == math.inf else _in_milliseconds(left)
        timeout = self.sock.gettimeout()
        if timeout is None:
            return None
        left = since + timeout - self._clock()
        if left <= 0:
            raise TimeoutError("timed out")  # the socket's own words
        return _in_milliseconds(left)

    def clock(self) -> float:
        """Return the seconds of the monotonic clock that judges the limits."""
        return self._clock()

    def send_some(self, data: memoryview) -> int:
        """Send what there is room for; return how many bytes went.  Over TLS, where that may wait, it is one record."""
        sock = self.sock
        if isinstance(sock, ssl.SSLSocket):
            record = data[:_RECORD_BYTES]
            self.send(record)
            return len(record)
        try:
            if sock.gettimeout() is None:
                sent = sock.send(data[:_SEND_BYTES], _DONT_WAIT)
            else:
                # Its descriptor does not block, but its send() would wait for room, and hear nothing meanwhile.
                sent = os.write(sock.fileno(), data[:_SEND_BYTES])
        except BlockingIOError:
            return 0
        if sent:
            self.any_sent = True
        return sent

    def receive_now(self) -> bytes | None:
        """Receive past the buffer without waiting; return what came: ``None`` for nothing yet, none at the end."""
        sock = self.sock
        try:
            if isinstance(sock, ssl.SSLSocket):
                timeout = sock.gettimeout()
                sock.settimeout(0)
                try:
                    arrived = sock.recv(RECEIVE_BYTES)
                finally:
                    sock.settimeout(timeout)
            else:
                arrived = sock.recv(RECEIVE_BYTES, _DONT_WAIT)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except _WAKE_UPS as fault:
            if not is_wake_up(fault):
                raise
            return None
        except ssl.SSLEOFError:
            self.is_truncated = True
            return b""
        if arrived:
            self.any_received = True
        return arrived

    # --- receiving ----------------------------------------------------------------------------------

    def _before_wait(self, limit: float | None, *, is_read: bool) -> None:
        """See that the coming wait wakes up by the deadline, at the latest."""
        allowed = math.inf if limit is None else limit
        deadline = self._deadline
        if deadline is not None:
            left = deadline.at - self._clock()
            if left <= 0:
                raise deadline.exceeded()
            allowed = min(allowed, left)
        if self._polls:
            return
        armed = self._armed_read if is_read else self._armed_write
        if armed > allowed + _SLACK or (not self.uses_kernel_timers and armed < allowed - _SLACK):
            if is_read:
                self._arm_read(allowed)
            else:
                self._arm_write(allowed)

    def more(self, size: int = RECEIVE_BYTES) -> bytes:
        """Receive once, past the buffer; nothing means that the peer has ended its side.

        Args:
            size: The most to receive, in bytes.

        Raises:
            ReadTimeout: The peer was silent for the read limit.
            TotalTimeout: The deadline is over.
            OSError: The socket's own errors.
        """
        try:
            if self._polls:
                data = self.sock.recv(size, self._await_arrival())
            else:
                if self._must_look:
                    self._before_wait(self._read_limit, is_read=True)
                data = self._recv(size)
        except _WAKE_UPS as fault:
            if not is_wake_up(fault) or self.has_own_timeout():
                raise
            if self._polls:
                return self.more(size)  # somebody else has taken what had arrived
            data = self._wait_on(lambda: self._recv(size), b"")
        except ssl.SSLEOFError:
            self.is_truncated = True
            return b""
        if data:
            self.any_received = True
        return data

    def _await_arrival(self) -> int:
        """Wait by poll() until there is something to receive, the peer's end included; return the flag to do it with.

        It keeps the receive from waiting, without a bound, for what another thread has taken meanwhile.
        """
        if self.sock.gettimeout() is not None:
            return 0  # a borrower has set it, and it is all that holds
        poll = self._poll
        if poll is None:
            poll = self._poll = _make_poll(self.sock, _READABLE)
        milliseconds = self._read_milliseconds
        deadline = self._deadline
        if deadline is not None:
            left = (deadline.at - self._clock()) * 1000
            if left <= 0:
                raise deadline.exceeded()
            if milliseconds is None or left < milliseconds:
                milliseconds = left if left < _LONGEST_POLL else _LONGEST_POLL  # noqa: FURB136  # min() costs a call
        try:
            if poll(milliseconds):  # which signals do not make any longer (PEP 475)
                return _DONT_WAIT
        except RuntimeError:  # somebody else waits by it: another thread, or the one that a signal has interrupted
            poll = _make_poll(self.sock, _READABLE)
            if poll(milliseconds):
                return _DONT_WAIT
        since = self._clock() - (milliseconds or 0) / 1000
        while True:
            left = self._left(self._read_limit, since, ReadTimeout)
            if poll(_in_milliseconds(left)):
                return _DONT_WAIT

    def _wait_on(self, receive: Callable[[], _Received], nothing: _Received) -> _Received:
        """Go on waiting after a wake-up, until something arrives (`nothing`: the end) or a limit is reached."""
        # The wake-up came after the time that was armed (which is never infinite, or there were none).
        since = self._clock() - self._armed_read
        while True:
            self._arm_read(self._left(self._read_limit, since, ReadTimeout))
            try:
                return receive()
            except _WAKE_UPS as fault:
                if not is_wake_up(fault):
                    raise
            except ssl.SSLEOFError:
                self.is_truncated = True
                return nothing

    def receive_ahead(self) -> None:
        """Receive once into the buffer, which is empty; it stays so at the peer's end."""
        self.buffer = self.more()

    def take(self, limit: int) -> bytes:
        """Return at least one and at most `limit` bytes; none at the peer's end."""
        buffer = self.buffer
        if buffer:
            start = self.at
            if start == 0 and len(buffer) <= limit:
                self.buffer = b""
                return buffer
            piece = buffer[start : start + limit]
            self._advance(len(piece))
            return piece
        if limit >= RECEIVE_BYTES:
            return self.more(min(limit, BODY_RECEIVE_BYTES))
        # Ask for more than is due: what a peer sends behind its response shall be seen now, not by the next.
        piece = self.more()
        if len(piece) > limit:
            self.buffer = piece
            self.at = limit
            return piece[:limit]
        return piece

    def take_into(self, view: memoryview) -> int:
        """Fill a writable view with at least one byte, a long one straight from the socket; 0 at the peer's end."""
        if self.buffer or len(view) < RECEIVE_BYTES:
            piece = self.take(len(view))
            view[: len(piece)] = piece
            return len(piece)
        try:
            if self._polls:
                count = self.sock.recv_into(view, 0, self._await_arrival())
            else:
                if self._must_look:
                    self._before_wait(self._read_limit, is_read=True)
                count = self.sock.recv_into(view)
        except _WAKE_UPS as fault:
            if not is_wake_up(fault) or self.has_own_timeout():
                raise
            if self._polls:
                return self.take_into(view)  # as in more()
            count = self._wait_on(lambda: self.sock.recv_into(view), 0)
        except ssl.SSLEOFError:
            self.is_truncated = True
            return 0
        if count:
            self.any_received = True
        return count

    def take_line(self, limit: int, what: str) -> bytes:
        """Return one line with its line end; what is left, without one, at the peer's end.

        Args:
            limit: The most bytes a line may have.
            what: What the line is, for the error.

        Raises:
            LineTooLong: No line end within the limit.
        """
        newline = self.buffer.find(b"\n", self.at)
        if newline < 0:
            return self._take_split_line(limit, what)
        length = newline + 1 - self.at
        if length > limit:
            raise LineTooLong(what)
        return self.take(length)

    def _take_split_line(self, limit: int, what: str) -> bytes:
        """Return a line that has not arrived whole yet."""
        held = bytearray(self.buffer[self.at :])
        self.buffer = b""
        self.at = 0
        while len(held) <= limit:
            arrived = self.more()
            end = arrived.find(b"\n") + 1
            held += arrived[:end] if end else arrived
            if end or not arrived:
                if end < len(arrived):
                    self.buffer = arrived
                    self.at = end
                if len(held) <= limit:
                    return bytes(held)
        raise LineTooLong(what)

    def receive_head(self, limits: Limits) -> bytes:
        """Receive up to the blank line of a head and return the head; what follows stays in the buffer.

        Raises:
            RemoteDisconnected: The peer ended without sending a byte.
            InvalidResponse: It ended within the head, or the head is over the limit.
            BadStatusLine: What arrives is no HTTP/1.
            LineTooLong: A line is over the limit.
        """
        data = self.buffer
        if data:  # only behind an interim response
            data = data[self.at :]
            self.buffer = b""
            self.at = 0
        else:
            data = self.more()
            if not data:
                raise RemoteDisconnected("Remote end closed connection without response")
        # Not b"\r\n\r\n": behind a line that ends in a bare LF that would be found in the body.
        end = data.find(b"\n\r\n") + 3
        if end < 3 or data.find(b"\n\n", 0, end) >= 0:
            end = head_end(data)
        if end < 0:
            data, end = self._receive_rest_of_head(bytearray(data), limits)
        if end == len(data):
            return data
        self.buffer = data
        self.at = end
        return data[:end]

    def complete_cut_head(self, received: bytearray) -> None:
        """End a head within which the peer ended, if only its blank line is missing and that is to be borne.

        Raises:
            InvalidResponse: It is not.
        """
        if not (self.bears_cut_head and received.endswith(b"\n")):
            raise InvalidResponse(f"the peer ended within the response's head, after {len(received)} bytes")
        received += b"\r\n"

    def _receive_rest_of_head(self, received: bytearray, limits: Limits) -> tuple[bytes, int]:
        while True:
            check_unfinished_head(received, limits)
            searched = max(len(received) - 3, 0)
            arrived = self.more()
            if not arrived:
                self.complete_cut_head(received)
                return bytes(received), len(received)
            received += arrived
            end = head_end(received, searched)
            if end >= 0:
                return bytes(received), end

    def _advance(self, count: int) -> None:
        self.at += count
        if self.at == len(self.buffer):
            self.buffer = b""
            self.at = 0

    # --- between exchanges --------------------------------------------------------------------------

    @property
    def has_leftover(self) -> bool:
        """Whether bytes have been received that nobody has taken."""
        return bool(self.buffer)

    def staleness(self) -> CloseReason | None:
        """Return why this idle connection must not be used again, or ``None`` when nothing speaks against it.

        One system call while the connection is quiet.  Readable means that the peer has ended it, reset it or
        said something that nobody asked for; only TLS has legal messages then (a session ticket).
        """
        if self.is_quiet():
            return None
        if not self.is_open:
            return CloseReason.CLIENT_CLOSE  # somebody has closed the socket, not the connection
        return CloseReason.LEFTOVER if self.buffer else self._what_arrived()

    def is_quiet(self) -> bool:
        """Whether the socket is open and nothing has been heard on it since the last response."""
        if self.sock.fileno() < 0:
            return False  # before its number, which may be another file's by now, is asked about
        poll = self._poll
        if poll is None:
            poll = self._poll = _make_poll(self.sock, _READABLE)
        try:
            arrived = poll(0)
        except RuntimeError:  # as in _await_arrival()
            arrived = _make_poll(self.sock, _READABLE)(0)
        return not arrived and not self.buffer and not (self._is_tls and self.sock.pending())  # type: ignore[attr-defined]

    def _what_arrived(self) -> CloseReason | None:
        sock = self.sock
        if not isinstance(sock, socket.socket):
            return CloseReason.STALE_EOF  # it may not know how to look without taking
        try:
            if isinstance(sock, ssl.SSLSocket):
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    return CloseReason.STALE_RESET  # recv() would call it an end of file (Python 3.11 to 3.13)
                timeout = sock.gettimeout()
                sock.settimeout(0)
                try:
                    arrived = sock.recv(64)
                finally:
                    sock.settimeout(timeout)
            else:
                arrived = sock.recv(64, socket.MSG_PEEK | _DONT_WAIT)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLError:
            return CloseReason.STALE_EOF
        except OSError:
            return CloseReason.STALE_RESET
        if not arrived:
            return CloseReason.STALE_EOF
        if arrived[:8] in (b"HTTP/1.1", b"HTTP/1.0") and arrived[8:12] == b" 408":
            return CloseReason.STALE_408
        return CloseReason.UNSOLICITED

    @property
    def is_open(self) -> bool:
        """Whether the socket has a descriptor still."""
        return self.sock.fileno() >= 0

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self.sock.fileno()

    def hold(self) -> None:
        """Keep the descriptor open although somebody closes the socket, until `unhold` or `close`.

        As a file made of a socket does: urllib closes the socket of a response that it goes on reading.
        """
        if self._held is None and isinstance(self.sock, socket.socket):
            self._held = self.sock.makefile("rb", buffering=0)

    def unhold(self) -> None:
        """Let a socket that somebody has closed be closed now."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def let_go(self) -> None:
        """End with the socket without closing it: it belongs to somebody else."""
        self.buffer = b""
        self.at = 0

    def close(self) -> None:
        """Close the socket; without TLS close_notify, which could block."""
        self.buffer = b""
        self.at = 0
        if self._held is not None:
            self.unhold()
        self.sock.close()


class FileTransport(Transport):
    """A socket that has only ``sendall``, ``makefile`` and ``close``: slower, and never a byte read ahead.

    Its own timeout is the only limit.

    Args:
        sock: The foreign socket.
    """

    __slots__ = ("_file", "_foreign")

    def __init__(self, sock: ForeignSocket) -> None:
        self._foreign = sock
        self._file: ReadableFile | None = None
        self._clock = monotonic
        self._is_tls = False
        self._held = None
        self.buffer = b""
        self.at = 0
        self.any_sent = False
        self.any_received = False
        self.is_truncated = False
        self.bears_cut_head = False
        self.uses_kernel_timers = self._polls = False
        self._deadline = None
        self._read_limit = self._write_limit = None

    @property
    def _reader(self) -> ReadableFile:
        if self._file is None:
            self._file = self._foreign.makefile("rb")
        return self._file

    def bound(self, *, read: float | None, write: float | None, deadline: Deadline | None, what: str) -> None:
        """Do nothing: a foreign socket keeps its own timeout."""

    def release_bounds(self) -> None:
        """Do nothing: a foreign socket keeps its own timeout."""

    def hurry(self, deadline: Deadline) -> tuple[bool, float | None, float | None, Deadline | None]:
        """Do nothing: a foreign socket keeps its own timeout."""
        return False, None, None, None

    def restore(self, previous: tuple[bool, float | None, float | None, Deadline | None]) -> None:
        """Do nothing: a foreign socket keeps its own timeout."""

    def send(self, data: bytes | memoryview) -> None:
        """Send everything by the socket's own ``sendall``."""
        self.any_sent = True
        self._foreign.sendall(data)  # type: ignore[arg-type]  # whatever takes bytes takes a view of them

    def more(self, size: int = RECEIVE_BYTES) -> bytes:
        """Read at most `size` bytes, as many as the file gives."""
        data = self._reader.read(size)
        if data:
            self.any_received = True
        return data

    def receive_ahead(self) -> None:
        """Read a single byte: nobody knows how many are there, and a file waits for all that it is asked for."""
        self.buffer = self.more(1)

    @property
    def can_listen(self) -> bool:
        """False: a file waits for whatever it is asked for."""
        return False

    def take(self, limit: int) -> bytes:
        """Read at most `limit` bytes and not one more."""
        return super().take(limit) if self.buffer else self.more(limit)

    def take_into(self, view: memoryview) -> int:
        """Fill a writable view as far as the file gives."""
        piece = self.take(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def take_line(self, limit: int, what: str) -> bytes:
        """Read one line; see `Transport.take_line`."""
        line = self._reader.readline(limit + 1)
        if len(line) > limit:
            raise LineTooLong(what)
        if line:
            self.any_received = True
        return line

    def receive_head(self, limits: Limits) -> bytes:
        """Read line by line up to the blank one; see `Transport.receive_head`."""
        received = bytearray()
        lines = 0
        while True:
            line = self.take_line(limits.line_bytes, "header line" if received else "status line")
            if not line:
                if not received:
                    raise RemoteDisconnected("Remote end closed connection without response")
                check_unfinished_head(received, limits)
                self.complete_cut_head(received)
                return bytes(received)
            received += line
            lines += 1
            if lines > limits.fields + 2:
                raise InvalidResponse(f"got more than {limits.fields} headers")
            if line in (b"\r\n", b"\n") and len(received) > len(line):
                return bytes(received)
            check_unfinished_head(received, limits)

    def staleness(self) -> CloseReason | None:
        """Return ``None``: such a socket cannot be asked."""
        return None

    def is_quiet(self) -> bool:
        """Return True: such a socket cannot be asked."""
        return True

    def fileno(self) -> int:
        """Return the descriptor, if the foreign socket or its file has one."""
        fileno = getattr(self._foreign, "fileno", None) or getattr(self._reader, "fileno", None)
        if fileno is None:
            raise OSError("this socket has no descriptor")
        return int(fileno())

    def hold(self) -> None:
        """Do nothing: the file that is read keeps the socket open."""

    def let_go(self) -> None:
        """Close the file, not the socket."""
        if self._file is not None:
            self._file.close()

    def close(self) -> None:
        """Close the file and the socket."""
        self.let_go()
        self._foreign.close()


def transport_for(sock: socket.socket | ForeignSocket, *, clock: Clock = monotonic) -> Transport:
    """Return the fitting transport: the fast one for what receives like a socket, else the one by file."""
    if all(hasattr(sock, name) for name in ("recv", "recv_into", "send", "fileno", "settimeout")):
        return Transport(sock, clock=clock)  # type: ignore[arg-type]  # it quacks like one
    return FileTransport(cast("ForeignSocket", sock))


def _can_use_kernel_timers(sock: socket.socket) -> bool:
    """Whether waits on this socket happen inside the kernel, where its timers can end them."""
    if get_ident() == main_thread.ident:
        return False  # signals are handled here, and each one restarts a kernel's timer (PEP 475)
    if not _HAS_KERNEL_TIMERS or type(sock) is not socket.socket or type(sock).__module__ != "socket":
        return False  # TLS, gevent, eventlet: they wait by other means
    with uncut:
        import signal  # here, since it is slow to import, and threads alone get here

    # A profiler's interval timer signals more often than the heartbeat and would restart each wait for ever.
    return not any(
        signal.getitimer(which)[0] for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    )


def _can_poll(sock: socket.socket) -> bool:
    """Whether poll() tells all about this socket, and its own methods need never wait."""
    is_plain = type(sock) is socket.socket and type(sock).__module__ == "socket"  # not TLS, nor gevent's
    return is_plain and bool(_DONT_WAIT) and hasattr(select, "poll")


def _in_milliseconds(seconds: float) -> int:
    """Return a wait as poll() takes it: rounded up, or the last millisecond would be spent in going round."""
    return math.ceil(min(seconds * 1000, _LONGEST_POLL))


def _make_poll(sock: socket.socket, events: int) -> Callable[[float | None], list[tuple[int, int]]]:
    """Return a call that waits for any of the events, in milliseconds; poll, since select fails above 1023."""
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, "the socket was closed meanwhile")
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, events)
        return poll.poll

    def wait(milliseconds: float | None) -> list[tuple[int, int]]:
        readers, writers = [sock] if events & _READABLE else [], [sock] if events & _WRITABLE else []
        seconds = None if milliseconds is None else milliseconds / 1000
        readable, writable, _ = select.select(readers, writers, [], seconds)
        happened = (_READABLE if readable else 0) | (_WRITABLE if writable else 0)
        return [(sock.fileno(), happened)] if happened else []

    return wait
