"""Properties of a connection that hold for whatever comes from the peer, and for whatever a caller passes.

What was encoded is read back, under any segmentation and by any mixture of the documented ways to read; afterwards the
connection is idle with the same socket, or closed, as the response said.  Anything else that arrives is an error of
three kinds and comes to an end.  Whatever is passed to the writers, the peer gets one well-formed head or nothing.

For a longer search see `tests/responses.py`.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import httptools
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pooledhttp import HTTPConnection, HTTPException, HTTPResponse
from pooledhttp.errors import IncompleteRead
from pooledhttp.states import State
from pooledhttp.testing import ResourceAudit
from tests.responses import (
    SNIPPETS,
    TOKEN_CHARACTERS,
    End,
    ForeignSocket,
    Framing,
    Message,
    PlayedOrigin,
    PlayedSocket,
    any_responses,
    bounded,
    connection_to,
    messages,
    pool_to,
    segment_sizes,
    segmented,
)

pytestmark = pytest.mark.unmeasured

GOOD_WIRE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
ALLOWED = (HTTPException, OSError, ValueError)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Look at descriptors and threads after all examples of a test: `audit` would be asked for by each of them."""
    with ResourceAudit():
        yield


# --- what is checked after an exchange --------------------------------------------------------------------------------


def end_of(message: Message) -> End:
    """What comes behind a message: nothing, if its end can be seen without."""
    return End.EOF if message.framing is Framing.TO_END else End.NOTHING_IS_DUE


def socket_for(message: Message, sizes: list[int] | None) -> PlayedSocket:
    return PlayedSocket(segmented(message.encode(), sizes), end_of(message))


def check_head(response: HTTPResponse, message: Message) -> None:
    assert (response.version, response.status, response.reason) == (message.version, message.status, message.reason)
    assert response.getheaders() == message.fields


def check_reuse(conn: HTTPConnection, sock: PlayedSocket, message: Message) -> None:
    """The connection is idle with the same socket, or closed, and which of them the response has said."""
    if message.is_reusable:
        assert conn.state is State.IDLE
        assert conn.sock is sock
        assert not sock.unreceived
    else:
        assert conn.state is State.CLOSED
        assert conn.sock is None
        assert sock.is_closed


# --- ways to read -----------------------------------------------------------------------------------------------------

Step = tuple[str, int]
amounts = st.sampled_from([1, 2, 3, 5, 7, 16, 100, 5000, 100_000])
taking_steps = st.tuples(
    st.sampled_from(["read", "readinto", "readinto1", "read1", "readline", "gather"]), amounts
) | st.sampled_from([("read", -1), ("read_none", 0), ("read1", -1), ("readline", -1), ("next", 0)])
looking_steps = st.tuples(st.just("peek"), amounts)
# The last one takes something, so that going round and round comes to an end.
recipes = st.tuples(st.lists(taking_steps | looking_steps, max_size=5), taking_steps).map(lambda two: [*two[0], two[1]])


def take(response: HTTPResponse, step: Step) -> bytes:
    """Take one step, and see that it gave what such a step is documented to give."""
    way, amount = step
    if way in {"read", "read_none"}:
        piece = response.read(None if way == "read_none" else amount)
        assert amount <= 0 or len(piece) <= amount
    elif way == "gather":
        pieces = list(iter(functools.partial(response.read, amount), b""))
        assert all(len(piece) == amount for piece in pieces[:-1])
        piece = b"".join(pieces)
    elif way in {"readinto", "readinto1"}:
        buffer = bytearray(b"?" * amount)
        count = response.readinto(buffer) if way == "readinto" else response.readinto1(buffer)
        assert buffer[count:] == b"?" * (amount - count)
        piece = bytes(buffer[:count])
    elif way == "read1":
        piece = response.read1(amount)
        assert amount < 0 or len(piece) <= amount
    elif way == "readline":
        piece = response.readline(amount)
        assert amount < 0 or len(piece) <= amount
        assert b"\n" not in piece[:-1]
    else:
        piece = next(response, b"")
        assert b"\n" not in piece[:-1]
    return piece


