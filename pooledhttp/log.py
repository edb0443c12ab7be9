"""The log: one logger, ``pooledhttp``, and what may be told to it.

WARNING is for what somebody should mend (a lease that was forgotten), INFO for its good end, DEBUG for the life of
connections: opened, closed and why, sent again.  Never in a line: header fields, bodies, credentials.  The warning of
a lease names its request; of any other, no line has more than its method and the address of its server.

`logging` costs 5 ms to import and few programs need it from us, so it is imported when there is something to say; and
who has never imported it has not asked for DEBUG either.  Never called under a pool's lock: a handler may do anything.

To ask whether anybody listens takes no lock, but for the first time after somebody has imported `logging`: connections
are opened and closed where signals and other threads raise exceptions, and one that arrives inside `logging` may leave
its lock taken for ever.
"""

from __future__ import annotations

import sys

from .hints import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from logging import Logger

_NAME: Final = "pooledhttp"
_DEBUG: Final = 10  # logging.DEBUG
_logger: Logger | None = None  # found once: to look for it takes the lock of `logging`


def warning(text: str) -> None:
    """Log what somebody should mend."""
    import logging

    logging.getLogger(_NAME).warning("%s", text)


def info(text: str) -> None:
    """Log the good end of what there was a warning of."""
    import logging

    logging.getLogger(_NAME).info("%s", text)


def is_debugging() -> bool:
    """Tell whether anybody may want to read the life of connections."""
    logger = _logger or _find_logger()
    # Not `isEnabledFor`, which takes the lock where it has no answer yet; it is asked when there is a line to write.
    return logger is not None and logger.getEffectiveLevel() <= _DEBUG


def debug(text: str) -> None:
    """Log a step in the life of a connection; ask `is_debugging` first, so that no text is made for nobody."""
    import logging

    logging.getLogger(_NAME).debug("%s", text)


def _find_logger() -> Logger | None:
    """Return the logger, if anybody has imported `logging`, and not only begun to."""
    global _logger  # noqa: PLW0603  # there is one a process
    get_logger = getattr(sys.modules.get("logging"), "getLogger", None)
    if get_logger is not None:
        _logger = get_logger(_NAME)
    return _logger


_find_logger()
