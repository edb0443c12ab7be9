"""When a request may be sent again: the stale-resend rule (RFC 9110 section 9.2.2, RFC 9112 section 9.3.1).

A kept-alive connection can die between two requests without anybody doing wrong: the server closes it as idle while
the next request is on its way.  That one request may be sent a second time, once, on a new connection, and only if

- the connection was a reused one (a fresh one that dies has another reason), and
- not a byte of the answer had arrived, and
- not a byte of the request had been written, or the request is idempotent and its body can be replayed.
"""

from __future__ import annotations

import ssl

from .request import PreparedRequest

# How a dead connection shows itself; a timeout is not among them, since the peer may be at work on the request.
_DEAD = (ConnectionError, ssl.SSLEOFError)


def may_resend(
    prepared: PreparedRequest, fault: BaseException, *, was_reused: bool, is_unsent: bool, is_unanswered: bool
) -> bool:
    """Tell whether a failed request may be sent once more, on a new connection.

    Args:
        prepared: The request.
        fault: What its exchange raised.
        was_reused: Whether its connection had served a request before.
        is_unsent: Whether no byte of it had been written.
        is_unanswered: Whether no byte of an answer had arrived.
    """
    if not (was_reused and is_unanswered and isinstance(fault, _DEAD)):
        return False
    return is_unsent or (prepared.is_idempotent and prepared.is_replayable)


def is_late_timeout(prepared: PreparedRequest, status: int, *, was_reused: bool, will_close: bool) -> bool:
    """Tell whether a 408 answers the idle time before this request rather than the request itself.

    A server that gives up on an idle connection may say so with 408 and close (RFC 9110 section 15.5.9).  When that
    crosses the next request, it arrives as its answer.
    """
    return status == 408 and was_reused and will_close and prepared.is_idempotent and prepared.is_replayable
