"""``pooledhttp demo``: an API that may misbehave, workers that call it, and an account of what came out.

All in one process: `Api` answers over kept-alive connections and counts what it did, `Worker` threads call it through
one `PoolManager`, `Screen` shows how it goes, and `run` ends with a summary that is checked.  Its rule: no number is
shown that could be checked and was not.  The pools' counters are held against /metrics, scraped over HTTP, and against
the API's own counts; what callers saw is held against the faults that were injected.  What does not agree is printed,
and the exit status is 1.

The API is no `testing.ScriptedServer`: that keeps every byte and connection for the test to look at, and ``--serve``
stays up for days.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import shutil
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import FrameType
from typing import TYPE_CHECKING, Final, Self, TextIO

if TYPE_CHECKING:
    from .manager import PoolManager
    from .stats import HistogramStats, PoolStats

_HOST: Final = "127.0.0.1"
_CALL_SECONDS: Final = 30.0  # the total of each call: nothing here waits without an end
_LEAST_REUSE: Final = 0.99
_PAUSE: Final = 0.002  # mean seconds that a worker does nothing between two calls
_LIGHT_PAUSE: Final = 0.25  # the same while the demo just stays up
_CLOSE_SECONDS: Final = 5.0  # bound on each wait for a thread of the API
_SLICE: Final = 0.05  # seconds between two looks at the signals


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the command line asked for; checked there.

    Attributes:
        duration: Seconds of load.
        workers: Threads that call the API.
        pool_size: Most connections to an origin.
        seed: Start of all random choices; ``None``: another one each time.
        has_https: Whether to call the API over HTTPS too.
        has_faults: Whether the API misbehaves.
        port: Port of /metrics; 0: any free one.
        stays_up: Whether to stay up under a light load until a signal.
        is_plain: Whether to print lines although there is a terminal.
        is_quiet: Whether to show no progress.
    """

    duration: float = 10.0
    workers: int = 16
    pool_size: int = 8
    seed: int | None = None
    has_https: bool = True
    has_faults: bool = False
    port: int = 0
    stays_up: bool = False
    is_plain: bool = False
    is_quiet: bool = False


