"""Troubles that the demo can be in while it stays up, so that each can be seen on the dashboards before it is real.

Its one job is to bring one about and to end it.  Its rule: the trouble is real (the API is slow, hangs up or is gone;
code forgets to give back), and nothing of it is in the pool.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from .api import Api
from .load import Load

if TYPE_CHECKING:
    from pooledhttp.conn import HTTPConnection
    from pooledhttp.manager import PoolManager


class Trouble(StrEnum):
    """What is wrong, and with whom."""

    SATURATED = "saturated"  # the pools are too small for a server this slow
    STALE = "stale"  # the server hangs up on kept-alive connections just when a request comes
    REFUSED = "refused"  # the server is gone
    LEAK = "leak"  # code forgets to give connections back


_SLOW_SECONDS: Final = 0.1
_SMALL_POOL: Final = 2
_SHORT_WAIT: Final = 0.25  # seconds for a connection, so that some get none
_HANG_UP_SHARE: Final = 0.25
_FORGET_EVERY: Final = 2.0  # seconds
LEAK_AFTER: Final = 5.0  # seconds


@contextlib.contextmanager
def in_trouble(trouble: Trouble | None, apis: Sequence[Api], manager: PoolManager, load: Load) -> Iterator[None]:
    """Bring a trouble about for the length of a ``with`` block.

    Args:
        trouble: Which; ``None``: none.
        apis: The servers.
        manager: The pools.
        load: Their callers, not started yet.
    """
    from pooledhttp.timeouts import Timeout

    if trouble is Trouble.LEAK:
        with _Forgetful(manager, apis[0].origin):
            yield
        return
    for api in apis:
        if trouble is Trouble.SATURATED:
            api.answer_seconds = _SLOW_SECONDS
            manager.pool(api.origin).resize(_SMALL_POOL)
            load.timeout = Timeout(acquire=_SHORT_WAIT)
            load.pause = _SLOW_SECONDS / 10
        elif trouble is Trouble.STALE:
            api.hang_up_share = _HANG_UP_SHARE
            load.has_keys = False
        elif trouble is Trouble.REFUSED:
            api.close()
    try:
        yield
    finally:
        for api in apis:
            api.answer_seconds = api.hang_up_share = 0.0


class _Forgetful:
    """Code that borrows connections and forgets to give them back: one it keeps, the others it drops."""

    def __init__(self, manager: PoolManager, origin: str) -> None:
        self._pool = manager.pool(origin)
        self._kept: HTTPConnection | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._forget, name="forgetful", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if self._kept is not None:
            self._pool.release(self._kept)

    def _forget(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(OSError):  # none was free, say
                if self._kept is None:
                    self._kept = self._pool.acquire()
                else:
                    self._pool.acquire()
            self._end.wait(_FORGET_EVERY)
