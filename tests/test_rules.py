"""The recording rules and alerts: promtool's unit tests of them, and whether those tests would notice a change.

`dashboards/tests` says in numbers written by hand when each alert fires and when it does not.  Here every threshold,
every other number, every `for` and every window of each rule is moved a little, and every condition of an alert is left
out; the tests of that rule have to fail then.  All mutants of a file's rules stand side by side in one run of promtool,
each under a name of its own: its inputs are read and its recording rules evaluated once, which makes hundreds cheap.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from dashboards.generator.alerts import RUNBOOK
from dashboards.generator.recordings import FOR_USERS
from dashboards.generator.rules import main, rule_files
from dashboards.generator.thresholds import THRESHOLDS, Thresholds
from pooledhttp import ConnectionPool, Retry, Timeout
from pooledhttp.stats import USE_BOUNDS, WAIT_BOUNDS
from tests.exposition import exposed, faults_of, selectors
from tests.real_prometheus import find_amtool, find_promtool

DASHBOARDS = Path(__file__).resolve().parent.parent / "dashboards"
TESTS = DASHBOARDS / "tests"
BOUND = 55.0

SECONDS = {"s": 1, "m": 60, "h": 3600}
# An expression's words that are names of recording rules.
RECORDED = re.compile(r"\b[a-z_]+:\w+:\w+")


class Place(NamedTuple):
    """Where a rule stands."""

    file: str
    group: str
    number: int


# libyaml's where there is one: ten times as fast.
FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
FAST_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

Rules = Mapping[Place, Mapping[str, Any]]


def read(texts: Mapping[str, str]) -> Rules:
    return {
        Place(file, group["name"], number): rule
        for file, text in texts.items()
        for group in yaml.load(text, FAST_LOADER)["groups"]
        for number, rule in enumerate(group["rules"])
    }


RULES = read(rule_files())
ALERTS = {place: rule for place, rule in RULES.items() if "alert" in rule}
RECORDINGS = {place: rule for place, rule in RULES.items() if "record" in rule}
ALERT_NAMES = sorted({rule["alert"] for rule in ALERTS.values()})


def in_seconds(duration: str) -> int:
    return int(duration[:-1]) * SECONDS[duration[-1]]


def own_tests(rule: Mapping[str, Any]) -> Path:
    """The file of a rule's tests: PooledHTTPLeaseStuck has lease_stuck.yml."""
    if "record" in rule:
        return TESTS / ("recording_long.yml" if re.search(r"rate(30m|1h|6h)$", rule["record"]) else "recording.yml")
    return TESTS / (re.sub(r"(?<!^)(?=[A-Z])", "_", rule["alert"].removeprefix("PooledHTTP")).lower() + ".yml")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find_promtool(), *arguments],
        env={**os.environ, "GOGC": "1000"},  # a quarter less time: it collects its garbage more seldom
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=BOUND,
    )


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["recording.yml", "alerts.yml"])
def test_committed_rules_are_what_the_generator_writes(name):
    assert (DASHBOARDS / name).read_text(encoding="utf-8") == rule_files()[name], "make dashboards"


def test_promtool_finds_nothing_to_complain_about():
    done = run("check", "rules", "--lint=all", "--lint-fatal", DASHBOARDS / "recording.yml", DASHBOARDS / "alerts.yml")
    assert done.returncode == 0, done.stdout
    assert re.findall(r"(SUCCESS|FAILED|lint|duplicate)", done.stdout) == ["SUCCESS", "SUCCESS"], done.stdout


