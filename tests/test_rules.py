"""The recording rules and alerts: promtool's unit tests of them, and whether those tests would notice a change.

`dashboards/tests` says in numbers written by hand when each alert fires and when it does not.  Here every threshold,
every `for` and every window is moved a little, one rule at a time, and every condition of an alert is left out; the
tests of that rule have to fail then.  promtool sees one rule's world at a time, which is what makes hundreds of runs
cheap.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from dashboards.generator.alerts import RUNBOOK
from dashboards.generator.recordings import FOR_USERS
from dashboards.generator.rules import main, rule_files
from dashboards.generator.thresholds import THRESHOLDS, Thresholds
from pooledhttp import ConnectionPool, Retry, Timeout
from pooledhttp.stats import USE_BOUNDS, WAIT_BOUNDS
from tests.real_prometheus import find_promtool

pytestmark = pytest.mark.unmeasured

DASHBOARDS = Path(__file__).resolve().parent.parent / "dashboards"
TESTS = DASHBOARDS / "tests"
BOUND = 55.0

SECONDS = {"s": 1, "m": 60, "h": 3600}
# An expression's words that are names of recording rules.
RECORDED = re.compile(r"\b[a-z_]+:\w+:\w+")
# What Prometheus adds to every series that it scrapes.
FROM_SCRAPING = {"job", "instance"}


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


def exposed() -> dict[str, dict[str, set[str]]]:
    """What a pool shows: the values of each label of each sample."""
    registry = CollectorRegistry()
    samples: dict[str, dict[str, set[str]]] = {}
    with ConnectionPool("127.0.0.1", 9, name="orders", registry=registry):
        for family in registry.collect():
            for sample in family.samples:
                values = samples.setdefault(sample.name, {})
                for label, value in sample.labels.items():
                    values.setdefault(label, set()).add(value)
    return samples


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


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def faults_of(expression: str, known: Mapping[str, Mapping[str, set[str]]]) -> Iterator[str]:
    """Say which names, labels and values of an expression nobody shows."""
    labels_around = FROM_SCRAPING.copy()
    for selector in selectors(expression):
        labels = known.get(selector.name or "")
        if labels is None:
            yield f"{selector.name} is not shown"
            continue
        labels_around |= labels.keys()
        for matcher in selector.matchers.matchers:
            if matcher.name in FROM_SCRAPING | {"pool"}:
                continue
            if matcher.name not in labels:
                yield f"{selector.name} has no label {matcher.name}"
            elif not set(matcher.value.split("|")) <= labels[matcher.name]:
                yield f"{matcher.name} of {selector.name} is never {matcher.value}"
    for modifier in re.findall(r"\b(?:by|without|on) \(([\w, ]*)\)", expression):
        for label in set(modifier.split(", ")) - labels_around:
            yield f"there is no label {label}"


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
    for rule in read(rule_files()).values():
        if "alert" in rule:
            for name in metrics_of(rule["expr"]):
                used[name].add(rule["alert"].removeprefix("PooledHTTP"))
    assert documented == used


def test_a_name_or_value_that_nobody_shows_would_be_noticed():
    samples = exposed()
    for wrong in (
        "pooledhttp_acquire_total",
        'pooledhttp_acquires_total{outcome="timed_out"}',
        'pooledhttp_acquires_total{reason="timeout"}',
        "sum by (job, host) (pooledhttp_connections)",
    ):
        assert list(faults_of(wrong, samples)), wrong


# --- whether the unit tests notice ------------------------------------------------------------------------------------


# Thresholds that are the bound of a bucket in the rules.
BUCKETS = {"slow_wait_seconds": WAIT_BOUNDS, "long_lease_seconds": USE_BOUNDS}


class Mutant(NamedTuple):
    """One rule, changed a little."""

    what: str
    place: Place
    rule: Mapping[str, Any]


def written(folder: Path, rules: Rules, test: Path, *, about: str = "") -> Path:
    """Write rules and a file of their tests into a folder: only what these need, or what is `about` one recording."""
    cases = yaml.load(test.read_text(encoding="utf-8"), FAST_LOADER)
    if about:
        for case in cases["tests"]:
            case["promql_expr_test"] = [
                ask for ask in case["promql_expr_test"] if about in RECORDED.findall(ask["expr"])
            ]
        cases["tests"] = [case for case in cases["tests"] if case["promql_expr_test"]]
    by_name = {rule["record"]: place for place, rule in rules.items() if "record" in rule}
    wanted = {place for place, rule in rules.items() if "alert" in rule and own_tests(rule) == test}
    texts = [rules[place]["expr"] for place in wanted]
    texts += [ask["expr"] for case in cases["tests"] for ask in case.get("promql_expr_test", [])]
    while texts:
        places = {by_name[name] for name in RECORDED.findall(texts.pop())} - wanted
        wanted |= places
        texts += [rules[place]["expr"] for place in places]
    (folder / "tests").mkdir(parents=True)
    for file in ("recording.yml", "alerts.yml"):
        groups: dict[str, list[Mapping[str, Any]]] = {place.group: [] for place in rules if place.file == file}
        for place in sorted(wanted):
            if place.file == file:
                groups[place.group].append(rules[place])
        dump(folder / file, {"groups": [{"name": group, "rules": rest} for group, rest in groups.items()]})
    dump(folder / "tests" / test.name, cases)
    return folder / "tests" / test.name


def dump(path: Path, content: object) -> None:
    path.write_text(yaml.dump(content, Dumper=FAST_DUMPER), encoding="utf-8")


def survives(folder: Path, mutant: Mutant) -> str | None:
    """Run a mutant's tests and return what it is, if they noticed nothing."""
    rules = {**RULES, mutant.place: mutant.rule}
    test = written(folder, rules, own_tests(mutant.rule), about=mutant.rule.get("record", ""))
    cases = yaml.load(test.read_text(encoding="utf-8"), FAST_LOADER)
    said = []
    for number, case in enumerate(cases["tests"]):  # one by one: most mutants do not outlive the first, the shortest
        alone = test.with_name(f"{number}.yml")
        dump(alone, {**cases, "tests": [case]})
        done = run("test", "rules", alone)
        if done.returncode and "exp:" in done.stdout:
            shutil.rmtree(folder)
            return None
        said.append(done.stdout.strip())
    shutil.rmtree(folder)
    # It has to be a wrong answer; a rule that cannot be read at all proves nothing.
    return "\n".join([f"{mutant.what}:", *said])


