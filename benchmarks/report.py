"""Turns outcomes into what people read: JSON with the raw rounds, Markdown tables, the table of the README.

Its rule: nothing is in a table that is not in the JSON, so that a table can be made again from a stored result.  Ratios
are between medians of one run: to the floor, and to the best of the peers.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from .measure import Round, medians, ratio
from .peers import ALONE, EVERY, Group
from .scenarios import SCENARIOS, Outcome, Result

FORMAT: Final = 1
FOLDER: Final = Path(__file__).resolve().parent / "results"
PUBLISHED: Final = FOLDER / "published.json"
README: Final = Path(__file__).resolve().parent.parent / "README.md"
BEGIN: Final = "<!-- benchmarks: begin -->"
END: Final = "<!-- benchmarks: end -->"

# Of the README's table.
_NEEDED: Final = ("small-get", "small-get-16", "tls", "down-read", "import")
_SCALES: Final = {"us": 1e6, "ms": 1e3}
_NOTHING: Final = "-"


class BadResult(ValueError):
    """A stored result cannot be read, or lacks what was asked for."""


@dataclass(kw_only=True)
class Report:
    """One run.

    Attributes:
        made: When it ended: ``2026-01-31T12:00:00Z``.
        machine: What it ran on, by what it is.
        server: What answered the requests.
        rounds: How many rounds counted.
        is_quick: Whether rounds were short and few.
        versions: Of each peer, by its name.
        outcomes: By the name of the scenario.
        failed: By the name of a scenario without outcome: why.
    """

    made: str
    machine: dict[str, str]
    server: str
    rounds: int
    is_quick: bool
    versions: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "format": FORMAT,
            "made": self.made,
            "machine": self.machine,
            "server": self.server,
            "rounds": self.rounds,
            "is_quick": self.is_quick,
            "versions": self.versions,
            "failed": self.failed,
            "scenarios": {name: outcome.as_json() for name, outcome in self.outcomes.items()},
        }

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Report:
        """Return what `as_json` was made from.

        Raises:
            BadResult: It is of another format, or none of ours.
        """
        try:
            if value["format"] != FORMAT:
                raise BadResult(f"the result is of format {value['format']!r}, and this reads {FORMAT}")
            return cls(
                made=value["made"],
                machine=dict(value["machine"]),
                server=value["server"],
                rounds=value["rounds"],
                is_quick=value["is_quick"],
                versions=dict(value["versions"]),
                failed=dict(value["failed"]),
                outcomes={name: Outcome.of_json(outcome) for name, outcome in value["scenarios"].items()},
            )
        except (AttributeError, KeyError, TypeError) as fault:
            raise BadResult(f"this is no result of the benchmarks ({type(fault).__name__}: {fault})") from fault


def load(path: Path) -> Report:
    """Read a stored result.

    Raises:
        BadResult: There is none, or it is malformed.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise BadResult(f"{path.name} cannot be read: {fault}") from fault
    return Report.of_json(value)


