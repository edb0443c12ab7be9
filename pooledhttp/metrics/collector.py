"""The collector of one process: asks every pool when its registry is scraped, and writes families.

Nothing in the path of a request comes here, and between two scrapes nothing happens at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from pooledhttp import __version__
from pooledhttp.stats import HistogramStats, Tally

from .families import BUILD_INFO, DISTRIBUTIONS, NUMBERS, OVERFLOW, POOLS, Distribution, Kind, Numbers, Single
from .fleet import Fleet, OwnNames, Totals

if TYPE_CHECKING:
    from pooledhttp.pool import ConnectionPool

_NOTHING: Final = Totals({}, {}, 0, 0)
_FAMILY: Final[Mapping[Kind, type[GaugeMetricFamily | CounterMetricFamily]]] = {
    Kind.GAUGE: GaugeMetricFamily,
    Kind.COUNTER: CounterMetricFamily,
}


class PoolCollector(Collector):
    """Shows any number of pools in one registry; `metrics.watch` makes and registers it."""

    def __init__(self) -> None:
        self._fleet = Fleet(OwnNames())

    def watch(self, pool: ConnectionPool, tally: Tally) -> None:
        """Show a pool from now on."""
        self._fleet.watch(pool, tally)

    def renew_after_fork(self) -> None:
        """Begin anew in a child process."""
        self._fleet.renew_after_fork()

    def describe(self) -> list[Metric]:
        """Return the families without samples, so that a clash of names is seen without asking any pool."""
        return described()

    def collect(self) -> list[Metric]:
        """Return the numbers of all pools at this moment."""
        return _families(self._fleet.totals())


def described() -> list[Metric]:
    """Return all families without samples."""
    families = _families(_NOTHING)
    for family in families:
        family.samples = []
    return families


def _families(totals: Totals) -> list[Metric]:
    return [
        *(_of_numbers(numbers, totals) for numbers in NUMBERS),
        *(_of_distribution(distribution, totals) for distribution in DISTRIBUTIONS),
        _of_single(POOLS, totals.open_pools),
        _of_single(OVERFLOW, totals.folded),
        _of_version(),
    ]


def _of_numbers(numbers: Numbers, totals: Totals) -> Metric:
    labels = ["pool", numbers.by] if numbers.by else ["pool"]
    family = _FAMILY[numbers.kind](numbers.name, numbers.documentation, labels=labels)
    for label, stats in totals.by_label.items():
        for value, number in numbers.read(stats).items():
            family.add_metric([label, value] if numbers.by else [label], number)
    return family


def _of_distribution(distribution: Distribution, totals: Totals) -> Metric:
    family = HistogramMetricFamily(distribution.name, distribution.documentation, labels=["pool"])
    for label, stats in totals.by_label.items():
        family.add_metric([label], _buckets(distribution.read(stats)), totals.sums[distribution.name, label])
    return family


def _buckets(histogram: HistogramStats) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    """Return upper bounds and how many observations are at or below them, as Prometheus wants it."""
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    for bucket, labels, seconds, at in histogram.exemplars:
        bound, count, *_ = buckets[bucket]
        buckets[bucket] = (bound, count, Exemplar(dict(labels), seconds, at))
    return buckets


def _of_single(single: Single, value: float) -> Metric:
    return _FAMILY[single.kind](single.name, single.documentation, value=value)


def _of_version() -> Metric:
    # A plain gauge: an Info would be read as one, but cannot be had from several processes.
    family = GaugeMetricFamily(BUILD_INFO.name, BUILD_INFO.documentation, labels=["version"])
    family.add_metric([__version__], 1)
    return family
