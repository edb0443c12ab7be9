"""prometheus_client's own counters, gauges and histograms, brought to what the pools have counted.

prometheus_client keeps them in memory-mapped files, one of a kind per process.  They are in no registry: the files are
what is read.  Each remembers what it was told last, and adds what is new.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from pooledhttp import __version__
from pooledhttp.stats import HistogramStats, PoolStats, Tally, freeze

from .families import BUILD_INFO, DISTRIBUTIONS, NUMBERS, OVERFLOW, POOLS, Kind
from .fleet import Totals


class Number:
    """One counter or gauge with its labels, and what it was told last."""

    __slots__ = ("_instrument", "_is_counter", "_shown")

    def __init__(self, instrument: Counter | Gauge) -> None:
        self._instrument = instrument
        self._is_counter = isinstance(instrument, Counter)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Know nothing of what was shown; what the file of this process holds is nobody's business."""
        self._shown = 0.0 if self._is_counter else math.nan

    def take_over(self, before: Number) -> None:
        """Go on where another has come to: what it has added is in the file."""
        if self._is_counter:
            self._shown = before._shown

    def show(self, number: float) -> None:
        """Bring it to a number."""
        shown, instrument = self._shown, self._instrument
        if number == shown:
            return
        if isinstance(instrument, Gauge):
            instrument.set(number)
        elif number < shown:
            return  # what a counter has once shown is not added again when it comes back to it
        else:
            instrument.inc(number - shown)
        self._shown = number


class Distribution:
    """One histogram with its label, and what it was told last.

    There is no public way to add many observations at once, so it looks inside.  In a prometheus_client with another
    inside it adds them one by one: the buckets are right then, the sum only about so.

    Args:
        histogram: The histogram.
        bounds: The upper bounds of its buckets but the last, which has none.
    """

    __slots__ = ("_bounds", "_buckets", "_counts", "_histogram", "_sum", "_total")

    def __init__(self, histogram: Histogram, bounds: Sequence[float]) -> None:
        self._histogram = histogram
        self._bounds = (*bounds, 2 * bounds[-1])
        buckets: Any = getattr(histogram, "_buckets", None)
        total: Any = getattr(histogram, "_sum", None)
        is_known = buckets is not None and total is not None and len(buckets) == len(self._bounds)
        self._buckets = buckets if is_known else None
        self._total = total
        self.begin_anew()

    def begin_anew(self) -> None:
        """Know nothing of what was shown."""
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def take_over(self, before: Distribution) -> None:
        """Go on where another has come to."""
        self._counts, self._sum = before._counts, before._sum

    def show(self, stats: HistogramStats, total: float) -> None:
        """Bring it to a pool's counts, and to a sum in seconds."""
        counts = self._counts
        for index, now in enumerate(stats.counts):
            added = now - counts[index]
            if added > 0:
                self._add(index, added)
                counts[index] = now
        if total > self._sum:
            if self._buckets is not None:
                self._total.inc(total - self._sum)
            self._sum = total

    def _add(self, index: int, added: int) -> None:
        if self._buckets is not None:
            self._buckets[index].inc(added)
        else:
            for _ in range(added):
                self._histogram.observe(self._bounds[index])