def moved_thresholds() -> Iterator[Mutant]:
    for field in dataclasses.fields(Thresholds):
        number = getattr(THRESHOLDS, field.name)
        moved = [round(number * 0.9, 9), round(number * 1.1, 9)]
        if bounds := BUCKETS.get(field.name):  # only its neighbours have buckets
            at = bounds.index(number)
            moved = [bounds[at - 1], bounds[at + 1]]
        for other in moved:
            rules = read(rule_files(dataclasses.replace(THRESHOLDS, **{field.name: other})))
            changed = {place: rule for place, rule in rules.items() if rule["expr"] != RULES[place]["expr"]}
            assert changed, f"no rule goes by {field.name}"
            for place, rule in changed.items():
                yield Mutant(f"{name_of(rule)} with {field.name}={other:g}", place, rule)


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
        done = run("test", "rules", written(tmp_path / test.stem, RULES, test))
        assert done.returncode == 0, done.stdout


@pytest.mark.timeout(300)  # hundreds of runs of promtool, and the machine may have more to do
@pytest.mark.parametrize("mutants", [moved_thresholds, moved_durations, moved_windows, left_out_conditions])
def test_unit_tests_notice(mutants: Callable[[], Iterator[Mutant]], tmp_path):
    find_promtool()  # here, so that a skip is this thread's
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        made = list(mutants())
        folders = [tmp_path / str(number) for number in range(len(made))]
        survivors = [text for text in threads.map(survives, folders, made) if text is not None]
    assert not survivors, f"{len(survivors)} of {len(made)}:\n" + "\n".join(survivors)
