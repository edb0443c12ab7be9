"""Timeouts and deadlines: what is asked is checked, what is left is told, and only the injected clock is read."""

from __future__ import annotations

import math
import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooledhttp.errors import ConnectTimeout, TotalTimeout
from pooledhttp.timeouts import LONGEST, ConnectDeadline, Deadline, Timeout, check_seconds, monotonic

PARTS = ["acquire", "connect", "read", "write", "total"]


class FakeClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


# --- Timeout ----------------------------------------------------------------------------------------------------------


def test_only_the_monotonic_clock_is_read_by_default() -> None:
    assert monotonic is time.monotonic


def test_timeout_has_the_documented_defaults() -> None:
    timeout = Timeout()
    assert [getattr(timeout, part) for part in PARTS] == [5.0, 5.0, 30.0, 30.0, None]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [None, 1, 0.001, LONGEST])
def test_part_of_a_timeout_is_a_number_of_seconds_or_unbounded(part: str, value: float | None) -> None:
    assert getattr(Timeout(**{part: value}), part) == value


def test_acquire_may_be_zero_and_nothing_else() -> None:
    assert Timeout(acquire=0).acquire == 0
    for part in PARTS[1:]:
        with pytest.raises(ValueError, match=f"Timeout.{part} must be greater than 0"):
            Timeout(**{part: 0})


NO_TIMES = [-1, -0.001, math.nan, math.inf, -math.inf, LONGEST + 1, 10**400, -(10**400)]
NO_NUMBERS = ["5", b"5", True, False, [], (), 5j, Decimal(5), ...]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", NO_TIMES, ids=lambda value: repr(value)[:20])
def test_part_of_a_timeout_that_is_no_length_of_time_is_refused(part: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Timeout.{part} must be"):
        Timeout(**{part: value})


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_part_of_a_timeout_that_is_no_number_is_refused(part: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"Timeout.{part} must be a number of seconds or None"):
        Timeout(**{part: value})  # type: ignore[arg-type]  # it is what the test is about


def test_timeout_cannot_be_changed() -> None:
    timeout = Timeout()
    with pytest.raises(AttributeError):
        timeout.read = 1.0  # type: ignore[misc]  # it is what the test is about


def test_timeout_takes_keywords_only() -> None:
    with pytest.raises(TypeError):
        Timeout(5)  # type: ignore[call-arg]  # it is what the test is about


@pytest.mark.parametrize(("zero", "least"), [(True, "at least 0"), (False, "greater than 0")])
def test_message_says_what_is_allowed(zero: bool, least: str) -> None:
    with pytest.raises(ValueError, match=f"the pause must be {least} and at most a year .*, not -1; None is unbounded"):
        check_seconds("the pause", -1, zero=zero)


@given(st.floats(), st.booleans())
def test_every_number_is_within_the_bounds_or_refused(value: float, zero: bool) -> None:
    try:
        check_seconds("x", value, zero=zero)
    except ValueError:
        assert not 0 < value <= LONGEST
        assert value or not zero
    else:
        assert 0 <= value <= LONGEST
        assert value or zero


# --- Deadline ---------------------------------------------------------------------------------------------------------


def test_deadline_counts_down(clock: FakeClock) -> None:
    deadline = Deadline(5.0, clock=clock)
    assert (deadline.at, deadline.seconds, deadline.remaining()) == (1005.0, 5.0, 5.0)
    clock.now += 3.5
    assert deadline.remaining() == 1.5
    clock.now += 3.5
    assert deadline.remaining() == -2.0


def test_deadline_reads_the_real_clock_without_another() -> None:
    before = time.monotonic()
    deadline = Deadline(5.0)
    assert before + 5.0 <= deadline.at <= time.monotonic() + 5.0


def test_nothing_is_spent_before_the_first_phase(clock: FakeClock) -> None:
    assert Deadline(5.0, clock=clock).spent() == ""


def test_time_is_accounted_for_phase_by_phase(clock: FakeClock) -> None:
    deadline = Deadline(5.0, clock=clock)
    deadline.enter("acquire")
    clock.now += 0.25
    deadline.enter("connect")
    clock.now += 1.5
    assert deadline.spent() == "acquire 0.25 s, connect 1.50 s"
    deadline.enter("exchange")
    clock.now += 2
    assert deadline.spent() == "acquire 0.25 s, connect 1.50 s, exchange 2.00 s"


def test_error_names_the_call_its_total_and_what_was_spent(clock: FakeClock) -> None:
    deadline = Deadline(2.0, what="GET /v1/orders", clock=clock)
    deadline.enter("acquire")
    clock.now += 2.5
    fault = deadline.exceeded()
    assert type(fault) is TotalTimeout
    assert str(fault) == "GET /v1/orders took longer than its total of 2.00 s (acquire 2.50 s)"


def test_error_without_phases_has_no_account(clock: FakeClock) -> None:
    assert str(Deadline(0.5, clock=clock).exceeded()) == "the call took longer than its total of 0.50 s"


# --- ConnectDeadline --------------------------------------------------------------------------------------------------


def test_phase_gets_what_is_left(clock: FakeClock) -> None:
    deadline = ConnectDeadline(5.0, clock=clock)
    assert deadline.begin("resolving") == 5.0
    clock.now += 2
    assert deadline.begin("connecting") == 3.0


def test_unbounded_phase_gets_none(clock: FakeClock) -> None:
    deadline = ConnectDeadline(None, clock=clock)
    clock.now += 1e9
    assert deadline.begin("connecting") is None


def test_earlier_total_bounds_the_phase(clock: FakeClock) -> None:
    total = Deadline(3.0, clock=clock)
    clock.now += 1
    assert ConnectDeadline(5.0, total=total, clock=clock).begin("connecting") == 2.0
    assert ConnectDeadline(None, total=total, clock=clock).begin("connecting") == 2.0
    assert ConnectDeadline(0.5, total=total, clock=clock).begin("connecting") == 0.5


def test_phase_that_begins_too_late_is_refused(clock: FakeClock) -> None:
    deadline = ConnectDeadline(5.0, what="orders:80", clock=clock)
    clock.now += 5
    with pytest.raises(
        ConnectTimeout, match=r"no connection to orders:80 within 5\.00 s: the TLS handshake took too long"
    ):
        deadline.begin("the TLS handshake")


def test_phase_that_begins_behind_the_total_is_the_totals_fault(clock: FakeClock) -> None:
    total = Deadline(3.0, what="GET /", clock=clock)
    total.enter("connect")
    deadline = ConnectDeadline(5.0, total=total, clock=clock)
    clock.now += 3
    with pytest.raises(TotalTimeout, match=r"GET / took longer than its total of 3\.00 s \(connect 3\.00 s\)"):
        deadline.begin("connecting")


def test_error_names_the_last_phase(clock: FakeClock) -> None:
    deadline = ConnectDeadline(5.0, total=Deadline(60.0, clock=clock), what="orders:80", clock=clock)
    assert "connecting took too long" in str(deadline.exceeded())
    deadline.begin("resolving")
    assert str(deadline.exceeded()) == "no connection to orders:80 within 5.00 s: resolving took too long"


def test_error_without_a_limit_names_none(clock: FakeClock) -> None:
    fault = ConnectDeadline(None, clock=clock).exceeded()
    assert str(fault) == "no connection to the peer: connecting took too long"
