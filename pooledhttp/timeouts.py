"""Timeout, what was asked, and Deadline, what is left of it.  The only reader of the clock.

A `Timeout` is frozen and can be shared.  A `Deadline` is made once, where a call enters the package, and is
handed down through every phase (acquire, connect, send, head, body); nothing ever restarts it.  Only the
monotonic clock counts, so setting the wall clock changes nothing.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable

from .errors import ConnectTimeout, TotalTimeout
from .frozen import Frozen
from .hints import Final, Self

Clock = Callable[[], float]

monotonic: Clock = time.monotonic


def wall_clock() -> float:
    """Return the seconds since 1970.  They may be set at any moment: only for dates that a server has written."""
    return time.time()


def pause(seconds: float) -> None:
    """Wait between two attempts: the only place where the package sleeps for its caller."""
    time.sleep(seconds)  # looked up now, so that a program that gevent has patched lets its other greenlets run


# threading and poll() refuse waits that do not fit their C types; a year is "for ever" to a request.
LONGEST = 365 * 24 * 3600.0


def check_seconds(name: str, value: float | None, *, zero: bool = False) -> None:
    """Refuse what is not a length of time.

    Args:
        name: What the number is for, as it shall stand in the message.
        value: Seconds, or ``None`` for unbounded.
        zero: Whether 0 makes sense here ("do not wait").

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, NaN, infinite, zero where that has no meaning, or longer than a year.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
    if not (0 <= value <= LONGEST) or (value == 0 and not zero):  # which no NaN passes
        least = "at least 0" if zero else "greater than 0"
        raise ValueError(f"{name} must be {least} and at most a year (in seconds), not {value!r}; None is unbounded")


# What the timers of sockets say: the kernel's by a number, settimeout() in these words (and gevent after it).
_TIMER_NUMBERS: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK})
_TIMER_WORDS: Final = frozenset(
    {"timed out", *(f"The {step} operation timed out" for step in ("read", "write", "handshake"))}
)
_WRITTEN_IN_PYTHON: Final = frozenset({__package__, "gevent", "eventlet"})  # so are our timers, and theirs


def is_wake_up(fault: BaseException) -> bool:
    """Tell whether the timer of a socket has raised this: then nothing was sent or received.

    A signal's handler, or a greenlet's timeout, may raise a `TimeoutError` too, and maybe behind the system call that
    has sent something.  That error says nothing about the peer, and is for whoever has set the alarm.
    """
    if type(fault) is BlockingIOError:
        return fault.errno in _TIMER_NUMBERS
    if type(fault) is not TimeoutError or str(fault) not in _TIMER_WORDS:
        return False
    from opcode import opmap  # here, for the few who get as far as this

    trace = fault.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_code[trace.tb_lasti] != opmap["RAISE_VARARGS"]:
        return True  # by C
    return str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] in _WRITTEN_IN_PYTHON


class Timeout(Frozen):
    """How long each part of a call may take, in seconds; ``None`` is unbounded.

    Attributes:
        acquire: Waiting for a connection of a full pool; 0 does not wait at all.
        connect: Resolving, connecting, the tunnel and the TLS handshake, together, over all addresses.
        read: The longest silence while a response is awaited.
        write: The longest time without the peer taking a byte of the request.
        total: Everything together, from acquire to the last byte of the body.

    Raises:
        TypeError: One of them is no number.
        ValueError: One of them is negative, zero (but for `acquire`), NaN or infinite.
    """

    acquire: float | None = 5.0
    connect: float | None = 5.0
    read: float | None = 30.0
    write: float | None = 30.0
    total: float | None = None

    def __post_init__(self) -> None:
        check_seconds("Timeout.acquire", self.acquire, zero=True)
        check_seconds("Timeout.connect", self.connect)
        check_seconds("Timeout.read", self.read)
        check_seconds("Timeout.write", self.write)
        check_seconds("Timeout.total", self.total)


