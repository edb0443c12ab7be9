"""The command line: ``pooledhttp demo``, ``pooledhttp dashboards`` and ``pooledhttp --version``.

Its one job is to turn arguments into checked settings; what a command does stands in a room of its own, imported when
the command runs, so that ``--help`` and a typing mistake cost nothing.  A value that makes no sense is refused here,
before anything is opened: one line that names it, exit status 2.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

_DAY = 86400.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: What stands behind the program's name; ``None``: ``sys.argv[1:]``.

    Returns:
        The exit status: 0 if everything that the command checks holds, 1 if not, 130 after Ctrl-C.

    Raises:
        SystemExit: The arguments are malformed (status 2), or ask for help or the version (status 0).
    """
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="pooledhttp",
        description="HTTP/1.1 connections that a pool lends, takes back only when idle, and shows in Prometheus.",
    )
    parser.add_argument("--version", action="version", version=f"pooledhttp {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands.add_parser(
        "demo",
        help="run a local API and a pool against it, with a live table and /metrics",
        description=(
            "Start an API on the loopback interface, call it from worker threads through one PoolManager, and check "
            "what came out: the summary's numbers against /metrics and against the API's own counts. "
            "Exit status: 0 if all of it holds, 1 if something does not, 2 for wrong arguments, 130 after Ctrl-C."
        ),
    ))  # fmt: skip
    _add_dashboards(commands.add_parser(
        "dashboards",
        help="write the Grafana dashboards, the rules and alerts for Prometheus, and the runbook into a folder",
        description=(
            "Write the Grafana dashboards, the recording rules and alerts for Prometheus with their unit tests, the "
            "runbook, and a compose file that shows all of it at work. Exit status: 0 if all was written, 1 if not, "
            "2 for wrong arguments."
        ),
    ))  # fmt: skip
    return parser


def _add_dashboards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where to; it is made if it is not there")
    parser.add_argument("--force", action="store_true", help="overwrite files that differ")
    parser.set_defaults(command=_dashboards)


def _dashboards(options: argparse.Namespace) -> int:
    from pathlib import Path

    from .dashboards import write

    return write(Path(options.out), overwrites=options.force)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("the load")
    load.add_argument(
        "--duration", type=_seconds, default=10.0, metavar="SECONDS", help="how long to call the API (default: 10)"
    )
    load.add_argument(
        "--workers", type=_count(1, 256), default=16, metavar="N", help="threads that call the API (default: 16)"
    )
    load.add_argument(
        "--pool-size", type=_count(1, 256), default=8, metavar="N", help="most connections to an origin (default: 8)"
    )
    load.add_argument(
        "--seed", type=_count(0, 2**63), metavar="N", help="repeat the random choices of a run (default: new ones)"
    )
    peer = parser.add_argument_group("the API")
    peer.add_argument(
        "--https",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also call it over HTTPS; needs trustme (default: yes)",
    )
    peer.add_argument(
        "--faults",
        action="store_true",
        help="let it misbehave at random: close, reset or send 408 on idle connections, write bytes behind an answer, "
        "cut bodies short; the summary shows what the pool absorbed and what callers saw",
    )
    view = parser.add_argument_group("what is shown")
    view.add_argument(
        "--port", type=_count(0, 65535), default=0, metavar="PORT", help="port of /metrics (default: any free one)"
    )
    view.add_argument(
        "--bind",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="local address of /metrics; 0.0.0.0: all of them (default: 127.0.0.1)",
    )
    view.add_argument(
        "--serve", action="store_true", help="then stay up under a light load, for Prometheus, until Ctrl-C or SIGTERM"
    )
    view.add_argument(
        "--trouble",
        choices=("saturated", "stale", "refused", "leak"),
        help="with --serve: what is wrong meanwhile, to see it on the dashboards: pools too small for a slow API, an "
        "API that hangs up on kept-alive connections, one that is gone, code that forgets to give back",
    )
    view.add_argument(
        "--plain", action="store_true", help="a line a second instead of the live table (default without a terminal)"
    )
    view.add_argument("--quiet", action="store_true", help="no progress at all, only what comes before and after it")
    parser.set_defaults(command=_demo, refuse=parser.error)


def _demo(options: argparse.Namespace) -> int:
    from .demo import DemoOptions, run

    if options.trouble is not None and not options.serve:
        options.refuse("--trouble is shown while the demo stays up: give --serve too")
    return run(
        DemoOptions(
            duration=options.duration,
            workers=options.workers,
            pool_size=options.pool_size,
            seed=options.seed,
            has_https=options.https,
            has_faults=options.faults,
            port=options.port,
            address=options.bind,
            stays_up=options.serve,
            trouble=options.trouble,
            is_plain=options.plain,
            is_quiet=options.quiet,
        )
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _DAY:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, above 0 and at most {_DAY:g}, not {text!r}")
    return seconds


def _count(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, not {text!r}")
        return number

    return parse