def read_by(response: HTTPResponse, recipe: list[Step], *, most: int = 200_000) -> bytes:
    """Read to the end by going through the steps again and again; no step may give nothing before the end."""
    body = bytearray()
    seen: bytes | None = None  # by the last peek
    for step in itertools.cycle(recipe):
        if step[0] == "peek":
            seen = response.peek(step[1])
            continue
        piece = take(response, step)
        if seen is not None:
            assert bool(seen) == bool(piece), "peek() gives nothing only at the end"
            assert piece.startswith(seen[: len(piece)])
            seen = None
        if not piece:
            break
        body += piece
        assert len(body) <= most
    assert response.read() == response.readline() == response.peek() == response.read1() == b""
    assert response.readinto(bytearray(1)) == 0
    assert list(response) == []
    return bytes(body)


# --- what was encoded is read back ------------------------------------------------------------------------------------


@bounded(300)
@given(messages(), segment_sizes, recipes)
def test_response_that_was_encoded_is_read_back_in_every_documented_way(
    message: Message, sizes: list[int] | None, recipe: list[Step]
) -> None:
    with PlayedOrigin(socket_for(message, sizes)) as origin:
        conn = connection_to(origin)
        conn.request(message.method, "/")
        sock = conn.sock
        response = conn.getresponse()
        check_head(response, message)
        assert read_by(response, recipe) == message.body
        assert response.isclosed()
        assert response.trailers == message.trailers
        check_reuse(conn, sock, message)
        conn.close()


@bounded(200)
@given(messages(), recipes)
def test_response_on_a_socket_that_has_only_a_file_is_read_back_and_not_a_byte_further(
    message: Message, recipe: list[Step]
) -> None:
    wire = message.encode()
    sock = ForeignSocket(wire if message.framing is Framing.TO_END else wire + b"further")
    conn = HTTPConnection("peer.test")
    conn.sock = sock
    conn.request(message.method, "/")
    response = conn.getresponse()
    check_head(response, message)
    assert read_by(response, recipe) == message.body
    assert response.trailers == message.trailers
    assert sock.file.tell() == len(wire)
    assert conn.state is (State.IDLE if message.is_reusable else State.CLOSED)
    assert sock.is_closed is not message.is_reusable
    conn.close()


@bounded(150)
@given(st.lists(st.tuples(messages(), segment_sizes, recipes), min_size=1, max_size=3))
def test_responses_one_after_the_other_are_read_back_on_as_few_connections_as_they_allow(
    exchanges: list[tuple[Message, list[int] | None, list[Step]]],
) -> None:
    with PlayedOrigin() as origin:
        conn = connection_to(origin)
        connections = 0
        for message, sizes, recipe in exchanges:
            if conn.sock is None:
                origin.add(PlayedSocket())
                connections += 1
            conn.request(message.method, "/path")
            sock = conn.sock
            sock.play(segmented(message.encode(), sizes), end_of(message))
            response = conn.getresponse()
            check_head(response, message)
            assert read_by(response, recipe) == message.body
            check_reuse(conn, sock, message)
        assert origin.connections == connections
        conn.close()


@bounded(200)
@given(st.lists(st.tuples(messages(), segment_sizes), min_size=1, max_size=3))
def test_pool_reads_back_responses_one_after_the_other_on_as_few_connections_as_they_allow(
    exchanges: list[tuple[Message, list[int] | None]],
) -> None:
    with PlayedOrigin() as origin, pool_to(origin) as pool:
        sock: PlayedSocket | None = None
        connections = 0
        for message, sizes in exchanges:
            if sock is None:
                sock = origin.add(PlayedSocket())
                connections += 1
            sock.play(segmented(message.encode(), sizes), end_of(message))
            # The probe before the request finds nothing, since the peer sends only when somebody comes to receive.
            response = pool.request(message.method, "/path")
            assert (response.version, response.status, response.reason) == (
                message.version,
                message.status,
                message.reason,
            )
            assert response.getheaders() == message.fields
            assert response.data == message.body
            assert response.trailers == message.trailers
            assert response.resends == 0
            stats = pool.stats()
            assert (stats.idle, stats.leased) == (int(message.is_reusable), 0)
            assert sock.is_closed is not message.is_reusable
            if not message.is_reusable:
                sock = None
            else:
                assert not sock.unreceived
        assert origin.connections == connections
        ResourceAudit().check_pool(pool)


# --- bytes behind a response ------------------------------------------------------------------------------------------

# What nobody has asked for: an answer that would be taken for the next one, its beginning, or anything.
unasked = st.sampled_from(
    [GOOD_WIRE.replace(b"good", b"evil"), b"HTTP/1.1 408 X\r\n\r\n", b"HTTP/1.1 200", b"\r\n", b"x"]
)


