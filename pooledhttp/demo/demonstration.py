"""One run of the demo: the load under watch, the rule shown, and the summary with its checks.

Its one job is the comparison: `Demo` holds the parts (API, pools, workers, screen), `Verdict` whether all agreed.  Its
rule: no number is shown that could be checked and was not.  The pools' counters are held against /metrics, scraped over
HTTP, and against the API's own counts; what callers saw is held against the faults that were injected.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from .api import Api, Fault, content_of
from .load import Ledger, Load, total_of
from .options import CALL_SECONDS, SLICE, DemoOptions, Signals
from .samples import differences, expected_samples, scrape
from .screen import Row, Screen, counted, format_share, plain_line, progress_bar, table, wrapped
from .trouble import Trouble, in_trouble

if TYPE_CHECKING:
    from pooledhttp.manager import PoolManager
    from pooledhttp.stats import PoolStats

_LEAST_REUSE: Final = 0.99
_LIGHT_PAUSE: Final = 0.25  # mean seconds between two calls of a worker while the demo just stays up


class Verdict:
    """The checks of a run, and how they ended."""

    def __init__(self, screen: Screen) -> None:
        self.is_good = True
        self._screen = screen

    def check(self, *, holds: bool, text: str, otherwise: Sequence[str] = ()) -> None:
        """Print one check; `otherwise` is added when it fails."""
        self.is_good = self.is_good and holds
        self._screen.say(f"  {'ok  ' if holds else 'FAIL'} {text}")
        if not holds:
            self._screen.say(*(f"       {line}" for line in otherwise))

    def conclude(self) -> None:
        """Print how all of it ended."""
        self._screen.say("", "all of it holds" if self.is_good else "NOT ALL OF IT HOLDS: see FAIL above")


class Demo:
    """One run: its API, its pools, its workers, and the clock they all started by.

    Args:
        options: What was asked for.
        apis: The API's origins.
        manager: The pools.
        screen: Where to print.
        signals: What tells that somebody wants an end.
    """

    def __init__(
        self, options: DemoOptions, *, apis: Sequence[Api], manager: PoolManager, screen: Screen, signals: Signals
    ) -> None:
        self.options = options
        self.apis = apis
        self.manager = manager
        self.screen = screen
        self.signals = signals
        self.ledgers = {api.origin: Ledger() for api in apis}
        self.raw_exchanges = 0  # those over a lent connection: the pool does not see them
        self._started = time.monotonic()
        self._shown = (self._started, dict.fromkeys(self.ledgers, 0))

    # --- the load ---------------------------------------------------------------------------------------

    def load(self, seed: int) -> bool:
        """Call the API as long as was asked for; return whether nobody cut it short."""
        with Load(self.manager, self.ledgers, workers=self.options.workers, seed=seed):
            return self._watch(self.options.duration)

    def stay_up(self, seed: int, trouble: Trouble | None = None) -> None:
        """Keep up a light load until somebody wants an end, in trouble if that was asked for."""
        load = Load(self.manager, self.ledgers, workers=self.options.workers, seed=seed)
        load.pause = _LIGHT_PAUSE
        with in_trouble(trouble, self.apis, self.manager, load), load:
            self._watch(None)

    def _watch(self, seconds: float | None) -> bool:
        """Show how it goes until the time is over, or until a signal; ``None``: only then."""
        started = time.monotonic()
        interval = 0.25 if self.screen.is_live else 1.0
        beats = 0
        try:
            while not self.signals.is_interrupted:
                elapsed = time.monotonic() - started
                if seconds is not None and elapsed >= seconds:
                    return True
                if elapsed >= (beats + 1) * interval:
                    beats = math.floor(elapsed / interval)
                    self._show(elapsed, seconds)
                # A slice, since a signal handler only sets a flag; waiting for the flag's lock there could deadlock.
                time.sleep(SLICE if seconds is None else max(min(SLICE, seconds - elapsed), 0.001))
            return False
        finally:
            self.screen.settle()

    def _show(self, elapsed: float, seconds: float | None) -> None:
        if self.options.is_quiet:
            return
        rows = self.rows()
        if not self.screen.is_live:
            self.screen.say(plain_line(elapsed, None if seconds is None else elapsed / seconds, rows[-1]))
            return
        state = "staying up under a light load until Ctrl-C" if seconds is None else progress_bar(elapsed, seconds)
        errors = total_of(self.ledgers.values())
        seen = f"{errors.calls} calls, {errors.truncated + errors.failures.total()} errors seen by callers"
        self.screen.show([state, seen, *table(rows)])

    def rows(self, stats: Mapping[str, PoolStats] | None = None) -> list[Row]:
        """Return a row an origin, and the total's.

        Args:
            stats: The pools' numbers, for rates over the whole run; ``None``: those of now, and the rates since
                the last call.
        """
        now = time.monotonic()
        since, before = self._shown if stats is None else (self._started, dict.fromkeys(self.ledgers, 0))
        stats = self.manager.stats() if stats is None else stats
        rows = []
        calls = {}
        for origin in self.ledgers:
            ledger = total_of([self.ledgers[origin]])  # a copy
            calls[origin] = ledger.calls
            scheme, _, address = origin.partition("://")
            rows.append(Row(
                label=f"{scheme:<6}:{address.rpartition(':')[2]}",
                rate=(ledger.calls - before[origin]) / max(now - since, 0.001),
                stats=stats[origin],
                latencies=ledger.latencies,
            ))  # fmt: skip
        self._shown = (now, calls)
        if len(rows) > 1:
            rows.append(Row(
                label="total",
                rate=sum(row.rate for row in rows),
                stats=sum_of([row.stats for row in rows]),
                latencies=total_of(self.ledgers.values()).latencies,
            ))  # fmt: skip
        return rows

    # --- the rule ---------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let dials and the API come to rest, and have the pools look at what the API left behind."""
        # A caller who was given a connection meanwhile has left his dial to whoever comes next.
        end = time.monotonic() + CALL_SECONDS
        while any(one.opening for one in self.manager.stats().values()) and time.monotonic() < end:
            time.sleep(SLICE)  # nobody tells of the end of a dial that nobody waits for
        for api in self.apis:
            api.settle()
        self.manager.prune()

    def show_the_rule(self, verdict: Verdict) -> None:
        """Try a second request while a response is unread, and show that it went nowhere."""
        from pooledhttp.errors import UnreadResponse

        api = self.apis[0]
        say = self.screen.say
        say("", "the rule: read the response before the next request")
        with self.manager.connection(api.origin, timeout=CALL_SECONDS) as conn:
            before = api.received_bytes
            conn.request("GET", "/items/first/1024")
            response = conn.getresponse()
            first = api.received_bytes - before
            port = conn.sock.getsockname()[1]
            say("  lent a connection; sent GET /items/first/1024; of the answer only the head is read")
            refusal = ""
            try:
                conn.request("GET", "/items/wrong/1024")
            except UnreadResponse as error:
                refusal = str(error)
            verdict.check(
                holds=bool(refusal),
                text="GET /items/wrong/1024 was refused by UnreadResponse"
                if refusal
                else "no UnreadResponse was raised",
            )
            say(*(f"       {line}" for line in wrapped(refusal)))
            data = response.read()
            conn.request("GET", "/items/third/1024")  # as long as the first one
            again = conn.getresponse()
            self.raw_exchanges += 2
            is_same = conn.sock.getsockname()[1] == port
            holds = data == content_of(b"first", 1024) and again.read() == content_of(b"third", 1024) and is_same
            verdict.check(
                holds=holds,
                text=f"after read() the same connection went on: GET /items/third/1024 gave {again.status}",
            )
        # TCP keeps the order: what the refused request had sent would have come in before the third one.
        received = api.received_bytes - before
        verdict.check(
            holds=received == 2 * first,
            text=f"the API received {first} bytes of the first request, 0 of the refused one, {received - first} of "
            f"the third"
            if received == 2 * first
            else f"the API received {received} bytes, and two requests have {2 * first}",
        )

    # --- the summary ------------------------------------------------------------------------------------

    def summarize(self, verdict: Verdict, metrics_port: int, *, is_whole: bool) -> None:
        """Print what came out, and check it.

        Args:
            verdict: Takes the checks.
            metrics_port: Where our own /metrics is.
            is_whole: Whether the load ran as long as it should; a part of one says nothing about reuse.
        """
        say = self.screen.say
        stats = self.manager.stats()  # once; nothing is under way
        scraped = scrape(metrics_port)
        total = sum_of(list(stats.values()))
        seen = total_of(self.ledgers.values())
        say("", f"summary: {seen.calls} calls in {time.monotonic() - self._started:.1f} s")
        say(*(f"  {line}" for line in table(self.rows(stats))))
        say(f"  connections ended  {counted(total.closed) or f'none: all {total.opened} are still open'}")
        if self.options.has_faults:
            self._tell_faults(total, seen)
        say("", "checks")
        expected = {key: value for one in stats.values() for key, value in expected_samples(one).items()}
        wrong = differences(expected, scraped)
        verdict.check(
            holds=not wrong,
            text=f"metrics agree: {len(expected)} values compared" if not wrong
            else f"/metrics differs in {len(wrong)} of {len(expected)} values",
            otherwise=wrong,
        )  # fmt: skip
        self._check_reuse(verdict, total, is_whole=is_whole)
        self._check_counts(verdict, total, seen)
        self._check_callers(verdict, seen)

    def _tell_faults(self, total: PoolStats, seen: Ledger) -> None:
        faults = sum((api.faults for api in self.apis), Counter[str]())
        closed = total.closed
        dead = sum(closed[reason] for reason in ("stale_eof", "stale_reset", "stale_408", "unsolicited"))
        self.screen.say(
            f"  the API misbehaved {counted(faults) or 'never'}",
            f"  the pool absorbed  {dead} connections found dead, {closed['stale_assumed']} as old as one found dead;",
            f"                     {closed['leftover']} with bytes behind an answer; "
            f"{total.stale['retried']} requests sent again",
            f"  callers saw        {seen.truncated} IncompleteRead, {seen.failures.total()} other errors, "
            f"{seen.foreign} answers of others",
        )

    def _check_reuse(self, verdict: Verdict, total: PoolStats, *, is_whole: bool) -> None:
        reuse = format_share(total.reuse_ratio)
        if self.options.has_faults:
            self.screen.say(f"  -    reuse {reuse} %: not judged, the API ends connections on purpose")
        elif not is_whole:
            self.screen.say(f"  -    reuse {reuse} %: not judged, the load was cut short")
        else:
            served = total.acquires["reused"] + total.acquires["opened"]
            verdict.check(
                holds=total.reuse_ratio > _LEAST_REUSE,
                text=f"reuse {reuse} %, which must be above {_LEAST_REUSE * 100:g} %",
                otherwise=[
                    f"{served} acquires for {total.opened} connections: a longer --duration, or fewer connections"
                ],
            )

    def _check_counts(self, verdict: Verdict, total: PoolStats, seen: Ledger) -> None:
        accepted, answered = sum(api.accepted for api in self.apis), sum(api.answered for api in self.apis)
        asked = sum(total.requests.values()) + self.raw_exchanges
        is_equal = accepted == total.opened and answered == asked == seen.calls + self.raw_exchanges
        verdict.check(
            holds=is_equal,
            text=f"the API counted the same: {accepted} connections, {answered} requests" if is_equal
            else f"the API accepted {accepted} connections and answered {answered} requests; the pools opened "
            f"{total.opened} and sent {asked}; callers made {seen.calls + self.raw_exchanges} calls",
        )  # fmt: skip
        ended = sum(total.closed.values())
        is_at_rest = not (total.leased or total.opening or total.waiting)
        verdict.check(
            holds=is_at_rest and total.opened == ended + total.idle,
            text=f"every connection is accounted for: {total.opened} opened = {ended} ended + {total.idle} idle",
            otherwise=[f"{total.leased} leased, {total.opening} opening, {total.waiting} waiting"],
        )

    def _check_callers(self, verdict: Verdict, seen: Ledger) -> None:
        truncated = sum(api.faults[Fault.TRUNCATED] for api in self.apis)
        if self.options.has_faults:
            verdict.check(
                holds=seen.truncated == truncated,
                text=f"callers saw {seen.truncated} IncompleteRead, the API truncated {truncated} answers",
            )
        failures = Counter(seen.failures)
        if not self.options.has_faults:
            failures["IncompleteRead"] += seen.truncated
        failed = failures.total()
        verdict.check(
            holds=not failed,
            text=f"{failed} calls failed: {counted(failures)}"
            if failed
            else "no call failed"
            if not self.options.has_faults
            else "no call failed because of a close, a reset, a 408 or extra bytes",
            otherwise=[seen.example],
        )
        verdict.check(
            holds=not seen.foreign,
            text=f"{seen.foreign} answers belonged to another request",
            otherwise=[seen.example],
        )


def sum_of(stats: Sequence[PoolStats]) -> PoolStats:
    """Return the numbers of several pools as those of one."""
    total, *rest = stats
    for one in rest:
        total += one
    return total
