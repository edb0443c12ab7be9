"""The documented httplib / ``http.client`` namespace: ``from pooledhttp import httplib as client``.

Classes and functions are ours, exceptions and status codes those of the standard library.
"""

from __future__ import annotations

import http
from http.client import HTTP_PORT, HTTPS_PORT, HTTPMessage, parse_headers, responses

from .conn import HTTPConnection, HTTPSConnection
from .errors import (
    BadStatusLine,
    CannotSendHeader,
    CannotSendRequest,
    HTTPException,
    IllegalKeywordArgument,
    ImproperConnectionState,
    IncompleteRead,
    InvalidURL,
    LineTooLong,
    NotConnected,
    RemoteDisconnected,
    ResponseNotReady,
    UnimplementedFileMode,
    UnknownProtocol,
    UnknownTransferEncoding,
    UnreadResponse,
)
from .response import HTTPResponse

# The historical name of the base class.
error = HTTPException

# Every status code by its name, as documented: httplib.NOT_FOUND == 404.
globals().update(http.HTTPStatus.__members__)

__all__ = [
    "HTTPS_PORT",
    "HTTP_PORT",
    "BadStatusLine",
    "CannotSendHeader",
    "CannotSendRequest",
    "HTTPConnection",
    "HTTPException",
    "HTTPMessage",
    "HTTPResponse",
    "HTTPSConnection",
    "IllegalKeywordArgument",
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
    "UnreadResponse",
    "error",
    "parse_headers",
    "responses",
]
