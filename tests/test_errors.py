"""The exceptions: each is caught by what programs written for http.client already catch, and carries its numbers."""

from __future__ import annotations

import copy
import http.client
import pickle
import traceback

import pytest

import pooledhttp
from pooledhttp import errors
from pooledhttp.errors import AcquireTimeout, InvalidChunk, PooledHTTPError, TunnelError

SHARED = [
    "BadStatusLine",
    "CannotSendHeader",
    "CannotSendRequest",
    "HTTPException",
    "ImproperConnectionState",
    "IncompleteRead",
    "InvalidURL",
    "LineTooLong",
    "NotConnected",
    "RemoteDisconnected",
    "ResponseNotReady",
    "UnimplementedFileMode",
    "UnknownProtocol",
    "UnknownTransferEncoding",
]
CAUGHT_BY: dict[str, tuple[type[BaseException], ...]] = {
    "AcquireTimeout": (TimeoutError,),
    "ConnectTimeout": (TimeoutError,),
    "IllegalKeywordArgument": (http.client.HTTPException, ValueError),
    "InvalidChunk": (http.client.IncompleteRead, errors.InvalidResponse),
    "InvalidResponse": (http.client.HTTPException,),
    "PoolClosed": (RuntimeError,),
    "PoolFull": (OSError,),
    "ReadTimeout": (TimeoutError,),
    "SelfDeadlock": (AcquireTimeout, TimeoutError),
    "SourcePortsExhausted": (OSError,),
    "TotalTimeout": (TimeoutError,),
    "TunnelError": (OSError,),
    "UnreadResponse": (http.client.CannotSendRequest,),
    "WriteTimeout": (TimeoutError,),
}


@pytest.mark.parametrize("name", SHARED)
def test_exception_that_http_client_has_is_its_class(name: str) -> None:
    assert getattr(errors, name) is getattr(http.client, name)


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_exception_of_ours_is_caught_by_the_root_and_by_the_standard_class(name: str) -> None:
    ours = getattr(errors, name)
    assert issubclass(ours, PooledHTTPError)
    for caught_by in CAUGHT_BY[name]:
        assert issubclass(ours, caught_by)


def test_every_exception_is_in_one_of_the_two_groups() -> None:
    assert sorted(errors.__all__) == sorted([*SHARED, *CAUGHT_BY, "PooledHTTPError"])


@pytest.mark.parametrize("name", errors.__all__)
def test_exception_is_public_in_the_package(name: str) -> None:
    assert getattr(pooledhttp, name) is getattr(errors, name)
    assert name in pooledhttp.__all__


@pytest.mark.parametrize("name", sorted(set(CAUGHT_BY) - {"InvalidChunk", "TunnelError"}))
def test_exception_shows_its_message(name: str) -> None:
    assert str(getattr(errors, name)("what happened")) == "what happened"


def test_invalid_chunk_reads_like_an_incomplete_read_and_notes_what_is_wrong() -> None:
    fault = InvalidChunk("malformed chunk size line: 'x'")
    fault.partial = b"12345"
    assert str(fault) == repr(fault) == str(http.client.IncompleteRead(b"12345"))
    assert fault.problem == "malformed chunk size line: 'x'"
    assert fault.expected is None
    assert "malformed chunk size line" in "".join(traceback.format_exception(fault))


def test_invalid_chunk_survives_pickling() -> None:
    fault = InvalidChunk("chunk data is not followed by CRLF")
    fault.partial = b"12345"
    copied = pickle.loads(pickle.dumps(fault))
    assert type(copied) is InvalidChunk
    assert (copied.partial, copied.problem, str(copied)) == (fault.partial, fault.problem, str(fault))
    assert copied.__notes__ == fault.__notes__


def test_acquire_timeout_carries_the_numbers_of_the_pool() -> None:
    fault = AcquireTimeout(
        "none",
        maxsize=10,
        leased=7,
        idle=1,
        opening=2,
        waiting=3,
        oldest_lease="12.4 s by Thread-7",
        last_connect_error="refused",
    )
    assert (fault.maxsize, fault.leased, fault.idle, fault.opening, fault.waiting) == (10, 7, 1, 2, 3)
    assert (fault.oldest_lease, fault.last_connect_error) == ("12.4 s by Thread-7", "refused")


def test_acquire_timeout_without_numbers_has_zeros() -> None:
    fault = AcquireTimeout("none")
    assert (fault.maxsize, fault.leased, fault.idle, fault.opening, fault.waiting) == (0, 0, 0, 0, 0)
    assert (fault.oldest_lease, fault.last_connect_error) == (None, None)


def test_tunnel_error_carries_the_answer_of_the_proxy() -> None:
    fault = TunnelError("refused", status=407, headers=[("A", "b")], body=b"no")
    assert (fault.status, fault.headers, fault.body) == (407, [("A", "b")], b"no")
    assert str(fault) == "refused"


def test_tunnel_error_without_a_body_has_an_empty_one() -> None:
    assert TunnelError("refused", status=407, headers=[]).body == b""


def test_source_ports_exhausted_keeps_the_error_number() -> None:
    fault = errors.SourcePortsExhausted(98, "no source port is left")
    assert (fault.errno, fault.strerror) == (98, "no source port is left")


@pytest.mark.parametrize(
    "fault",
    [
        AcquireTimeout("none", maxsize=10, leased=10, oldest_lease="1 s"),
        TunnelError("refused", status=407, headers=[("A", "b")], body=b"no"),
        errors.PoolClosed("closed"),
        errors.SourcePortsExhausted(98, "none"),
    ],
    ids=lambda fault: type(fault).__name__,
)
@pytest.mark.parametrize(
    "duplicate", [copy.copy, lambda fault: pickle.loads(pickle.dumps(fault))], ids=["copy", "pickle"]
)
def test_exception_survives_the_way_to_another_process(fault: Exception, duplicate: object) -> None:
    assert callable(duplicate)
    twin = duplicate(fault)
    assert type(twin) is type(fault)
    assert (str(twin), twin.__dict__) == (str(fault), fault.__dict__)