def store(report: Report, path: Path) -> None:
    """Write a result, one round a line, with its folder."""
    text = json.dumps(report.as_json(), indent=1)
    # A pair of numbers needs no four lines.
    text = re.sub(r"\[\s+(-?[\d.e-]+),\s+(-?[\d.e-]+)\s+\]", r"[\1, \2]", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def now() -> str:
    """Return the time, as a report has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def machine() -> dict[str, str]:
    """Return what the measuring depends on, without what would name the machine."""
    processor = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": found[1] if found else processor,
        "cores": str(cores),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


# --- arithmetic -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case as the tables show it.

    Attributes:
        name: Of the case.
        group: Its part in the comparison.
        median: Seconds of CPU and wall, each repetition.
        to_floor: Ratios of both to the scenario's base; ``None``: there is none.
        to_best: Ratios of both to the least of the peers; ``None``: there is no peer.
    """

    name: str
    group: str
    median: Round
    to_floor: tuple[float | None, float | None]
    to_best: tuple[float | None, float | None]


def rows(outcome: Outcome) -> list[Row]:
    """Return the cases that have rounds, base first, then by CPU time as a ratio."""
    timed = {name: case for name, case in outcome.cases.items() if case.rounds}
    taken = {name: _medians(case.rounds) for name, case in timed.items()}
    bases = {name: _medians(case.floor) if case.floor else taken.get(outcome.base) for name, case in timed.items()}
    peers = [name for name, case in timed.items() if case.group == Group.PEER]
    to_floor = {name: _ratios(taken[name], bases[name]) for name in timed}
    found = []
    for name, case in timed.items():
        # A peer that was measured elsewhere is brought here by the ratio to its own floor.
        best = _best(taken, bases, peers, outcome)
        to_best = _ratios(_brought(taken[name], bases[name], taken.get(outcome.base)), best)
        found.append(Row(name=name, group=case.group, median=taken[name], to_floor=to_floor[name], to_best=to_best))
    return sorted(found, key=lambda row: (row.name != outcome.base, row.to_floor[0] or 0.0, row.median.cpu))


def _best(
    taken: Mapping[str, Round], bases: Mapping[str, Round | None], peers: Iterable[str], outcome: Outcome
) -> Round | None:
    here = [_brought(taken[name], bases[name], taken.get(outcome.base)) for name in peers]
    return Round(min(one.cpu for one in here), min(one.wall for one in here)) if here else None


def _brought(taken: Round, base: Round | None, ours: Round | None) -> Round:
    if base is None or ours is None or base is ours or not base.cpu or not base.wall:
        return taken
    return Round(taken.cpu / base.cpu * ours.cpu, taken.wall / base.wall * ours.wall)


def _medians(rounds: Sequence[tuple[float, float]]) -> Round:
    return medians([Round(cpu, wall) for cpu, wall in rounds])


def _ratios(taken: Round, base: Round | None) -> tuple[float | None, float | None]:
    return (None, None) if base is None else (ratio(taken.cpu, base.cpu), ratio(taken.wall, base.wall))


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """Return all tables of a run."""
    sections = [f"# Benchmarks of {report.made}", about(report)]
    if report.is_quick:
        sections.append("A quick run: few and short rounds, good for a first look only.")
    sections += [_section(name, outcome) for name, outcome in report.outcomes.items()]
    sections += [f"## {SCENARIOS[name].title}\n\nNot measured: {why}." for name, why in report.failed.items()]
    listed = ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))
    sections.append(f"Peers: {listed or 'none is installed'}.")
    return "\n\n".join(sections) + "\n"


def about(report: Report) -> str:
    """Return where and how it was measured, in one paragraph."""
    host = report.machine
    is_pinned = any(outcome.is_pinned for outcome in report.outcomes.values())
    pinning = (
        "clients of one thread on one core, the servers on another" if is_pinned else "nothing was pinned to a core"
    )
    embedded = "" if report.server.startswith("nginx") else " (not nginx)"
    return (
        f"{host['python']}, {host['system']}, {host['cores']} cores ({host['processor']}); server {report.server}"
        f"{embedded} on loopback; {pinning}; medians of {report.rounds} rounds. Only ratios count."
    )


def _section(name: str, outcome: Outcome) -> str:
    scenario = SCENARIOS[name]
    lines = [f"## {scenario.title} (`{name}`)", ""]
    if name == "import":
        lines += _import_table(outcome)
    elif any(case.rounds for case in outcome.cases.values()):
        lines += _time_table(outcome, unit=scenario.unit, has_rate=scenario.has_rate)
    else:
        lines += _figures_table(outcome.cases)
    if outcome.missing:
        lines += ["", "Missing: " + "; ".join(f"{name}: {why}" for name, why in outcome.missing.items()) + "."]
    return "\n".join(lines)


def _time_table(outcome: Outcome, *, unit: str, has_rate: bool) -> list[str]:
    scale = _SCALES[unit]
    base = outcome.base.removeprefix("pooledhttp ")
    titles = ["", f"CPU {unit}", f"CPU / {base}", f"wall {unit}", f"wall / {base}"]
    has_peers = any(case.group == Group.PEER for case in outcome.cases.values())
    if has_peers:
        titles += ["CPU / best peer", "wall / best peer"]
    if has_rate:
        titles.append("requests/s")
    lines = [_line(titles), _line(["---", *["---:"] * (len(titles) - 1)])]
    for row in rows(outcome):
        cells = [_emphasised(row.name, row.group), f"{row.median.cpu * scale:.1f}", _times(row.to_floor[0])]
        cells += [f"{row.median.wall * scale:.1f}", _times(row.to_floor[1])]
        if has_peers:
            cells += [_times(row.to_best[0]), _times(row.to_best[1])]
        if has_rate:
            cells.append(_rate(row.median))
        lines.append(_line(cells))
    return lines


