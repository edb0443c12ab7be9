"""Every pair of a state and an event, taken from the table that `conn` itself works by.

A pair in the table leads to the state that stands there, caused by the calls that are documented.  A pair that is
missing raises the documented error, leaves the state as it was, and the scripted peer has received no byte of it.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator

import pytest

from pooledhttp import (
    CannotSendHeader,
    CannotSendRequest,
    HTTPConnection,
    HTTPResponse,
    IncompleteRead,
    ResponseNotReady,
    UnreadResponse,
)
from pooledhttp.states import TRANSITIONS, Event, State
from pooledhttp.testing import (
    Close,
    ExpectHead,
    KeepOpen,
    Mark,
    Repeat,
    ResourceAudit,
    Respond,
    ScriptedServer,
    Send,
    ServerFactory,
)

BOUND = 10.0
ANSWERS = [Repeat([ExpectHead(), Respond(body=b"hello")])]
PAIRS = [(state, event) for state in State for event in Event]
PRESENT = [pair for pair in PAIRS if pair in TRANSITIONS]
MISSING = [pair for pair in PAIRS if pair not in TRANSITIONS]
BODY_ENDS = {Event.BODY_END, Event.BODY_END_CLOSE}


def connection_to(server: ScriptedServer) -> HTTPConnection:
    return HTTPConnection(server.host, server.port, timeout=BOUND)


def finish(conn: HTTPConnection) -> None:
    """One normal request, then the end."""
    conn.request("GET", "/again")
    assert conn.getresponse().read() == b"hello"
    conn.close()


def lead_to(state: State, conn: HTTPConnection) -> HTTPResponse | None:
    """Bring a fresh connection into a state by the documented calls; return its unread response, if there is one."""
    if state is State.CLOSED:
        return None
    conn.connect()
    if state >= State.REQUEST_STARTED:
        conn.putrequest("GET", "/first")
    if state >= State.REQUEST_SENT:
        conn.endheaders()
    return conn.getresponse() if state is State.UNREAD_RESPONSE else None


def names(pairs: list[tuple[State, Event]]) -> list[str]:
    return [f"{state.name}-{event.name}" for state, event in pairs]


CAUSES: dict[Event, Callable[[HTTPConnection], object]] = {
    Event.CONNECT: HTTPConnection.connect,
    Event.PUTREQUEST: lambda conn: conn.putrequest("GET", "/second"),
    Event.ENDHEADERS: HTTPConnection.endheaders,
    Event.GETRESPONSE: HTTPConnection.getresponse,
    Event.CLOSE: HTTPConnection.close,
}


# --- the pairs of the table -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "event"), PRESENT, ids=names(PRESENT))
def test_pair_of_the_table_leads_to_its_state(state: State, event: Event, scripted_server: ServerFactory) -> None:
    if event is Event.FAULT:
        FAULTS[state](scripted_server)
        return
    server = scripted_server([ExpectHead(optional=True), Respond(body=b"hello", close=event is Event.BODY_END_CLOSE),
                              Repeat([ExpectHead(), Respond(body=b"hello")])], default=ANSWERS)  # fmt: skip
    conn = connection_to(server)
    response = lead_to(state, conn)
    assert conn.state is state
    if event in BODY_ENDS:
        assert response is not None
        assert response.read() == b"hello"
    else:
        CAUSES[event](conn)
    assert conn.state is TRANSITIONS[state, event]
    conn.close()
    finish(conn)


def fault_while_closed(scripted_server: ServerFactory) -> None:
    server = scripted_server()
    conn = connection_to(server)
    server.close()
    with pytest.raises(ConnectionRefusedError):
        conn.connect()
    assert conn.state is State.CLOSED
    finish_elsewhere(conn, scripted_server)


def fault_while_idle(scripted_server: ServerFactory) -> None:
    server = scripted_server(ANSWERS)
    conn = connection_to(server)
    conn.connect()
    server.peer()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        conn.connect()
    assert conn.state is State.CLOSED
    finish_elsewhere(conn, scripted_server)


def fault_while_request_is_started(scripted_server: ServerFactory) -> None:
    server = scripted_server()
    conn = connection_to(server)
    server.close()
    conn.putrequest("GET", "/first")
    with pytest.raises(ConnectionRefusedError):
        conn.endheaders()
    assert conn.state is State.CLOSED
    finish_elsewhere(conn, scripted_server)


def fault_while_request_is_sent(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(body=False), KeepOpen()], default=ANSWERS)
    conn = connection_to(server)
    seen = []

    def body() -> Iterator[bytes]:
        yield b"the beginning"
        seen.append(conn.state)
        raise LookupError("the rest is missing")

    with pytest.raises(LookupError):
        conn.request("POST", "/first", body=body())
    assert seen == [State.REQUEST_SENT]
    assert conn.state is State.CLOSED
    finish(conn)


def fault_while_response_is_unread(scripted_server: ServerFactory) -> None:
    truncated = Send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
    server = scripted_server([ExpectHead(), truncated, Close()], default=ANSWERS)
    conn = connection_to(server)
    response = lead_to(State.UNREAD_RESPONSE, conn)
    assert response is not None
    with pytest.raises(IncompleteRead):
        response.read()
    assert conn.state is State.CLOSED
    finish(conn)


def finish_elsewhere(conn: HTTPConnection, scripted_server: ServerFactory) -> None:
    server = scripted_server(default=ANSWERS)
    conn.host, conn.port = server.address
    finish(conn)


FAULTS: dict[State, Callable[[ServerFactory], None]] = {
    State.CLOSED: fault_while_closed,
    State.IDLE: fault_while_idle,
    State.REQUEST_STARTED: fault_while_request_is_started,
    State.REQUEST_SENT: fault_while_request_is_sent,
    State.UNREAD_RESPONSE: fault_while_response_is_unread,
}


# --- the pairs that are missing ---------------------------------------------------------------------------------------


def error_for(state: State, event: Event) -> type[Exception]:
    if event is Event.GETRESPONSE:
        return ResponseNotReady
    if event is Event.ENDHEADERS:
        return CannotSendHeader
    return UnreadResponse if state is State.UNREAD_RESPONSE else CannotSendRequest


REFUSED = [pair for pair in MISSING if pair[1] not in BODY_ENDS]
IMPOSSIBLE = [pair for pair in MISSING if pair[1] in BODY_ENDS]


@pytest.mark.parametrize(("state", "event"), REFUSED, ids=names(REFUSED))
def test_missing_pair_raises_before_a_byte_is_written(
    state: State, event: Event, scripted_server: ServerFactory
) -> None:
    server = scripted_server(default=ANSWERS)
    conn = connection_to(server)
    lead_to(state, conn)
    with pytest.raises(error_for(state, event)) as caught:
        CAUSES[event](conn)
    assert type(caught.value) is error_for(state, event)
    assert conn.state is state
    legal = ["/first"] * (state >= State.REQUEST_SENT)
    server.wait_until(lambda: len(server.requests) >= len(legal))
    conn.close()
    for peer in server.connections:
        assert peer.ended.wait(BOUND)
        assert peer.received == b"".join(request.head for request in peer.requests)
    assert [request.target for request in server.requests] == legal
    finish(conn)


@pytest.mark.parametrize(("state", "event"), IMPOSSIBLE, ids=names(IMPOSSIBLE))
def test_body_that_has_ended_cannot_end_again(state: State, event: Event, scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond(body=b"hello", close=event is Event.BODY_END_CLOSE),
                              Repeat([ExpectHead(), Respond(body=b"hello")])], default=ANSWERS)  # fmt: skip
    conn = connection_to(server)
    conn.request("GET", "/zero")
    finished = conn.getresponse()
    assert finished.read() == b"hello"
    if state is State.CLOSED:
        conn.close()
    else:
        lead_to(state, conn)
    assert conn.state is state
    assert finished.read() == b""
    finished.close()
    assert conn.state is state
    conn.close()
    finish(conn)


# --- the rule ---------------------------------------------------------------------------------------------------------

WAYS_TO_WRITE: dict[str, Callable[[HTTPConnection], object]] = {
    "request": lambda conn: conn.request("GET", "/second"),
    "request with a body": lambda conn: conn.request("POST", "/second", body=b"second"),
    "putrequest": lambda conn: conn.putrequest("GET", "/second"),
    "connect": HTTPConnection.connect,
    "send": lambda conn: conn.send(b"GET /second HTTP/1.1\r\n\r\n"),
}


@pytest.mark.parametrize("way", WAYS_TO_WRITE)
@pytest.mark.parametrize("taken", [0, 1, 4])
def test_unread_response_refuses_whatever_would_write(way: str, taken: int, scripted_server: ServerFactory) -> None:
    steps = [ExpectHead(), Mark("answered"), Respond(201, body=b"hello"), *ANSWERS]
    server = scripted_server(steps)
    conn = connection_to(server)
    conn.request("GET", "/first?q=1")
    response = conn.getresponse()
    assert response.read(taken) == b"hello"[:taken]
    with pytest.raises(UnreadResponse) as caught:
        WAYS_TO_WRITE[way](conn)
    for part in ("GET /first?...", "201 Created", f"{5 - taken} bytes", "read()", "close()"):
        assert part in str(caught.value)
    assert isinstance(caught.value, CannotSendRequest)
    assert response.read() == b"hello"[taken:]
    assert conn.state is State.IDLE
    conn.request("GET", "/third")
    assert conn.getresponse().read() == b"hello"
    conn.close()
    peer = server.peer()
    assert peer.ended.wait(BOUND)
    assert [request.target for request in peer.requests] == ["/first?q=1", "/third"]
    assert peer.received_since("answered") == peer.requests[1].head


def test_unread_chunked_response_is_refused_without_a_number(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond(body=b"hello", chunked=True), *ANSWERS])
    conn = connection_to(server)
    conn.request("GET", "/first")
    response = conn.getresponse()
    with pytest.raises(UnreadResponse, match="its body, whose length is not known"):
        conn.request("GET", "/second")
    assert response.read() == b"hello"
    finish(conn)


def test_refusal_hides_the_userinfo_of_the_target(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond(body=b"hello"), *ANSWERS])
    conn = connection_to(server)
    conn.request("GET", "http://me:secret@origin/first")
    response = conn.getresponse()
    with pytest.raises(UnreadResponse, match="http://origin/first") as caught:
        conn.request("GET", "/second")
    assert "secret" not in str(caught.value)
    assert response.read() == b"hello"
    finish(conn)


def test_putheader_needs_a_request(scripted_server: ServerFactory) -> None:
    server = scripted_server(default=ANSWERS)
    for state in set(State) - {State.REQUEST_STARTED}:
        conn = connection_to(server)
        lead_to(state, conn)
        with pytest.raises(CannotSendHeader):
            conn.putheader("X-Late", "1")
        assert conn.state is state
        conn.close()
    finish(connection_to(server))


def test_repr_shows_the_state_and_no_request(scripted_server: ServerFactory) -> None:
    server = scripted_server(default=ANSWERS)
    conn = connection_to(server)
    conn.request("GET", "/first?token=secret", headers={"Authorization": "secret"})
    assert repr(conn) == f"<HTTPConnection 127.0.0.1:{server.port} REQUEST_SENT>"
    assert conn.getresponse().read() == b"hello"
    finish(conn)


# --- two threads ------------------------------------------------------------------------------------------------------


def in_two_threads(call: Callable[[], object]) -> list[BaseException | object]:
    """Call it in two threads at the same moment; return both outcomes."""
    together = threading.Barrier(2, timeout=BOUND)
    outcomes: list[BaseException | object] = []

    def run() -> None:
        together.wait()
        try:
            outcomes.append(call())
        except (http.client.HTTPException, OSError) as fault:  # the outcome is what is asked for
            outcomes.append(fault)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
        assert not thread.is_alive()
    return outcomes


@pytest.mark.parametrize("attempt", range(5))
def test_second_thread_that_sends_a_request_is_refused(
    attempt: int, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=ANSWERS)
    conn = connection_to(server)
    conn.connect()
    outcomes = in_two_threads(lambda: conn.request("POST", "/first", body=b"x" * 1000))
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert [type(outcome) for outcome in refused] == [CannotSendRequest]
    assert conn.getresponse().read() == b"hello"
    finish(conn)
    peer = server.peer()
    assert peer.ended.wait(BOUND)
    assert [request.target for request in peer.requests] == ["/first", "/again"]
    assert peer.received == peer.requests[0].head + b"x" * 1000 + peer.requests[1].head


@pytest.mark.parametrize("attempt", range(5))
def test_second_thread_that_wants_the_response_is_refused(attempt: int, scripted_server: ServerFactory) -> None:
    server = scripted_server(default=ANSWERS)
    conn = connection_to(server)
    conn.request("GET", "/first")
    outcomes = in_two_threads(conn.getresponse)
    (response,) = [outcome for outcome in outcomes if isinstance(outcome, HTTPResponse)]
    (refused,) = [outcome for outcome in outcomes if outcome is not response]
    assert isinstance(refused, ResponseNotReady)
    assert response.read() == b"hello"
    finish(conn)
