"""The API that the demo calls, with the faults it injects.

Its one job is to answer, to misbehave on purpose when it was told to, and to count both: its counts are the truth that
the summary holds everything else against.  Its rule: an answer and its fault are counted before the client can know of
them, and a fault comes only after a whole request was received.

It is no `testing.ScriptedServer`: that keeps every byte and connection for the test to look at, and ``--serve`` stays
up for days.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from .options import HOST, SLICE

_CLOSE_SECONDS: Final = 5.0  # bound on each wait for a thread of the API


class Fault(StrEnum):
    """How the API misbehaves, each time after it has received a whole request."""

    CLOSED = "closed"
    RESET = "reset"
    TIMEOUT_408 = "408"
    EXTRA = "extra bytes"
    TRUNCATED = "truncated"


_SHARES: Final[Mapping[Fault, float]] = {
    Fault.CLOSED: 0.03,
    Fault.RESET: 0.03,
    Fault.TIMEOUT_408: 0.03,
    Fault.EXTRA: 0.03,
    Fault.TRUNCATED: 0.01,
}
# A reset takes along what the client's kernel has not taken in yet, and extra bytes could come in a segment of their
# own: both are for answers that surely travel whole.
_SMALL_ONLY: Final = frozenset({Fault.RESET, Fault.EXTRA})
_SMALL_BYTES: Final = 8192
_CHUNKED_BYTES: Final = 65536  # larger answers have no Content-Length
_LONGEST_IDLE: Final = 0.002  # seconds before a 408: some meet an idle connection, some cross a request
_POISON: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
_LATE: Final = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_REQUEST: Final = re.compile(rb"(GET|POST) /items/([\w.-]+)/(\d{1,7}) HTTP/1\.1\r\n")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d{1,7})\r\n", re.IGNORECASE)


def content_of(token: bytes, size: int) -> bytes:
    """Return the body that belongs to a request, so that an answer to another one is noticed."""
    return ((token + b" ") * (size // (len(token) + 1) + 1))[:size]


def _answer(body: bytes) -> bytes:
    if len(body) < _CHUNKED_BYTES:
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


class Api:
    """A kept-alive API at a loopback port, a thread a connection; what it counts is the truth for the summary.

    ``GET /items/<token>/<size>`` is answered with so many bytes made from the token, POST with what was posted.

    Args:
        tls: The server's side of TLS; ``None``: plain HTTP.
        seed: Start of the random choice of faults; ``None``: it behaves.

    Attributes:
        origin: Where it is: ``http://127.0.0.1:40001``.
        faults: How often it misbehaved, by kind.
        accepted: How many connections it accepted.
        answered: How many requests it answered, the truncated answers included.
        received_bytes: How many bytes its clients sent, under TLS without the encryption.
        is_behaving: Whether it injects no faults, or no more.
        answer_seconds: How long it takes for each answer.
        hang_up_share: On how many of the requests over a kept-alive connection it hangs up instead of answering.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, seed: str | None = None) -> None:
        self._tls = tls
        self._seed = seed
        # Guards the counters and the two collections; never held while anything waits.
        self._lock = threading.Condition()
        self._at_work = 0
        self._socks: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._is_closing = False
        self.faults: Counter[str] = Counter()
        self.accepted = self.answered = self.received_bytes = 0
        self.is_behaving = seed is None
        self.answer_seconds = self.hang_up_share = 0.0
        self._listener = socket.create_server((HOST, 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.origin = f"{'http' if tls is None else 'https'}://{HOST}:{self.port}"
        self._acceptor = threading.Thread(target=self._accept, name=f"api-{self.port}", daemon=True)
        self._acceptor.start()

    def settle(self) -> None:
        """Inject no more faults, and wait until those under way are done; TimeoutError after five seconds."""
        self.is_behaving = True
        with self._lock:
            if not self._lock.wait_for(lambda: not self._at_work, _CLOSE_SECONDS):
                raise TimeoutError(f"{self.origin} is still busy with {self._at_work} requests")

    def close(self) -> None:
        """Close every socket and join every thread."""
        with self._lock:
            self._is_closing = True
        with contextlib.suppress(OSError):  # wakes the acceptor, which then looks at the flag
            socket.create_connection((HOST, self.port), 1.0).close()
        self._acceptor.join(_CLOSE_SECONDS)
        self._listener.close()
        with self._lock:
            for sock in self._socks:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # SSLSocket's own would drop the TLS state
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # the client gave up already, or no descriptor is left: those in use may end
                # Without a pause, accept() would fail again at once and spin; no event tells of a free descriptor.
                time.sleep(SLICE)
                continue
            with self._lock:
                if self._is_closing:
                    sock.close()
                    return
                self.accepted += 1
                choice = random.Random(f"{self._seed}/{self.accepted}")
                self._threads = [thread for thread in self._threads if thread.is_alive()]
                thread = threading.Thread(target=self._serve, args=(sock, choice), name="api-connection", daemon=True)
                self._threads.append(thread)
                self._socks.add(sock)
                thread.start()

    def _serve(self, sock: socket.socket, choice: random.Random) -> None:
        """Answer one connection's requests until either side ends it."""
        plain = sock
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                with self._lock:  # while the descriptor changes hands, close() must not look for it
                    self._socks.discard(plain)
                    sock = self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
                    self._socks.add(sock)
                    if self._is_closing:
                        return
                sock.do_handshake()
            received = b""
            is_kept_alive = False
            while (request := self._receive(sock, received)) is not None:
                answer, size, received = request
                if is_kept_alive and self.hang_up_share and choice.random() < self.hang_up_share:
                    return
                is_kept_alive = True
                if self.answer_seconds:
                    time.sleep(self.answer_seconds)  # the work that an answer would take
                if not self._reply(sock, answer, self._fault(choice, size), choice):
                    return
        except OSError:
            pass  # the client left
        finally:
            with self._lock:
                self._socks.discard(sock)
                self._socks.discard(plain)
            sock.close()

    def _receive(self, sock: socket.socket, received: bytes) -> tuple[bytes, int, bytes] | None:
        """Receive one request; return its answer, the size of that one's body, and what came behind the request."""
        while (end := received.find(b"\r\n\r\n")) < 0:
            if not (more := self._receive_some(sock)):
                return None
            received += more
        head, received = received[: end + 4], received[end + 4 :]
        match = _REQUEST.match(head)
        if match is None:
            return b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", 0, received
        method, token, size = match[1], match[2], int(match[3])
        if method == b"GET":
            return _answer(content_of(token, size)), size, received
        length = _LENGTH.search(head)
        size = 0 if length is None else int(length[1])
        while len(received) < size:
            if not (more := self._receive_some(sock)):
                return None
            received += more
        return _answer(received[:size]), size, received[size:]

    def _receive_some(self, sock: socket.socket) -> bytes:
        more = sock.recv(65536)
        with self._lock:
            self.received_bytes += len(more)
        return more

    def _fault(self, choice: random.Random, size: int) -> Fault | None:
        if self.is_behaving or not size:
            return None
        roll = choice.random()
        for fault, share in _SHARES.items():
            if roll < share:
                return None if size > _SMALL_BYTES and fault in _SMALL_ONLY else fault
            roll -= share
        return None

    def _reply(self, sock: socket.socket, answer: bytes, fault: Fault | None, choice: random.Random) -> bool:
        """Send an answer, and misbehave; return whether the connection goes on."""
        with self._lock:  # before the client can know of it
            self.answered += 1
            self._at_work += 1
            if fault is not None:
                self.faults[fault] += 1
        try:
            if fault is Fault.EXTRA:
                answer += _POISON
            elif fault is Fault.TRUNCATED:
                head_end = answer.index(b"\r\n\r\n") + 4
                answer = answer[: (head_end + len(answer)) // 2]
            sock.sendall(answer)
            if fault is None or fault is Fault.EXTRA:
                return True
            if fault is Fault.RESET:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                if fault is Fault.TIMEOUT_408:
                    self._await_idleness(sock, choice.uniform(_LONGEST_IDLE / 10, _LONGEST_IDLE))
                    sock.sendall(_LATE)
                _say_goodbye(sock)
            sock.close()
        finally:
            with self._lock:
                self._at_work -= 1
                self._lock.notify_all()
        return False

    def _await_idleness(self, sock: socket.socket, seconds: float) -> None:
        """Give the client the time to read its answer; if the next request comes first, the 408 crosses it."""
        sock.settimeout(seconds)
        with contextlib.suppress(OSError):
            self._receive_some(sock)
        sock.settimeout(None)


def _say_goodbye(sock: socket.socket) -> None:
    """Send TLS close_notify, if this is TLS; without it the end would look like an attacker's."""
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(0)  # unwrap() would wait for the client's
        with contextlib.suppress(OSError, ValueError):
            sock.unwrap()


def make_tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the server's and the client's TLS settings, with a certificate authority made for them.

    Raises:
        ModuleNotFoundError: trustme is not installed.
    """
    import trustme

    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies, and knows this authority alone
    authority.configure_trust(client)
    return server, client