# --- the API ------------------------------------------------------------------------------------------


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
        self._listener = socket.create_server((_HOST, 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.origin = f"{'http' if tls is None else 'https'}://{_HOST}:{self.port}"
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
            socket.create_connection((_HOST, self.port), 1.0).close()
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
                time.sleep(_SLICE)
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
            while (request := self._receive(sock, received)) is not None:
                answer, size, received = request
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
    authority.issue_cert(_HOST).configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies, and knows this authority alone
    authority.configure_trust(client)
    return server, client


# --- the workers --------------------------------------------------------------------------------------


class Latencies:
    """Durations in buckets, each 1 % wider than the one below: exact enough, and bounded however long it runs."""

    _STEP = math.log(1.01)

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def observe(self, seconds: float) -> None:
        """Count one duration; what is shorter than a microsecond counts as one."""
        self._counts[math.ceil(math.log(max(seconds, 1e-6)) / self._STEP)] += 1

    def add(self, other: Latencies) -> None:
        """Add what another one counted."""
        self._counts.update(other._counts)

    def percentile(self, percent: float) -> float | None:
        """Return the duration, in seconds, that so many per cent do not exceed; ``None`` if there are none."""
        rank = math.ceil(self._counts.total() * percent / 100)
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return math.exp(bucket * self._STEP)
        return None


class Ledger:
    """What the callers of one origin saw.

    Attributes:
        lock: Guards all the others, for the length of an addition.
        latencies: How long the calls took that succeeded.
        calls: How many calls ended.
        truncated: How many ended in IncompleteRead.
        failures: How many calls ended in any other error, by its name.
        foreign: How many answers were not those to their requests.
        example: The first failure's text, or that of the first foreign answer.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.latencies = Latencies()
        self.calls = self.truncated = self.foreign = 0
        self.failures: Counter[str] = Counter()
        self.example = ""

    def add(self, other: Ledger) -> None:
        """Add what another one holds."""
        with other.lock:
            self.latencies.add(other.latencies)
            self.calls += other.calls
            self.truncated += other.truncated
            self.foreign += other.foreign
            self.failures += other.failures
            self.example = self.example or other.example


def total_of(ledgers: Iterable[Ledger]) -> Ledger:
    """Return several ledgers as one."""
    total = Ledger()
    for ledger in ledgers:
        total.add(ledger)
    return total


class Load:
    """The worker threads; starts with ``with``, and ends with it when each has finished its call.

    Args:
        manager: What they call through.
        ledgers: Where they write what they saw, by origin.
        workers: How many there are.
        seed: Start of their random choices.

    Attributes:
        pause: Mean seconds between two calls of a worker.
    """

    # How often each kind of call is made, and how many bytes its answer has.
    _CALLS: Final = (("GET", 64, 40), ("GET", 1024, 30), ("GET", 8192, 10), ("GET", 32768, 5), ("POST", 200, 10),
                     ("STREAM", 131072, 5))  # fmt: skip

    def __init__(self, manager: PoolManager, ledgers: Mapping[str, Ledger], *, workers: int, seed: int) -> None:
        self.pause = _PAUSE
        self._manager = manager
        self._ledgers = ledgers
        self._origins = sorted(ledgers)
        self._end = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._work,
                args=(number, random.Random(f"{seed}/{number}")),
                name=f"worker-{number}",
                daemon=True,
            )
            for number in range(workers)
        ]

    def __enter__(self) -> Self:
        """Start the threads."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let each finish its call."""
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int, choice: random.Random) -> None:
        weights = [weight for _, _, weight in self._CALLS]
        serial = 0
        while not self._end.is_set():
            serial += 1
            kind, size, _ = choice.choices(self._CALLS, weights)[0]
            self.call(choice.choice(self._origins), kind, f"w{number}-{serial}", size)
            self._end.wait(choice.expovariate(1 / self.pause))

    def call(self, origin: str, kind: str, token: str, size: int) -> None:
        """Make one call, and write down what came of it."""
        from .errors import HTTPException, IncompleteRead

        ledger = self._ledgers[origin]
        expected = content_of(token.encode(), size)
        started = time.monotonic()
        try:
            status, data = self._exchange(f"{origin}/items/{token}/{size}", kind, token, expected)
        except IncompleteRead:
            with ledger.lock:
                ledger.calls += 1
                ledger.truncated += 1
        except (OSError, HTTPException, RuntimeError) as fault:  # the last one: PoolClosed
            with ledger.lock:
                ledger.calls += 1
                ledger.failures[type(fault).__name__] += 1
                ledger.example = ledger.example or f"{kind} {origin}: {type(fault).__name__}: {fault}"
        else:
            seconds = time.monotonic() - started
            with ledger.lock:
                ledger.calls += 1
                ledger.latencies.observe(seconds)
                if status != 200 or data != expected:
                    ledger.foreign += 1
                    ledger.example = ledger.example or f"{kind} {origin}: {status}, {len(data)} bytes: {data[:60]!r}"

    def _exchange(self, url: str, kind: str, token: str, expected: bytes) -> tuple[int, bytes]:
        if kind == "STREAM":
            with self._manager.stream("GET", url, timeout=_CALL_SECONDS) as streamed:
                return streamed.status, b"".join(streamed)
        if kind == "POST":
            # The key says that a second delivery does no harm; without it a POST is never sent again.
            headers = {"Idempotency-Key": token}
            response = self._manager.request("POST", url, expected, headers, timeout=_CALL_SECONDS)
        else:
            response = self._manager.request("GET", url, timeout=_CALL_SECONDS)
        return response.status, response.data


# --- what is shown ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    label: str
    rate: float
    stats: PoolStats
    latencies: Latencies


def format_seconds(seconds: float | None) -> str:
    """Return a duration in at most seven characters."""
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.{1 if seconds < 0.0995 else 0}f} ms"
    return f"{seconds:.2f} s"


