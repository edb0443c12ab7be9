"""Sends the body of a request, and listens meanwhile: a server may answer before it has read it all.

Each wait is for room to send *or* for something to read.  A final answer from 300 up means that the rest is not
wanted (RFC 9112 section 9.3): sending stops, the answer is left for whoever reads responses, and the connection is
of no further use, since its peer cannot tell where the missing rest ends.  After ``Expect: 100-continue`` the
listening comes first.

A regular file goes out by ``sendfile`` where nothing stands between it and the socket.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from .errors import HTTPException, InvalidResponse, ReadTimeout, RemoteDisconnected, TotalTimeout, WriteTimeout
from .hints import Final
from .request import BodySource, SizedFile, blocks
from .timeouts import Clock, Deadline, is_wake_up
from .transport import Transport
from .wire import Limits, check_unfinished_head, head_end, parse_head

# A chunk up to this many bytes is copied between its framing, to leave in one send.
_COPIED_BYTES: Final = 65536
# So many bytes, or seconds, go by between two looks for an answer, while there is room.
_UNHEARD_BYTES: Final = 65536
_UNHEARD_SECONDS: Final = 0.05
# What one sendfile may take: more than any socket's buffer, and it fits every platform's type.
_SENDFILE_BYTES: Final = 1 << 24
# How a platform says that it cannot send this file by itself.
_NO_SENDFILE: Final = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTSOCK, errno.EOVERFLOW}


def frames(body: BodySource, blocksize: int, *, is_chunked: bool) -> Iterator[bytes | memoryview]:
    """Yield a body as it stands on the wire, in the blocks in which it is sent.

    Args:
        body: What `request.blocks` takes.
        blocksize: Bytes to read at once from a file.
        is_chunked: Whether to put it into chunks (RFC 9112 section 7.1).

    Raises:
        TypeError: It is no body.
    """
    for block in blocks(body, blocksize):
        view = memoryview(block)
        if not view.c_contiguous:
            view = memoryview(view.tobytes())  # a slice with gaps; nothing but a copy has none
        view = view.cast("B")
        if not view.nbytes:
            continue  # an empty chunk would end the body
        if not is_chunked:
            yield view
        elif view.nbytes <= _COPIED_BYTES:
            yield b"".join((b"%X\r\n" % view.nbytes, view, b"\r\n"))
        else:
            yield b"%X\r\n" % view.nbytes
            yield view
            yield b"\r\n"
    if is_chunked:
        yield b"0\r\n\r\n"


class Upload:
    """One body on its way.

    Args:
        transport: Where it goes.
        method: The request's method.
        limits: How much the peer may say meanwhile.
        announce: Called with all that is about to be sent, a block or a file.

    Attributes:
        is_refused: Whether something arrived that makes the rest of the body pointless; nothing is sent any more.
        is_last: Whether an interim answer has said that the connection closes, or could be read in two ways.
        is_body_broken: Whether what failed was the body itself: its error may look like one of the connection.
    """

    def __init__(
        self, transport: Transport, *, method: str, limits: Limits, announce: Callable[[object], None]
    ) -> None:
        self._transport = transport
        self._announce = announce
        self._method = method
        self._limits = limits
        self._is_listening = self._can_listen = transport.can_listen
        self._is_tls = transport.is_tls
        self._sent_unheard = _UNHEARD_BYTES  # since the last look for an answer
        self._heard_at = self._taken_at = transport.clock()  # the last look; when the peer took the last byte
        self._is_answered = False
        self._interim_responses = 0
        self._heard = bytearray()  # grows by each segment without being copied; it is given back for the response
        self._searched = 0  # up to where it holds no end of a head
        self.is_refused = False
        self.is_last = False
        self.is_body_broken = False

    def await_continue(self, seconds: float, *, clock: Clock) -> None:
        """Wait for ``100 Continue`` (RFC 9110 section 10.1.1); any final answer instead refuses the body.

        Args:
            seconds: How long at most; a server that does not know the field never says it, so the body is sent then.
            clock: Seconds on a monotonic clock.

        Raises:
            RemoteDisconnected: The peer ended the connection instead.
            TotalTimeout: The deadline of the whole call is over.
            OSError: The socket's own errors.
        """
        transport = self._transport
        if not self._is_listening or not seconds:
            return
        _, _, total = transport.limits
        deadline = Deadline(seconds, what="100 Continue", clock=clock)
        if total is not None and total.at <= deadline.at:
            deadline = total
        previous = transport.hurry(deadline)
        self._take_over()
        try:
            while not self._hear(is_awaited=True):
                arrived = transport.more()
                self._heard += arrived
                if not arrived:
                    self._end_heard()
                    return
        except TimeoutError as fault:
            if deadline is total if isinstance(fault, TotalTimeout) else not _is_silence(fault):
                raise
        finally:
            transport.restore(previous)
            self._give_back()

    def send(self, body: BodySource, *, blocksize: int, is_chunked: bool, at_most: int | None = None) -> int:
        """Send a body, or as much of it as the peer wants.

        Args:
            body: What `request.blocks` takes.
            blocksize: Bytes to read at once from a file.
            is_chunked: Whether to put it into chunks (RFC 9112 section 7.1).
            at_most: How many bytes the head has announced; ``None`` where that is known to be right.

        Returns:
            How many bytes were sent; it does not count where the body was refused.

        Raises:
            TypeError: It is no body.
            ValueError: The body is a file that has shrunk, or is longer than it may be; the surplus is not sent.
            OSError: The socket's own errors.
        """
        self._take_over()
        self._taken_at = self._transport.clock()
        try:
            if isinstance(body, SizedFile):
                sent = self._send_file(body)
                if sent is not None:
                    return sent
            sent = 0
            for frame in self.watched(frames(body, blocksize, is_chunked=is_chunked)):
                if at_most is not None and sent + len(frame) > at_most:
                    self.is_body_broken = True
                    raise ValueError(f"the body has more than the {at_most} bytes that the head has announced: what is "
                                     f"too much would be taken for the next request")  # fmt: skip
                self._announce(frame)
                self._send(memoryview(frame))
                if self.is_refused:
                    break
                sent += len(frame)
            return sent
        except TimeoutError as fault:
            if not (_is_silence(fault) and self._is_answered) or self.is_body_broken:
                raise
            self.is_refused = True  # the peer has said what it has to say, and reads no more
            return 0
        finally:
            self._give_back()

    def watched(self, body: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        """Yield a body, and note whether it was the body that failed."""
        try:
            yield from body
        except GeneratorExit:
            raise
        except BaseException:
            self.is_body_broken = True
            raise

    def _send(self, data: memoryview) -> None:
        transport = self._transport
        if not self._can_listen:
            transport.send(data)
            return
        # Filled first, and waited for afterwards: whatever room there is then has come from the peer.
        is_full = self._is_tls  # where to send may be to wait, and to hear nothing meanwhile
        while data and not self.is_refused:
            late: TimeoutError | None = None
            try:
                is_due = is_full or self._is_due(transport)
                if is_due and self._has_heard(since=self._taken_at if is_full else None):
                    continue
            except TimeoutError as fault:
                if self._is_tls or not _is_silence(fault):
                    raise
                late = fault  # poll() tells of much room only: there may be some
            sent = transport.send_some(data)
            if sent:
                data = data[sent:]
                self._sent_unheard += sent
                self._taken_at = transport.clock()
                is_full = self._is_tls
            elif late is not None:
                raise late
            else:
                is_full = True

    def _send_file(self, file: SizedFile) -> int | None:
        """Have the kernel send the file; ``None`` where that is not possible, before a byte was sent."""
        transport = self._transport
        descriptor = file.duplicate() if transport.can_send_files else None
        if descriptor is None:
            return None
        sent = 0
        self._announce(file.source)
        self._taken_at = transport.clock()
        was_blocking = transport.set_blocking(is_blocking=False)  # sendfile has no MSG_DONTWAIT
        is_full = False
        try:
            while sent < file.length and not self.is_refused:
                late: TimeoutError | None = None
                try:
                    if self._has_heard(since=self._taken_at if is_full else None):
                        continue
                except TimeoutError as fault:
                    if not _is_silence(fault):
                        raise
                    late = fault  # as in _send()
                try:
                    count = os.sendfile(
                        transport.fileno(), descriptor, file.start + sent, min(file.length - sent, _SENDFILE_BYTES)
                    )
                except BlockingIOError:
                    if late is not None:
                        raise late from None
                    is_full = True
                    continue
                except OSError as fault:
                    if sent or fault.errno not in _NO_SENDFILE:
                        raise
                    return None
                if not count:
                    raise file.shrank(file.length - sent)
                transport.any_sent = True
                self._taken_at = transport.clock()
                sent += count
                is_full = False
        finally:
            os.close(descriptor)
            transport.set_blocking(is_blocking=was_blocking)
            file.leave_at(sent)
        return sent

    def _is_due(self, transport: Transport) -> bool:
        """Tell whether it is time to listen: not for every small block, but soon for somebody who sends slowly."""
        now = transport.clock()
        if self._sent_unheard < _UNHEARD_BYTES and now - self._heard_at < _UNHEARD_SECONDS and not self._is_tls:
            return False
        self._heard_at = now
        self._sent_unheard = 0
        return True

    def _has_heard(self, *, since: float | None) -> bool:
        """Wait for room to send, or (`since` is ``None``) only look; return whether the peer has spoken instead."""
        if not self._transport.wait_to_send(or_receive=self._is_listening, since=since):
            return False
        self._listen()
        return True

    def _listen(self) -> None:
        arrived = self._transport.receive_now()
        if arrived:
            self._heard += arrived
            self._hear()
        elif arrived is not None:
            self._end_heard()

    def _end_heard(self) -> None:
        """Take note that the peer has ended its side."""
        if not self._heard:
            raise RemoteDisconnected("Remote end closed connection without response")
        self._transport.bears_cut_head = True  # what it said before it stopped reading is better than nothing
        self.is_refused = True

    def _take_over(self) -> None:
        """Go on with what had been heard before and was no whole head."""
        transport = self._transport
        if self._is_listening and transport.buffer:
            self._heard += transport.take(len(transport.buffer))

    def _give_back(self) -> None:
        """Leave what has been heard, and is no interim answer, for whoever reads the response."""
        if self._heard:
            self._transport.buffer = bytes(self._heard)
            self._heard = bytearray()
            self._searched = 0

    def _hear(self, *, is_awaited: bool = False) -> bool:
        """Look at what has been received, past interim answers; return whether it settles if the body is sent."""
        heard, limits = self._heard, self._limits
        try:
            while heard:
                end = head_end(heard, self._searched)
                if end < 0:
                    check_unfinished_head(heard, limits)
                    self._searched = max(len(heard) - 3, 0)
                    return False
                head = parse_head(bytes(heard[:end]), self._method, limits)
                if head.status >= 200 or head.status == 101:
                    self._is_listening = False
                    self._is_answered = True
                    # Under 300 the body may well be wanted: some servers answer while they read.
                    self.is_refused = is_awaited or head.status >= 300 or head.status == 101
                    return True
                # What ends an interim head in doubt, or says that the connection closes, holds for all that follows.
                self.is_last = self.is_last or not head.is_persistent
                self._interim_responses += 1
                if self._interim_responses > limits.interim_responses:
                    raise InvalidResponse(f"got more than {limits.interim_responses} interim responses")
                del heard[:end]
                self._searched = 0
                if is_awaited and head.status == 100:
                    self._hear()  # there may be more already, and no receive will tell of it
                    return True
        except HTTPException:
            if self._interim_responses > limits.interim_responses:
                raise  # those before were taken, and nobody would find so many again
            # No answer at all: whoever reads the response finds the same bytes and raises.
            self._is_listening = False
            self.is_refused = True
            return True
        return False


def _is_silence(fault: TimeoutError) -> bool:
    """Tell whether the peer did nothing for too long: no total is over, and no signal's handler has said so."""
    return isinstance(fault, (ReadTimeout, WriteTimeout)) or is_wake_up(fault)
