"""The HTTP connection pool that Python backend services deserve.

Per-host pools of documented `HTTPConnection` objects that refuse a second request while a response is unread, and that
show their health in Prometheus.  Importing this package runs nothing and imports no third party.

Each public name is imported when it is first asked for: a module that mentions the package costs nothing yet, and
`from pooledhttp import HTTPConnection` loads no pool.
"""

from sys import modules as _modules

from .uncut import uncut as _uncut

TYPE_CHECKING = False  # as in `hints`

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

# Where each of them is to be had; what is not named here is an error.
_ROOM_OF = dict.fromkeys(__all__, "errors") | {
    "ConnectionPool": "pool",
    "FailedAttempt": "response",
    "HTTPConnection": "conn",
    "HTTPResponse": "response",
    "HTTPSConnection": "conn",
    "HistogramStats": "stats",
    "Limits": "wire",
    "PoolConfig": "config",
    "PoolManager": "manager",
    "PoolStats": "stats",
    "Response": "response",
    "Retry": "retry",
    "StreamedResponse": "response",
    "Timeout": "timeouts",
}
# The rooms that are attributes of the package without an import of theirs: those that the names above come from.
_ROOMS = {
    "capacity", "config", "conn", "dial", "errors", "expiry", "forking", "frozen", "hints", "leaks", "ledger",
    "lending", "log", "manager", "opener", "origin", "pool", "records", "request", "response", "retry", "states",
    "stats", "timeouts", "transport", "tunnel", "upkeep", "upload", "wire",
}  # fmt: skip

if TYPE_CHECKING:
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
else:

    def __getattr__(name: str) -> object:
        """Import a name when it is first asked for (PEP 562); a type checker sees the imports above instead."""
        room = _ROOM_OF.get(name)
        if room is None and name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=_modules[__name__])
        with _uncut:  # a child that is forked meanwhile would wait for ever for the thread that imports
            from importlib import import_module

            found = import_module(f"{__name__}.{room or name}")
        if room is not None:
            found = getattr(found, name)
        globals()[name] = found  # never asked for again
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_ROOMS})