def format_share(share: float) -> str:
    """Return a share in per cent, cut instead of rounded: 100 % means all."""
    return f"{math.floor(share * 10000) / 100:.2f}"


def table(rows: Sequence[Row]) -> list[str]:
    """Return the rows under their titles, 78 columns wide."""
    titles = ("origin", "req/s", "in use", "idle", "waiting", "opened", "reused %", "p50", "p95", "p99")
    lines = ["{:<12}{:>6}{:>7}{:>5}{:>8}{:>7}{:>9}{:>8}{:>8}{:>8}".format(*titles)]
    for row in rows:
        stats = row.stats
        p50, p95, p99 = (format_seconds(row.latencies.percentile(percent)) for percent in (50, 95, 99))
        lines.append(
            f"{row.label:<12}{row.rate:>6.0f}{stats.leased + stats.opening:>7}{stats.idle:>5}{stats.waiting:>8}"
            f"{stats.opened:>7}{format_share(stats.reuse_ratio):>9}{p50:>8}{p95:>8}{p99:>8}"
        )
    return lines


def plain_line(elapsed: float, share: float | None, row: Row) -> str:
    """Return the total as one line, for where there is no terminal."""
    stats = row.stats
    progress = "light" if share is None else f"{share * 100:3.0f} %"
    p50, p95, p99 = (format_seconds(row.latencies.percentile(percent)) for percent in (50, 95, 99))
    return (
        f"{elapsed:4.0f} s {progress}  {row.rate:5.0f} req/s  {stats.leased + stats.opening} in use  "
        f"{stats.idle} idle  {stats.waiting} waiting  {stats.opened} opened  "
        f"{format_share(stats.reuse_ratio)} % reused  p50 {p50}  p95 {p95}  p99 {p99}"
    )


def progress_bar(elapsed: float, duration: float) -> str:
    """Return how far the run is, as a bar and in words."""
    share = min(elapsed / duration, 1.0)
    return f"[{'#' * math.floor(share * 30):.<30}] {share * 100:3.0f} %  {min(elapsed, duration):.1f} of {duration:g} s"


class Screen:
    """Prints; and keeps a block of lines at the bottom of a terminal up to date.

    Args:
        out: Where to.
        is_live: Whether `show` redraws its lines in place, for which `out` must be a terminal.
    """

    def __init__(self, out: TextIO, *, is_live: bool) -> None:
        self.is_live = is_live
        self._out = out
        self._height = 0

    def say(self, *lines: str) -> None:
        """Print lines that stay."""
        self._out.write("".join(f"{line}\n" for line in lines))
        self._out.flush()

    def show(self, lines: Sequence[str]) -> None:
        """Draw the block: over the one before, if that is still the last thing on the screen."""
        columns = shutil.get_terminal_size().columns  # a line that wraps would spoil the counting of lines
        up = f"\x1b[{self._height}F" if self._height else "\x1b[?25l"  # or hide the cursor, the first time
        self._out.write(up + "".join(f"\x1b[2K{line[:columns]}\n" for line in lines))
        self._out.flush()
        self._height = len(lines)

    def settle(self) -> None:
        """Leave the block as it is, and show the cursor again."""
        if self._height:
            self._height = 0
            self._out.write("\x1b[?25h")
            self._out.flush()


def can_be_live(out: TextIO, environment: Mapping[str, str]) -> bool:
    """Tell whether a block can be redrawn in place."""
    return out.isatty() and environment.get("TERM", "") not in ("", "dumb")


# --- /metrics -----------------------------------------------------------------------------------------

# A sample's name and its labels, sorted.
Key = tuple[str, tuple[tuple[str, str], ...]]


