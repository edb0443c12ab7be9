"""What a pool shows, and what of an expression nobody shows: for tests of panels, rules and pages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import promql_parser
from prometheus_client import CollectorRegistry

from pooledhttp import ConnectionPool

# What Prometheus adds to every series that it scrapes.
FROM_SCRAPING = {"job", "instance"}
# Its values are the program's.
_OF_THE_PROGRAM = {"pool", "version"}

Samples = Mapping[str, Mapping[str, set[str]]]


def exposed() -> dict[str, dict[str, set[str]]]:
    """Return the samples of a pool: the values of each label of each."""
    registry = CollectorRegistry()
    samples: dict[str, dict[str, set[str]]] = {}
    with ConnectionPool("127.0.0.1", 9, name="orders", registry=registry):
        for family in registry.collect():
            for sample in family.samples:
                values = samples.setdefault(sample.name, {})
                for label, value in sample.labels.items():
                    values.setdefault(label, set()).add(value)
    return samples


def types() -> dict[str, str]:
    """Return the type of each sample."""
    registry = CollectorRegistry()
    with ConnectionPool("127.0.0.1", 9, registry=registry):
        return {sample.name: family.type for family in registry.collect() for sample in family.samples}


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Return the selectors of an expression, those with a window too."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def faults_of(expression: str, known: Samples) -> Iterator[str]:
    """Say which names, labels and values of an expression nobody shows."""
    labels_around = FROM_SCRAPING.copy()
    for selector in selectors(expression):
        labels = known.get(selector.name or "")
        if labels is None:
            yield f"{selector.name} is not shown"
            continue
        labels_around |= labels.keys()
        for matcher in selector.matchers.matchers:
            if matcher.name in FROM_SCRAPING | _OF_THE_PROGRAM:
                continue
            if matcher.name not in labels:
                yield f"{selector.name} has no label {matcher.name}"
                continue
            is_pattern = matcher.op in (promql_parser.MatchOp.Re, promql_parser.MatchOp.NotRe)
            for value in matcher.value.split("|") if is_pattern else [matcher.value]:
                pattern = value if is_pattern else re.escape(value)
                if not any(re.fullmatch(pattern, shown) for shown in labels[matcher.name]):
                    yield f"{matcher.name} of {selector.name} is never {value}"
    for modifier in re.findall(r"\b(?:by|without|on) \(([\w, ]*)\)", expression):
        for label in set(modifier.split(", ")) - labels_around:
            yield f"there is no label {label}"
