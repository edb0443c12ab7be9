"""When a request may be sent again: only if it cannot do harm, not too soon, and not too often."""

from __future__ import annotations

import errno
import functools
import http.client
import itertools
import math
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooledhttp.errors import (
    AcquireTimeout,
    ConnectTimeout,
    IncompleteRead,
    InvalidChunk,
    InvalidResponse,
    PoolClosed,
    PoolFull,
    ReadTimeout,
    SelfDeadlock,
    SourcePortsExhausted,
    TotalTimeout,
    TunnelError,
    WriteTimeout,
)
from pooledhttp.request import BodySource, PreparedRequest, prepare
from pooledhttp.response import FailedAttempt
from pooledhttp.retry import (
    WINDOW,
    Attempts,
    Budget,
    Retry,
    is_connect_failure,
    is_late_timeout,
    kind_of_failure,
    may_resend,
    retry_after_seconds,
)
from pooledhttp.stats import RetryReason, RetryRefusal
from pooledhttp.timeouts import LONGEST

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


def spelt(part: object) -> str:
    """Return what a part of a test's name is, always in the same order."""
    return f"{{{', '.join(sorted(map(repr, part)))}}}" if isinstance(part, set) else str(part)


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


# --- Retry: what may be asked for -------------------------------------------------------------------------------------


def test_defaults_are_the_documented_ones() -> None:
    assert Retry().as_dict() == {
        "attempts": 3,
        "backoff": 0.1,
        "backoff_max": 5.0,
        "statuses": {429, 502, 503, 504},
        "methods": None,
        "retry_after_max": 30.0,
        "budget": 0.2,
        "budget_floor": 10.0,
    }


@pytest.mark.parametrize(("name", "value"), [
    ("attempts", 1), ("attempts", 10**6), ("backoff", 0), ("backoff", LONGEST), ("backoff_max", 0),
    ("backoff_max", 0.5), ("statuses", set()), ("statuses", {400, 599}), ("methods", None), ("methods", set()),
    ("methods", {"POST", "M-SEARCH"}), ("retry_after_max", 0), ("retry_after_max", LONGEST), ("budget", None),
    ("budget", 0), ("budget", 2.5), ("budget_floor", 0), ("budget_floor", 0.1),
])  # fmt: skip
def test_setting_is_accepted(name: str, value: Any) -> None:
    assert getattr(Retry(**{name: value}), name) == value


