"""What is shown: numbers as text, the table, the line without a terminal, and the screen they go to.

Its one job is the form; it checks nothing and asks nobody.  Its rule: what is printed by `Screen.say` stays, and only
the block of `Screen.show`, on a terminal, is drawn over.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from .load import Latencies

if TYPE_CHECKING:
    from pooledhttp.stats import PoolStats


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    label: str
    rate: float
    stats: PoolStats
    latencies: Latencies


def format_seconds(seconds: float | None) -> str:
    """Return a duration in at most seven characters."""
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.{1 if seconds < 0.0995 else 0}f} ms"
    return f"{seconds:.2f} s"


def format_share(share: float) -> str:
    """Return a share in per cent, cut instead of rounded: 100 % means all."""
    return f"{math.floor(share * 10000) / 100:.2f}"


def table(rows: Sequence[Row]) -> list[str]:
    """Return the rows under their titles, 78 columns wide."""
    titles = ("origin", "req/s", "in use", "idle", "waiting", "opened", "reused %", "p50", "p95", "p99")
    lines = ["{:<12}{:>6}{:>7}{:>5}{:>8}{:>7}{:>9}{:>8}{:>8}{:>8}".format(*titles)]
    for row in rows:
        stats = row.stats
        p50, p95, p99 = (format_seconds(row.latencies.percentile(percent)) for percent in (50, 95, 99))
        lines.append(
            f"{row.label:<12}{row.rate:>6.0f}{stats.leased + stats.opening:>7}{stats.idle:>5}{stats.waiting:>8}"
            f"{stats.opened:>7}{format_share(stats.reuse_ratio):>9}{p50:>8}{p95:>8}{p99:>8}"
        )
    return lines


def plain_line(elapsed: float, share: float | None, row: Row) -> str:
    """Return the total as one line, for where there is no terminal."""
    stats = row.stats
    progress = "light" if share is None else f"{share * 100:3.0f} %"
    p50, p95, p99 = (format_seconds(row.latencies.percentile(percent)) for percent in (50, 95, 99))
    return (
        f"{elapsed:4.0f} s {progress}  {row.rate:5.0f} req/s  {stats.leased + stats.opening} in use  "
        f"{stats.idle} idle  {stats.waiting} waiting  {stats.opened} opened  "
        f"{format_share(stats.reuse_ratio)} % reused  p50 {p50}  p95 {p95}  p99 {p99}"
    )


def progress_bar(elapsed: float, duration: float) -> str:
    """Return how far the run is, as a bar and in words."""
    share = min(elapsed / duration, 1.0)
    return f"[{'#' * math.floor(share * 30):.<30}] {share * 100:3.0f} %  {min(elapsed, duration):.1f} of {duration:g} s"


def counted(counts: Mapping[str, int]) -> str:
    """Return what there is any of: ``closed 3, reset 1``."""
    return ", ".join(f"{kind} {count}" for kind, count in counts.items() if count)


def wrapped(text: str, width: int = 72) -> list[str]:
    """Break a text into lines."""
    import textwrap

    return textwrap.wrap(text, width, break_on_hyphens=False)


class Screen:
    """Prints; and keeps a block of lines at the bottom of a terminal up to date.

    Args:
        out: Where to.
        is_live: Whether `show` redraws its lines in place, for which `out` must be a terminal.
    """

    def __init__(self, out: TextIO, *, is_live: bool) -> None:
        self.is_live = is_live
        self._out = out
        self._height = 0

    def say(self, *lines: str) -> None:
        """Print lines that stay."""
        self._out.write("".join(f"{line}\n" for line in lines))
        self._out.flush()

    def show(self, lines: Sequence[str]) -> None:
        """Draw the block: over the one before, if that is still the last thing on the screen."""
        columns = shutil.get_terminal_size().columns  # a line that wraps would spoil the counting of lines
        up = f"\x1b[{self._height}F" if self._height else "\x1b[?25l"  # or hide the cursor, the first time
        self._out.write(up + "".join(f"\x1b[2K{line[:columns]}\n" for line in lines))
        self._out.flush()
        self._height = len(lines)

    def settle(self) -> None:
        """Leave the block as it is, and show the cursor again."""
        if self._height:
            self._height = 0
            self._out.write("\x1b[?25h")
            self._out.flush()


def can_be_live(out: TextIO, environment: Mapping[str, str]) -> bool:
    """Tell whether a block can be redrawn in place."""
    return out.isatty() and environment.get("TERM", "") not in ("", "dumb")