def _import_table(outcome: Outcome) -> list[str]:
    lines = [_line(["", "wall ms", "CPU ms"]), _line(["---", "---:", "---:"])]
    found = import_seconds(outcome)
    for name in sorted(found, key=lambda name: found[name].wall):
        took = found[name]
        cells = [_emphasised(name, outcome.cases[name].group), f"{took.wall * 1e3:.1f}", f"{took.cpu * 1e3:.1f}"]
        lines.append(_line(cells))
    return lines


def import_seconds(outcome: Outcome) -> dict[str, Round]:
    """Return by how many seconds an interpreter that imports a module takes longer than one that imports nothing."""
    found = {}
    for name, case in outcome.cases.items():
        base = case.floor or outcome.cases[outcome.base].rounds
        if name != outcome.base:
            with_it, without = _medians(case.rounds), _medians(base)
            found[name] = Round(with_it.cpu - without.cpu, with_it.wall - without.wall)
    return found


def _figures_table(cases: Mapping[str, Result]) -> list[str]:
    names = list(dict.fromkeys(name for case in cases.values() for name in case.figures))
    lines = [_line(["", *names]), _line(["---", *["---:"] * len(names)])]
    for name, case in cases.items():
        shown = [_figure(case.figures[key]) if key in case.figures else _NOTHING for key in names]
        lines.append(_line([_emphasised(name, case.group), *shown]))
    return lines


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _times(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2f}"


def _rate(taken: Round) -> str:
    return f"{1 / taken.wall:,.0f}" if taken.wall > 0 else _NOTHING


def _emphasised(name: str, group: str) -> str:
    return f"**{name}**" if group == Group.OURS else name


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# --- the README -------------------------------------------------------------------------------------------------------


def readme_table(report: Report) -> str:
    """Return the README's table of a run, with the paragraph above it.

    Raises:
        BadResult: The run lacks a scenario that the table shows.
    """
    lacking = [name for name in _NEEDED if name not in report.outcomes]
    if lacking:
        raise BadResult(f"the README's table needs {', '.join(lacking)} as well; run without --only")
    by_name = {name: {row.name: row for row in rows(report.outcomes[name])} for name in _NEEDED if name != "import"}
    imports = import_seconds(report.outcomes["import"])
    titles = [
        "client",
        "small GET: CPU / floor",
        "wall / floor",
        "16 threads: requests/s",
        "TLS: CPU / floor",
        "100 MB: wall / floor",
        "import ms",
    ]
    lines = [_line(titles), _line(["---", *["---:"] * (len(titles) - 1)])]
    for name, row in by_name["small-get"].items():
        crowd, tls, large = (by_name[scenario].get(name) for scenario in _NEEDED[1:4])
        took = None
        if row.group != Group.FLOOR and (client := EVERY.get(name)) is not None:
            took = imports.get(client.imported) or imports.get(client.distribution or client.module)
        lines.append(
            _line(
                [
                    _emphasised(name, row.group),
                    _times(row.to_floor[0]),
                    _times(row.to_floor[1]),
                    _NOTHING if crowd is None or _is_elsewhere(report, name) else _rate(crowd.median),
                    _NOTHING if tls is None else _times(tls.to_floor[0]),
                    _NOTHING if large is None else _times(large.to_floor[1]),
                    _NOTHING if took is None else f"{took.wall * 1e3:.0f}",
                ]
            )
        )
    missing = report.outcomes["small-get"].missing
    said = [about(report), "", *lines]
    if missing:
        said += ["", "Missing: " + "; ".join(f"{name}: {why}" for name, why in missing.items()) + "."]
    return "\n".join(said)


def _is_elsewhere(report: Report, name: str) -> bool:
    # Its rate is of another process, whose floor was another one.
    return name == ALONE.name and bool(report.outcomes["small-get-16"].cases[name].floor)


def write_readme(report: Report, path: Path) -> None:
    """Replace what stands between the README's two markers.

    Raises:
        BadResult: The run is quick or incomplete, or the markers are not there.
    """
    if report.is_quick:
        raise BadResult("the README shows whole runs only; run without --quick")
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadResult(f"{path.name} has no place for the table: {BEGIN} ... {END}")
    path.write_text(f"{before}{BEGIN}\n{readme_table(report)}\n{END}{after}", encoding="utf-8")
