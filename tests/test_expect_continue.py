"""`Expect: 100-continue`: the head goes alone, and the body only when the server wants it, or says nothing for a while.

Each fault test ends with the same audit: descriptors and threads are back at the start, the pool's counters add up, and
one more request works.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import trustme

from pooledhttp import (
    ConnectionPool,
    HTTPConnection,
    HTTPException,
    HTTPSConnection,
    PoolConfig,
    RemoteDisconnected,
    Timeout,
    TotalTimeout,
)
from pooledhttp.states import State
from pooledhttp.testing import (
    Close,
    ExpectBody,
    ExpectHead,
    HalfClose,
    Mark,
    Peer,
    ReadToEnd,
    Repeat,
    Reset,
    ResourceAudit,
    Respond,
    ScriptedServer,
    Send,
    ServerFactory,
    Stall,
    Step,
)

BOUND: Final = 10.0
# Longer than any peer waits here: who waits this long instead of going on fails the test.
FOR_EVER: Final = 30.0
BRIEFLY: Final = 0.02
PATIENT: Final = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
HELLO: Final = Respond(body=b"hello")
CONTINUE: Final = Respond(100)
ANSWERS: Final[list[Step]] = [Repeat([ExpectHead(), HELLO])]
ASKING: Final = {"Expect": "100-continue"}
CONTENT: Final = bytes(range(256)) * 600  # more than leaves with a head
PEER_LEFT: Final = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, ssl.SSLEOFError)


# --- what the tests stand on ------------------------------------------------------------------------------------------


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    return context


@functools.cache
def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


class Answer(NamedTuple):
    status: int
    body: bytes


class Client:
    """One way to send a request with a body, over plain TCP or TLS; and what its connection or pool looks like after.

    Args:
        way: By which calls.
        is_tls: Whether over TLS.
    """

    def __init__(self, way: str, audit: ResourceAudit, stack: ExitStack, *, is_tls: bool) -> None:
        self.way = way
        self.is_tls = is_tls
        self._audit = audit
        self._stack = stack
        self._conn: HTTPConnection | None = None
        self._pool: ConnectionPool | None = None

    def aim(self, server: ScriptedServer, *, wait: float = FOR_EVER, timeout: Timeout = PATIENT) -> None:
        """Choose the server, and how long to wait for 100."""
        if self.way.startswith("pool"):
            settings: dict[str, Any] = {"registry": None, "timeout": timeout, "maxsize": 1}
            if self.is_tls:
                settings["ssl_context"] = client_context()
            config = PoolConfig(expect_continue_timeout=wait, **settings)
            scheme = "https" if self.is_tls else "http"
            pool = ConnectionPool(server.host, server.port, scheme=scheme, config=config)
            self._pool = self._stack.enter_context(pool)
            self._audit.watch(pool)
            return
        if self.is_tls:
            conn: HTTPConnection = HTTPSConnection(
                server.host, server.port, timeout=timeout.read, context=client_context()
            )
        else:
            conn = HTTPConnection(server.host, server.port, timeout=timeout.read)
        conn.expect_continue_timeout = wait
        self._conn = conn
        self._stack.callback(conn.close)

    def send(self, body: Any, *, method: str = "POST", headers: dict[str, str] | None = None) -> Answer:
        """Send a request with its body, and return the answer."""
        headers = ASKING if headers is None else headers
        if self.way == "pool.request":
            assert self._pool is not None
            response = self._pool.request(method, "/upload", body, headers)
            return Answer(response.status, response.data)
        if self.way == "pool.stream":
            assert self._pool is not None
            with self._pool.stream(method, "/upload", body, headers) as streamed:
                return Answer(streamed.status, b"".join(streamed))
        conn = self._conn
        assert conn is not None
        with contextlib.suppress(*PEER_LEFT):  # getresponse() raises it again, or has an answer
            self._send_by(conn, method, body, headers)
        received = conn.getresponse()
        return Answer(received.status, received.read())

    def _send_by(self, conn: HTTPConnection, method: str, body: Any, headers: dict[str, str]) -> None:
        if self.way == "request":
            conn.request(method, "/upload", body, headers)
            return
        conn.putrequest(method, "/upload")
        for name, value in headers.items():
            conn.putheader(name, value)
        if isinstance(body, bytes):
            conn.putheader("Content-Length", str(len(body)))
            if self.way == "steps":
                conn.endheaders(body)
            else:
                conn.endheaders()
                half = len(body) // 2
                conn.send(body[:half])
                conn.send(body[half:])
            return
        conn.putheader("Transfer-Encoding", "chunked")
        conn.endheaders(body, encode_chunked=True)

    def assert_closed(self) -> None:
        """The connection is closed, as a pool counts it: since the server did not take the whole request."""
        if self._conn is not None:
            assert self._conn.state is State.CLOSED
        if self._pool is not None:
            assert {key: count for key, count in self._pool.stats().closed.items() if count} == {"server_close": 1}

    def finish(self) -> None:
        """One normal request, without waiting for a slot."""
        if self._conn is not None:
            self._conn.request("GET", "/again")
            assert self._conn.getresponse().read() == b"hello"
            self._conn.close()
        if self._pool is not None:
            timeout = Timeout(acquire=0, connect=BOUND, read=BOUND)
            assert self._pool.request("GET", "/again", timeout=timeout).data == b"hello"
            stats = self._pool.stats()
            assert (stats.idle, stats.leased, stats.opening, stats.waiting) == (1, 0, 0, 0)

    @property
    def pool(self) -> ConnectionPool:
        assert self._pool is not None
        return self._pool


WAYS: Final = ["request", "steps", "send", "pool.request", "pool.stream"]
MakeServer = Callable[..., ScriptedServer]


@pytest.fixture
def make_client(scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[Callable[..., Client]]:
    with ExitStack() as stack:
        yield lambda way="request", is_tls=False: Client(way, audit, stack, is_tls=is_tls)


@pytest.fixture(params=[*WAYS, "request over tls", "pool.request over tls"])
def client(request: pytest.FixtureRequest, make_client: Callable[..., Client]) -> Client:
    way, _, tls = request.param.partition(" over ")
    return make_client(way, is_tls=bool(tls))


@pytest.fixture
def serve(scripted_server: ServerFactory, request: pytest.FixtureRequest) -> MakeServer:
    """Make servers that speak what the client does."""

    def make(*scripts: Any, default: Any = ANSWERS) -> ScriptedServer:
        is_tls = "client" in request.fixturenames and request.getfixturevalue("client").is_tls
        return scripted_server(*scripts, default=default, ssl_context=server_context() if is_tls else None)

    return make


def head_alone(peer: Peer) -> None:
    """Read a head; nothing has come along with it."""
    peer.read_head()
    assert peer.requests[-1].field("Expect") == "100-continue"
    peer.mark("head")
    assert peer.unread == b""


def body_of(server: ScriptedServer) -> bytes:
    """Return what the first connection has received behind its first head, once it is over."""
    assert server.peer().ended.wait(BOUND)
    return server.peer().received.partition(b"\r\n\r\n")[2]


# --- the server wants the body ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"small", CONTENT], ids=["small", "large"])
def test_body_follows_at_once_when_100_arrives(body: bytes, client: Client, serve: MakeServer) -> None:
    server = serve([head_alone, CONTINUE, ExpectBody(), HELLO, *ANSWERS])
    client.aim(server)
    assert client.send(body) == (200, b"hello")
    assert server.requests[0].body == body
    client.finish()
    assert server.accepted == 1


INTERIM: Final[dict[str, list[Step]]] = {
    "103, then 100": [Respond(103, headers=[("Link", "</a>")]), CONTINUE],
    "102 and 199, then 100": [Respond(102), Respond(199), CONTINUE],
    "100 twice": [CONTINUE, CONTINUE],
    "100, then 103": [CONTINUE, Respond(103)],
    "100 with fields": [Respond(100, headers=[("Server", "a"), ("Via", "b")])],
    "100 byte by byte": [Send(CONTINUE.encode(), piece=1)],
    "103 and 100 byte by byte": [Send(Respond(103).encode() + CONTINUE.encode(), piece=1)],
    "103 and 100 at once": [Send(Respond(103).encode() + CONTINUE.encode())],
}


@pytest.mark.parametrize("case", INTERIM)
def test_interim_answers_are_skipped_until_100(case: str, client: Client, serve: MakeServer) -> None:
    server = serve([head_alone, *INTERIM[case], ExpectBody(), HELLO, *ANSWERS])
    client.aim(server)
    assert client.send(CONTENT) == (200, b"hello")
    assert server.requests[0].body == CONTENT
    client.finish()
    assert server.accepted == 1


def test_interim_answer_that_is_not_100_does_not_send_the_body(
    make_client: Callable[..., Client], serve: MakeServer
) -> None:
    server = serve([head_alone, Respond(102), Respond(103), Respond(417), ReadToEnd()])
    client = make_client()
    client.aim(server)
    assert client.send(CONTENT).status == 417
    client.assert_closed()
    assert body_of(server) == b""
    client.finish()


def chunked_body(directory: Path, stack: ExitStack) -> Any:
    return iter([CONTENT[:1000], b"", CONTENT[1000:]])


def file_body(directory: Path, stack: ExitStack) -> Any:
    path = directory / "body"
    path.write_bytes(CONTENT)
    return stack.enter_context(path.open("rb"))


BODIES: Final[dict[str, Callable[[Path, ExitStack], Any]]] = {
    "chunks": chunked_body,
    "file": file_body,
    "BytesIO": lambda directory, stack: io.BytesIO(CONTENT),
    "bytearray": lambda directory, stack: bytearray(CONTENT),
    "text": lambda directory, stack: CONTENT.decode("latin-1"),
}
every_body = pytest.mark.parametrize("kind", BODIES)


@every_body
def test_every_kind_of_body_waits_for_100(kind: str, client: Client, serve: MakeServer, tmp_path: Path) -> None:
    server = serve([head_alone, CONTINUE, ExpectBody(), HELLO, *ANSWERS])
    client.aim(server)
    with ExitStack() as stack:
        assert client.send(BODIES[kind](tmp_path, stack)) == (200, b"hello")
    assert server.requests[0].body == CONTENT
    client.finish()


@every_body
def test_no_kind_of_body_is_sent_after_a_refusal(kind: str, client: Client, serve: MakeServer, tmp_path: Path) -> None:
    server = serve([head_alone, Respond(417), ReadToEnd()])
    client.aim(server)
    with ExitStack() as stack:
        body = BODIES[kind](tmp_path, stack)
        assert client.send(body).status == 417
        if kind in {"file", "BytesIO"}:
            assert body.tell() == 0
        if kind == "chunks":
            assert next(body) == CONTENT[:1000]
    client.assert_closed()
    assert body_of(server) == b""
    client.finish()


@pytest.mark.parametrize("name", ["expect", "EXPECT", "Expect"])
@pytest.mark.parametrize("value", ["100-continue", "100-Continue", "100-CONTINUE"])
def test_field_is_known_in_any_case(
    name: str, value: str, make_client: Callable[..., Client], serve: MakeServer
) -> None:
    server = serve([ExpectHead(body=False), Respond(417), ReadToEnd()])
    client = make_client("pool.request")
    client.aim(server)
    assert client.send(b"small", headers={name: value}).status == 417
    assert body_of(server) == b""
    client.finish()


def test_field_may_be_bytes(make_client: Callable[..., Client], serve: MakeServer) -> None:
    server = serve([ExpectHead(body=False), Respond(417), ReadToEnd()])
    client = make_client("pool.request")
    client.aim(server)
    assert client.pool.request("POST", "/upload", b"small", {b"Expect": b"100-continue"}).status == 417
    assert body_of(server) == b""
    client.finish()


def test_early_refusal_behind_100_stops_the_body(client: Client, serve: MakeServer) -> None:
    over = threading.Event()
    server = serve([head_alone, CONTINUE, Respond(413, b"no"), Stall(until=over), ReadToEnd()])
    client.aim(server)
    assert client.send(bytes(20_000_000)) == (413, b"no")
    over.set()
    client.assert_closed()
    assert len(body_of(server)) < 20_000_000
    client.finish()


# --- the server says nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"small", CONTENT], ids=["small", "large"])
def test_body_follows_after_the_wait_when_the_server_says_nothing(
    body: bytes, client: Client, serve: MakeServer
) -> None:
    server = serve([ExpectHead(), HELLO, *ANSWERS])
    client.aim(server, wait=BRIEFLY)
    begun = time.monotonic()
    assert client.send(body) == (200, b"hello")
    assert time.monotonic() - begun >= BRIEFLY
    assert server.requests[0].body == body
    client.finish()
    assert server.accepted == 1


@every_body
def test_every_kind_of_body_follows_after_the_wait(
    kind: str, client: Client, serve: MakeServer, tmp_path: Path
) -> None:
    server = serve([ExpectHead(), HELLO, *ANSWERS])
    client.aim(server, wait=BRIEFLY)
    with ExitStack() as stack:
        assert client.send(BODIES[kind](tmp_path, stack)) == (200, b"hello")
    assert server.requests[0].body == CONTENT
    client.finish()
    assert server.accepted == 1


def test_interim_answers_do_not_prolong_the_wait(make_client: Callable[..., Client], serve: MakeServer) -> None:
    def chatters(peer: Peer) -> None:
        peer.read_head()
        while not peer.unread:
            peer.send(Respond(102).encode())
            peer.stall(seconds=0.01)
            peer.mark("so far")
        peer.read_body()
        peer.send(HELLO.encode())
        ANSWERS[0](peer)

    server = serve(chatters)
    client = make_client()
    client.aim(server, wait=0.1)
    assert client.send(b"small") == (200, b"hello")
    client.finish()
    assert server.accepted == 1


def test_100_that_comes_after_the_wait_is_skipped(client: Client, serve: MakeServer) -> None:
    server = serve([ExpectHead(), CONTINUE, HELLO, *ANSWERS])
    client.aim(server, wait=BRIEFLY)
    assert client.send(CONTENT) == (200, b"hello")
    client.finish()
    assert server.accepted == 1


def test_half_of_100_before_and_half_after_the_wait_is_skipped(client: Client, serve: MakeServer) -> None:
    server = serve(
        [ExpectHead(body=False), Send(b"HTTP/1.1 100 Con"), ExpectBody(), Send(b"tinue\r\n\r\n"), HELLO, *ANSWERS]
    )
    client.aim(server, wait=BRIEFLY)
    assert client.send(CONTENT) == (200, b"hello")
    client.finish()
    assert server.accepted == 1


def test_body_is_waited_for_only_once(make_client: Callable[..., Client], serve: MakeServer) -> None:
    server = serve([ExpectHead(), HELLO, *ANSWERS])
    client = make_client("send")
    client.aim(server, wait=0.3)
    waits: list[float] = []
    conn = client._conn
    assert conn is not None
    conn.putrequest("POST", "/upload")
    conn.putheader("Expect", "100-continue")
    conn.putheader("Content-Length", 3)
    conn.endheaders()
    for _ in range(3):
        begun = time.monotonic()
        conn.send(b"a")
        waits.append(time.monotonic() - begun)
    assert conn.getresponse().read() == b"hello"
    assert waits[0] >= 0.3
    assert min(waits[1:]) < 0.3
    client.finish()


def test_next_request_on_the_connection_asks_anew_or_not_at_all(client: Client, serve: MakeServer) -> None:
    server = serve([
        head_alone, CONTINUE, ExpectBody(), HELLO,  # asks
        ExpectHead(), HELLO,  # does not ask: its body comes unbidden
        head_alone, CONTINUE, ExpectBody(), HELLO, *ANSWERS,
    ])  # fmt: skip
    client.aim(server)
    for headers in (ASKING, {}, ASKING):
        assert client.send(CONTENT, headers=headers) == (200, b"hello")
    client.finish()
    assert server.accepted == 1


# --- the server does not want the body --------------------------------------------------------------------------------

FINAL: Final[dict[str, tuple[Respond, bytes]]] = {
    "417": (Respond(417, b"I will not"), b"I will not"),
    "413 that closes": (Respond(413, b"too large", headers=[("Connection", "close")]), b"too large"),
    "401": (Respond(401, b"who?", headers=[("WWW-Authenticate", "Basic")]), b"who?"),
    "200": (Respond(200, b"done already"), b"done already"),
    "204": (Respond(204), b""),
    "301": (Respond(301, headers=[("Location", "/elsewhere")]), b""),
    "304": (Respond(304), b""),
    "500 in chunks": (Respond(500, b"oh", chunked=True), b"oh"),
}
every_final = pytest.mark.parametrize("case", FINAL)


@every_final
def test_final_answer_is_delivered_and_the_body_never_sent(case: str, client: Client, serve: MakeServer) -> None:
    answer, text = FINAL[case]
    server = serve([head_alone, answer, ReadToEnd()])
    client.aim(server)
    assert client.send(CONTENT) == (answer.status, text)
    client.assert_closed()
    assert body_of(server) == b""
    client.finish()
    assert server.accepted == 2


@every_final
def test_cve_2024_24791_connection_is_not_used_again_unless_the_body_was_sent(
    case: str, make_client: Callable[..., Client], serve: MakeServer
) -> None:
    answer, _ = FINAL[case]
    server = serve([head_alone, answer, ReadToEnd()])
    client = make_client("pool.request")
    client.aim(server)
    client.send(CONTENT)
    client.finish()
    # The next request would have been taken for the body.
    assert server.accepted == 2
    assert body_of(server) == b""
    assert [request.target for request in server.requests] == ["/upload", "/again"]


@pytest.mark.parametrize(
    "answer", [Respond(417, b"no"), Respond(200, b"no", chunked=True)], ids=["417", "200 in chunks"]
)
def test_final_answer_may_come_byte_by_byte(answer: Respond, client: Client, serve: MakeServer) -> None:
    server = serve([head_alone, Send(answer.encode(), piece=1), ReadToEnd()])
    client.aim(server)
    assert client.send(CONTENT) == (answer.status, b"no")
    client.assert_closed()
    assert body_of(server) == b""
    client.finish()


SPLIT: Final = Respond(417, b"no").encode()


@pytest.mark.parametrize("at", range(1, len(SPLIT)))
def test_final_answer_may_be_split_anywhere(at: int, make_client: Callable[..., Client], serve: MakeServer) -> None:
    server = serve([head_alone, Send(SPLIT[:at]), Stall(seconds=0.001), Send(SPLIT[at:]), ReadToEnd()])
    client = make_client("pool.request")
    client.aim(server)
    assert client.send(CONTENT) == (417, b"no")
    client.assert_closed()
    assert body_of(server) == b""
    client.finish()


def test_final_answer_may_be_long_and_be_streamed(make_client: Callable[..., Client], serve: MakeServer) -> None:
    text = CONTENT * 20
    server = serve([head_alone, Respond(413, text), ReadToEnd()])
    client = make_client("pool.stream")
    client.aim(server)
    assert client.send(CONTENT) == (413, text)
    client.assert_closed()
    assert body_of(server) == b""
    client.finish()


def test_final_answer_that_is_followed_by_a_close_is_delivered(client: Client, serve: MakeServer) -> None:
    server = serve([head_alone, Respond(417, b"no"), Close()])
    client.aim(server)
    assert client.send(CONTENT) == (417, b"no")
    client.assert_closed()
    client.finish()


def test_switch_of_protocols_is_final(make_client: Callable[..., Client], serve: MakeServer) -> None:
    server = serve([head_alone, Respond(101, headers=[("Upgrade", "other")]), Mark("switched"), ReadToEnd()])
    client = make_client()
    client.aim(server)
    conn = client._conn
    assert conn is not None
    conn.request("POST", "/upload", CONTENT, ASKING)
    assert conn.getresponse().status == 101
    conn.close()
    assert body_of(server) == b""
    client.finish()


def test_what_is_no_http_is_an_error_and_the_body_never_sent(client: Client, serve: MakeServer) -> None:
    server = serve([head_alone, Send(b"220 smtp.test ready\r\n\r\n"), ReadToEnd()])
    client.aim(server)
    with pytest.raises(HTTPException):
        client.send(CONTENT)
    assert body_of(server) == b""
    client.finish()


def test_endless_interim_answers_end_the_wait(client: Client, serve: MakeServer) -> None:
    server = serve([head_alone, Send(Respond(102).encode() * 150), ReadToEnd()])
    client.aim(server)
    with pytest.raises(HTTPException, match="more than 100 interim"):
        client.send(CONTENT)
    assert body_of(server) == b""
    client.finish()


# --- the connection ends meanwhile ------------------------------------------------------------------------------------

ENDS: Final[dict[str, tuple[list[Step], tuple[type[Exception], ...]]]] = {
    "end": ([HalfClose(), ReadToEnd()], (RemoteDisconnected, ssl.SSLEOFError)),
    "reset": ([Reset()], (ConnectionResetError, ssl.SSLEOFError)),
    "half an answer, then the end": ([Send(b"HTTP/1.1 417 Exp"), HalfClose(), ReadToEnd()], (HTTPException,)),
    "half an answer, then a reset": ([Send(b"HTTP/1.1 417 Exp"), Reset()], (HTTPException, OSError)),
    "103, then the end": ([Respond(103), HalfClose(), ReadToEnd()], (RemoteDisconnected, ssl.SSLEOFError)),
}


@pytest.mark.parametrize("case", ENDS)
def test_end_of_the_connection_during_the_wait_is_an_error(case: str, client: Client, serve: MakeServer) -> None:
    steps, error = ENDS[case]
    server = serve([head_alone, *steps])
    client.aim(server)
    with pytest.raises(error):
        client.send(CONTENT)
    assert body_of(server) == b""
    client.finish()
    assert server.accepted == 2


@pytest.mark.parametrize("case", ["end", "reset"])
@pytest.mark.parametrize("way", ["pool.request", "pool.stream"])
def test_request_that_may_be_repeated_is_sent_again_when_its_kept_alive_connection_ended(
    way: str, case: str, make_client: Callable[..., Client], serve: MakeServer
) -> None:
    server = serve(
        [ExpectHead(), HELLO, head_alone, *ENDS[case][0]], [head_alone, CONTINUE, ExpectBody(), HELLO, *ANSWERS]
    )
    client = make_client(way)
    client.aim(server)
    client.finish()
    assert client.send(CONTENT, method="PUT") == (200, b"hello")
    assert server.requests[-1].body == CONTENT
    assert client.pool.stats().stale["retried"] == 1
    client.finish()
    assert server.accepted == 2


@pytest.mark.parametrize("case", ["end", "reset"])
@pytest.mark.parametrize(("method", "is_replayable"), [("POST", True), ("PUT", False)], ids=["POST", "generator"])
def test_request_that_may_not_be_repeated_is_not_sent_again(
    method: str, is_replayable: bool, case: str, make_client: Callable[..., Client], serve: MakeServer
) -> None:
    server = serve([ExpectHead(), HELLO, head_alone, *ENDS[case][0]])
    client = make_client("pool.request")
    client.aim(server)
    client.finish()
    with pytest.raises(ENDS[case][1]):
        client.send(CONTENT if is_replayable else iter([CONTENT]), method=method)
    assert client.pool.stats().stale["raised"] == 1
    client.finish()
    assert server.accepted == 2


def test_late_408_during_the_wait_is_no_answer_to_a_request_that_may_be_repeated(
    make_client: Callable[..., Client], serve: MakeServer
) -> None:
    late = Respond(408, headers=[("Connection", "close")])
    server = serve(
        [ExpectHead(), HELLO, head_alone, late, ReadToEnd()], [head_alone, CONTINUE, ExpectBody(), HELLO, *ANSWERS]
    )
    client = make_client("pool.request")
    client.aim(server)
    client.finish()
    assert client.send(CONTENT, method="PUT") == (200, b"hello")
    assert server.requests[-1].body == CONTENT
    client.finish()


# --- limits -----------------------------------------------------------------------------------------------------------


def test_total_that_is_shorter_than_the_wait_ends_the_call(
    make_client: Callable[..., Client], serve: MakeServer
) -> None:
    server = serve([head_alone, ReadToEnd()])
    client = make_client("pool.request")
    client.aim(server)
    with pytest.raises(TotalTimeout):
        client.pool.request("POST", "/upload", CONTENT, ASKING, timeout=0.1)
    assert body_of(server) == b""
    assert client.pool.stats().closed["timeout"] == 1
    client.finish()


def test_total_that_is_longer_than_the_wait_bounds_what_follows(
    make_client: Callable[..., Client], serve: MakeServer
) -> None:
    server = serve([ExpectHead(), ReadToEnd()])
    client = make_client("pool.request")
    client.aim(server, wait=BRIEFLY)
    with pytest.raises(TotalTimeout):
        client.pool.request("POST", "/upload", CONTENT, ASKING, timeout=0.2)
    assert server.requests[0].body == CONTENT
    assert client.pool.stats().closed["timeout"] == 1
    client.finish()


@pytest.mark.parametrize("total", [None, BOUND], ids=["no total", "total"])
@pytest.mark.parametrize("wait", [0.2, FOR_EVER], ids=["wait", "wait for ever"])
def test_silence_during_the_wait_is_no_read_timeout(
    wait: float, total: float | None, make_client: Callable[..., Client], serve: MakeServer
) -> None:
    server = serve([ExpectHead(), HELLO, *ANSWERS])
    client = make_client("pool.request")
    client.aim(server, wait=wait, timeout=Timeout(read=0.1, write=BOUND, total=total))
    assert client.send(CONTENT) == (200, b"hello")
    assert server.requests[0].body == CONTENT
    client.finish()
    assert server.accepted == 1


def test_documented_timeout_that_is_shorter_than_the_wait_is_no_error(
    make_client: Callable[..., Client], serve: MakeServer
) -> None:
    server = serve([ExpectHead(), HELLO, *ANSWERS])
    client = make_client()
    client.aim(server, wait=0.3, timeout=Timeout(read=0.1))
    assert client.send(CONTENT) == (200, b"hello")
    conn = client._conn
    assert conn is not None
    assert conn.sock.gettimeout() == 0.1
    client.finish()
    assert server.accepted == 1


def test_read_limit_holds_again_after_the_wait(make_client: Callable[..., Client], serve: MakeServer) -> None:
    server = serve([ExpectHead(), ReadToEnd()])
    client = make_client("pool.request")
    client.aim(server, wait=BRIEFLY, timeout=Timeout(read=0.1, write=BOUND))
    with pytest.raises(TimeoutError, match=r"sent nothing for 0\.10 s"):
        client.send(CONTENT)
    assert server.requests[0].body == CONTENT
    client.finish()


def test_wait_of_zero_sends_at_once(client: Client, serve: MakeServer) -> None:
    server = serve([ExpectHead(), HELLO, *ANSWERS])
    client.aim(server, wait=0)
    assert client.send(CONTENT) == (200, b"hello")
    client.finish()
    assert server.accepted == 1


# --- settings ---------------------------------------------------------------------------------------------------------


def test_wait_is_one_second_unless_told_otherwise() -> None:
    assert HTTPConnection.expect_continue_timeout == 1.0
    assert HTTPSConnection("origin.test").expect_continue_timeout == 1.0
    assert PoolConfig().expect_continue_timeout == 1.0


def test_pool_gives_its_wait_to_the_connections_that_it_lends(serve: MakeServer, audit: ResourceAudit) -> None:
    server = serve()
    with ConnectionPool(server.host, server.port, registry=None, expect_continue_timeout=7.5) as pool:
        audit.watch(pool)
        with pool.connection() as conn:
            assert conn.expect_continue_timeout == 7.5
            conn.expect_continue_timeout = 2.5  # for this lease
        with pool.connection() as conn:
            assert conn.expect_continue_timeout == 7.5
        assert pool.request("GET", "/again").data == b"hello"


@pytest.mark.parametrize(("value", "error"), [
    (-1, ValueError),
    (-0.001, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    (1e12, ValueError),
    (None, TypeError),
    ("1", TypeError),
    (True, TypeError),
    ([1.0], TypeError),
], ids=repr)  # fmt: skip
def test_wait_that_makes_no_sense_is_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="expect_continue_timeout"):
        PoolConfig(expect_continue_timeout=value)


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 3])
def test_wait_that_makes_sense_is_accepted(value: float) -> None:
    assert PoolConfig(expect_continue_timeout=value).expect_continue_timeout == value


# --- the field that changes nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("body", [None, b""], ids=["none", "empty"])
def test_request_without_a_body_waits_for_nothing(
    body: bytes | None, method: str, make_client: Callable[..., Client], serve: MakeServer
) -> None:
    sent = threading.Event()
    server = serve([ExpectHead(), Stall(until=sent), HELLO, *ANSWERS])
    client = make_client()
    client.aim(server)
    conn = client._conn
    assert conn is not None
    conn.request(method, "/upload", body, ASKING)
    sent.set()  # had it waited, nobody would have said a word
    assert conn.getresponse().read() == b"hello"
    assert server.requests[0].field("Expect") == "100-continue"
    client.finish()
    assert server.accepted == 1


@pytest.mark.parametrize("way", ["pool.request", "pool.stream"])
def test_request_of_a_pool_without_a_body_is_as_any_other(
    way: str, make_client: Callable[..., Client], serve: MakeServer
) -> None:
    server = serve()
    client = make_client(way)
    client.aim(server)
    for _ in range(2):
        assert client.send(None, method="GET") == (200, b"hello")
    client.finish()
    assert server.accepted == 1


@pytest.mark.parametrize("value", ["200-ok", "100", "continue", "100-continue-not", ""])
def test_other_expectations_are_sent_as_they_are(
    value: str, make_client: Callable[..., Client], serve: MakeServer
) -> None:
    server = serve()
    client = make_client("pool.request")
    client.aim(server)
    assert client.send(CONTENT, headers={"Expect": value}) == (200, b"hello")
    assert server.requests[0].field("Expect") == value
    assert server.requests[0].body == CONTENT
    client.finish()
    assert server.accepted == 1


def test_socket_that_cannot_be_listened_to_gets_the_body_at_once() -> None:
    class Foreign:
        """It has what is documented, and nothing to wait with."""

        def __init__(self) -> None:
            self.sent = b""

        def sendall(self, data: bytes) -> None:
            self.sent += bytes(data)

        def makefile(self, mode: str) -> io.BytesIO:
            return io.BytesIO(CONTINUE.encode() + HELLO.encode())

        def close(self) -> None:
            pass

    conn = HTTPConnection("origin.test")
    foreign = Foreign()
    conn.sock = foreign
    conn.request("POST", "/upload", CONTENT, ASKING)
    assert foreign.sent.endswith(b"\r\n\r\n" + CONTENT)
    assert conn.getresponse().read() == b"hello"
    conn.close()