class Deadline:
    """One moment on the monotonic clock by which a whole call must be over.

    Args:
        seconds: How long from now.
        what: The call it bounds; its ``str()`` stands in the error's text and must hold no secret.
        clock: Seconds on a monotonic clock; tests inject their own.
    """

    __slots__ = ("_clock", "_phases", "at", "seconds", "what")

    def __init__(self, seconds: float, what: object = "the call", clock: Clock = monotonic) -> None:
        self._clock = clock
        self._phases: list[tuple[str, float]] = []  # since when what was done, for the error's account
        self.at = clock() + seconds
        self.seconds = seconds
        self.what = what

    def remaining(self) -> float:
        """Return the seconds that are left; negative when it is over."""
        return self.at - self._clock()

    @classmethod
    def of_call(cls, seconds: float, what: object, clock: Clock, since: float) -> Self:
        """Return the deadline of a call that began to acquire a connection at `since`.

        The other arguments are those of the class; to call that takes several times as long.
        """
        deadline = cls.__new__(cls)
        deadline._clock = clock
        deadline._phases = [("acquire", since)]
        deadline.at = since + seconds
        deadline.seconds = seconds
        deadline.what = what
        return deadline

    def enter(self, phase: str, since: float | None = None) -> None:
        """Note that a phase ("acquire", "connect", "exchange") begins, for the error's account.

        Args:
            phase: Its name.
            since: When, on the clock, if that is known; ``None``: now.
        """
        self._phases.append((phase, self._clock() if since is None else since))

    def spent(self) -> str:
        """Say how the time was spent, phase by phase: ``acquire 0.00 s, connect 0.31 s``."""
        if not self._phases:
            return ""
        account = []
        ends = [begun for _, begun in self._phases[1:]] + [self._clock()]
        for (phase, begun), end in zip(self._phases, ends, strict=True):
            # Who gives a connection away may have looked at the clock before the one who dials meanwhile.
            account.append(f"{phase} {max(end - begun, 0.0):.2f} s")
        return ", ".join(account)

    def exceeded(self) -> TotalTimeout | ConnectTimeout:
        """Return the error to raise when nothing is left."""
        spent = self.spent()
        account = f" ({spent})" if spent else ""
        return TotalTimeout(f"{self.what} took longer than its total of {self.seconds:.2f} s{account}")


class ConnectDeadline(Deadline):
    """What is left for opening a connection: the lesser of `Timeout.connect` and the call's total.

    Args:
        seconds: `Timeout.connect`; ``None`` is unbounded.
        total: The deadline of the whole call, if it has one.
        what: Where the connection goes, for the error's text.
        clock: Seconds on a monotonic clock.
    """

    __slots__ = ("_limit", "_phase", "_total")

    def __init__(
        self,
        seconds: float | None,
        *,
        total: Deadline | None = None,
        what: str = "the peer",
        clock: Clock = monotonic,
    ) -> None:
        super().__init__(math.inf if seconds is None else seconds, what=what, clock=clock)
        self._limit = seconds
        self._total = total
        self._phase = "connecting"
        if total is not None:
            self.at = min(self.at, total.at)

    def begin(self, phase: str) -> float | None:
        """Begin a phase and return the seconds that are left for it, or ``None`` when nothing bounds them.

        Args:
            phase: What is about to be waited for ("resolving", "connecting", "the TLS handshake").

        Raises:
            ConnectTimeout: `Timeout.connect` is used up.
            TotalTimeout: The call's total is used up.
        """
        self._phase = phase
        left = self.remaining()
        if left <= 0:
            raise self.exceeded()
        return None if left == math.inf else left

    def exceeded(self) -> ConnectTimeout | TotalTimeout:
        """Return the error for a phase that did not end in time."""
        if self._total is not None and self._total.remaining() <= 0:
            return self._total.exceeded()
        limit = "" if self._limit is None else f" within {self._limit:.2f} s"
        return ConnectTimeout(f"no connection to {self.what}{limit}: {self._phase} took too long")