def _key(name: str, labels: Mapping[str, str]) -> Key:
    # Bounds are compared as numbers: "1" and "1.0" are the same one.
    return name, tuple(sorted((label, str(float(text)) if label == "le" else text) for label, text in labels.items()))


def expected_samples(stats: PoolStats) -> dict[Key, float]:
    """Return what /metrics has to show of a pool that is open and at rest."""
    found: dict[Key, float] = {}

    def put(name: str, value: float, **labels: str) -> None:
        found[_key(f"pooledhttp_{name}", {"pool": stats.name, **labels})] = value

    def put_histogram(name: str, histogram: HistogramStats) -> None:
        below = 0
        for bound, count in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
            below += count
            put(f"{name}_bucket", below, le=str(bound))
        put(f"{name}_count", histogram.count)
        put(f"{name}_sum", histogram.sum)

    put("connections", stats.leased, state="active")
    put("connections", stats.idle, state="idle")
    put("connections", stats.opening, state="opening")
    put("connections_max", stats.maxsize)
    put("pending_acquires", stats.waiting)
    put("oldest_lease_seconds", stats.oldest_lease_seconds)
    put("leaked_connections_total", stats.leaked)
    for name, label, counts in (
        ("acquires_total", "outcome", stats.acquires),
        ("connect_failures_total", "reason", stats.connect_failures),
        ("connections_closed_total", "reason", stats.closed),
        ("stale_connections_total", "outcome", stats.stale),
        ("drains_total", "outcome", stats.drains),
        ("requests_total", "outcome", stats.requests),
    ):
        for kind, count in counts.items():
            put(name, count, **{label: kind})
    put_histogram("acquire_wait_seconds", stats.wait)
    put_histogram("connection_use_seconds", stats.use)
    put_histogram("connect_duration_seconds", stats.connect)
    put_histogram("request_duration_seconds", stats.request)
    return found


def differences(expected: Mapping[Key, float], scraped: Mapping[Key, float]) -> list[str]:
    """Return where /metrics does not say what the pools say, one line each."""
    lines = []
    for key, value in expected.items():
        shown = scraped.get(key)
        if shown != value:
            labels = ",".join(f'{label}="{text}"' for label, text in key[1])
            lines.append(
                f"{key[0]}{{{labels}}} is {'missing' if shown is None else f'{shown:g}'}, the pool has {value:g}"
            )
    return lines