BAD: list[tuple[str, Any, type[Exception]]] = [
    *[("attempts", value, ValueError) for value in (0, -1)],
    *[("attempts", value, TypeError) for value in (None, 3.0, "3", True)],
    *[(name, value, ValueError) for name in ("backoff", "backoff_max", "retry_after_max")
      for value in (-1, math.nan, math.inf, 10**400)],
    *[(name, value, TypeError) for name in ("backoff", "backoff_max", "retry_after_max")
      for value in (None, "1", True, (1, 2))],
    *[("statuses", value, ValueError) for value in ({399}, {600}, {503, 200}, {-1})],
    *[("statuses", value, TypeError) for value in (None, 503, "503", {"503"}, {503.0}, {True}, {503: 1}, range(500))],
    *[("methods", value, ValueError) for value in ({"post"}, {"POST", "Patch"}, {""}, {"POST", "123"})],
    *[("methods", value, TypeError) for value in ("POST", b"POST", {b"POST"}, {5}, {"POST": 1}, True)],
    *[(name, value, ValueError) for name in ("budget", "budget_floor") for value in (-0.1, math.nan, math.inf)],
    *[("budget", value, TypeError) for value in ("0.2", True)],
    *[("budget_floor", value, TypeError) for value in (None, "10", False)],
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "error"), BAD, ids=lambda part: spelt(part)[:30])
def test_setting_that_makes_no_sense_is_refused_by_name(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^Retry\.{name} must ") as caught:
        Retry(**{name: value})
    assert type(caught.value) is error


def test_retry_is_frozen_and_takes_keywords_alone() -> None:
    with pytest.raises(AttributeError):
        Retry().attempts = 5  # type: ignore[misc]  # it is what the test is about
    with pytest.raises(TypeError):
        Retry(5)  # type: ignore[call-arg]  # it is what the test is about


def test_sets_are_copied_so_that_nobody_changes_them_later() -> None:
    statuses, methods = {503}, {"POST"}
    retry = Retry(statuses=statuses, methods=methods)
    statuses.add(500)
    methods.add("PATCH")
    assert (retry.statuses, retry.methods) == ({503}, {"POST"})
    assert retry == Retry(statuses=[503], methods=("POST",))
    assert hash(retry) == hash(Retry(statuses=[503], methods=("POST",)))


# --- how long to wait -------------------------------------------------------------------------------------------------


def highest() -> float:
    return 1.0


@pytest.mark.parametrize(("attempt", "most"), [(2, 0.1), (3, 0.2), (4, 0.4), (5, 0.8), (7, 3.2), (8, 5.0), (9, 5.0),
                                               (10**6, 5.0)])  # fmt: skip
def test_backoff_doubles_up_to_its_limit(attempt: int, most: float) -> None:
    assert Retry(attempts=10**6).backoff_before(attempt, highest) == pytest.approx(most)


def test_backoff_beyond_its_limit_is_cut_from_the_first_wait_on() -> None:
    assert Retry(backoff=8, backoff_max=2).backoff_before(2, highest) == 2


@given(
    attempt=st.integers(2, 10**9),
    backoff=st.floats(0, LONGEST),
    backoff_max=st.floats(0, LONGEST),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_backoff_is_spread_over_the_whole_range_and_never_leaves_it(
    attempt: int, backoff: float, backoff_max: float, chance: float
) -> None:
    retry = Retry(backoff=backoff, backoff_max=backoff_max)
    most = retry.backoff_before(attempt, highest)
    assert 0 <= most <= backoff_max
    assert retry.backoff_before(attempt, lambda: chance) == most * chance


def test_no_backoff_does_not_wait() -> None:
    assert [Retry(backoff=0).backoff_before(attempt, highest) for attempt in (2, 3, 900)] == [0, 0, 0]


NOW = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110
AT_NOW = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(("value", "seconds"), [
    ("0", 0.0), ("7", 7.0), ("007", 7.0), ("120", 120.0), ("9" * 30, 1e30), ("9" * 5000, math.inf),
    ("Sun, 06 Nov 1994 08:50:37 GMT", 60.0),
    ("Sunday, 06-Nov-94 08:50:37 GMT", 60.0),
    ("Sun Nov  6 08:50:37 1994", 60.0),
    ("Sun, 06 Nov 1994 09:49:37 +0100", 0.0),
    (AT_NOW, 0.0),
    ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
    ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
])  # fmt: skip
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float) -> None:
    assert retry_after_seconds(value, None, clock=lambda: NOW) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [
    None, "", " ", "-1", "+1", "1.5", "1e3", "0x10", "1_0", "\u0667", "soon", "5, 5", "5 seconds", "Sun", "GMT",
    "Sun, 06 Nov", "Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 99999999999 08:49:37 GMT", "," * 60, AT_NOW * 100,
    "Sun, 06 Nov 1994 99:99:99", "\xe4",
])  # fmt: skip
def test_retry_after_that_cannot_be_read_is_none(value: str | None) -> None:
    assert retry_after_seconds(value, None, clock=lambda: NOW) is None


def test_date_counts_from_the_date_of_the_same_response() -> None:
    # Our clock is an hour late; what the server means is 60 seconds.
    asked = retry_after_seconds("Sun, 06 Nov 1994 08:50:37 GMT", AT_NOW, clock=lambda: NOW - 3600)
    assert asked == 60


@pytest.mark.parametrize("date", [None, "", "yesterday", "5"])
def test_date_counts_from_the_clock_where_the_response_has_no_date(date: str | None) -> None:
    assert retry_after_seconds("Sun, 06 Nov 1994 08:50:37 GMT", date, clock=lambda: NOW + 10) == 50


