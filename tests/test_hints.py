"""The stand-ins for `typing`: what users see of our annotations at run time."""

from __future__ import annotations

import inspect
import pickle
import typing
from collections.abc import Callable, Iterator

import pytest

import pooledhttp
from pooledhttp import ConnectionPool, HTTPConnection, PoolConfig, PoolManager, hints
from pooledhttp.config import MetricsRegistry, PoolOptions
from pooledhttp.manager import Route
from pooledhttp.stats import Exemplar

# Their `WriteableBuffer` exists for type checkers alone.
UNRESOLVED = {"readinto", "readinto1"}


def annotated() -> Iterator[tuple[str, object]]:
    """Yield the public classes, and those of their methods that are ours and public."""
    for name in pooledhttp.__all__:
        public = getattr(pooledhttp, name)
        yield name, public
        for attribute in dir(public):
            method = inspect.getattr_static(public, attribute)
            if isinstance(method, property):
                method = method.fget
            if isinstance(method, (classmethod, staticmethod)):
                method = method.__func__
            is_public = not attribute.startswith("_") or attribute.startswith("__")
            if inspect.isfunction(method) and method.__module__.startswith("pooledhttp") and is_public:
                yield f"{name}.{attribute}", method


ANNOTATED = dict(annotated())


@pytest.mark.parametrize("name", hints.__all__)
def test_each_name_is_one_of_typing_and_exists_at_run_time(name: str) -> None:
    assert hasattr(typing, name)
    assert hasattr(hints, name)


@pytest.mark.parametrize("name", [name for name in ANNOTATED if name.rpartition(".")[2] not in UNRESOLVED])
def test_annotations_of_what_is_public_can_be_resolved(name: str) -> None:
    typing.get_type_hints(ANNOTATED[name])


@pytest.mark.parametrize(
    ("annotated", "name", "hint"),
    [
        (ConnectionPool.__enter__, "return", object),
        (PoolManager.__init__, "options", PoolOptions),
        (PoolConfig, "registry", MetricsRegistry | str | None),
        (PoolConfig, "maxsize", int),
        (PoolOptions, "maxsize", int),
        (HTTPConnection.__init__, "port", int | str | None),
    ],
)
def test_stand_in_is_no_narrower_than_what_it_stands_for(
    annotated: Callable[..., object], name: str, hint: object
) -> None:
    assert typing.get_type_hints(annotated)[name] == hint


def test_signature_is_the_one_in_the_source() -> None:
    signature = inspect.signature(PoolManager)
    assert signature.parameters["options"].annotation == "Unpack[PoolOptions]"


def test_typed_dictionary_is_made_like_a_dictionary() -> None:
    options: Route = Route(proxy=None)
    assert options == {"proxy": None}


def test_named_tuple_is_one_to_its_users() -> None:
    exemplar = Exemplar(bucket=1, labels=(("trace_id", "a"),), seconds=0.5, at=2.0)
    bucket, *_, at = exemplar
    assert (bucket, at) == (exemplar.bucket, exemplar.at) == (1, 2.0)
    assert exemplar._replace(at=3.0).at == 3.0
    assert pickle.loads(pickle.dumps(exemplar)) == exemplar
    assert repr(exemplar) == "Exemplar(bucket=1, labels=(('trace_id', 'a'),), seconds=0.5, at=2.0)"
    assert inspect.getdoc(Exemplar) is not None
    assert Exemplar.__module__ == "pooledhttp.stats"
    assert typing.get_type_hints(Exemplar)["seconds"] is float
