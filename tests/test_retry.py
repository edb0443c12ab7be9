"""When a request may be sent a second time: only if the first attempt cannot have done any harm."""

from __future__ import annotations

import http.client
import itertools
import ssl

import pytest

from pooledhttp.errors import ConnectTimeout, IncompleteRead, InvalidResponse, ReadTimeout, TotalTimeout, WriteTimeout
from pooledhttp.request import BodySource, PreparedRequest, prepare
from pooledhttp.retry import is_late_timeout, may_resend

DEAD: list[BaseException] = [
    http.client.RemoteDisconnected("gone"),
    ConnectionResetError("reset"),
    BrokenPipeError("pipe"),
    ConnectionAbortedError("aborted"),
    ssl.SSLEOFError("eof"),
]
OTHER: list[BaseException] = [
    ReadTimeout("read"),
    WriteTimeout("write"),
    TotalTimeout("total"),
    ConnectTimeout("connect"),
    TimeoutError("kernel"),
    InvalidResponse("framing"),
    IncompleteRead(b""),
    http.client.BadStatusLine("x"),
    OSError(5, "Input/output error"),
    ssl.SSLError("tls"),
    ssl.SSLCertVerificationError("certificate"),
    ValueError("bad"),
    KeyboardInterrupt(),
    GeneratorExit(),
]
GENERATED: BodySource = iter([b"a"])


def made(method: str = "GET", body: BodySource | None = None, headers: dict[str, str] | None = None) -> PreparedRequest:
    return prepare(method, "/", body, headers or {}, constant_fields=[])


by_type = pytest.mark.parametrize("fault", DEAD, ids=lambda fault: type(fault).__name__)


@by_type
def test_idempotent_request_on_a_dead_reused_connection_is_sent_again(fault: BaseException) -> None:
    assert may_resend(made(), fault, was_reused=True, is_unsent=False, is_unanswered=True)


@by_type
def test_request_of_any_kind_is_sent_again_when_no_byte_of_it_was_written(fault: BaseException) -> None:
    for prepared in (made("POST", b"a"), made("PUT", GENERATED), made("CONNECT")):
        assert may_resend(prepared, fault, was_reused=True, is_unsent=True, is_unanswered=True)


@by_type
def test_request_that_is_not_idempotent_is_not_sent_again(fault: BaseException) -> None:
    for method in ("POST", "PATCH", "CONNECT", "PURGE", "get"):
        assert not may_resend(made(method), fault, was_reused=True, is_unsent=False, is_unanswered=True)


@by_type
def test_idempotency_key_allows_to_send_it_again(fault: BaseException) -> None:
    prepared = made("POST", b"a", {"Idempotency-Key": "1"})
    assert may_resend(prepared, fault, was_reused=True, is_unsent=False, is_unanswered=True)


@by_type
def test_body_that_cannot_be_replayed_is_not_sent_again(fault: BaseException) -> None:
    for prepared in (made("PUT", GENERATED), made("POST", GENERATED, {"Idempotency-Key": "1"})):
        assert not may_resend(prepared, fault, was_reused=True, is_unsent=False, is_unanswered=True)


@by_type
@pytest.mark.parametrize("is_unsent", [True, False])
@pytest.mark.parametrize("is_unanswered", [True, False])
def test_nothing_is_sent_again_after_a_fresh_connection(
    fault: BaseException, is_unsent: bool, is_unanswered: bool
) -> None:
    assert not may_resend(made(), fault, was_reused=False, is_unsent=is_unsent, is_unanswered=is_unanswered)


@by_type
@pytest.mark.parametrize("is_unsent", [True, False])
def test_nothing_is_sent_again_after_a_byte_of_the_answer(fault: BaseException, is_unsent: bool) -> None:
    assert not may_resend(made(), fault, was_reused=True, is_unsent=is_unsent, is_unanswered=False)


@pytest.mark.parametrize("fault", OTHER, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("is_unsent", [True, False])
def test_nothing_is_sent_again_after_another_fault(fault: BaseException, is_unsent: bool) -> None:
    assert not may_resend(made(), fault, was_reused=True, is_unsent=is_unsent, is_unanswered=True)


# --- 408 that crosses a request ---------------------------------------------------------------------------------------


def test_408_on_a_reused_connection_that_closes_answers_the_idle_time() -> None:
    assert is_late_timeout(made(), 408, was_reused=True, will_close=True)


@pytest.mark.parametrize("status", [200, 400, 404, 409, 500, 503])
def test_other_status_answers_the_request(status: int) -> None:
    assert not is_late_timeout(made(), status, was_reused=True, will_close=True)


@pytest.mark.parametrize(
    ("was_reused", "will_close"), [pair for pair in itertools.product([True, False], repeat=2) if pair != (True, True)]
)
def test_408_on_a_fresh_connection_or_one_that_stays_open_answers_the_request(
    was_reused: bool, will_close: bool
) -> None:
    assert not is_late_timeout(made(), 408, was_reused=was_reused, will_close=will_close)


@pytest.mark.parametrize("prepared", [made("POST"), made("PUT", GENERATED)], ids=["not idempotent", "not replayable"])
def test_408_to_a_request_that_must_not_be_sent_twice_is_its_answer(prepared: PreparedRequest) -> None:
    assert not is_late_timeout(prepared, 408, was_reused=True, will_close=True)