@given(st.text(max_size=80), st.one_of(st.none(), st.text(max_size=80)))
def test_nothing_a_server_writes_there_breaks_the_reader(value: str, date: str | None) -> None:
    asked = retry_after_seconds(value, date, clock=lambda: NOW)
    assert asked is None or asked >= 0


# --- what failed ------------------------------------------------------------------------------------------------------


class GreenletTimeout(BaseException):
    """What gevent raises, for one: no Exception."""


MENDS_ITSELF: list[BaseException] = [
    ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    ConnectTimeout("connect"),
    TimeoutError(errno.ETIMEDOUT, "kernel"),
    OSError(errno.EHOSTUNREACH, "no route"),
    OSError(errno.ENETUNREACH, "no network"),
    FileNotFoundError(errno.ENOENT, "no such socket"),
    socket.gaierror(socket.EAI_AGAIN, "later"),
    socket.gaierror(socket.EAI_NONAME, "unknown"),
    http.client.RemoteDisconnected("by the proxy"),
    ssl.SSLEOFError(8, "in the handshake"),
    *[TunnelError("proxy", status=status) for status in (502, 503, 504)],
]
STAYS: list[BaseException] = [
    ssl.SSLCertVerificationError(1, "expired"),
    ssl.SSLError(1, "alert"),
    SourcePortsExhausted(errno.EADDRNOTAVAIL, "no port"),
    AcquireTimeout("full"),
    SelfDeadlock("by yourself"),
    PoolFull("full"),
    PoolClosed("closed"),
    TotalTimeout("over"),
    *[TunnelError("proxy", status=status) for status in (400, 403, 407, 500, 505)],
    OSError(errno.EMFILE, "descriptors"),
    OSError(errno.EADDRNOTAVAIL, "no address of ours"),
    PermissionError(errno.EACCES, "not allowed"),
    InvalidResponse("framing"),
    ValueError("host"),
    UnicodeError("host"),
    MemoryError(),
    KeyboardInterrupt(),
    GreenletTimeout(),
]


def name_of(fault: BaseException) -> str:
    return f"{type(fault).__name__} {fault}"


@pytest.mark.parametrize("fault", MENDS_ITSELF, ids=name_of)
def test_failure_to_connect_may_mend_itself(fault: BaseException) -> None:
    assert is_connect_failure(fault)


@pytest.mark.parametrize("fault", STAYS, ids=name_of)
def test_failure_to_connect_stays(fault: BaseException) -> None:
    assert not is_connect_failure(fault)


@pytest.mark.parametrize(("fault", "reason"), [
    (ConnectionResetError(errno.ECONNRESET, "reset"), RetryReason.RESET),
    (BrokenPipeError(errno.EPIPE, "pipe"), RetryReason.RESET),
    (ConnectionAbortedError(errno.ECONNABORTED, "aborted"), RetryReason.RESET),
    (http.client.RemoteDisconnected("gone"), RetryReason.RESET),
    (ssl.SSLEOFError(8, "eof"), RetryReason.RESET),
    (OSError(errno.EHOSTUNREACH, "no route"), RetryReason.RESET),
    (ReadTimeout("read"), RetryReason.TIMEOUT),
    (WriteTimeout("write"), RetryReason.TIMEOUT),
    (TimeoutError(errno.ETIMEDOUT, "kernel"), RetryReason.TIMEOUT),
    (IncompleteRead(b"he", 3), RetryReason.TRUNCATED),
    (InvalidChunk("size"), None),
    (InvalidResponse("framing"), None),
    (http.client.BadStatusLine("x"), None),
    (http.client.LineTooLong("head"), None),
    (TotalTimeout("over"), None),
    (ssl.SSLError(1, "alert"), None),
    (ssl.SSLCertVerificationError(1, "expired"), None),
    (OSError(errno.EIO, "the body's file"), None),
    (FileNotFoundError(errno.ENOENT, "the body's file"), None),
    (ValueError("shrank"), None),
    (KeyboardInterrupt(), None),
    (GreenletTimeout(), None),
], ids=lambda part: name_of(part) if isinstance(part, BaseException) else str(part))  # fmt: skip
def test_failed_exchange_has_a_kind_if_another_attempt_could_mend_it(
    fault: BaseException, reason: RetryReason | None
) -> None:
    assert kind_of_failure(fault) is reason