def scrape(port: int) -> dict[Key, float]:
    """Fetch our own /metrics, as Prometheus would.

    Raises:
        OSError, HTTPException: It could not be had.
    """
    from prometheus_client.parser import text_string_to_metric_families

    from .conn import HTTPConnection

    conn = HTTPConnection(_HOST, port, timeout=_CALL_SECONDS)
    try:
        conn.request("GET", "/metrics")
        text = conn.getresponse().read().decode()
    finally:
        conn.close()
    return {
        _key(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextlib.contextmanager
def metrics_endpoint(port: int) -> Iterator[int]:
    """Serve the default registry, as a program of a user would; gives the port.

    Raises:
        ModuleNotFoundError: prometheus_client is not installed.
        OSError: The port cannot be had.
    """
    from prometheus_client import start_http_server

    server, thread = start_http_server(port, addr=_HOST)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- the run ------------------------------------------------------------------------------------------


class Signals:
    """Takes Ctrl-C and SIGTERM as the wish to come to an end; a second one ends at once, by KeyboardInterrupt.

    The handler only sets a flag that the main thread looks at: it may interrupt any line of that thread, also one
    that holds a lock.

    Attributes:
        is_interrupted: Whether one came.
    """

    def __init__(self) -> None:
        self.is_interrupted = False

    def __enter__(self) -> Self:
        """Take over the two signals."""
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.is_interrupted:
            raise KeyboardInterrupt
        self.is_interrupted = True


class Verdict:
    """The checks of a run, and how they ended."""

    def __init__(self, screen: Screen) -> None:
        self.is_good = True
        self._screen = screen

    def check(self, *, holds: bool, text: str, otherwise: Sequence[str] = ()) -> None:
        """Print one check; `otherwise` is added when it fails."""
        self.is_good = self.is_good and holds
        self._screen.say(f"  {'ok  ' if holds else 'FAIL'} {text}")
        if not holds:
            self._screen.say(*(f"       {line}" for line in otherwise))


class Demo:
    """One run: its API, its pools, its workers, and the clock they all started by.

    Args:
        options: What was asked for.
        apis: The API's origins.
        manager: The pools.
        screen: Where to print.
        signals: What tells that somebody wants an end.
    """

    def __init__(
        self, options: DemoOptions, *, apis: Sequence[Api], manager: PoolManager, screen: Screen, signals: Signals
    ) -> None:
        self.options = options
        self.apis = apis
        self.manager = manager
        self.screen = screen
        self.signals = signals
        self.ledgers = {api.origin: Ledger() for api in apis}
        self.raw_exchanges = 0  # those over a lent connection: the pool does not see them
        self._started = time.monotonic()
        self._shown = (self._started, dict.fromkeys(self.ledgers, 0))

    # --- the load ---------------------------------------------------------------------------------------

    def load(self, seed: int) -> bool:
        """Call the API as long as was asked for; return whether nobody cut it short."""
        with Load(self.manager, self.ledgers, workers=self.options.workers, seed=seed):
            return self._watch(self.options.duration)

    def stay_up(self, seed: int) -> None:
        """Keep up a light load until somebody wants an end."""
        load = Load(self.manager, self.ledgers, workers=self.options.workers, seed=seed)
        load.pause = _LIGHT_PAUSE
        with load:
            self._watch(None)

    def _watch(self, seconds: float | None) -> bool:
        """Show how it goes until the time is over, or until a signal; ``None``: only then."""
        started = time.monotonic()
        interval = 0.25 if self.screen.is_live else 1.0
        beats = 0
        try:
            while not self.signals.is_interrupted:
                elapsed = time.monotonic() - started
                if seconds is not None and elapsed >= seconds:
                    return True
                if elapsed >= (beats + 1) * interval:
                    beats = math.floor(elapsed / interval)
                    self._show(elapsed, seconds)
                time.sleep(_SLICE if seconds is None else max(min(_SLICE, seconds - elapsed), 0.001))
            return False
        finally:
            self.screen.settle()

    def _show(self, elapsed: float, seconds: float | None) -> None:
        if self.options.is_quiet:
            return
        rows = self.rows()
        if not self.screen.is_live:
            self.screen.say(plain_line(elapsed, None if seconds is None else elapsed / seconds, rows[-1]))
            return
        state = "staying up under a light load until Ctrl-C" if seconds is None else progress_bar(elapsed, seconds)
        errors = total_of(self.ledgers.values())
        seen = f"{errors.calls} calls, {errors.truncated + errors.failures.total()} errors seen by callers"
        self.screen.show([state, seen, *table(rows)])

    def rows(self, stats: Mapping[str, PoolStats] | None = None) -> list[Row]:
        """Return a row an origin, and the total's.

        Args:
            stats: The pools' numbers, for rates over the whole run; ``None``: those of now, and the rates since
                the last call.
        """
        now = time.monotonic()
        since, before = self._shown if stats is None else (self._started, dict.fromkeys(self.ledgers, 0))
        stats = self.manager.stats() if stats is None else stats
        rows = []
        calls = {}
        for origin in self.ledgers:
            ledger = total_of([self.ledgers[origin]])  # a copy
            calls[origin] = ledger.calls
            scheme, _, address = origin.partition("://")
            rows.append(Row(
                label=f"{scheme:<6}:{address.rpartition(':')[2]}",
                rate=(ledger.calls - before[origin]) / max(now - since, 0.001),
                stats=stats[origin],
                latencies=ledger.latencies,
            ))  # fmt: skip
        self._shown = (now, calls)
        if len(rows) > 1:
            rows.append(Row(
                label="total",
                rate=sum(row.rate for row in rows),
                stats=sum_of([row.stats for row in rows]),
                latencies=total_of(self.ledgers.values()).latencies,
            ))  # fmt: skip
        return rows

    # --- the rule ---------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let the API come to rest, and have the pools look at what it left behind."""
        for api in self.apis:
            api.settle()
        self.manager.prune()

    def show_the_rule(self, verdict: Verdict) -> None:
        """Try a second request while a response is unread, and show that it went nowhere."""
        from .errors import UnreadResponse

        api = self.apis[0]
        say = self.screen.say
        say("", "the rule: read the response before the next request")
        with self.manager.connection(api.origin, timeout=_CALL_SECONDS) as conn:
            before = api.received_bytes
            conn.request("GET", "/items/first/1024")
            response = conn.getresponse()
            first = api.received_bytes - before
            port = conn.sock.getsockname()[1]
            say("  lent a connection; sent GET /items/first/1024; of the answer only the head is read")
            refusal = ""
            try:
                conn.request("GET", "/items/wrong/1024")
            except UnreadResponse as error:
                refusal = str(error)
            verdict.check(
                holds=bool(refusal),
                text="GET /items/wrong/1024 was refused by UnreadResponse"
                if refusal
                else "no UnreadResponse was raised",
            )
            say(*(f"       {line}" for line in wrapped(refusal)))
            data = response.read()
            conn.request("GET", "/items/third/1024")  # as long as the first one
            again = conn.getresponse()
            self.raw_exchanges += 2
            is_same = conn.sock.getsockname()[1] == port
            holds = data == content_of(b"first", 1024) and again.read() == content_of(b"third", 1024) and is_same
            verdict.check(
                holds=holds,
                text=f"after read() the same connection went on: GET /items/third/1024 gave {again.status}",
            )
        # TCP keeps the order: what the refused request had sent would have come in before the third one.
        received = api.received_bytes - before
        verdict.check(
            holds=received == 2 * first,
            text=f"the API received {first} bytes of the first request, 0 of the refused one, {received - first} of "
            f"the third"
            if received == 2 * first
            else f"the API received {received} bytes, and two requests have {2 * first}",
        )

    # --- the summary ------------------------------------------------------------------------------------

    def summarize(self, verdict: Verdict, metrics_port: int, *, is_whole: bool) -> None:
        """Print what came out, and check it.

        Args:
            verdict: Takes the checks.
            metrics_port: Where our own /metrics is.
            is_whole: Whether the load ran as long as it should; a part of one says nothing about reuse.
        """
        say = self.screen.say
        stats = self.manager.stats()  # once; nothing is under way
        scraped = scrape(metrics_port)
        total = sum_of(list(stats.values()))
        seen = total_of(self.ledgers.values())
        say("", f"summary: {seen.calls} calls in {time.monotonic() - self._started:.1f} s")
        say(*(f"  {line}" for line in table(self.rows(stats))))
        say(f"  connections ended  {counted(total.closed) or f'none: all {total.opened} are still open'}")
        if self.options.has_faults:
            self._tell_faults(total, seen)
        say("", "checks")
        expected = {key: value for one in stats.values() for key, value in expected_samples(one).items()}
        wrong = differences(expected, scraped)
        verdict.check(
            holds=not wrong,
            text=f"metrics agree: {len(expected)} values compared" if not wrong
            else f"/metrics differs in {len(wrong)} of {len(expected)} values",
            otherwise=wrong,
        )  # fmt: skip
        self._check_reuse(verdict, total, is_whole=is_whole)
        self._check_counts(verdict, total, seen)
        self._check_callers(verdict, seen)

    def _tell_faults(self, total: PoolStats, seen: Ledger) -> None:
        faults = sum((api.faults for api in self.apis), Counter[str]())
        closed = total.closed
        dead = sum(closed[reason] for reason in ("stale_eof", "stale_reset", "stale_408", "unsolicited"))
        self.screen.say(
            f"  the API misbehaved {counted(faults) or 'never'}",
            f"  the pool absorbed  {dead} connections found dead, {closed['stale_assumed']} as old as one found dead;",
            f"                     {closed['leftover']} with bytes behind an answer; "
            f"{total.stale['retried']} requests sent again",
            f"  callers saw        {seen.truncated} IncompleteRead, {seen.failures.total()} other errors, "
            f"{seen.foreign} answers of others",
        )

    def _check_reuse(self, verdict: Verdict, total: PoolStats, *, is_whole: bool) -> None:
        reuse = format_share(total.reuse_ratio)
        if self.options.has_faults:
            self.screen.say(f"  -    reuse {reuse} %: not judged, the API ends connections on purpose")
        elif not is_whole:
            self.screen.say(f"  -    reuse {reuse} %: not judged, the load was cut short")
        else:
            served = total.acquires["reused"] + total.acquires["opened"]
            verdict.check(
                holds=total.reuse_ratio > _LEAST_REUSE,
                text=f"reuse {reuse} %, which must be above {_LEAST_REUSE * 100:g} %",
                otherwise=[
                    f"{served} acquires for {total.opened} connections: a longer --duration, or fewer connections"
                ],
            )

    def _check_counts(self, verdict: Verdict, total: PoolStats, seen: Ledger) -> None:
        accepted, answered = sum(api.accepted for api in self.apis), sum(api.answered for api in self.apis)
        asked = sum(total.requests.values()) + self.raw_exchanges
        is_equal = accepted == total.opened and answered == asked == seen.calls + self.raw_exchanges
        verdict.check(
            holds=is_equal,
            text=f"the API counted the same: {accepted} connections, {answered} requests" if is_equal
            else f"the API accepted {accepted} connections and answered {answered} requests; the pools opened "
            f"{total.opened} and sent {asked}; callers made {seen.calls + self.raw_exchanges} calls",
        )  # fmt: skip
        ended = sum(total.closed.values())
        is_at_rest = not (total.leased or total.opening or total.waiting)
        verdict.check(
            holds=is_at_rest and total.opened == ended + total.idle,
            text=f"every connection is accounted for: {total.opened} opened = {ended} ended + {total.idle} idle",
            otherwise=[f"{total.leased} leased, {total.opening} opening, {total.waiting} waiting"],
        )

    def _check_callers(self, verdict: Verdict, seen: Ledger) -> None:
        truncated = sum(api.faults[Fault.TRUNCATED] for api in self.apis)
        if self.options.has_faults:
            verdict.check(
                holds=seen.truncated == truncated,
                text=f"callers saw {seen.truncated} IncompleteRead, the API truncated {truncated} answers",
            )
        failures = Counter(seen.failures)
        if not self.options.has_faults:
            failures["IncompleteRead"] += seen.truncated
        failed = failures.total()
        verdict.check(
            holds=not failed,
            text=f"{failed} calls failed: {counted(failures)}"
            if failed
            else "no call failed"
            if not self.options.has_faults
            else "no call failed because of a close, a reset, a 408 or extra bytes",
            otherwise=[seen.example],
        )
        verdict.check(
            holds=not seen.foreign,
            text=f"{seen.foreign} answers belonged to another request",
            otherwise=[seen.example],
        )


def sum_of(stats: Sequence[PoolStats]) -> PoolStats:
    """Return the numbers of several pools as those of one."""
    total, *rest = stats
    for one in rest:
        total += one
    return total


def counted(counts: Mapping[str, int]) -> str:
    """Return what there is any of: ``closed 3, reset 1``."""
    return ", ".join(f"{kind} {count}" for kind, count in counts.items() if count)


def wrapped(text: str, width: int = 72) -> list[str]:
    """Break a text into lines."""
    import textwrap

    return textwrap.wrap(text, width, break_on_hyphens=False)


def run(options: DemoOptions, *, out: TextIO | None = None) -> int:
    """Run the demo.

    Args:
        options: What was asked for.
        out: Where to print; ``None``: standard output.

    Returns:
        The exit status: 0 if all checks held, 1 if not, 130 if a run that does not stay up was interrupted.
    """
    out = sys.stdout if out is None else out
    screen = Screen(out, is_live=not (options.is_plain or options.is_quiet) and can_be_live(out, os.environ))
    try:
        with contextlib.ExitStack() as stack:
            return _run(options, screen, stack)
    except KeyboardInterrupt:
        screen.say("interrupted")
        return 130


def _run(options: DemoOptions, screen: Screen, stack: contextlib.ExitStack) -> int:
    from . import __version__
    from .manager import PoolManager

    signals = stack.enter_context(Signals())
    stack.callback(screen.settle)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    try:
        metrics_port = stack.enter_context(metrics_endpoint(options.port))
    except ModuleNotFoundError as missing:
        screen.say(f"/metrics needs {missing.name}, which is not installed: pip install prometheus-client")
        return 1
    except OSError as fault:
        screen.say(f"/metrics cannot be served at {_HOST}:{options.port}: {fault.strerror}")
        return 1
    apis, client_tls = _start_apis(options, seed, screen, stack)
    manager = stack.enter_context(PoolManager(maxsize=options.pool_size, ssl_context=client_tls))
    for api in apis:
        manager.pool(api.origin)  # so that each has its numbers from the start
    faults = ", with faults" if options.has_faults else ""
    screen.say(
        f"pooledhttp {__version__} demo: {options.workers} workers, {options.pool_size} connections an origin at most, "
        f"seed {seed}{faults}",
        f"  API      {' and '.join(api.origin for api in apis)}",
        f"  metrics  http://{_HOST}:{metrics_port}/metrics",
        "",
    )
    demo = Demo(options, apis=apis, manager=manager, screen=screen, signals=signals)
    is_whole = demo.load(seed)
    if not is_whole and not options.stays_up:
        screen.say("interrupted")
        return 130
    verdict = Verdict(screen)
    behaviour = [api.is_behaving for api in apis]
    demo.settle()
    demo.show_the_rule(verdict)
    if options.stays_up and not signals.is_interrupted:
        for api, is_behaving in zip(apis, behaviour, strict=True):
            api.is_behaving = is_behaving
        screen.say("", f"staying up for Prometheus under a light load; end it with Ctrl-C, or: kill {os.getpid()}")
        demo.stay_up(seed + 1)
        demo.settle()
    demo.summarize(verdict, metrics_port, is_whole=is_whole)
    screen.say("", "all of it holds" if verdict.is_good else "NOT ALL OF IT HOLDS: see FAIL above")
    return 0 if verdict.is_good else 1


def _start_apis(
    options: DemoOptions, seed: int, screen: Screen, stack: contextlib.ExitStack
) -> tuple[list[Api], ssl.SSLContext | None]:
    """Start the API over HTTP, and over HTTPS where that is wanted and possible."""
    contexts: list[ssl.SSLContext | None] = [None]
    client_tls = None
    if options.has_https:
        try:
            server_tls, client_tls = make_tls()
            contexts.append(server_tls)
        except ModuleNotFoundError as missing:
            screen.say(f"HTTP only: {missing.name} is not installed (pip install 'pooledhttp[demo]' brings it)")
    apis = []
    for context in contexts:
        scheme = "http" if context is None else "https"
        api = Api(tls=context, seed=f"{seed}/{scheme}" if options.has_faults else None)
        stack.callback(api.close)
        apis.append(api)
    return apis, client_tls
