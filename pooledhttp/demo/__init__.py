"""``pooledhttp demo``: an API that may misbehave, workers that call it, and an account of what came out.

All in one process: `Api` answers over kept-alive connections and counts what it did, `Load` calls it from threads
through one `PoolManager`, `Screen` shows how it goes, and `run` ends with a summary that is checked.  What does not
agree is printed, and the exit status is 1.

This file only names what there is.  From below: `options` (what was asked for), `api`, `load`, `screen`, `samples`
(what /metrics has to show), `trouble` (what may be wrong while it stays up), `demonstration` (one run and its checks),
`main` (from start to end).  The rest of pooledhttp, and every third party, is imported when the demo runs.
"""

from __future__ import annotations

from .api import Api, Fault, content_of, make_tls
from .demonstration import Demo, Verdict, sum_of
from .load import Latencies, Ledger, Load, total_of
from .main import run
from .options import DemoOptions, Signals
from .samples import Key, differences, expected_samples, metrics_endpoint, scrape
from .screen import (
    Row,
    Screen,
    can_be_live,
    counted,
    format_seconds,
    format_share,
    plain_line,
    progress_bar,
    table,
    wrapped,
)
from .trouble import Trouble

__all__ = [
    "Api",
    "Demo",
    "DemoOptions",
    "Fault",
    "Key",
    "Latencies",
    "Ledger",
    "Load",
    "Row",
    "Screen",
    "Signals",
    "Trouble",
    "Verdict",
    "can_be_live",
    "content_of",
    "counted",
    "differences",
    "expected_samples",
    "format_seconds",
    "format_share",
    "make_tls",
    "metrics_endpoint",
    "plain_line",
    "progress_bar",
    "run",
    "scrape",
    "sum_of",
    "table",
    "total_of",
    "wrapped",
]