# --- what may be sent again -------------------------------------------------------------------------------------------

REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
RESET = ConnectionResetError(errno.ECONNRESET, "reset")
KEY = {"Idempotency-Key": "1"}


def attempts_of(prepared: PreparedRequest, retry: Retry | None = None) -> Attempts:
    return Attempts(retry or Retry(), prepared, uniform=highest)


@pytest.mark.parametrize("prepared", [made("GET"), made("POST", b"a"), made("PATCH"), made("PUT", GENERATED)], ids=str)
def test_request_of_any_kind_is_tried_again_when_there_was_no_connection(prepared: PreparedRequest) -> None:
    attempts = attempts_of(prepared)
    attempts.broke(is_open=False, is_unsent=True)
    assert attempts.reason_after_fault(REFUSED) is RetryReason.CONNECT
    assert attempts.reason_after_fault(PoolFull("full")) is None


@pytest.mark.parametrize("prepared", [made("GET"), made("POST", b"a"), made("PUT", GENERATED)], ids=str)
def test_request_of_any_kind_is_tried_again_when_no_byte_of_it_was_written(prepared: PreparedRequest) -> None:
    attempts = attempts_of(prepared)
    attempts.broke(is_open=True, is_unsent=True)
    assert attempts.reason_after_fault(RESET) is RetryReason.RESET
    assert attempts.reason_after_fault(InvalidResponse("framing")) is None


HARMLESS = [
    *[(made(method), None) for method in ("GET", "HEAD", "OPTIONS", "TRACE", "DELETE")],
    (made("PUT", b"a"), None),
    (made("PUT", "a"), None),
    (made("POST", b"a", KEY), None),
    (made("POST", b"a"), {"POST"}),
    (made("PATCH"), {"POST", "PATCH"}),
    (made("GET"), {"POST"}),
]
HARMFUL = [
    *[(made(method), None) for method in ("POST", "PATCH", "CONNECT", "PURGE", "get")],
    (made("POST", b"a"), {"PATCH"}),
    (made("PUT", GENERATED), None),
    (made("POST", GENERATED, KEY), None),
    (made("POST", GENERATED), {"POST"}),
]


