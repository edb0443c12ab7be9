"""A loopback peer that misbehaves on order, and an audit of what a test leaves behind.

Its one job: to let a test of an HTTP client say exactly what the other side does, and when.  A
`ScriptedServer` plays one script per accepted connection: steps (`ExpectHead`, `Send`, `Reset`, ...), each
called with the `Peer`; any function of a `Peer` is a step too.  `ResourceAudit` then tells whether
descriptors, threads and the counters of a pool came back to where they were.

Its rules: sockets are real; nothing is synchronised by sleeping; every wait is bounded by the server's
``timeout`` and cut short by ``close()``; whatever hits a bound or contradicts the script is a *failure* and is
raised when the server closes.  A client that leaves early is an outcome, written on the `Peer`, and no failure.

It is a pytest plugin too: ``pytest_plugins = ["pooledhttp.testing"]`` brings the fixtures ``scripted_server``
and ``audit``.  It holds no ``assert``, so nothing here is rewritten: PYTEST_DONT_REWRITE.

This file only names what is public.  What one connection does stands in `peer`, what a script is made of in `steps`,
who accepts and plays in `server`, the audit in `resources`, the fixtures in `plugin`, the only one to know pytest.
"""

from __future__ import annotations

from .peer import Disconnected, Peer, ReceivedRequest, Script
from .resources import ResourceAudit, SupportsStats
from .server import ScriptedServer, ServerFactory
from .steps import (
    Close,
    ExpectBody,
    ExpectHead,
    HalfClose,
    KeepOpen,
    Mark,
    ReadToEnd,
    Repeat,
    Reset,
    Respond,
    Send,
    Signal,
    Stall,
    StartTLS,
    Step,
    Trickle,
    keep_alive_script,
)

try:
    from .plugin import audit as audit
    from .plugin import scripted_server as scripted_server
except ImportError:  # no pytest, then there are no fixtures
    pass

__all__ = [
    "Close",
    "Disconnected",
    "ExpectBody",
    "ExpectHead",
    "HalfClose",
    "KeepOpen",
    "Mark",
    "Peer",
    "ReadToEnd",
    "ReceivedRequest",
    "Repeat",
    "Reset",
    "ResourceAudit",
    "Respond",
    "Script",
    "ScriptedServer",
    "Send",
    "ServerFactory",
    "Signal",
    "Stall",
    "StartTLS",
    "Step",
    "SupportsStats",
    "Trickle",
    "keep_alive_script",
]
