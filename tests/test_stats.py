"""The numbers of a pool: they are counted exactly, frozen when they are shown, and add up across pools."""

from __future__ import annotations

import pickle
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooledhttp.stats import (
    OUTCOME_BY_STATUS_CLASS,
    REQUEST_BOUNDS,
    USE_BOUNDS,
    WAIT_BOUNDS,
    AcquireOutcome,
    CloseReason,
    ConnectFailure,
    DrainOutcome,
    Histogram,
    HistogramStats,
    PoolStats,
    RequestOutcome,
    RetryReason,
    RetryRefusal,
    StaleOutcome,
    Tally,
    freeze,
)

BOUNDS = (1.0, 2.0, 5.0)
KINDS: dict[str, type[StrEnum]] = {
    "acquires": AcquireOutcome,
    "closed": CloseReason,
    "connect_failures": ConnectFailure,
    "stale": StaleOutcome,
    "drains": DrainOutcome,
    "requests": RequestOutcome,
    "retries": RetryReason,
    "retries_refused": RetryRefusal,
}
COUNTERS = ["opened", "leaked"]
GAUGES = ["maxsize", "idle", "leased", "opening", "waiting"]
HISTOGRAMS = {"wait": WAIT_BOUNDS, "use": USE_BOUNDS, "connect": WAIT_BOUNDS, "request": REQUEST_BOUNDS}


def observed(*seconds: float, bounds: tuple[float, ...] = BOUNDS) -> Histogram:
    histogram = Histogram(bounds)
    for value in seconds:
        histogram.observe(value)
    return histogram


def filled(start: int) -> PoolStats:
    """Return numbers that are all different from each other and from those of another start."""
    tally = Tally()
    number = start
    for name in KINDS:
        counts = getattr(tally, name)
        for key in counts:
            counts[key] = number = number + 1
    tally.opened, tally.leaked = number + 1, number + 2
    for at, name in enumerate(HISTOGRAMS):
        for _ in range(start + at):
            getattr(tally, name).observe(0.25 * (at + 1))
    gauges = {name: number + 3 + at for at, name in enumerate(GAUGES)}
    return freeze(tally, name=f"pool-{start}", oldest_lease_seconds=start / 2, **gauges)


# --- histograms -------------------------------------------------------------------------------------------------------


def test_observation_is_counted_in_the_bucket_of_its_bound() -> None:
    histogram = observed(0.0, 1.0, 1.5, 2.0, 2.1, 5.0, 5.1, 100.0)
    assert histogram.counts == [2, 2, 2, 2]
    assert histogram.sum == pytest.approx(116.7)


@given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 10)), max_size=100))
def test_many_observations_at_a_time_are_counted_like_one_by_one(values: list[float]) -> None:
    histogram, one_by_one = Histogram(BOUNDS), observed(*values)
    histogram.observe_all(values)
    assert histogram.counts == one_by_one.counts
    assert histogram.sum == pytest.approx(one_by_one.sum)


def test_frozen_histogram_does_not_change_any_more() -> None:
    histogram = observed(1.5)
    frozen = histogram.freeze()
    histogram.observe(1.5)
    assert (frozen.bounds, frozen.counts, frozen.sum, frozen.count) == (BOUNDS, (0, 1, 0, 0), 1.5, 1)
    with pytest.raises(AttributeError):
        frozen.sum = 5.0  # type: ignore[misc]  # it is what the test is about


def test_histograms_add_up() -> None:
    histogram = observed(0.5, 1.5)
    histogram.add(observed(1.5, 9.0))
    assert (histogram.counts, histogram.sum) == ([1, 2, 0, 1], 12.5)


def test_frozen_histograms_add_up() -> None:
    both = observed(0.5, 1.5).freeze() + observed(1.5, 9.0).freeze()
    assert both == HistogramStats(bounds=BOUNDS, counts=(1, 2, 0, 1), sum=12.5)


def test_histograms_of_other_bounds_do_not_add_up() -> None:
    with pytest.raises(ValueError):
        observed(1.0).add(observed(1.0, bounds=(1.0,)))
    with pytest.raises(ValueError):
        observed(1.0).freeze() + observed(1.0, bounds=(1.0,)).freeze()


@pytest.mark.parametrize(
    ("seconds", "q", "quantile"),
    [
        ([], 0.5, 0.0),
        ([0.3], 0.5, 0.5),
        ([0.3], 1.0, 1.0),
        ([0.3], 0.0, 0.0),
        ([1.5, 1.5], 0.5, 1.5),
        ([0.5, 1.5, 3.0, 3.0], 0.25, 1.0),
        ([0.5, 1.5, 3.0, 3.0], 0.5, 2.0),
        ([0.5, 1.5, 3.0, 3.0], 0.75, 3.5),
        ([9.0], 0.5, 5.0),
        ([0.5, 9.0], 0.99, 5.0),
        ([3.0, 3.0, 3.0], 1.0, 5.0),
    ],
)
def test_quantile_is_estimated_within_its_bucket(seconds: list[float], q: float, quantile: float) -> None:
    assert observed(*seconds).freeze().quantile(q) == pytest.approx(quantile)


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_rise_and_stay_within_the_bounds(seconds: list[float], one: float, other: float) -> None:
    frozen = observed(*seconds).freeze()
    low, high = sorted((one, other))
    assert 0 <= frozen.quantile(low) <= frozen.quantile(high) + 1e-9 <= BOUNDS[-1] + 1e-9


