"""The HTTP connection pool that Python backend services deserve.

Per-host pools of documented `HTTPConnection` objects that refuse a second request while a response is unread, and that
show their health in Prometheus.  Importing this package runs nothing and imports no third party.
"""

from .config import PoolConfig
from .conn import HTTPConnection, HTTPSConnection
from .errors import (
    AcquireTimeout,
    BadStatusLine,
    CannotSendHeader,
    CannotSendRequest,
    ConnectTimeout,
    HTTPException,
    IllegalKeywordArgument,
    ImproperConnectionState,
    IncompleteRead,
    InvalidChunk,
    InvalidResponse,
    InvalidURL,
    LineTooLong,
    NotConnected,
    PoolClosed,
    PooledHTTPError,
    PoolFull,
    ReadTimeout,
    RemoteDisconnected,
    ResponseNotReady,
    SelfDeadlock,
    SourcePortsExhausted,
    TotalTimeout,
    TunnelError,
    UnimplementedFileMode,
    UnknownProtocol,
    UnknownTransferEncoding,
    UnreadResponse,
    WriteTimeout,
)
from .manager import PoolManager
from .pool import ConnectionPool
from .response import FailedAttempt, HTTPResponse, Response, StreamedResponse
from .retry import Retry
from .stats import HistogramStats, PoolStats
from .timeouts import Timeout
from .wire import Limits

__version__ = "0.1.0"

__all__ = [
    "AcquireTimeout",
    "BadStatusLine",
    "CannotSendHeader",
    "CannotSendRequest",
    "ConnectTimeout",
    "ConnectionPool",
    "FailedAttempt",
    "HTTPConnection",
    "HTTPException",
    "HTTPResponse",
    "HTTPSConnection",
    "HistogramStats",
    "IllegalKeywordArgument",
    "ImproperConnectionState",
    "IncompleteRead",
    "InvalidChunk",
    "InvalidResponse",
    "InvalidURL",
    "Limits",
    "LineTooLong",
    "NotConnected",
    "PoolClosed",
    "PoolConfig",
    "PoolFull",
    "PoolManager",
    "PoolStats",
    "PooledHTTPError",
    "ReadTimeout",
    "RemoteDisconnected",
    "Response",
    "ResponseNotReady",
    "Retry",
    "SelfDeadlock",
    "SourcePortsExhausted",
    "StreamedResponse",
    "Timeout",
    "TotalTimeout",
    "TunnelError",
    "UnimplementedFileMode",
    "UnknownProtocol",
    "UnknownTransferEncoding",
    "UnreadResponse",
    "WriteTimeout",
]
