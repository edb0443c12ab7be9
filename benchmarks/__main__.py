"""The command line: ``python -m benchmarks``.

Starts the servers, one worker a scenario, and sees to it that none of them outlives it, however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Final

from .measure import cores
from .peers import ALONE, Floor
from .picture import bars
from .report import (
    FOLDER,
    PUBLISHED,
    README,
    BadResult,
    Report,
    load,
    machine,
    markdown,
    now,
    readme_table,
    rows,
    store,
    write_readme,
)
from .scenarios import SCENARIOS, Outcome, Scenario

_ROOT: Final = Path(__file__).resolve().parent.parent
_LARGE_BYTES: Final = 100 << 20
_ROUNDS: Final = 9
_QUICK_ROUNDS: Final = 3
_QUICK_PACE: Final = 0.3
_SCENARIO_SECONDS: Final = 900.0
_END_SECONDS: Final = 5.0
_PICTURED: Final = "small-get"
# What would have clients trust others than the authority of the moment, or compile ours at each import.
_FOREIGN: Final = frozenset(
    {
        "curl_ca_bundle",
        "requests_ca_bundle",
        "ssl_cert_file",
        "ssl_cert_dir",
        "pythondontwritebytecode",
    }
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 if something failed, 130 if it was interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        for scenario in SCENARIOS.values():
            print(f"{scenario.name:18}{scenario.title}")
        return 0
    if options.stored is not None and (options.only or options.quick):
        parser.error("--from shows a stored result; --only and --quick are for measuring")
    if options.write_readme and options.stored is None and (options.quick or options.only):
        parser.error("--write-readme needs a whole run: no --quick, no --only")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        report = load(options.stored) if options.stored else _measure(options)
        return _show(report, options)
    except BadResult as fault:
        parser.error(str(fault))
    except RuntimeError as fault:
        print(f"the servers do not run: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the scenarios and end")
    parser.add_argument("--only", type=_scenarios, metavar="A,B", help="only these scenarios")
    parser.add_argument("--quick", action="store_true", help="few and short rounds")
    parser.add_argument("--rounds", type=_positive, metavar="N", help=f"rounds that count (default {_ROUNDS})")
    parser.add_argument("--embedded", action="store_true", help="do not use nginx")
    parser.add_argument("--alone", type=Path, metavar="PYTHON", help=f"interpreter that has {ALONE.name}")
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="FOLDER", help="where to write them")
    parser.add_argument("--from", dest="stored", type=Path, metavar="FILE", help="measure nothing: show this result")
    parser.add_argument(
        "--write-readme", action="store_true", help="publish it: results/published.*, the README's table"
    )
    return parser


def _scenarios(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown or not names:
        said = f"no scenario is named {', '.join(unknown)}" if unknown else "no scenario is named"
        raise argparse.ArgumentTypeError(f"{said}; there are {', '.join(SCENARIOS)}")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it takes a number of at least 1, not {text!r}")
    return int(text)


def _measure(options: argparse.Namespace) -> Report:
    from .servers import running  # needs trustme, and the rest of the command does not

    rounds = options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)
    pace = _QUICK_PACE if options.quick else 1.0
    with running(large_bytes=_LARGE_BYTES, use_nginx=not options.embedded) as addresses:
        report = Report(made="", machine=machine(), server=addresses.server, rounds=rounds, is_quick=options.quick)
        where = cores()
        pinning = "none" if where.client is None else f"clients of one thread {where.client}, servers {where.server}"
        _say(f"server: {addresses.server}; cores: {pinning}")
        for name in options.only or SCENARIOS:
            setting = {"addresses": asdict(addresses), "rounds": rounds, "pace": pace}
            _say(f"{name}: {SCENARIOS[name].title}")
            try:
                outcome, versions = _work(sys.executable, name, setting)
            except RuntimeError as fault:
                report.failed[name] = str(fault)
                _say(f"  failed: {fault}")
                continue
            report.outcomes[name] = outcome
            report.versions |= versions
            _add_alone(report, SCENARIOS[name], outcome, setting, options.alone)
            for client, why in outcome.missing.items():
                _say(f"  missing: {client}: {why}")
    report.made = now()
    return report


def _add_alone(
    report: Report, scenario: Scenario, outcome: Outcome, setting: dict[str, Any], python: Path | None
) -> None:
    """Measure the client that shares an environment with no other, next to a floor of its own."""
    name = ALONE.name
    if not scenario.is_exchange and scenario.name != "import":
        return
    if python is None or not python.exists():
        outcome.missing[name] = "has no environment of its own here (it brings another package named urllib3)"
        return
    try:
        # Not resolved: the link's own path is what makes it the environment's interpreter.
        found, versions = _work(
            os.path.abspath(python),  # noqa: PTH100  # as above
            scenario.name,
            {**setting, "clients": [Floor.name, name]},
        )
    except RuntimeError as fault:
        outcome.missing[name] = str(fault)
        return
    report.versions |= {key: value for key, value in versions.items() if key == ALONE.distribution}
    if name not in found.cases or found.base not in found.cases:
        outcome.missing[name] = found.missing.get(name, "its floor could not be measured")
        return
    outcome.cases[name] = found.cases[name]
    outcome.cases[name].floor = found.cases[found.base].rounds


def _work(python: str, name: str, setting: dict[str, Any]) -> tuple[Outcome, dict[str, str]]:
    """Run a scenario in a process of its own.

    Raises:
        RuntimeError: It failed, or took too long; the text says why.
    """
    with _worker(python) as process:
        try:
            said, errors = process.communicate(json.dumps({"scenario": name, "setting": setting}), _SCENARIO_SECONDS)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"it was not done within {_SCENARIO_SECONDS:g} s") from None
    if process.returncode:
        last = errors.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise RuntimeError(last[0][:300])
    answer = json.loads(said)
    return Outcome.of_json(answer["outcome"]), answer["versions"]


@contextlib.contextmanager
def _worker(python: str) -> Iterator[subprocess.Popen[str]]:
    """Start a worker; whatever it has started goes with it, by the group that it leads."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.lower() not in _FOREIGN and not name.lower().endswith("_proxy")
    }
    process = subprocess.Popen(
        [python, "-m", "benchmarks.worker"],
        cwd=_ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_END_SECONDS)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _show(report: Report, options: argparse.Namespace) -> int:
    text = markdown(report)
    if options.stored is None:
        stem = report.made.replace(":", "")
        _write(report, options.results / f"{stem}.json", text)
        _say(f"written: {options.results.name}/{stem}.json, .md" + (", .svg" if _PICTURED in report.outcomes else ""))
    if options.write_readme:
        readme_table(report)  # complains before anything is overwritten
        write_readme(report, README)
        _write(report, PUBLISHED, text)
    print(text)
    return 1 if report.failed else 0


def _write(report: Report, path: Path, text: str) -> None:
    store(report, path)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    if _PICTURED in report.outcomes:
        picture = bars(
            rows(report.outcomes[_PICTURED]),
            title=f"{SCENARIOS[_PICTURED].title}: CPU time, bare socket = 1",
            note=f"{report.machine['python']}, {report.server}, medians of {report.rounds} rounds; shorter is better",
        )
        path.with_suffix(".svg").write_text(picture, encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
