"""The collector of one process: asks every pool when its registry is scraped, and writes families.

Nothing in the path of a request comes here, and between two scrapes nothing happens at all.  A scrape of a hundred
pools makes eleven thousand samples; what is the same in all scrapes, their labels, is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from pooledhttp import __version__
from pooledhttp.stats import Tally

from .families import BUILD_INFO, DISTRIBUTIONS, NUMBERS, OVERFLOW, POOLS, Distribution, Kind, Numbers, Single
from .fleet import Fleet, OwnNames, Totals

if TYPE_CHECKING:
    from pooledhttp.pool import ConnectionPool

_NOTHING: Final = Totals({}, {}, 0, 0)
_FAMILY: Final[Mapping[Kind, type[GaugeMetricFamily | CounterMetricFamily]]] = {
    Kind.GAUGE: GaugeMetricFamily,
    Kind.COUNTER: CounterMetricFamily,
}
# The labels of the samples of a metric, by its name and the pool's label.
_Labels = dict[tuple[str, str], tuple[dict[str, str], ...]]


class PoolCollector(Collector):
    """Shows any number of pools in one registry; `metrics.watch` makes and registers it."""

    def __init__(self) -> None:
        self._fleet = Fleet(OwnNames())
        self._labels: _Labels = {}

    def watch(self, pool: ConnectionPool, tally: Tally) -> None:
        """Show a pool from now on."""
        self._fleet.watch(pool, tally)

    def renew_after_fork(self) -> None:
        """Begin anew in a child process."""
        self._fleet.renew_after_fork()

    def describe(self) -> list[Metric]:
        """Return the families without samples, so that a clash of names is seen without asking any pool."""
        return described()

    def collect(self) -> Iterator[Metric]:
        """Yield the numbers of all pools at this moment."""
        # One family at a time: who writes them down keeps none, and the garbage collector has less to go through.
        yield from _families(self._fleet.totals(), self._labels)


def described() -> list[Metric]:
    """Return all families without samples."""
    families = list(_families(_NOTHING, {}))
    for family in families:
        family.samples = []
    return families


def _families(totals: Totals, labels: _Labels) -> Iterator[Metric]:
    for numbers in NUMBERS:
        yield _of_numbers(numbers, totals, labels)
    for distribution in DISTRIBUTIONS:
        yield _of_distribution(distribution, totals, labels)
    yield _of_single(POOLS, totals.open_pools)
    yield _of_single(OVERFLOW, totals.folded)
    yield _of_version()


def _of_numbers(numbers: Numbers, totals: Totals, known: _Labels) -> Metric:
    family = _FAMILY[numbers.kind](numbers.name, numbers.documentation, labels=[])
    for label, stats in totals.by_label.items():
        found = numbers.read(stats)
        labels = known.get((numbers.name, label))
        if labels is None:
            labels = tuple({"pool": label, numbers.by: value} if numbers.by else {"pool": label} for value in found)
            known[numbers.name, label] = labels
        family.samples += map(Sample, repeat(numbers.name), map(_copy, labels), found.values())
    return family


def _of_distribution(distribution: Distribution, totals: Totals, known: _Labels) -> Metric:
    family = HistogramMetricFamily(distribution.name, distribution.documentation, labels=[])
    for label, stats in totals.by_label.items():
        histogram = distribution.read(stats)
        labels = known.get((distribution.name, label))
        if labels is None:
            bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
            labels = (*({"pool": label, "le": bound} for bound in bounds), {"pool": label})
            known[distribution.name, label] = labels
        *of_buckets, of_all = map(_copy, labels)
        # Prometheus wants to know how many observations are at or below each bound.
        buckets = [*map(Sample, repeat(f"{distribution.name}_bucket"), of_buckets, accumulate(histogram.counts))]
        for bucket, trace, seconds, at in histogram.exemplars:
            buckets[bucket] = buckets[bucket]._replace(exemplar=Exemplar(dict(trace), seconds, at))
        family.samples += buckets
        family.samples += [
            Sample(f"{distribution.name}_count", of_all, buckets[-1].value),
            Sample(f"{distribution.name}_sum", _copy(of_all), totals.sums[distribution.name, label]),
        ]
    return family


# Whoever gets a sample may change its labels.
_copy: Final[Callable[[dict[str, str]], dict[str, str]]] = dict.copy


def _of_single(single: Single, value: float) -> Metric:
    return _FAMILY[single.kind](single.name, single.documentation, value=value)


def _of_version() -> Metric:
    # A plain gauge: an Info would be read as one, but cannot be had from several processes.
    family = GaugeMetricFamily(BUILD_INFO.name, BUILD_INFO.documentation, labels=["version"])
    family.add_metric([__version__], 1)
    return family
