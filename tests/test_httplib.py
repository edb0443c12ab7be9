"""The documented namespace: `from pooledhttp import httplib` takes the place of `from http import client`."""

from __future__ import annotations

import http
import http.client
import importlib

import pytest

import pooledhttp
from pooledhttp import httplib
from pooledhttp.testing import ExpectHead, Repeat, ResourceAudit, Respond, ServerFactory

EXCEPTIONS = [
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
# As documented for httplib; some have had another name since, and both are there.
STATUS_CODES = {
    "CONTINUE": 100,
    "SWITCHING_PROTOCOLS": 101,
    "PROCESSING": 102,
    "OK": 200,
    "CREATED": 201,
    "ACCEPTED": 202,
    "NON_AUTHORITATIVE_INFORMATION": 203,
    "NO_CONTENT": 204,
    "RESET_CONTENT": 205,
    "PARTIAL_CONTENT": 206,
    "MULTI_STATUS": 207,
    "IM_USED": 226,
    "MULTIPLE_CHOICES": 300,
    "MOVED_PERMANENTLY": 301,
    "FOUND": 302,
    "SEE_OTHER": 303,
    "NOT_MODIFIED": 304,
    "USE_PROXY": 305,
    "TEMPORARY_REDIRECT": 307,
    "BAD_REQUEST": 400,
    "UNAUTHORIZED": 401,
    "PAYMENT_REQUIRED": 402,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "NOT_ACCEPTABLE": 406,
    "PROXY_AUTHENTICATION_REQUIRED": 407,
    "REQUEST_TIMEOUT": 408,
    "CONFLICT": 409,
    "GONE": 410,
    "LENGTH_REQUIRED": 411,
    "PRECONDITION_FAILED": 412,
    "REQUEST_ENTITY_TOO_LARGE": 413,
    "REQUEST_URI_TOO_LONG": 414,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "REQUESTED_RANGE_NOT_SATISFIABLE": 416,
    "EXPECTATION_FAILED": 417,
    "UNPROCESSABLE_ENTITY": 422,
    "LOCKED": 423,
    "FAILED_DEPENDENCY": 424,
    "UPGRADE_REQUIRED": 426,
    "INTERNAL_SERVER_ERROR": 500,
    "NOT_IMPLEMENTED": 501,
    "BAD_GATEWAY": 502,
    "SERVICE_UNAVAILABLE": 503,
    "GATEWAY_TIMEOUT": 504,
    "HTTP_VERSION_NOT_SUPPORTED": 505,
    "INSUFFICIENT_STORAGE": 507,
    "NOT_EXTENDED": 510,
}


@pytest.mark.parametrize("name", http.client.__all__)
def test_every_public_name_of_http_client_is_there(name: str) -> None:
    assert hasattr(httplib, name)
    assert name in httplib.__all__


@pytest.mark.parametrize("name", httplib.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert hasattr(httplib, name)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exception_is_that_of_the_standard_library(name: str) -> None:
    assert getattr(httplib, name) is getattr(http.client, name)


def test_exceptions_of_ours_are_there_too() -> None:
    assert httplib.IllegalKeywordArgument is pooledhttp.IllegalKeywordArgument
    assert httplib.UnreadResponse is pooledhttp.UnreadResponse


def test_historical_name_of_the_base_exception_is_there() -> None:
    assert httplib.error is http.client.HTTPException


@pytest.mark.parametrize("name", ["HTTPConnection", "HTTPSConnection", "HTTPResponse"])
def test_classes_are_ours(name: str) -> None:
    assert getattr(httplib, name) is getattr(pooledhttp, name)


def test_message_and_parser_are_those_of_the_standard_library() -> None:
    assert httplib.HTTPMessage is http.client.HTTPMessage
    assert httplib.parse_headers is http.client.parse_headers


def test_ports_are_the_documented_ones() -> None:
    assert (httplib.HTTP_PORT, httplib.HTTPS_PORT) == (80, 443)


@pytest.mark.parametrize("name", STATUS_CODES)
def test_documented_status_code_is_there_by_name(name: str) -> None:
    assert getattr(httplib, name) == STATUS_CODES[name]


@pytest.mark.parametrize("name", http.HTTPStatus.__members__)
def test_status_code_of_the_standard_library_is_there_by_name(name: str) -> None:
    assert getattr(httplib, name) is http.HTTPStatus[name]


def test_responses_map_every_code_to_its_phrase() -> None:
    assert httplib.responses is http.client.responses
    assert httplib.responses[getattr(httplib, "NOT_FOUND")] == "Not Found"  # noqa: B009  # defined by name


def test_module_is_imported_by_the_documented_line() -> None:
    assert importlib.import_module("pooledhttp.httplib") is httplib


def test_documented_example_runs(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([Repeat([ExpectHead(), Respond(body=b"hello")])])
    conn = httplib.HTTPConnection(f"{server.host}:{server.port}", timeout=10)
    for _ in range(2):
        conn.request("GET", "/index.html")
        response = conn.getresponse()
        assert (response.status, response.reason, response.read()) == (200, "OK", b"hello")
    conn.close()
    assert server.accepted == 1
