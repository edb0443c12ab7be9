"""The demo from start to end: builds its parts, runs it, takes them down, and says the exit status.

Its one job is the order of things: what is opened is pushed on one stack and closed in reverse, however the run ends;
what is missing (prometheus_client, trustme, the port) is told in a line of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import ssl
import sys
from typing import TextIO

from .api import Api, make_tls
from .demonstration import Demo, Verdict
from .options import DemoOptions, Signals
from .samples import metrics_endpoint
from .screen import Screen, can_be_live, table
from .trouble import LEAK_AFTER, Trouble


def run(options: DemoOptions, *, out: TextIO | None = None) -> int:
    """Run the demo.

    Args:
        options: What was asked for.
        out: Where to print; ``None``: standard output.

    Returns:
        The exit status: 0 if all checks held, 1 if not, 130 if a run that does not stay up was interrupted.
    """
    out = sys.stdout if out is None else out
    screen = Screen(out, is_live=not (options.is_plain or options.is_quiet) and can_be_live(out, os.environ))
    try:
        with contextlib.ExitStack() as stack:
            return _run(options, screen, stack)
    except KeyboardInterrupt:
        screen.say("interrupted")
        return 130


def _run(options: DemoOptions, screen: Screen, stack: contextlib.ExitStack) -> int:
    from pooledhttp import __version__
    from pooledhttp.manager import PoolManager

    signals = stack.enter_context(Signals())
    stack.callback(screen.settle)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    try:
        metrics_port = stack.enter_context(metrics_endpoint(options.port, options.address))
    except ModuleNotFoundError as missing:
        screen.say(f"/metrics needs {missing.name}, which is not installed: pip install prometheus-client")
        return 1
    except OSError as fault:
        screen.say(f"/metrics cannot be served at {options.address}:{options.port}: {fault.strerror}")
        return 1
    apis, client_tls = _start_apis(options, seed, screen, stack)
    trouble = None if options.trouble is None else Trouble(options.trouble)
    leak_after = LEAK_AFTER if trouble is Trouble.LEAK else None
    manager = stack.enter_context(PoolManager(maxsize=options.pool_size, ssl_context=client_tls, leak_after=leak_after))
    for api in apis:
        manager.pool(api.origin)  # so that each has its numbers from the start
    faults = ", with faults" if options.has_faults else ""
    screen.say(
        f"pooledhttp {__version__} demo: {options.workers} workers, {options.pool_size} connections an origin at most, "
        f"seed {seed}{faults}",
        f"  API      {' and '.join(api.origin for api in apis)}",
        f"  metrics  http://{options.address}:{metrics_port}/metrics",
        "",
    )
    demo = Demo(options, apis=apis, manager=manager, screen=screen, signals=signals)
    is_whole = demo.load(seed)
    if not is_whole and not options.stays_up:
        screen.say("interrupted")
        return 130
    verdict = Verdict(screen)
    behaviour = [api.is_behaving for api in apis]
    demo.settle()
    demo.show_the_rule(verdict)
    if trouble is not None:
        demo.summarize(verdict, metrics_port, is_whole=is_whole)  # in trouble, little of it would hold
        verdict.conclude()
        screen.say("", f"staying up, {trouble}, for Prometheus; end it with Ctrl-C, or: kill {os.getpid()}")
        demo.stay_up(seed + 1, trouble)
        screen.say(*(f"  {line}" for line in table(demo.rows())))
        return 0 if verdict.is_good else 1
    if options.stays_up and not signals.is_interrupted:
        for api, is_behaving in zip(apis, behaviour, strict=True):
            api.is_behaving = is_behaving
        screen.say("", f"staying up for Prometheus under a light load; end it with Ctrl-C, or: kill {os.getpid()}")
        demo.stay_up(seed + 1)
        demo.settle()
    demo.summarize(verdict, metrics_port, is_whole=is_whole)
    verdict.conclude()
    return 0 if verdict.is_good else 1


def _start_apis(
    options: DemoOptions, seed: int, screen: Screen, stack: contextlib.ExitStack
) -> tuple[list[Api], ssl.SSLContext | None]:
    """Start the API over HTTP, and over HTTPS where that is wanted and possible."""
    contexts: list[ssl.SSLContext | None] = [None]
    client_tls = None
    if options.has_https:
        try:
            server_tls, client_tls = make_tls()
            contexts.append(server_tls)
        except ModuleNotFoundError as missing:
            screen.say(f"HTTP only: {missing.name} is not installed (pip install 'pooledhttp[demo]' brings it)")
    apis = []
    for context in contexts:
        scheme = "http" if context is None else "https"
        api = Api(tls=context, seed=f"{seed}/{scheme}" if options.has_faults else None)
        stack.callback(api.close)
        apis.append(api)
    return apis, client_tls