class Series:
    """All that one label has to show."""

    def __init__(self, instruments: Instruments, label: str) -> None:
        nothing = freeze(Tally(), name=label)
        self._numbers = [
            (numbers, {value: Number(instruments.child(numbers.name, label, value)) for value in numbers.read(nothing)})
            for numbers in NUMBERS
        ]
        self._distributions = [
            (
                distribution,
                Distribution(instruments.histogram(distribution.name, label), distribution.read(nothing).bounds),
            )
            for distribution in DISTRIBUTIONS
        ]
        self._label = label
        self._shown: tuple[PoolStats, bool] | None = None

    def begin_anew(self) -> None:
        """Know nothing of what was shown; for the child of a fork."""
        self._shown = None
        for _, by_value in self._numbers:
            for number in by_value.values():
                number.begin_anew()
        for _, distribution in self._distributions:
            distribution.begin_anew()

    def take_over(self, before: Series) -> None:
        """Go on where another has come to."""
        for (_, by_value), (_, by_value_before) in zip(self._numbers, before._numbers, strict=True):
            for value, number in by_value.items():
                number.take_over(by_value_before[value])
        for (_, distribution), (_, distribution_before) in zip(self._distributions, before._distributions, strict=True):
            distribution.take_over(distribution_before)

    def show(self, totals: Totals, *, has_gauges: bool) -> None:
        """Bring the instruments to a label's numbers; the gauges to 0 in a process that is not, or no more, at work."""
        stats = totals.by_label[self._label]
        if (stats, has_gauges) == self._shown:
            return
        for numbers, by_value in self._numbers:
            is_shown = has_gauges or numbers.kind is Kind.COUNTER
            for value, number in numbers.read(stats).items():
                by_value[value].show(number if is_shown else 0)
        for distribution, histogram in self._distributions:
            histogram.show(distribution.read(stats), totals.sums[distribution.name, self._label])
        self._shown = stats, has_gauges


class Instruments:
    """All series of a process.

    Args:
        before: Those that these replace: what they have shown is not shown again.

    Raises:
        OSError: The files cannot be opened.
    """

    def __init__(self, before: Instruments | None = None) -> None:
        self._by_name: dict[str, Counter | Gauge] = {}
        for numbers in NUMBERS:
            labels = ["pool", numbers.by] if numbers.by else ["pool"]
            if numbers.kind is Kind.COUNTER:
                self._by_name[numbers.name] = Counter(numbers.name, numbers.documentation, labels, registry=None)
            else:
                self._by_name[numbers.name] = Gauge(
                    numbers.name, numbers.documentation, labels, registry=None, multiprocess_mode=numbers.merge
                )
        nothing = freeze(Tally(), name="")
        self._histograms = {
            distribution.name: Histogram(
                distribution.name,
                distribution.documentation,
                ["pool"],
                registry=None,
                buckets=distribution.read(nothing).bounds,
            )
            for distribution in DISTRIBUTIONS
        }
        self._pools = Number(Gauge(POOLS.name, POOLS.documentation, registry=None, multiprocess_mode="livesum"))
        self._folded = Number(Counter(OVERFLOW.name, OVERFLOW.documentation, registry=None))
        version = Gauge(
            BUILD_INFO.name, BUILD_INFO.documentation, ["version"], registry=None, multiprocess_mode="livemax"
        )
        self._version = Number(version.labels(__version__))
        self._version.show(1)
        self._series: dict[str, Series] = {}
        if before is not None:
            self._folded.take_over(before._folded)
            for label, series in before._series.items():
                self.introduce(label)
                self._series[label].take_over(series)

    def child(self, name: str, label: str, value: str) -> Counter | Gauge:
        """Return a counter or gauge with its labels."""
        return self._by_name[name].labels(label, value) if value else self._by_name[name].labels(label)

    def histogram(self, name: str, label: str) -> Histogram:
        """Return a histogram with its label."""
        return self._histograms[name].labels(label)

    def knows(self, label: str) -> bool:
        """Tell whether a label has its series."""
        return label in self._series

    def introduce(self, label: str) -> None:
        """Let every series of a label exist, at 0.

        Raises:
            OSError: The files cannot be made longer.
        """
        self._series[label] = Series(self, label)

    def show(self, totals: Totals, *, has_gauges: bool) -> None:
        """Bring everything to what the pools have counted, but for labels that were not introduced."""
        for label, series in self._series.items():
            if label in totals.by_label:
                series.show(totals, has_gauges=has_gauges)
        self._pools.show(totals.open_pools if has_gauges else 0)
        self._version.show(1)
        self._folded.show(totals.folded)

    def begin_anew(self) -> None:
        """Know nothing of what was shown; for the child of a fork; touches no file."""
        for number in (self._pools, self._folded, self._version):
            number.begin_anew()
        for series in self._series.values():
            series.begin_anew()