@bounded(250)
@given(messages().filter(lambda message: message.is_reusable), unasked, segment_sizes, recipes)
def test_bytes_behind_a_response_never_reach_the_next_one(
    message: Message, behind: bytes, sizes: list[int] | None, recipe: list[Step]
) -> None:
    wire = message.encode() + behind
    with PlayedOrigin(PlayedSocket(segmented(wire, sizes)), PlayedSocket([GOOD_WIRE])) as origin:
        conn = connection_to(origin)
        conn.request(message.method, "/")
        sock = conn.sock
        response = conn.getresponse()
        check_head(response, message)
        assert read_by(response, recipe) == message.body
        if conn.sock is not None:
            assert conn.state is State.IDLE
            assert sock.unreceived == len(behind)
            sock.send_everything()
            assert conn.staleness() is not None
        conn.request("GET", "/next")
        assert conn.sock is not sock
        assert sock.is_closed
        assert conn.getresponse().read() == b"good"
        conn.close()


@bounded(250)
@given(messages().filter(lambda message: message.is_reusable), unasked, segment_sizes)
def test_pool_never_gives_bytes_behind_a_response_to_the_next_caller(
    message: Message, behind: bytes, sizes: list[int] | None
) -> None:
    sock = PlayedSocket(segmented(message.encode() + behind, sizes))
    with PlayedOrigin(sock, PlayedSocket([GOOD_WIRE])) as origin, pool_to(origin) as pool:
        response = pool.request(message.method, "/")
        assert (response.status, response.data) == (message.status, message.body)
        if not sock.is_closed:
            assert pool.stats().idle == 1
            assert sock.unreceived == len(behind)
            sock.send_everything()
        assert pool.request("GET", "/next").data == b"good"
        assert sock.is_closed
        ResourceAudit().check_pool(pool)


# --- responses that are cut off ---------------------------------------------------------------------------------------


def last_crlf_of(message: Message) -> int | None:
    """Where a body in chunks may be cut off: servers are known to leave out the very last CRLF."""
    if message.framing is not Framing.CHUNKED:
        return None
    return len(message.encode()) - len(b"\r\n") - sum(len(line.encode()) for line in message.trailer_lines)


@bounded(250)
@given(messages().filter(lambda message: message.framing is not Framing.TO_END), st.data(), recipes)
def test_response_that_is_cut_off_is_never_taken_for_a_whole_one(
    message: Message, data: st.DataObject, recipe: list[Step]
) -> None:
    wire = message.encode()
    cut = data.draw(st.integers(0, len(wire) - 1))
    is_borne = cut == last_crlf_of(message)
    with PlayedOrigin(PlayedSocket(segmented(wire[:cut], [7]), End.EOF), PlayedSocket([GOOD_WIRE])) as origin:
        conn = connection_to(origin)
        conn.request(message.method, "/")
        if is_borne:
            assert read_by(conn.getresponse(), recipe) == message.body
        else:
            with pytest.raises(ALLOWED):
                read_by(conn.getresponse(), recipe)
        assert conn.state is State.CLOSED
        conn.request("GET", "/next")
        assert conn.getresponse().read() == b"good"
        conn.close()


@bounded(200)
@given(messages().filter(lambda message: message.body and message.framing is not Framing.TO_END), st.data())
def test_body_that_is_cut_off_is_an_incomplete_read_that_holds_what_came(message: Message, data: st.DataObject) -> None:
    wire = message.encode()
    head = wire.index(message.head, len(message.encode_interim())) + len(message.head)
    cut = data.draw(st.integers(head, (last_crlf_of(message) or len(wire)) - 1))
    with PlayedOrigin(PlayedSocket(segmented(wire[:cut], [50]), End.EOF)) as origin:
        conn = connection_to(origin)
        conn.request(message.method, "/")
        with pytest.raises(IncompleteRead) as caught:
            conn.getresponse().read()
        assert message.body.startswith(caught.value.partial)
        if message.framing is Framing.LENGTH:
            assert caught.value.partial == wire[head:cut]
        assert conn.state is State.CLOSED
        assert conn.sock is None


# --- whatever arrives -------------------------------------------------------------------------------------------------

ends = st.sampled_from([End.EOF, End.EOF, End.RESET, End.SILENCE])


