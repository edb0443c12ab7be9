"""When a kept-alive connection is no longer good: too old, used too often, or idle for too long.

How long it may be idle is the least of three: our own `idle_timeout`; what the server announces in ``Keep-Alive``, less
a margin; and what the pool has learned.  A server that closes idle connections at an age of its own, and says nothing,
shows it by closing them: whoever finds one dead knows that its age was too much.  So the lowest age seen is the limit,
a margin earlier.  A restart looks the same, and is no reason to stay careful for ever: after a while it is forgotten.
"""

from __future__ import annotations

import random

from .config import PoolConfig
from .conn import HTTPConnection
from .hints import Final
from .records import Entry
from .stats import CloseReason
from .wire import keep_alive_hints

# A server's announced idle time starts before ours, and our next request takes its way: end it earlier, in seconds.
_KEEP_ALIVE_MARGIN: Final = 1.0
# Connections of the same moment must not all end in the same moment.
_AGE_JITTER: Final = 0.1
# What a server has been seen to do is taken that much earlier: a tenth, and half a second at least.
_LEARNED_MARGIN: Final = 0.1
_LEAST_LEARNED_MARGIN: Final = 0.5
# Nobody closes connections for being idle after less than that, in seconds: it was a restart, or the like.
_LEAST_LEARNED: Final = 1.0
# How long what was learned holds, in seconds.
_REMEMBERED: Final = 600.0
_INFINITE: Final = float("inf")

# How a peer that has given up an idle connection shows it.
GIVEN_UP: Final = frozenset({CloseReason.STALE_EOF, CloseReason.STALE_RESET, CloseReason.STALE_408})


class Expiry:
    """The limits of one pool's connections; guarded by the pool's lock.

    Args:
        config: The pool's settings.

    Attributes:
        idle_limit: Seconds after which an idle connection is closed: as configured, or fewer if that was learned.
    """

    __slots__ = ("_configured", "_learned_at", "_max_age", "_max_requests", "idle_limit")

    def __init__(self, config: PoolConfig) -> None:
        self._configured = _INFINITE if config.idle_timeout is None else config.idle_timeout
        self._max_age = config.max_age
        self._max_requests = config.max_requests
        self._learned_at = _INFINITE
        self.idle_limit = self._configured

    def expires_at(self, now: float) -> float:
        """Return when a connection that is opened now is too old: somewhat earlier than `max_age` says."""
        if self._max_age is None:
            return _INFINITE
        return now + self._max_age * (1 - _AGE_JITTER * random.random())  # no secret

    @staticmethod
    def good_until(entry: Entry, now: float) -> float:
        """Return until when a connection that becomes idle now is good."""
        return min(now + entry.idle_limit, entry.expires_at)

    def learn(self, reason: CloseReason, age: float, now: float) -> bool:
        """Note that the peer had given up a connection that was idle for so many seconds.

        Returns:
            Whether `idle_limit` is lower now.
        """
        if reason not in GIVEN_UP or age < _LEAST_LEARNED:
            return False
        limit = age - max(age * _LEARNED_MARGIN, _LEAST_LEARNED_MARGIN)
        if limit >= self.idle_limit:
            return False
        self.idle_limit = limit
        self._learned_at = now
        return True

    def forget(self, now: float) -> None:
        """Forget what was learned long ago; called when a connection is opened, which too low a limit leads to."""
        if now - self._learned_at > _REMEMBERED:
            self._learned_at = _INFINITE
            self.idle_limit = self._configured

    def why_not_keep(self, entry: Entry, conn: HTTPConnection, now: float) -> CloseReason | None:
        """Return why a connection that came back idle has to go, or ``None``; heeds what the server announced."""
        if now >= entry.expires_at:
            return CloseReason.MAX_AGE
        if self._max_requests is not None and conn._exchanges >= self._max_requests:
            return CloseReason.MAX_REQUESTS
        head = conn._head
        if head is not None and head.keep_alive is not None:
            seconds, requests = keep_alive_hints(head.keep_alive)
            if seconds is not None:
                if seconds <= _KEEP_ALIVE_MARGIN:
                    return CloseReason.IDLE
                entry.idle_limit = min(self.idle_limit, seconds - _KEEP_ALIVE_MARGIN)
            if requests == 0:
                return CloseReason.MAX_REQUESTS
        return None

    @staticmethod
    def why_expired(entry: Entry, now: float) -> CloseReason:
        """Return why an idle connection is past its limits."""
        return CloseReason.MAX_AGE if now >= entry.expires_at else CloseReason.IDLE