@given(st.lists(st.floats(0, 10)), st.lists(st.floats(0, 10)))
def test_observations_of_two_histograms_are_those_of_one(some: list[float], more: list[float]) -> None:
    both = observed(*some).freeze() + observed(*more).freeze()
    assert both.counts == observed(*some, *more).freeze().counts
    assert both.count == len(some) + len(more)


# --- tally and stats --------------------------------------------------------------------------------------------------


def test_tally_begins_with_every_value_at_zero() -> None:
    stats = freeze(Tally(), name="orders")
    for name, kind in KINDS.items():
        assert dict(getattr(stats, name)) == dict.fromkeys(map(str, kind), 0)
    for name in [*COUNTERS, *GAUGES]:
        assert getattr(stats, name) == 0
    for name, bounds in HISTOGRAMS.items():
        assert getattr(stats, name) == HistogramStats(bounds=bounds, counts=(0,) * (len(bounds) + 1), sum=0.0)
    assert (stats.name, stats.oldest_lease_seconds) == ("orders", 0.0)


def test_frozen_tally_does_not_change_any_more() -> None:
    tally = Tally()
    stats = freeze(tally, name="orders")
    tally.closed[CloseReason.IDLE] += 1
    tally.opened += 1
    tally.use.observe(1.0)
    assert (stats.closed["idle"], stats.opened, stats.use.count) == (0, 0, 0)
    with pytest.raises(TypeError):
        stats.closed["idle"] = 5  # type: ignore[index]  # it is what the test is about
    with pytest.raises(AttributeError):
        stats.opened = 5  # type: ignore[misc]  # it is what the test is about


def test_counts_are_found_by_text_and_by_enumeration() -> None:
    tally = Tally()
    tally.closed[CloseReason.STALE_EOF] += 3
    stats = freeze(tally, name="orders")
    assert stats.closed["stale_eof"] == stats.closed[CloseReason.STALE_EOF] == 3
    assert all(type(key) is str for key in stats.closed)


def test_reuses_under_way_are_counted_as_reuses() -> None:
    tally = Tally()
    tally.acquires[AcquireOutcome.REUSED] = 3
    assert freeze(tally, name="orders", reused_under_way=2).acquires["reused"] == 5
    assert tally.acquires[AcquireOutcome.REUSED] == 3


@pytest.mark.parametrize(("reused", "opened", "ratio"), [(0, 0, 0.0), (0, 4, 0.0), (3, 1, 0.75), (4, 0, 1.0)])
def test_reuse_ratio_is_the_share_of_acquires_without_a_new_connection(reused: int, opened: int, ratio: float) -> None:
    tally = Tally()
    tally.acquires[AcquireOutcome.REUSED] = reused
    tally.acquires[AcquireOutcome.OPENED] = opened
    tally.acquires[AcquireOutcome.TIMEOUT] = 50
    assert freeze(tally, name="orders").reuse_ratio == ratio


def test_stats_of_two_pools_add_up() -> None:
    one, other = filled(1), filled(20)
    both = one + other
    for name in [*COUNTERS, *GAUGES]:
        assert getattr(both, name) == getattr(one, name) + getattr(other, name)
    for name in KINDS:
        assert dict(getattr(both, name)) == {
            key: count + getattr(other, name)[key] for key, count in getattr(one, name).items()
        }
    for name in HISTOGRAMS:
        assert getattr(both, name).count == getattr(one, name).count + getattr(other, name).count
        assert getattr(both, name).sum == pytest.approx(getattr(one, name).sum + getattr(other, name).sum)


def test_sum_of_two_pools_has_the_first_ones_name_and_the_elder_lease() -> None:
    assert ((filled(1) + filled(20)).name, (filled(1) + filled(20)).oldest_lease_seconds) == ("pool-1", 10.0)
    assert ((filled(20) + filled(1)).name, (filled(20) + filled(1)).oldest_lease_seconds) == ("pool-20", 10.0)


def test_sum_of_two_pools_is_frozen_too() -> None:
    with pytest.raises(TypeError):
        (filled(1) + filled(2)).closed["idle"] = 5  # type: ignore[index]  # it is what the test is about


def test_stats_go_to_another_process_and_stay_read_only() -> None:
    stats = freeze(Tally(), name="orders", maxsize=3)
    arrived = pickle.loads(pickle.dumps(stats))
    assert arrived == stats
    assert type(arrived.closed) is type(stats.closed)


def test_no_field_of_the_stats_is_left_out_of_a_sum() -> None:
    summed = {*KINDS, *COUNTERS, *GAUGES, *HISTOGRAMS}
    assert set(PoolStats.__annotations__) == summed | {"name", "oldest_lease_seconds"}


@pytest.mark.parametrize("status", range(100, 1000))
def test_every_status_has_an_outcome(status: int) -> None:
    assert OUTCOME_BY_STATUS_CLASS[status // 100] == f"{min(status // 100, 5)}xx"


@pytest.mark.parametrize("bounds", [WAIT_BOUNDS, USE_BOUNDS, REQUEST_BOUNDS])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
    assert bounds[0] > 0