@bounded(300)
@given(any_responses, segment_sizes, ends, recipes)
def test_whatever_arrives_is_a_response_or_one_of_three_errors_and_the_connection_is_idle_or_closed(
    asked: tuple[str, bytes], sizes: list[int] | None, end: End, recipe: list[Step]
) -> None:
    method, wire = asked
    with PlayedOrigin(PlayedSocket(segmented(wire, sizes), end)) as origin:
        conn = connection_to(origin)
        conn.request(method, "/")
        sock = conn.sock
        try:
            response = conn.getresponse()
            read_by(response, recipe)
            assume(response.status != 101)  # the socket is the caller's now, and speaks something else
        except ALLOWED:
            assert conn.state is State.CLOSED
        if conn.state is State.IDLE:
            assert conn.sock is sock
            if sock.send_everything() or sock.unreceived:
                assert conn.staleness() is not None  # nothing has been taken that belongs to nobody
                origin.add(PlayedSocket([GOOD_WIRE]))
            else:
                sock.play([GOOD_WIRE])
        else:
            assert conn.state is State.CLOSED
            assert conn.sock is None
            assert sock.is_closed
            origin.add(PlayedSocket([GOOD_WIRE]))
        conn.request("GET", "/next")
        assert conn.getresponse().read() == b"good"
        conn.close()


@bounded(300)
@given(any_responses, segment_sizes, st.sampled_from([End.EOF, End.RESET]))
def test_whatever_arrives_the_pool_gives_a_response_or_one_of_three_errors_and_goes_on(
    asked: tuple[str, bytes], sizes: list[int] | None, end: End
) -> None:
    method, wire = asked
    sock = PlayedSocket(segmented(wire, sizes), end)
    with PlayedOrigin(sock) as origin, pool_to(origin) as pool:
        try:
            pool.request(method, "/")
        except ALLOWED:
            assert pool.stats().idle == 0
        stats = pool.stats()
        assert stats.leased == 0
        assert stats.idle == int(not sock.is_closed)
        if sock.is_closed or sock.send_everything() or sock.unreceived:
            origin.add(PlayedSocket([GOOD_WIRE]))
        else:
            sock.play([GOOD_WIRE])
        assert pool.request("GET", "/next").data == b"good"
        ResourceAudit().check_pool(pool)


@bounded(200)
@given(any_responses, st.sampled_from([End.EOF, End.RESET]), st.lists(taking_steps, max_size=2))
def test_response_that_is_closed_early_leaves_the_connection_idle_or_closed(
    asked: tuple[str, bytes], end: End, recipe: list[Step]
) -> None:
    method, wire = asked
    with PlayedOrigin(PlayedSocket(segmented(wire, [11]), end), PlayedSocket([GOOD_WIRE])) as origin:
        conn = connection_to(origin)
        conn.request(method, "/")
        sock = conn.sock
        try:
            response = conn.getresponse()
            for step in recipe:
                take(response, step)
        except ALLOWED:
            pass
        else:
            response.close()
        if conn.state is State.IDLE:
            if not sock.send_everything() and not sock.unreceived:
                sock.play([GOOD_WIRE])
        else:
            assert conn.state is State.CLOSED
        conn.request("GET", "/next")
        assert conn.getresponse().read() == b"good"
        conn.close()


# --- what is written --------------------------------------------------------------------------------------------------

# Exactly one head: written down anew from RFC 9112 sections 3 and 5, not taken from the package.
TOKEN = f"[{re.escape(TOKEN_CHARACTERS)}]+".encode()
REQUEST_HEAD = re.compile(
    rb"(?P<method>" + TOKEN + rb") (?P<target>[!-~]+) HTTP/1\.1\r\n"
    rb"(?P<fields>(?:" + TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
)
FIELD = re.compile(rb"(" + TOKEN + rb"):[ \t]*([^\r\n]*?)[ \t]*\r\n")
# llhttp knows no others.
KNOWN_METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT"}