def cases(pairs: list[tuple[PreparedRequest, set[str] | None]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("prepared", "methods"), pairs, ids=spelt)


@cases(HARMLESS)
def test_request_that_may_have_been_received_is_tried_again_if_that_does_no_harm(
    prepared: PreparedRequest, methods: set[str] | None
) -> None:
    attempts = attempts_of(prepared, Retry(methods=methods))
    attempts.broke(is_open=True, is_unsent=False)
    assert attempts.reason_after_fault(RESET) is RetryReason.RESET
    assert attempts.reason_after_fault(ReadTimeout("read")) is RetryReason.TIMEOUT
    assert attempts.reason_after_status(503) is RetryReason.STATUS


@cases(HARMFUL)
def test_request_that_may_have_been_received_is_not_tried_again_otherwise(
    prepared: PreparedRequest, methods: set[str] | None
) -> None:
    attempts = attempts_of(prepared, Retry(methods=methods))
    attempts.broke(is_open=True, is_unsent=False)
    assert attempts.reason_after_fault(RESET) is None
    assert attempts.reason_after_fault(ReadTimeout("read")) is None
    assert attempts.reason_after_status(503) is None


def test_only_the_statuses_asked_for_are_tried_again() -> None:
    attempts = attempts_of(made(), Retry(statuses={500, 503}))
    tried = {status for status in range(100, 1000) if attempts.reason_after_status(status) is not None}
    assert tried == {500, 503}


# --- whether there is another attempt ---------------------------------------------------------------------------------

FAILURE = FailedAttempt(what="503", status=503, waited=0.5)


def test_last_attempt_is_followed_by_none() -> None:
    attempts = attempts_of(made(), Retry(attempts=3))
    waits: list[float | RetryRefusal] = []
    for _ in range(3):
        waits.append(attempts.wait(asked=None, left=None))
        attempts.failures.append(FAILURE)
    assert waits == [pytest.approx(0.1), pytest.approx(0.2), RetryRefusal.ATTEMPTS]


def test_single_attempt_is_the_last() -> None:
    assert attempts_of(made(), Retry(attempts=1)).wait(asked=None, left=None) is RetryRefusal.ATTEMPTS


@pytest.mark.parametrize(("asked", "expected"), [(0.0, 0.1), (7.0, 7.1), (30.0, 30.1), (30.5, RetryRefusal.RETRY_AFTER),
                                                 (math.inf, RetryRefusal.RETRY_AFTER)])  # fmt: skip
def test_wait_the_server_asks_for_comes_before_the_jitter_unless_it_is_too_long(
    asked: float, expected: float | RetryRefusal
) -> None:
    waited = attempts_of(made()).wait(asked=asked, left=None)
    assert waited == (expected if isinstance(expected, RetryRefusal) else pytest.approx(expected))


@pytest.mark.parametrize(("asked", "left", "is_refused"), [
    (None, 0.2, False), (None, 0.1, True), (None, 0.0, True), (None, -1.0, True), (5.0, 5.2, False), (5.0, 5.1, True),
])  # fmt: skip
def test_wait_that_does_not_fit_into_the_total_is_not_begun(asked: float | None, left: float, is_refused: bool) -> None:
    waited = attempts_of(made()).wait(asked=asked, left=left)
    assert (waited is RetryRefusal.DEADLINE) is is_refused


def test_error_says_what_went_before_it() -> None:
    attempts = attempts_of(made())
    attempts.failures += [FAILURE, FailedAttempt(what="ConnectionResetError: reset", status=None, waited=0.1)]
    fault = ReadTimeout("read")
    attempts.explain(fault)
    assert fault.__notes__ == ["after 3 attempts: 503, ConnectionResetError: reset, ReadTimeout"]


def test_error_of_the_first_attempt_needs_no_note() -> None:
    fault = ReadTimeout("read")
    attempts_of(made()).explain(fault)
    attempts = attempts_of(made(), Retry(attempts=1))
    attempts.refused(RetryRefusal.ATTEMPTS)
    attempts.explain(fault)
    assert not hasattr(fault, "__notes__")


@pytest.mark.parametrize(("refusal", "text"), [
    (RetryRefusal.BUDGET, "the budget for retries is used up"),
    (RetryRefusal.DEADLINE, "the wait would not fit into the call's total"),
])  # fmt: skip
def test_error_says_why_there_was_no_further_attempt(refusal: RetryRefusal, text: str) -> None:
    attempts = attempts_of(made())
    attempts.refused(refusal)
    fault = ReadTimeout("read")
    attempts.explain(fault)
    assert fault.__notes__ == [f"after 1 attempt: ReadTimeout; no further one, since {text}"]


# --- the budget -------------------------------------------------------------------------------------------------------


def granted(budget: Budget, retry: Retry, now: float, *, tries: int = 1000) -> int:
    """Return how many retries are allowed in a row."""
    return sum(budget.take(retry, now) for _ in range(tries))


def begun(calls: int, now: float = 1000.0) -> Budget:
    budget = Budget()
    for _ in range(calls):
        budget.note_call(now)
    return budget


@pytest.mark.parametrize(("share", "calls", "allowed"), [(0.2, 0, 0), (0.2, 4, 0), (0.2, 5, 1), (0.2, 100, 20),
                                                         (0.5, 7, 3), (1, 7, 7), (2, 7, 14), (0, 500, 0)])  # fmt: skip
def test_retries_are_a_share_of_the_calls(share: float, calls: int, allowed: int) -> None:
    assert granted(begun(calls), Retry(budget=share, budget_floor=0), 1000.0) == allowed


@pytest.mark.parametrize(("floor", "calls", "allowed"), [(10, 0, 100), (10, 400, 100), (10, 600, 120), (0.1, 1, 1),
                                                         (0.05, 1, 0), (0.35, 1, 3)])  # fmt: skip
def test_floor_is_allowed_whatever_the_share(floor: float, calls: int, allowed: int) -> None:
    assert granted(begun(calls), Retry(budget_floor=floor), 1000.0) == allowed


def test_without_a_budget_there_is_no_limit() -> None:
    assert granted(Budget(), Retry(budget=None, budget_floor=0), 1000.0, tries=5000) == 5000


def test_retries_without_a_limit_count_against_those_with_one() -> None:
    budget = begun(100)
    granted(budget, Retry(budget=None), 1000.0, tries=19)
    assert granted(budget, Retry(budget_floor=0), 1000.0) == 1


def test_refused_retry_uses_nothing_up() -> None:
    budget, retry = begun(5), Retry(budget_floor=0)
    assert granted(budget, retry, 1000.0) == 1
    for _ in range(5):
        budget.note_call(1000.0)
    assert granted(budget, retry, 1000.0) == 1


@pytest.mark.parametrize(("later", "allowed"), [(0.0, 0), (5.0, 0), (WINDOW - 1.0, 0), (float(WINDOW), 3), (1e9, 3)])
def test_retries_are_forgotten_with_the_window(later: float, allowed: int) -> None:
    budget, retry = Budget(), Retry(budget_floor=0.3)
    assert granted(budget, retry, 1000.0) == 3
    assert granted(budget, retry, 1000.0 + later) == allowed


@pytest.mark.parametrize(("later", "allowed"), [(0.0, 20), (WINDOW - 1.0, 20), (float(WINDOW), 0)])
def test_calls_are_forgotten_with_the_window(later: float, allowed: int) -> None:
    assert granted(begun(100), Retry(budget_floor=0), 1000.0 + later) == allowed


def test_window_moves_second_by_second() -> None:
    budget, retry = Budget(), Retry(budget_floor=1)
    taken = [granted(budget, retry, 1000.0 + second, tries=2) for second in range(2 * WINDOW)]
    assert taken == [2, 2, 2, 2, 2, 0, 0, 0, 0, 0] * 2


def test_clock_that_is_read_before_the_lock_is_had_counts_as_the_newest_second() -> None:
    budget, retry = Budget(), Retry(budget_floor=0.3)
    assert budget.take(retry, 1000.0)
    assert granted(budget, retry, 998.5) == 2


@given(
    st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=200),
    st.sampled_from([0.0, 0.1, 0.2, 0.5]),
    st.sampled_from([0.0, 0.1, 0.5]),
)
def test_budget_is_never_exceeded_in_any_window(steps: list[tuple[float, bool]], share: float, floor: float) -> None:
    budget, retry, now = Budget(), Retry(budget=share, budget_floor=floor), 1000.0
    log: list[tuple[int, str]] = []
    for pause, is_call in steps:
        now += pause
        if is_call:
            budget.note_call(now)
            log.append((int(now), "call"))
        elif budget.take(retry, now):
            log.append((int(now), "retry"))
            recent = [kind for second, kind in log if second > int(now) - WINDOW]
            assert recent.count("retry") <= max(share * recent.count("call"), floor * WINDOW)


def test_budget_is_shared_by_threads() -> None:
    workers = 8
    budget, retry = Budget(), Retry(budget=0.1, budget_floor=0)
    barrier = threading.Barrier(workers)

    def work(take: Callable[[], object]) -> list[object]:
        barrier.wait(10)
        return [take() for _ in range(250)]

    def by_all(take: Callable[[], object]) -> list[object]:
        futures = [threads.submit(work, take) for _ in range(workers)]
        return [result for future in futures for result in future.result(10)]

    with ThreadPoolExecutor(workers) as threads:
        by_all(functools.partial(budget.note_call, 1000.0))
        assert by_all(functools.partial(budget.take, retry, 1000.0)).count(True) == 200
