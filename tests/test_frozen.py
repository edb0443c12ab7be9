"""Records that never change: what a frozen, keyword-only data class would do, they do."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pooledhttp import HistogramStats, Limits, PoolConfig, Retry, Timeout
from pooledhttp.frozen import Frozen


class Point(Frozen):
    """Two numbers."""

    x: int
    y: int = 0
    _unshown = frozenset({"y"})

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x must be at least 0")


class Other(Frozen):
    """Two numbers of another kind."""

    x: int
    y: int = 0


class Labelled(Point):
    """A point with a name, which begins at the right."""

    label: str
    x: int = 9


def test_subclass_has_the_values_of_its_base_too() -> None:
    assert Labelled(label="a").as_dict() == {"x": 9, "y": 0, "label": "a"}
    assert Labelled(label="a") != Point(x=9)
    with pytest.raises(ValueError, match="at least 0"):
        Labelled(label="a", x=-1)


def test_values_are_taken_by_keyword_and_defaults_fill_in() -> None:
    point = Point(x=1)
    assert (point.x, point.y) == (1, 0)
    assert point.as_dict() == {"x": 1, "y": 0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda make: make(), "Point.. needs the keyword argument 'x'"),
        (lambda make: make(x=1, z=2), "unexpected keyword argument 'z'"),
        (lambda make: make(y=1, z=2), "unexpected keyword argument 'z'"),
        (lambda make: make(1), r"Point\(\) takes keywords only: x, y"),
        (lambda make: make(x=1).replace(z=1), "unexpected keyword argument 'z'"),
    ],
)
def test_misuse_is_told(make: Callable[[Any], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make(Point)


def test_values_cannot_be_set_nor_deleted() -> None:
    point = Point(x=1)
    with pytest.raises(AttributeError, match="Point does not change: cannot set x"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="cannot set z"):
        point.z = 2  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="cannot delete x"):
        del point.x
    assert point == Point(x=1)


def test_replaced_record_is_another_one_and_checked() -> None:
    point = Point(x=1, y=2)
    assert point.replace(x=3) == Point(x=3, y=2)
    assert point == Point(x=1, y=2)
    with pytest.raises(ValueError, match="at least 0"):
        point.replace(x=-1)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="copy.replace came with Python 3.13")
def test_copy_replace_works() -> None:
    assert getattr(copy, "replace")(Point(x=1, y=2), y=3) == Point(x=1, y=3)  # noqa: B009  # unknown to older typeshed


def test_records_are_equal_by_class_and_values() -> None:
    assert Point(x=1) == Point(x=1, y=0)
    assert Point(x=1) != Point(x=2)
    assert Point(x=1) != Other(x=1)
    assert Point(x=1) != 1
    assert len({Point(x=1), Point(x=1), Other(x=1), Point(x=2)}) == 3


def test_repr_shows_what_makes_it_but_no_secrets() -> None:
    assert repr(Other(x=1, y=2)) == "Other(x=1, y=2)"
    assert repr(Point(x=1, y=2)) == "Point(x=1)"
    config = PoolConfig(proxy="http://user:secret@proxy:8080", proxy_headers={"X-Key": "hidden"})
    assert "secret" not in repr(config)
    assert "hidden" not in repr(config)


@pytest.mark.parametrize(
    "record",
    [
        Timeout(read=1.0),
        Limits(fields=5),
        Retry(attempts=3, statuses={503}),
        HistogramStats(bounds=(1.0,), counts=(2, 3), sum=4.5),
        PoolConfig(maxsize=3, proxy_headers={"a": "b"}),
    ],
    ids=lambda record: type(record).__name__,
)
@pytest.mark.parametrize(
    "transfer",
    [copy.copy, copy.deepcopy, lambda record: pickle.loads(pickle.dumps(record))],
    ids=["copy", "deep", "pickle"],
)
def test_copies_are_equal_and_do_not_change_either(record: Frozen, transfer: Callable[[Frozen], Frozen]) -> None:
    twin = transfer(record)
    assert twin == record
    with pytest.raises(AttributeError):
        setattr(twin, next(iter(twin.as_dict())), 1)