evil = st.sampled_from(
    [snippet.decode("latin-1") for snippet in SNIPPETS] + ["\u010d\u010a", "\u2028", "\ud800", "\uff0f"]
)
texts = st.one_of(
    st.text(max_size=8),
    st.lists(st.text(TOKEN_CHARACTERS, max_size=5) | evil, max_size=4).map("".join),
    st.sampled_from(["b\r\nX-Evil: c", "\r\nHost: evil\r\n", " HTTP/1.1\r\n\r\nGET /evil", "a\r\n b", "a\n"]),
)
# Whatever a caller passes: text, bytes or a number, most often something that is nearly right.
encoded_texts = texts.map(lambda text: text.encode("utf-8", "replace"))
numbers = st.integers(-5, 10**6) | st.booleans()
anything = st.one_of(texts, texts, texts, encoded_texts, st.binary(max_size=6), numbers)
usual_names = [
    "Host",
    "Content-Length",
    "Transfer-Encoding",
    "Connection",
    "Expect",
    "Cookie",
    "X-A",
    b"X-B",
    "accept-encoding",
]
any_names = st.sampled_from(usual_names) | anything
any_values = st.sampled_from(["", "5", 5, b"b", "chunked", "a b", "\xe4", "close", 0, 4]) | anything
any_methods = st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "get", "X-OWN"]) | anything
any_targets = (
    st.sampled_from(["/", "/a?b=c", "", "*", "http://peer.test/", "/%20"]) | anything | texts.map("/{}".format)
)
any_bodies = st.one_of(
    st.none(), st.none(), st.binary(max_size=8), texts, st.integers(-1, 5), st.lists(anything, max_size=3),
    st.lists(st.binary(max_size=5), max_size=3).map(iter),
)  # fmt: skip


class RequestSeen:
    """What llhttp makes of the bytes of a request."""

    def __init__(self, sent: bytes) -> None:
        self.messages = 0
        self.complete = 0
        self.fault: Exception | None = None
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(sent)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as fault:
            self.fault = fault

    def on_message_begin(self) -> None:
        self.messages += 1

    def on_message_complete(self) -> None:
        self.complete += 1


OURS = {b"host", b"accept-encoding", b"content-length", b"transfer-encoding"}


def judge(sent: bytes, begun: Sequence[object], names: Iterable[object], *, is_whole: bool) -> bool:
    """The peer got one well-formed head, with nothing in it that nobody passed, or it got nothing.

    Returns:
        Whether the body is the one that the head announces.
    """
    if not sent:
        assert not is_whole, "nothing was sent, but nothing was raised either"
        return True
    match = REQUEST_HEAD.match(sent)
    assert match, "no well-formed head"
    fields = [(name.lower(), value) for name, value in FIELD.findall(match["fields"])]
    assert len(fields) == match["fields"].count(b"\n") == match["fields"].count(b"\r")
    method, target = begun
    assert (match["method"].decode(), match["target"].decode()) == (method, target or "/")
    found = [name for name, _ in fields]
    assert set(found) <= OURS | {as_bytes(name).lower() for name in names}
    for name in (b"host", b"content-length", b"transfer-encoding"):
        assert found.count(name) <= 1
    assert not {b"content-length", b"transfer-encoding"} <= set(found)
    of = dict(fields)
    if b"content-length" in of:
        assert re.fullmatch(rb"[0-9]+", of[b"content-length"])
    assert re.fullmatch(rb"(?i)(.*,[ \t]*)?chunked", of.get(b"transfer-encoding", b"chunked"))
    if match["method"] in KNOWN_METHODS and match["target"][:1] in (b"/", b"*", b"h"):
        seen = RequestSeen(match.group())
        assert seen.fault is None, seen.fault
        assert seen.messages == 1
    body = sent[match.end() :]
    if b"transfer-encoding" in of:
        return is_chunked(body)
    return len(body) == int(of.get(b"content-length", b"0"))


def as_bytes(name: object) -> bytes:
    if isinstance(name, bytes):
        return name
    return str(int(name) if isinstance(name, bool) else name).encode("latin-1", "replace")


def is_chunked(body: bytes) -> bool:
    """Whether this is one whole body in chunks, as we write them."""
    while match := re.match(rb"([0-9A-F]+)\r\n", body):
        size, start = int(match[1], 16), match.end()
        if body[start + size : start + size + 2] != b"\r\n":
            return False
        body = body[start + size + 2 :]
        if not size:
            return body == b""
    return False


Call = Callable[[HTTPConnection], object]


def attempt(call: Call, begun: Sequence[object], names: Iterable[object]) -> None:
    """Call on a fresh connection and judge what its peer got; then use the connection for something usual."""
    with PlayedOrigin(PlayedSocket(), PlayedSocket()) as origin:
        conn = connection_to(origin)
        conn.connect()
        sock = conn.sock
        is_whole = True
        try:
            call(conn)
        except (*ALLOWED, TypeError):
            is_whole = False
        is_exact = judge(sock.requests(), begun, names, is_whole=is_whole)
        if is_whole and conn._method != "CONNECT":
            # The documented steps send whatever body they are given; but then nothing is sent behind it.
            sock.play([b"HTTP/1.1 204 X\r\n\r\n"])
            assert conn.getresponse().read() == b""
            assert is_exact or conn.state is State.CLOSED
        conn.close()
        conn.request("GET", "/next")
        sock = conn.sock
        assert sock.requests() == b"GET /next HTTP/1.1\r\nHost: peer.test\r\nAccept-Encoding: identity\r\n\r\n"
        sock.play([GOOD_WIRE])
        assert conn.getresponse().read() == b"good"
        conn.close()


