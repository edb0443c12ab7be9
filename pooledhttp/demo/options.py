"""What the demo was asked to do, and what all its parts keep to.

Its one job is to hold the wishes: `DemoOptions` before the run, `Signals` while it is on; and the three constants that
more than one of the demo's files goes by.  It lies below all of them.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import FrameType
from typing import Final, Self

HOST: Final = "127.0.0.1"
CALL_SECONDS: Final = 30.0  # the total of each call: nothing here waits without an end
SLICE: Final = 0.05  # seconds between two looks at the signals


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the command line asked for; checked there.

    Attributes:
        duration: Seconds of load.
        workers: Threads that call the API.
        pool_size: Most connections to an origin.
        seed: Start of all random choices; ``None``: another one each time.
        has_https: Whether to call the API over HTTPS too.
        has_faults: Whether the API misbehaves.
        port: Port of /metrics; 0: any free one.
        address: The local address of /metrics.
        stays_up: Whether to stay up under a light load until a signal.
        trouble: What is wrong while it stays up, see `trouble.Trouble`; ``None``: nothing.
        is_plain: Whether to print lines although there is a terminal.
        is_quiet: Whether to show no progress.
    """

    duration: float = 10.0
    workers: int = 16
    pool_size: int = 8
    seed: int | None = None
    has_https: bool = True
    has_faults: bool = False
    port: int = 0
    address: str = HOST
    stays_up: bool = False
    trouble: str | None = None
    is_plain: bool = False
    is_quiet: bool = False


class Signals:
    """Takes Ctrl-C and SIGTERM as the wish to come to an end; a second one ends at once, by KeyboardInterrupt.

    The handler only sets a flag that the main thread looks at: it may interrupt any line of that thread, also one
    that holds a lock.

    Attributes:
        is_interrupted: Whether one came.
    """

    def __init__(self) -> None:
        self.is_interrupted = False

    def __enter__(self) -> Self:
        """Take over the two signals."""
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.is_interrupted:
            raise KeyboardInterrupt
        self.is_interrupted = True