def test_promtool_finds_nothing_to_complain_about_in_what_a_pool_shows():
    registry = CollectorRegistry()
    with ConnectionPool("localhost", 80, registry=registry):
        exposition = generate_latest(registry)
    done = subprocess.run(
        [find_promtool(), "check", "metrics"], input=exposition, capture_output=True, timeout=BOUND, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.timeout(120)
def test_unit_tests_of_the_rules_pass():
    find_promtool()  # here, so that a skip is this thread's
    # As a user would run them; a file at a time, for promtool has a single thread for all of its tests.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for done in threads.map(partial(run, "test", "rules"), sorted(TESTS.glob("*.yml"))):
            assert done.returncode == 0, done.stdout


def test_severities_are_from_the_closed_set():
    assert {rule["labels"]["severity"] for rule in ALERTS.values()} == {"critical", "warning", "info"}


def test_an_alert_has_one_rule_for_each_severity():
    kinds = [(rule["alert"], rule["labels"]["severity"]) for rule in ALERTS.values()]
    assert len(kinds) == len(set(kinds))


def test_every_recording_rule_is_read_by_an_alert_or_is_listed_for_users():
    expressions = {rule["record"]: rule["expr"] for rule in RECORDINGS.values()}
    assert FOR_USERS.keys() <= expressions.keys()
    read_by_others: set[str] = set()
    waiting = [rule["expr"] for rule in ALERTS.values()] + [expressions[name] for name in FOR_USERS]
    while waiting:
        for name in set(RECORDED.findall(waiting.pop())) - read_by_others:
            read_by_others.add(name)
            waiting.append(expressions[name])
    assert expressions.keys() == read_by_others | FOR_USERS.keys()


def test_links_of_ones_own_can_be_written_into_a_new_folder(tmp_path, monkeypatch):
    options = ["--runbook=https://wiki/runbook", "--grafana=https://grafana/"]
    folder = tmp_path / "new" / "folder"
    monkeypatch.setattr("sys.argv", ["rules", *options, str(folder)])
    main()
    main()  # into the same
    alerts = yaml.safe_load((folder / "alerts.yml").read_text(encoding="utf-8"))
    annotations = [rule["annotations"] for group in alerts["groups"] for rule in group["rules"]]
    assert len(annotations) == len(ALERTS)
    assert all(notes["runbook_url"].startswith("https://wiki/runbook#pooledhttp") for notes in annotations)
    assert all(notes["dashboard_url"].startswith("https://grafana/d/pooledhttp-") for notes in annotations)


@pytest.mark.parametrize("place", ALERTS, ids=lambda place: f"{place.group}-{place.number}")
def test_unit_tests_see_the_whole_text_of_an_alert_low_traffic_and_a_restart(place):
    rule = ALERTS[place]
    cases = yaml.load(own_tests(rule).read_text(encoding="utf-8"), FAST_LOADER)["tests"]
    expected = [
        alert
        for case in cases
        for at in case.get("alert_rule_test", [])
        for alert in at["exp_alerts"]
        if at["alertname"] == rule["alert"] and alert["exp_annotations"].keys() == rule["annotations"].keys()
    ]
    assert rule["labels"]["severity"] in {alert["exp_labels"]["severity"] for alert in expected}
    for kind in ("low traffic", "restart"):
        assert any(kind in case["name"] for case in cases), kind


# --- who is told of what ----------------------------------------------------------------------------------------------

ALERTMANAGER = DASHBOARDS / "alertmanager.yml"


def matches(matchers: Sequence[str], labels: Mapping[str, str]) -> bool:
    for matcher in matchers:
        ((label, operator, value),) = re.findall(r'^(\w+) (=~|=) "?([^"]+)"?$', matcher)
        if not re.fullmatch(value if operator == "=~" else re.escape(value), labels[label]):
            return False
    return True


def test_what_is_critical_holds_back_its_own_warning_and_nothing_else():
    (inhibition,) = yaml.safe_load(ALERTMANAGER.read_text(encoding="utf-8"))["inhibit_rules"]
    about = [
        {"alertname": rule["alert"], "severity": rule["labels"]["severity"], "job": "shop", "pool": pool}
        for rule in ALERTS.values()
        for pool in ("orders", "users")
    ]
    held_back = {
        (one["alertname"], one["severity"], other["severity"], one["pool"] == other["pool"])
        for one in about
        for other in about
        if matches(inhibition["source_matchers"], one)
        and matches(inhibition["target_matchers"], other)
        and all(one[label] == other[label] for label in inhibition["equal"])
    }
    assert held_back == {
        ("PooledHTTPAcquireWaitBudgetBurn", "critical", "warning", True),
        ("PooledHTTPConnectFailures", "critical", "warning", True),
        ("PooledHTTPRequestErrors", "critical", "warning", True),
        ("PooledHTTPStaleConnections", "critical", "info", True),
    }


def test_alertmanager_accepts_its_example():
    done = subprocess.run(
        [find_amtool(), "check-config", ALERTMANAGER], capture_output=True, timeout=BOUND, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- what a threshold promises ----------------------------------------------------------------------------------------


def test_waits_connects_and_leases_are_judged_at_a_bound_of_their_histograms():
    assert THRESHOLDS.slow_wait_seconds in WAIT_BOUNDS
    assert THRESHOLDS.slow_connect_seconds in WAIT_BOUNDS
    assert THRESHOLDS.long_lease_seconds in USE_BOUNDS


def test_retries_are_called_high_below_what_their_budget_allows():
    budget = Retry().budget
    assert budget is not None
    assert THRESHOLDS.retry_share < budget


def test_a_lease_is_called_stuck_only_when_it_is_older_than_any_silence_that_is_allowed():
    read_limit = Timeout().read
    assert read_limit is not None
    assert THRESHOLDS.stuck_lease_seconds > 2 * read_limit


# --- the runbook ------------------------------------------------------------------------------------------------------

SECTIONS = re.findall(r"^## (.+)$", (DASHBOARDS / "runbook.md").read_text(encoding="utf-8"), re.MULTILINE)
QUERIES = re.findall(r"```promql\n(.*?)```", (DASHBOARDS / "runbook.md").read_text(encoding="utf-8"), re.DOTALL)


def test_runbook_has_a_section_for_every_alert_and_no_other():
    assert sorted(SECTIONS) == ALERT_NAMES


def test_links_of_alerts_lead_to_their_sections():
    # An anchor of GitHub's is the heading in lower case, as long as that is a single word.
    assert {rule["annotations"]["runbook_url"] for rule in ALERTS.values()} == {
        f"{RUNBOOK}#{section.lower()}" for section in SECTIONS
    }


BOARDS = {
    board["title"].removeprefix("pooledhttp / "): board["panels"]
    for board in (json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS.glob("*.json"))
}
# Emphasised is the head of a case, which ends in a colon, or a place: dashboard, row, panel.
EMPHASISED = re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", (DASHBOARDS / "runbook.md").read_text(encoding="utf-8"))
PLACES = [text for text in EMPHASISED if not text.endswith(":")]


def places(boards: Mapping[str, list[dict[str, Any]]]) -> set[str]:
    """Return what there is to look at."""
    found = set(boards)
    for board, panels in boards.items():
        row = ""
        for panel in panels:  # those of a row follow it
            row = panel["title"] if panel["type"] == "row" else row
            found.add(f"{board} / {row}" if panel["type"] == "row" else f"{board} / {row} / {panel['title']}")
    return found


def test_runbook_sends_people_to_rows_and_panels_that_exist():
    assert set(PLACES) <= places(BOARDS), set(PLACES) - places(BOARDS)
    assert len(PLACES) > 2 * len(ALERT_NAMES)
    assert {place.split(" / ")[0] for place in PLACES} == BOARDS.keys()


# --- what is exposed --------------------------------------------------------------------------------------------------


def recorded(samples: Mapping[str, Mapping[str, set[str]]]) -> dict[str, dict[str, set[str]]]:
    """What the recording rules make of it: the labels that their names tell."""
    values: dict[str, set[str]] = {}
    for labels in samples.values():
        for label, of_it in labels.items():
            values.setdefault(label, set()).update(of_it)
    return {
        rule["record"]: {label: values.get(label, set()) for label in rule["record"].split(":")[0].split("_")}
        for rule in RECORDINGS.values()
    }


def test_rules_ask_only_for_what_a_pool_shows():
    samples = exposed()
    known = samples | recorded(samples)
    faults = [fault for rule in RULES.values() for fault in faults_of(rule["expr"], known)]
    assert not faults, "\n".join(faults)


def test_queries_of_the_runbook_ask_only_for_what_a_pool_shows():
    samples = exposed()
    known = samples | recorded(samples)
    assert len(QUERIES) >= len(ALERT_NAMES)
    faults = [fault for query in QUERIES for fault in faults_of(query, known)]
    assert not faults, "\n".join(faults)


def metrics_of(expression: str) -> set[str]:
    """Return the metrics that an expression goes by in the end, through recording rules; a histogram by its name."""
    found = set()
    records = {rule["record"]: rule["expr"] for rule in RECORDINGS.values()}
    for selector in selectors(expression):
        if selector.name in records:
            found |= metrics_of(records[selector.name])
        else:
            found.add(re.sub(r"_(bucket|sum|count)$", "", selector.name or ""))
    return found


def test_documentation_names_the_alerts_that_go_by_each_metric():
    documented = {}
    for line in (DASHBOARDS.parent / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `pooledhttp_"):
            name = line.split("`")[1]
            documented[name] = set(re.findall(r"\[(\w+)\]\(\.\./dashboards/runbook\.md#pooledhttp(?:\w+)\)", line))
            assert all(f"#pooledhttp{alert.lower()})" in line for alert in documented[name])
    used: dict[str, set[str]] = {name: set() for name in documented}
    for rule in ALERTS.values():
        for name in metrics_of(rule["expr"]):
            used[name].add(rule["alert"].removeprefix("PooledHTTP"))
    assert documented == used


def test_a_name_or_value_that_nobody_shows_would_be_noticed():
    samples = exposed()
    for wrong in (
        "pooledhttp_acquire_total",
        'pooledhttp_acquires_total{outcome="timed_out"}',
        'pooledhttp_acquires_total{outcome=~"reused|timed_out"}',
        'pooledhttp_connections_closed_total{reason=~"idle|stalled_.+"}',
        'pooledhttp_acquires_total{outcome="reused|timeout"}',
        'pooledhttp_acquires_total{reason="timeout"}',
        "sum by (job, host) (pooledhttp_connections)",
    ):
        assert list(faults_of(wrong, samples)), wrong
    right = 'pooledhttp_connections_closed_total{reason=~"idle|stale_.+"}'
    assert not list(faults_of(right, samples))


# --- whether the unit tests notice ------------------------------------------------------------------------------------


# What stands beside a threshold that cannot be moved by a tenth: the other bounds of a histogram, other whole numbers.
NEIGHBOURS = {
    "slow_wait_seconds": WAIT_BOUNDS,
    "long_lease_seconds": USE_BOUNDS,
    "some_events": (-0.5, 0.5, 1.5),
}
# A number of an expression; what stands in quotes, in brackets, or is part of a word, is none.
NUMBER = re.compile(r'"[^"]*"|\[[^]]*\]|[A-Za-z_:][\w:]*|\d[\d.]*[smhd]|(?P<number>\d+(?:\.\d+)?)')


class Mutant(NamedTuple):
    """One rule, changed a little."""

    what: str
    place: Place
    rule: Mapping[str, Any]


def written(folder: Path, test: Path, mutants: Sequence[Mutant] = ()) -> Path:
    """Write a file of tests and the rules that these need into a folder.

    With mutants, each of them stands beside the rules under a name of its own, and so do copies of what is asked of its
    rule; the rules' own tests are left out then.
    """
    cases = yaml.load(test.read_text(encoding="utf-8"), FAST_LOADER)
    rules: dict[Place, list[Mapping[str, Any]]] = {place: [rule] for place, rule in RULES.items()}
    for number, mutant in enumerate(mutants):
        old, new = key_of(mutant.rule), numbered(mutant.rule, number)
        for place, rule in RULES.items():  # the other severities of an alert go by the same name
            if key_of(rule) == old:
                rules[place].append(renamed(mutant.rule if place == mutant.place else rule, new))
    if mutants:
        for case in cases["tests"]:
            for kind in ("alert_rule_test", "promql_expr_test"):
                case[kind] = [
                    asked
                    for number, mutant in enumerate(mutants)
                    for ask in case.get(kind, [])
                    if (asked := about(ask, key_of(mutant.rule), numbered(mutant.rule, number))) is not None
                ]
        cases["tests"] = [case for case in cases["tests"] if case["alert_rule_test"] or case["promql_expr_test"]]
    by_name = {rule["record"]: place for place, (rule, *_) in rules.items() if "record" in rule}
    wanted = {place for place, rule in ALERTS.items() if own_tests(rule) == test}
    wanted |= {mutant.place for mutant in mutants}
    texts = [rule["expr"] for place in wanted for rule in rules[place]]
    texts += [ask["expr"] for case in cases["tests"] for ask in case.get("promql_expr_test", [])]
    while texts:
        places = {by_name[name] for name in RECORDED.findall(texts.pop()) if name in by_name} - wanted
        wanted |= places
        texts += [rule["expr"] for place in places for rule in rules[place]]
    (folder / "tests").mkdir(parents=True)
    for file in ("recording.yml", "alerts.yml"):
        groups: dict[str, list[Mapping[str, Any]]] = {place.group: [] for place in rules if place.file == file}
        for place in sorted(wanted):
            if place.file == file:
                groups[place.group] += rules[place]
        dump(folder / file, {"groups": [{"name": group, "rules": rest} for group, rest in groups.items()]})
    dump(folder / "tests" / test.name, cases)
    return folder / "tests" / test.name


def key_of(rule: Mapping[str, Any]) -> str:
    return str(rule.get("alert") or rule["record"])


def numbered(rule: Mapping[str, Any], number: int) -> str:
    return f"{key_of(rule)}_mutant{number}"


def renamed(rule: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return {**rule, ("alert" if "alert" in rule else "record"): name}


def about(ask: Mapping[str, Any], old: str, new: str) -> Mapping[str, Any] | None:
    """Return what is asked of one rule as a question about another, or nothing, if it is not about that."""
    if "alertname" in ask:
        return {**ask, "alertname": new} if ask["alertname"] == old else None
    name = re.compile(rf"(?<![\w:]){old}(?![\w:])")
    if not name.search(ask["expr"]):
        return None
    samples = [{**sample, "labels": name.sub(new, sample["labels"])} for sample in ask.get("exp_samples", [])]
    return {**ask, "expr": name.sub(new, ask["expr"]), "exp_samples": samples}


def dump(path: Path, content: object) -> None:
    path.write_text(yaml.dump(content, Dumper=FAST_DUMPER), encoding="utf-8")


def survivors(folder: Path, test: Path, mutants: Sequence[Mutant]) -> list[str]:
    """Run one file of tests on all of its mutants at once, and return which of them it did not notice."""
    done = run("test", "rules", written(folder, test, mutants))
    # It has to be a wrong answer to a question about them; a rule that cannot be read at all proves nothing.
    assert not done.returncode or "exp:" in done.stdout, done.stdout
    wrong = "\n".join(re.findall(r"^ *(?:alertname|expr): .*$", done.stdout, re.MULTILINE))
    return [
        mutant.what
        for number, mutant in enumerate(mutants)
        if not re.search(rf"{numbered(mutant.rule, number)}\b", wrong)
    ]


def numbers_of(rule: Mapping[str, Any]) -> list[re.Match[str]]:
    return [match for match in NUMBER.finditer(rule["expr"]) if match["number"]]


def with_another(field: str, value: float) -> Rules:
    return read(rule_files(dataclasses.replace(THRESHOLDS, **{field: value})))


def around(number: float, neighbours: Sequence[float]) -> tuple[float, float]:
    if neighbours:
        at = neighbours.index(number)
        return neighbours[at - 1], neighbours[at + 1]
    return (number * 0.9, number * 1.1) if number else (-1, 1)


def moved_bounds() -> Iterator[Mutant]:
    """Move each threshold that is the bound of a bucket, and so may be no number of an expression."""
    for field, neighbours in NEIGHBOURS.items():
        for other in around(getattr(THRESHOLDS, field), neighbours):
            for place, rule in with_another(field, other).items():
                if rule["expr"] != RULES[place]["expr"]:
                    yield Mutant(f"{name_of(rule)} with {field}={other:g}", place, rule)


def moved_numbers() -> Iterator[Mutant]:
    """Move each number of each rule by itself, be it a threshold's or none."""
    neighbours: dict[tuple[Place, int], Sequence[float]] = {}
    for field, others in NEIGHBOURS.items():
        for place, rule in with_another(field, others[-1]).items():
            for index, (match, same) in enumerate(zip(numbers_of(rule), numbers_of(RULES[place]), strict=True)):
                if match["number"] != same["number"]:
                    neighbours[place, index] = others
    for place, rule in RULES.items():
        for index, match in enumerate(numbers_of(rule)):
            for other in around(float(match["number"]), neighbours.get((place, index), ())):
                expression = f"{rule['expr'][: match.start()]}{other:g}{rule['expr'][match.end() :]}"
                yield Mutant(f"{name_of(rule)} with {other:g} for {match[0]}", place, {**rule, "expr": expression})


def moved_durations() -> Iterator[Mutant]:
    """Move each `for` by a tenth, or by one evaluation where that is more: Prometheus looks no oftener."""
    for place, rule in ALERTS.items():
        if "for" not in rule:
            continue
        tests = yaml.load(own_tests(rule).read_text(encoding="utf-8"), FAST_LOADER)
        lasting = in_seconds(rule["for"])
        step = max(ceil(lasting / 10), in_seconds(tests["evaluation_interval"]))
        for other in (lasting - step, lasting + step):
            yield Mutant(f"{name_of(rule)} for {other} s", place, {**rule, "for": f"{other}s"})


def moved_windows() -> Iterator[Mutant]:
    for place, rule in RULES.items():
        for window in re.finditer(r"(?<=\[)\d+[smh](?=\])|(?<=offset )\d+[smh]", rule["expr"]):
            for factor in (0.9, 1.1):
                other = f"{round(in_seconds(window[0]) * factor)}s"
                expression = rule["expr"][: window.start()] + other + rule["expr"][window.end() :]
                yield Mutant(f"{name_of(rule)} over {other}", place, {**rule, "expr": expression})


def left_out_conditions() -> Iterator[Mutant]:
    for place, rule in ALERTS.items():
        lines = rule["expr"].splitlines(keepends=True)
        for number, line in enumerate(lines):
            if re.match(r"\s*(and|or|unless) ", line):
                expression = "".join(lines[:number] + lines[number + 1 :])
                yield Mutant(f"{name_of(rule)} without {line.strip()!r}", place, {**rule, "expr": expression})
            if either := re.fullmatch(r"(\s*and \()(.+) or (.+)(\)\s*)", line):
                for one in (either[2], either[3]):
                    expression = "".join([*lines[:number], either[1] + one + either[4], *lines[number + 1 :]])
                    yield Mutant(f"{name_of(rule)} with {one!r} alone", place, {**rule, "expr": expression})


def name_of(rule: Mapping[str, Any]) -> str:
    return f"{rule['alert']} ({rule['labels']['severity']})" if "alert" in rule else str(rule["record"])


def test_every_rule_alone_passes_its_tests(tmp_path):
    # Otherwise the mutants below would fail for being alone.
    tests = sorted({own_tests(rule) for rule in RULES.values()})
    assert tests == sorted(TESTS.glob("*.yml"))
    for test in tests:
        done = run("test", "rules", written(tmp_path / test.stem, test))
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Thresholds)])
def test_some_rule_goes_by_each_threshold(field):
    moved = with_another(field, getattr(THRESHOLDS, field) * 7 / 3)
    assert any(rule["expr"] != RULES[place]["expr"] for place, rule in moved.items())


def test_a_mutant_that_is_none_survives(tmp_path):
    # Or the names of mutants would be what is noticed.
    for test in (TESTS / "stale_connections.yml", TESTS / "recording_long.yml"):
        same = [Mutant(name_of(rule), place, rule) for place, rule in RULES.items() if own_tests(rule) == test]
        assert survivors(tmp_path / test.stem, test, same) == [mutant.what for mutant in same]


@pytest.mark.timeout(300)  # the machine may have more to do
def test_unit_tests_notice_what_is_moved_or_left_out(tmp_path):
    find_promtool()  # here, so that a skip is this thread's
    made = [*moved_bounds(), *moved_numbers(), *moved_durations(), *moved_windows(), *left_out_conditions()]
    of_test: dict[Path, list[Mutant]] = {}
    for mutant in made:
        of_test.setdefault(own_tests(mutant.rule), []).append(mutant)
    assert of_test.keys() == set(TESTS.glob("*.yml"))
    folders = [tmp_path / test.stem for test in of_test]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        left = [what for some in threads.map(survivors, folders, of_test, of_test.values()) for what in some]
    assert not left, f"{len(left)} of {len(made)}:\n" + "\n".join(left)