@bounded(300)
@given(any_methods, any_targets, any_bodies, st.dictionaries(any_names, any_values, max_size=4), st.booleans())
@example(method="POST", target="/", body=b"x", headers={"Transfer-Encoding": "gzip"}, encode_chunked=True)
@example(method="GET", target="/", body=None, headers={"A": "b\r\nX-Evil: c"}, encode_chunked=False)
@example(method="GET", target="/", body=None, headers={"A: b\r\nX-Evil": "c"}, encode_chunked=False)
@example(method="GET", target="/", body=None, headers={"A: b": "c"}, encode_chunked=False)
def test_whatever_is_passed_to_request_the_peer_gets_one_well_formed_head_or_nothing(
    method: str, target: str, body: bytes, headers: dict[str, str], encode_chunked: bool
) -> None:
    assume("expect" not in {str(name).lower() for name in headers} or body is None)  # waits for an answer: not here
    attempt(
        lambda conn: conn.request(method, target, body, headers, encode_chunked=encode_chunked),
        (method, target),
        headers,
    )


@bounded(300)
@given(
    any_methods,
    any_targets,
    st.lists(st.tuples(any_names, st.lists(any_values, min_size=0, max_size=2)), max_size=4),
    any_bodies,
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_whatever_is_passed_to_the_steps_of_a_request_the_peer_gets_one_well_formed_head_or_nothing(
    method: str, target: str, headers: list[tuple[str, list[str]]], body: bytes, options: tuple[bool, bool, bool]
) -> None:
    skip_host, skip_accept_encoding, encode_chunked = options

    def steps(conn: HTTPConnection) -> None:
        conn.putrequest(method, target, skip_host, skip_accept_encoding)
        for name, values in headers:
            conn.putheader(name, *values)
        conn.endheaders(body, encode_chunked=encode_chunked)

    attempt(steps, (method, target), [name for name, _ in headers])


@bounded(200)
@given(
    any_methods, any_targets, st.lists(st.tuples(any_names, any_values), max_size=3), st.binary(max_size=5) | st.none()
)
def test_whatever_is_refused_in_between_the_steps_that_were_good_still_make_one_head(
    method: str, target: str, headers: list[tuple[str, str]], body: bytes | None
) -> None:
    """A caller swallows the errors of single steps: the good ones make a request, and of the others nothing is sent."""

    begun: list[str] = []

    def steps(conn: HTTPConnection) -> None:
        for begin in ((method, target), ("POST", "/good")):
            try:
                conn.putrequest(*begin)
            except (*ALLOWED, TypeError):
                continue
            begun.extend(begin)
            break
        for name, value in headers:
            try:
                conn.putheader(name, value)
            except (*ALLOWED, TypeError):
                pass
        conn.endheaders(body)

    attempt(steps, begun, [name for name, _ in headers])


@bounded(250)
@given(any_methods, any_targets, any_bodies, st.dictionaries(any_names, any_values, max_size=3))
def test_whatever_is_passed_to_a_pool_the_peer_gets_one_well_formed_head_or_nothing(
    method: str, target: str, body: bytes, headers: dict[str, str]
) -> None:
    assume("expect" not in {str(name).lower() for name in headers} or body is None)
    sock = PlayedSocket([b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"])
    with PlayedOrigin(sock, PlayedSocket([GOOD_WIRE])) as origin, pool_to(origin) as pool:
        is_whole = True
        try:
            pool.request(method, target, body, headers)
        except (*ALLOWED, TypeError):
            is_whole = False
        sent = sock.requests()
        # Who encodes the chunks himself may do so badly; else a pool sends what its head announces.
        is_exact = judge(sent, (method, target), headers, is_whole=is_whole)
        assert is_exact or not is_whole or b"transfer-encoding:" in sent.lower()
        if sock.is_closed:
            assert pool.request("GET", "/next").data == b"good"
        else:
            assert sent == b""
        ResourceAudit().check_pool(pool)
