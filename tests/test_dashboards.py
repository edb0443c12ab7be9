"""The dashboards: they are what the generator writes, Grafana can read them, and they keep the rules of good ones.

What their queries give is proved by a real Prometheus in test_live.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.generator.__main__ import files
from dashboards.generator.thresholds import THRESHOLDS, Thresholds
from tests.exposition import exposed, faults_of, selectors, types
from tests.real_prometheus import find_promtool

if TYPE_CHECKING:
    import promql_parser

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "dashboards"
NAMES = ("overview.json", "pool.json", "workers.json")
VARIABLES = {"datasource", "job", "instance", "pool"}
Json = dict[str, Any]

BOARDS: dict[str, Json] = {name: json.loads((FOLDER / name).read_text(encoding="utf-8")) for name in NAMES}
boards = pytest.mark.parametrize("name", NAMES)


def panels_of(board: Json) -> list[Json]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries_of(board: Json) -> Iterator[tuple[str, str]]:
    for panel in panels_of(board):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


ALL_PANELS = [
    pytest.param(panel, id=f"{name.removesuffix('.json')}-{panel['title']}")
    for name, board in BOARDS.items()
    for panel in panels_of(board)
]
panels = pytest.mark.parametrize("panel", ALL_PANELS)


# --- what is committed ------------------------------------------------------------------------------------------------


def test_what_is_committed_is_what_the_generator_writes() -> None:
    for name, text in files().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name}: make dashboards"


@boards
def test_grafana_reads_it_without_loss(name: str) -> None:
    """Unknown keys are dropped in silence, and wrong types raise: what comes back has to be the same."""
    board = BOARDS[name]
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    assert again == board


# JSON has words where TypeScript has enumerations.
LOOSE = """\
import type { Dashboard } from '@grafana/schema';
type Loose<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Loose<T[K]> } : T;
"""


def without_extensions(board: Json) -> Json:
    """Leave out what Grafana's types do not know, though Grafana does: what belongs to one data source, or one type."""
    board = json.loads(json.dumps(board))
    for annotation in board["annotations"]["list"]:
        assert annotation.pop("expr")  # the Prometheus data source asks this
    for variable in board["templating"]["list"]:
        for extra in ("auto", "auto_count", "auto_min"):  # of variables that are intervals; the SDK writes it for all
            variable.pop(extra, None)
    return board


def test_grafana_s_own_types_accept_it(tmp_path: Path) -> None:
    """`@grafana/schema` has Grafana's types; TypeScript says where the dashboards do not keep to them."""
    npm = shutil.which("npm")
    if npm is None:
        if os.environ.get("POOLEDHTTP_REQUIRE_NPM"):
            pytest.fail("there is no npm on this machine")
        pytest.skip("there is no npm on this machine: the check by Grafana's own types was left out")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(FOLDER / "schema" / name, tmp_path)
    install = subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    if install.returncode:
        if os.environ.get("POOLEDHTTP_REQUIRE_NPM"):
            pytest.fail(install.stderr)
        pytest.skip(f"npm could not install @grafana/schema: {install.stderr[-200:]}")
    for name, board in {**BOARDS, "broken.json": {**BOARDS["pool.json"], "uidd": "x"}}.items():
        source = f"{LOOSE}export default {json.dumps(without_extensions(board))} satisfies Loose<Dashboard>;\n"
        (tmp_path / f"{name.removesuffix('.json')}.ts").write_text(source, encoding="utf-8")

    def check(name: str) -> str:
        done = subprocess.run(
            [str(tmp_path / "node_modules/.bin/tsc"), "--noEmit", "--strict", "--module", "esnext",
             "--moduleResolution", "bundler", "--target", "es2022", "--skipLibCheck", f"{name}.ts"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return done.stdout

    assert "uidd" in check("broken")  # it does look
    for name in NAMES:
        assert check(name.removesuffix(".json")) == ""


test_grafana_s_own_types_accept_it = pytest.mark.timeout(500)(test_grafana_s_own_types_accept_it)


# --- the rules of good dashboards -------------------------------------------------------------------------------------


@boards
def test_board_has_an_address_and_cannot_be_edited_in_place(name: str) -> None:
    board = BOARDS[name]
    assert board["uid"] == f"pooledhttp-{name.removesuffix('.json')}"
    assert board["title"].startswith("pooledhttp / ")
    assert board["description"]
    assert board["editable"] is False
    assert board["tags"] == ["pooledhttp"]
    assert board["schemaVersion"] >= 41
    assert board["refresh"] == "30s"


@boards
def test_variables_are_the_same_everywhere_and_can_be_widened(name: str) -> None:
    listed = {variable["name"]: variable for variable in BOARDS[name]["templating"]["list"]}
    assert listed.keys() == VARIABLES
    source = listed.pop("datasource")
    assert (source["query"], source["current"]["value"]) == ("prometheus", "default")
    for variable in listed.values():
        assert variable["current"] == {"selected": True, "text": "All", "value": "$__all"}  # when it is first opened
        assert variable["multi"]
        assert variable["includeAll"]
        assert variable["allValue"] == ".+"
        assert variable["refresh"] == 2  # when the range of time changes
        assert variable["datasource"]["uid"] == "${datasource}"
    whole = json.dumps(BOARDS[name]["panels"])
    assert all(f"${variable}" in whole for variable in listed)


@boards
def test_panels_have_numbers_of_their_own_and_do_not_overlap(name: str) -> None:
    numbers = [panel["id"] for panel in BOARDS[name]["panels"]]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in BOARDS[name]["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert place["x"] + place["w"] <= 24
        assert not taken & cells
        taken |= cells


@boards
def test_links_lead_to_boards_that_exist(name: str) -> None:
    uids = {board["uid"] for board in BOARDS.values()}
    text = json.dumps(BOARDS[name])
    assert {found.split("?")[0] for found in re.findall(r"/d/([^\"/]+)", text)} <= uids
    (link,) = BOARDS[name]["links"]
    assert (link["tags"], link["includeVars"], link["keepTime"]) == (["pooledhttp"], True, True)


def test_table_leads_to_the_pool_of_the_row() -> None:
    text = json.dumps(BOARDS["overview.json"])
    assert "/d/pooledhttp-pool?" in text
    assert "var-pool=${__data.fields.pool}" in text


KNOWN_UNITS = {value for name, value in vars(units).items() if not name.startswith("_") and isinstance(value, str)}


@panels
def test_panel_says_what_it_shows_and_in_which_unit(panel: Json) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 30
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in KNOWN_UNITS
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@panels
def test_panel_asks_the_chosen_source_for_the_chosen_pools(panel: Json) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for selector in selectors_of(target["expr"]):
            labels = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
            if selector.name == "ALERTS":
                continue
            assert labels["job"] == "$job"
            assert labels["instance"] == "$instance"
            if selector.name not in WITHOUT_POOL:
                assert labels["pool"] == "$pool"


@panels
def test_rates_are_over_the_interval_that_grafana_chooses(panel: Json) -> None:
    for target in panel["targets"]:
        for call, window in re.findall(r"(\w+)\([^()]*\[([^\]]+)\]", target["expr"]):
            # What has happened in all the time that is shown is a number of events, and no rate.
            is_of_now = panel["type"] in {"stat", "table"}
            assert window == "$__rate_interval" or (is_of_now, call, window) == (True, "increase", "$__range")


@panels
def test_numbers_are_of_now(panel: Json) -> None:
    """A range's last number may be an hour old; where it is reduced to one, it looks like now."""
    for target in panel["targets"]:
        assert target["instant"] == (panel["type"] in {"stat", "table"})
        assert target["instant"] != target.get("range", False)
    if panel["type"] == "stat":
        assert panel["options"]["graphMode"] == "none"
        assert panel["fieldConfig"]["defaults"]["noValue"]


@panels
def test_axes_begin_at_0(panel: Json) -> None:
    if panel["type"] == "heatmap":
        assert panel["options"]["yAxis"]["min"] == 0
    elif panel["type"] != "table":
        assert panel["fieldConfig"]["defaults"]["min"] == 0


@panels
def test_legends_are_tables_with_the_greatest_first(panel: Json) -> None:
    if panel["type"] == "timeseries":
        legend = panel["options"]["legend"]
        assert (legend["displayMode"], legend["showLegend"]) == ("table", True)
        assert "max" in legend["calcs"]
        assert (legend["sortBy"], legend["sortDesc"]) == ("Max", True)


def fixed_colours(panel: Json) -> dict[str, str]:
    return {
        override["matcher"]["options"]: prop["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
        for prop in override["properties"]
        if prop["id"] == "color" and prop["value"]["mode"] == "fixed"
    }


def test_a_state_and_an_outcome_have_one_colour_everywhere() -> None:
    """Every one that can be shown, and the same words the same colour, on all boards."""
    colours: dict[tuple[str, str], set[str]] = {}
    for board in BOARDS.values():
        for panel in panels_of(board):
            if panel["type"] != "timeseries":
                continue
            fixed = fixed_colours(panel)
            for name, colour in fixed.items():
                colours.setdefault((name, ""), set()).add(colour)
            for target in panel["targets"]:
                label = target["legendFormat"].strip("{}")
                if label in {"state", "outcome"}:
                    (selector,) = selectors_of(target["expr"])
                    assert KNOWN[selector.name or ""][label] <= fixed.keys(), panel["title"]
    assert len(colours) > 10
    assert {name: found for name, found in colours.items() if len(found) > 1} == {}


@panels
def test_tile_without_a_value_says_so_in_grey(panel: Json) -> None:
    """The colour of no value is that of the lowest step otherwise, and that is green."""
    if panel["type"] == "stat":
        defaults = panel["fieldConfig"]["defaults"]
        (mapping,) = defaults["mappings"]
        assert (mapping["type"], mapping["options"]["match"]) == ("special", "null+nan")
        assert mapping["options"]["result"]["text"] == defaults["noValue"]
        assert mapping["options"]["result"]["color"] not in {step["color"] for step in defaults["thresholds"]["steps"]}


@boards
def test_tiles_have_no_value_where_nothing_is_scraped(name: str, tmp_path: Path) -> None:
    world = {'connections_max{job="elsewhere",instance="a",pool="orders"}': "1x2 stale"}
    for panel in panels_of(BOARDS[name]):
        if panel["type"] == "stat":
            assert not any(told(name, panel["title"], world, tmp_path)), panel["title"]


WITHOUT_POOL = {"pooledhttp_pools", "pooledhttp_label_overflow_total", "pooledhttp_build_info"}


KNOWN = exposed()
SAMPLE_TYPES = types()
# What Prometheus makes of the rules itself.
ALERTS = {
    "ALERTS": {
        "alertname": {rule["alert"] for group in yaml.safe_load(files()["alerts.yml"])["groups"]
                      for rule in group["rules"]},
        "alertstate": {"pending", "firing"},
    }
}  # fmt: skip


def filled_in(expr: str) -> str:
    """Put something where Grafana would, to have PromQL."""
    return expr.replace("$__rate_interval", "1m").replace("$__range", "1h")


def selectors_of(expr: str) -> list[promql_parser.VectorSelector]:
    found = selectors(filled_in(expr))
    assert found
    return found


@boards
def test_every_metric_label_and_value_exists(name: str) -> None:
    board = BOARDS[name]
    asked = dict(queries_of(board)) | {note["name"]: note["expr"] for note in board["annotations"]["list"]}
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert match is not None
            asked[variable["name"]] = f"count by ({match[2]}) ({match[1]})"
    faults = [(title, fault) for title, expr in asked.items() for fault in faults_of(filled_in(expr), KNOWN | ALERTS)]
    assert not faults
    assert len(asked) > 10


@boards
def test_counters_are_never_shown_raw(name: str) -> None:
    for title, expr in queries_of(BOARDS[name]):
        raw = re.sub(r"(rate|increase)\([^()]*\[[^\]]*\]\)", "", expr)
        for counter, kind in SAMPLE_TYPES.items():
            if kind in {"counter", "histogram"}:
                assert not re.search(rf"\b{counter}\b", raw), title


def test_every_metric_is_on_some_panel() -> None:
    used = {selector.name or "" for board in BOARDS.values() for _, expr in queries_of(board)
            for selector in selectors_of(expr)}  # fmt: skip
    # A histogram is seen by one of its three faces; the `_created` of a counter is prometheus_client's affair.
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in SAMPLE_TYPES if not name.endswith("_created")}
    assert families <= {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}


@boards
def test_labels_of_a_division_are_kept_by_name(name: str) -> None:
    assert "ignoring" not in json.dumps(BOARDS[name])
    assert not re.search(r"avg\([^)]*(/|histogram_quantile)", json.dumps(BOARDS[name]))


# --- thresholds -------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """Where a threshold is to be seen: a panel, a part of it (a series, a column), and what is changed at it."""

    board: str
    kind: str
    title: str
    part: str
    what: str

    def __str__(self) -> str:
        """Return it as it stands in the lists below."""
        return f"{self.board} {self.kind} {self.title}: {self.part} {self.what}".replace(":  ", ": ")


def thresholds_of(boards: Mapping[str, Json]) -> dict[Seen, object]:
    """Return the colour steps of all panels, and their queries."""
    found: dict[Seen, object] = {}
    for name, board in boards.items():
        for panel in panels_of(board):
            at = name.removesuffix(".json"), panel["type"], panel["title"]
            defaults = panel["fieldConfig"]["defaults"]
            steps = {"": defaults["thresholds"]["steps"]} if "thresholds" in defaults else {}
            names: dict[str, str] = {}
            for override in panel["fieldConfig"]["overrides"]:
                for prop in override["properties"]:
                    if prop["id"] == "thresholds":
                        steps[override["matcher"]["options"]] = prop["value"]["steps"]
            for transformation in panel.get("transformations", []):
                names |= transformation["options"].get("renameByName", {})
            for part, of_it in steps.items():
                for step in of_it[1:]:
                    found[Seen(*at, part, step["color"])] = step["value"]
            for target in panel["targets"]:
                part = names.get(f"Value #{target['refId']}", target.get("legendFormat", ""))
                found[Seen(*at, part, "query")] = target["expr"]
    return found


def moved_by(field: str) -> set[Seen]:
    """Return where something changes when a threshold does."""
    moved: Thresholds = dataclasses.replace(THRESHOLDS, **{field: getattr(THRESHOLDS, field) * 0.5})
    before, after = thresholds_of(BOARDS), thresholds_of({name: json.loads(files(moved)[name]) for name in NAMES})
    assert before.keys() == after.keys()
    return {place for place, value in before.items() if after[place] != value}


# Where the number of an alert is to be seen, by the field of Thresholds: board, kind of panel, title, part, what.
_IN_USE_QUERIES = """
    overview stat Full pools: query
    overview table Pools, the fullest first: In use query
    overview timeseries The fullest pools: {{job}} {{pool}} query
    pool stat In use: query
    pool timeseries In use, of the limit: {{pool}} query
    workers stat All workers together: mean query
    workers stat Fullest worker: fullest query
    workers timeseries In use, of the limit: {{instance}} {{pool}} query
"""
SHOWN = {
    "acquire_timeout_share": """
        overview stat No connection: red
        overview table Pools, the fullest first: No connection red
        pool stat No connection: red
        workers timeseries No connection: red
    """,
    "slow_wait_seconds": """
        overview stat Waited too long: query
        overview table Pools, the fullest first: Waited too long query
        pool stat Waited too long: query
        pool timeseries Waiting for a connection: red
    """,
    "slow_wait_budget": """
        overview stat Waited too long: yellow
        overview stat Waited too long: orange
        overview stat Waited too long: red
        overview table Pools, the fullest first: Waited too long yellow
        overview table Pools, the fullest first: Waited too long orange
        overview table Pools, the fullest first: Waited too long red
        pool stat Waited too long: yellow
        pool stat Waited too long: orange
        pool stat Waited too long: red
    """,
    "fast_burn": """
        overview stat Failed requests: red
        overview stat Waited too long: red
        overview table Pools, the fullest first: Failed red
        overview table Pools, the fullest first: Waited too long red
        pool stat Waited too long: red
        pool timeseries Share of failed requests: red
    """,
    "slow_burn": """
        overview stat Failed requests: orange
        overview stat Waited too long: orange
        overview table Pools, the fullest first: Failed orange
        overview table Pools, the fullest first: Waited too long orange
        pool stat Waited too long: orange
        pool timeseries Share of failed requests: orange
    """,
    "saturation": """
        overview stat Full pools: query
        overview table Pools, the fullest first: In use red
        overview timeseries The fullest pools: red
        pool stat In use: red
        pool timeseries In use, of the limit: red
        workers stat All workers together: red
    """,
    "saturation_waiting": """
        overview table Pools, the fullest first: Waiting red
        overview timeseries Where callers wait: red
        pool stat Callers waiting: red
        pool timeseries Callers waiting: red
        workers timeseries Callers waiting: red
    """,
    "long_lease_seconds": _IN_USE_QUERIES,
    "stuck_lease_seconds": """
        pool stat Oldest lease: red
        pool timeseries Oldest lease: red
        workers stat Oldest lease: red
        workers timeseries Oldest lease: red
    """,
    "connect_failure_share": """
        overview stat Cannot connect: orange
        overview table Pools, the fullest first: Cannot connect orange
        pool stat Cannot connect: orange
    """,
    "connect_failure_page_share": """
        overview stat Cannot connect: red
        overview table Pools, the fullest first: Cannot connect red
        pool stat Cannot connect: red
    """,
    "slow_connect_seconds": "pool timeseries How long connecting takes: red",
    "low_reuse": """
        overview stat New connections: orange
        pool timeseries Served by a kept-alive connection: red
    """,
    "stale_share": """
        overview table Pools, the fullest first: Dead on use orange
        pool stat Dead on use: orange
    """,
    "stale_raised_share": "pool stat Dead on use: raised red",
    "request_error_budget": """
        overview stat Failed requests: yellow
        overview stat Failed requests: orange
        overview stat Failed requests: red
        overview table Pools, the fullest first: Failed yellow
        overview table Pools, the fullest first: Failed orange
        overview table Pools, the fullest first: Failed red
        pool timeseries Share of failed requests: yellow
        pool timeseries Share of failed requests: orange
        pool timeseries Share of failed requests: red
    """,
    "retry_share": "pool timeseries Retries, of all calls: red",
    "some_events": f"""
        {_IN_USE_QUERIES}
        overview table Pools, the fullest first: Leaks red
        pool stat Leaks: red
    """,
    "skew_worker": """
        workers stat Fullest worker: red
        workers timeseries In use, of the limit: red
    """,
}
_LEAST_RATE = "a panel shows the share of little traffic too, or no value; only a call at night needs enough of it"
NOT_SHOWN = {
    **dict.fromkeys(
        ("acquire_least_rate", "connect_failure_least_rate", "connect_least_rate", "reuse_least_rate",
         "stale_least_rate", "stale_raised_least_rate", "request_least_rate", "retry_least_rate"),
        _LEAST_RATE,
    ),
    "skew_fleet": "the tile of all workers is red where they are full; that they are not is no trouble",
}  # fmt: skip


@pytest.mark.parametrize("field", SHOWN)
def test_panels_change_colour_where_the_alert_does(field: str) -> None:
    expected = {line.strip() for line in SHOWN[field].splitlines() if line.strip()}
    assert {str(place) for place in moved_by(field)} == expected


def test_every_threshold_is_shown_or_has_a_reason_not_to_be() -> None:
    assert SHOWN.keys() | NOT_SHOWN.keys() == {field.name for field in dataclasses.fields(Thresholds)}
    assert not SHOWN.keys() & NOT_SHOWN.keys()
    for field in NOT_SHOWN:
        assert not moved_by(field)


# Steps that are at no number of an alert, and what they are.
OTHER_STEPS = {
    "overview stat Full pools: red": 1,  # one of those that its query counts
    "overview stat Firing alerts: red": 1,
    "overview stat New connections: orange": 1 - THRESHOLDS.low_reuse,  # what the alert asks of the others
    "pool timeseries Waiting for a connection: red": THRESHOLDS.slow_wait_seconds,  # in the alert the bound of a bucket
    # More than may; the alerts call when the budget burns many times as fast, which orange and red show.
    "overview stat Waited too long: yellow": THRESHOLDS.slow_wait_budget,
    "overview table Pools, the fullest first: Waited too long yellow": THRESHOLDS.slow_wait_budget,
    "pool stat Waited too long: yellow": THRESHOLDS.slow_wait_budget,
    "overview stat Failed requests: yellow": THRESHOLDS.request_error_budget,
    "overview table Pools, the fullest first: Failed yellow": THRESHOLDS.request_error_budget,
    "pool timeseries Share of failed requests: yellow": THRESHOLDS.request_error_budget,
}


def test_steps_are_at_the_numbers_of_the_alerts() -> None:
    alerts = "\n".join(rule["expr"] for group in yaml.safe_load(files()["alerts.yml"])["groups"]
                       for rule in group["rules"])  # fmt: skip
    numbers = {
        round(float(number) * float(factor or 1), 9)
        for number, factor in re.findall(r"[<>] ([\d.]+)(?: \* ([\d.]+))?", alerts)
    }
    steps = {str(place): value for place, value in thresholds_of(BOARDS).items() if place.what != "query"}
    assert {place: steps[place] for place in OTHER_STEPS} == OTHER_STEPS
    elsewhere = {place: value for place, value in steps.items() if place not in OTHER_STEPS and value not in numbers}
    assert not elsewhere
    assert len(steps) > 30


def test_first_row_of_the_pool_is_eight_numbers_side_by_side() -> None:
    row, *rest = BOARDS["pool.json"]["panels"]
    assert row["title"] == "Is the pool the problem?"
    first = [panel for panel in rest if panel["gridPos"]["y"] == 1]
    assert [panel["type"] for panel in first] == ["stat"] * 8
    assert [panel["gridPos"]["x"] for panel in first] == list(range(0, 24, 3))
    for panel in first:
        assert len(panel["fieldConfig"]["defaults"]["thresholds"]["steps"]) > 1
        assert panel["fieldConfig"]["defaults"]["noValue"]


# --- what the panels say of a world that is made up -------------------------------------------------------------------

# A scrape every 15 seconds for 20 minutes, and what Grafana puts for $__rate_interval then.
SCRAPES = 80
RATE_INTERVAL = "1m"
END = f"{SCRAPES // 4}m"


def told(
    name: str, title: str | Json, series: Mapping[str, str], folder: Path, at: str = END
) -> list[dict[str, float]]:
    """Return what each query of a panel gives: values by the labels of their series."""
    panel = next(panel for panel in panels_of(BOARDS[name]) if title in (panel["title"], panel))  # the tile, if of two
    expressions = [
        re.sub(r"\$(job|instance|pool)\b", ".+", target["expr"])
        .replace("$__rate_interval", RATE_INTERVAL).replace("$__range", "15m")
        for target in panel["targets"]
    ]  # fmt: skip
    world = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": f"pooledhttp_{sample}", "values": values} for sample, values in series.items()
                ],
                "promql_expr_test": [
                    {"expr": expr, "eval_time": at, "exp_samples": [{"labels": '{never="so"}', "value": -1}]}
                    for expr in expressions
                ],
            }
        ],
    }
    (folder / "world.yml").write_text(json.dumps(world), encoding="utf-8")  # JSON is YAML
    done = subprocess.run(
        [find_promtool(), "test", "rules", "world.yml"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
    )  # fmt: skip
    # It says what it has got where that is not what was expected, which it never is.
    got = re.findall(r"^\s*got:(.*)$", done.stdout, re.MULTILINE)
    assert len(got) == len(expressions), done.stdout
    return [{labels: float(value) for labels, value in re.findall(r"(\{[^}]*\}) (\S+?)(?:,|$)", line)} for line in got]


def number(name: str, title: str, series: Mapping[str, str], folder: Path, at: str = END) -> float | None:
    """Return what a tile with one query shows, or ``None`` for its text without a number."""
    (values,) = told(name, title, series, folder, at)
    assert len(values) <= 1
    return next(iter(values.values()), None)


def steady(per_second: float) -> str:
    return f"0+{15 * per_second:g}x{SCRAPES}"


def always(value: float) -> str:
    return f"{value:g}x{SCRAPES}"


ORDERS = 'job="shop",instance="a",pool="orders"'
BUILD_INFO = 'build_info{job="shop",instance="a",version="1"}'

# Ten calls of ten minutes each, on fifty connections; they end together after ten minutes, and the next ten begin.
LONG_LEASES = {
    f"connections_max{{{ORDERS}}}": always(50),
    f'connections{{{ORDERS},state="active"}}': always(10),
    f"connection_use_seconds_sum{{{ORDERS}}}": "0x39 6000x40",
    f"connection_use_seconds_count{{{ORDERS}}}": "0x39 10x40",
    f'connection_use_seconds_bucket{{{ORDERS},le="30.0"}}': always(0),
}


@pytest.mark.parametrize(
    ("name", "title", "expected"),
    [
        ("pool.json", "In use", 0.2),
        ("overview.json", "Full pools", 0),
        ("workers.json", "Fullest worker", 0.2),
        ("workers.json", "All workers together", 0.2),
    ],
)
@pytest.mark.parametrize("at", ["9m45s", "10m", "10m15s", "10m45s", "11m"])
def test_healthy_pool_whose_long_leases_end_together_is_not_full(
    name: str, title: str, expected: float, at: str, tmp_path: Path
) -> None:
    assert number(name, title, LONG_LEASES, tmp_path, at) == expected


def test_short_leases_beside_long_ones_that_end_are_told_by_the_scrapes(tmp_path: Path) -> None:
    world = {
        **LONG_LEASES,
        f'connections{{{ORDERS},state="active"}}': always(15),
        f"connection_use_seconds_sum{{{ORDERS}}}": "0+75x39 9000+75x40",
        f"connection_use_seconds_count{{{ORDERS}}}": "0+150x39 6010+150x40",
        f'connection_use_seconds_bucket{{{ORDERS},le="30.0"}}': steady(10),
    }
    assert number("pool.json", "In use", world, tmp_path, "10m15s") == 0.3


def test_bursts_between_scrapes_are_seen(tmp_path: Path) -> None:
    """All fifty connections are lent for 14 of 15 seconds, and no scrape has ever met one."""
    world = {
        f"connections_max{{{ORDERS}}}": always(50),
        f'connections{{{ORDERS},state="active"}}': always(0),
        f"connection_use_seconds_sum{{{ORDERS}}}": steady(50 * 14 / 15),
        f"connection_use_seconds_count{{{ORDERS}}}": steady(50 / 15),
        f'connection_use_seconds_bucket{{{ORDERS},le="30.0"}}': steady(50 / 15),
    }
    assert number("pool.json", "In use", world, tmp_path) == pytest.approx(14 / 15)
    assert number("overview.json", "Full pools", world, tmp_path) == 1
    assert number("workers.json", "Fullest worker", world, tmp_path) == pytest.approx(14 / 15)


def test_no_more_than_all_connections_are_in_use(tmp_path: Path) -> None:
    """Of leases of 25 seconds more may end within a minute than there was room for in that minute."""
    world = {
        f"connections_max{{{ORDERS}}}": always(10),
        f"connection_use_seconds_sum{{{ORDERS}}}": steady(12),
        f"connection_use_seconds_count{{{ORDERS}}}": steady(12 / 25),
        f'connection_use_seconds_bucket{{{ORDERS},le="30.0"}}': steady(12 / 25),
    }
    assert number("pool.json", "In use", world, tmp_path) == 1


def test_worker_from_which_nothing_comes_back_is_the_fullest(tmp_path: Path) -> None:
    world: dict[str, str] = {}
    for instance, (active, waiting, used) in {"a": (10, 3, 0), "b": (1, 0, 1), "c": (1, 0, 1)}.items():
        labels = f'job="shop",instance="{instance}",pool="orders"'
        world |= {
            f"connections_max{{{labels}}}": always(10),
            f'connections{{{labels},state="active"}}': always(active),
            f"pending_acquires{{{labels}}}": always(waiting),
            f"acquire_wait_seconds_sum{{{labels}}}": always(0),
            f"connection_use_seconds_sum{{{labels}}}": steady(used),
            f"connection_use_seconds_count{{{labels}}}": steady(used),
            f'connection_use_seconds_bucket{{{labels},le="30.0"}}': steady(used),
        }
    assert number("workers.json", "Fullest worker", world, tmp_path) == 1
    assert number("workers.json", "All workers together", world, tmp_path) == 0.4
    each = {instance: f'{{instance="{instance}", job="shop", pool="orders"}}' for instance in "abc"}
    assert told("workers.json", "In use, of the limit", world, tmp_path) == [
        {each["a"]: 1, each["b"]: 0.1, each["c"]: 0.1}
    ]
    assert told("workers.json", "Callers waiting", world, tmp_path) == [{each["a"]: 3, each["b"]: 0, each["c"]: 0}]
    assert number("pool.json", "Callers waiting", world, tmp_path) == 3


def replaced(*, at: int) -> dict[str, str]:
    """Make up a worker that is replaced by its like: half of its connections lent, and three callers waiting."""
    world: dict[str, str] = {}
    for instance, before, after in (("old", "", " stale"), ("new", f"_x{at + 1} ", "")):
        labels = f'job="shop",instance="{instance}",pool="orders"'
        length = at if after else SCRAPES
        world |= {
            f"connections_max{{{labels}}}": f"{before}10x{length}{after}",
            f'connections{{{labels},state="active"}}': f"{before}5x{length}{after}",
            f"pending_acquires{{{labels}}}": f"{before}3x{length}{after}",
            f"acquire_wait_seconds_sum{{{labels}}}": f"{before}0x{length}{after}",
            f"connection_use_seconds_sum{{{labels}}}": f"{before}0+75x{length}{after}",
            f"connection_use_seconds_count{{{labels}}}": f"{before}0+75x{length}{after}",
            f'connection_use_seconds_bucket{{{labels},le="30.0"}}': f"{before}0+75x{length}{after}",
        }
    return world


@pytest.mark.parametrize("at", ["10m", "10m15s", "10m30s", "11m"])
def test_worker_that_is_gone_counts_no_more(at: str, tmp_path: Path) -> None:
    """A deployment is no load: what is in use belongs to the limits of those that are there."""
    world = replaced(at=40)  # after ten minutes
    assert number("pool.json", "In use", world, tmp_path, at) == pytest.approx(0.5)
    assert number("workers.json", "All workers together", world, tmp_path, at) == pytest.approx(0.5)
    assert number("pool.json", "Callers waiting", world, tmp_path, at) == 3
    assert number("overview.json", "Full pools", world, tmp_path, at) == 0
    in_use, waiting, *_ = told("overview.json", "Pools, the fullest first", world, tmp_path, at)
    assert list(in_use.values()) == [pytest.approx(0.5)]
    assert list(waiting.values()) == [3]


def test_limit_of_workers_that_are_gone_takes_its_use_with_it(tmp_path: Path) -> None:
    """Three of four workers' worth of connections end, each of them a quarter in use, counted by their time."""
    world: dict[str, str] = {}
    for instance, limit, length in (("stays", 10, SCRAPES), ("goes", 30, 40)):
        labels = f'job="shop",instance="{instance}",pool="orders"'
        end = "" if length == SCRAPES else " stale"
        world |= {
            f"connections_max{{{labels}}}": f"{limit}x{length}{end}",
            f"connection_use_seconds_sum{{{labels}}}": f"0+{15 * limit / 4:g}x{length}{end}",
            f"connection_use_seconds_count{{{labels}}}": f"0+15x{length}{end}",
            f'connection_use_seconds_bucket{{{labels},le="30.0"}}': f"0+15x{length}{end}",
        }
    assert number("pool.json", "In use", world, tmp_path, "10m15s") == pytest.approx(0.25)


def test_share_of_the_busiest_worker_is_among_those_that_are_there(tmp_path: Path) -> None:
    world = {
        f'acquires_total{{{labels},outcome="reused"}}': f"0+15x{length}{end}"
        for labels, length, end in (
            ('job="shop",instance="a",pool="orders"', SCRAPES, ""),
            ('job="shop",instance="b",pool="orders"', SCRAPES, ""),
            ('job="shop",instance="gone",pool="orders"', 38, " stale"),
        )
    } | {f'build_info{{job="shop",instance="{instance}",version="1"}}': always(1) for instance in "ab"}
    assert number("workers.json", "Busiest worker's share of the load", world, tmp_path, "10m") == 1


@pytest.mark.parametrize("name", NAMES)
def test_callers_that_are_turned_away_got_no_connection(name: str, tmp_path: Path) -> None:
    """As with max_waiters=0: nobody waits, and so nobody times out."""
    per_second = {"reused": 8, "opened": 1, "timeout": 1, "rejected": 10, "error": 20}
    world = {f'acquires_total{{{ORDERS},outcome="{outcome}"}}': steady(rate) for outcome, rate in per_second.items()}
    (values,) = told(name, "No connection", world, tmp_path)
    assert list(values.values()) == [11 / 40]


def test_wait_is_that_of_the_pool_where_most_wait_too_long(tmp_path: Path) -> None:
    """Those that gave up after 5 seconds have waited too: half of the small pool's, the other half not at all."""
    world: dict[str, str] = {}
    for pool, fast, in_vain in (("large", 1000, 0), ("small", 1, 1), ("silent", 0, 0)):
        labels = f'job="shop",instance="a",pool="{pool}"'
        for bound, rate in (("0.01", fast), ("0.05", fast), ("0.1", fast), ("+Inf", fast + in_vain)):
            world[f'acquire_wait_seconds_bucket{{{labels},le="{bound}"}}'] = steady(rate)
        world[f"acquire_wait_seconds_count{{{labels}}}"] = steady(fast + in_vain)
    assert number("pool.json", "Waited too long", world, tmp_path) == 0.5
    assert number("overview.json", "Waited too long", world, tmp_path) == pytest.approx(1 / 1002)


def test_callers_waiting_are_as_many_on_the_tile_as_in_the_lines(tmp_path: Path) -> None:
    """Two who wait without an end, which nothing has counted yet."""
    world = {f"pending_acquires{{{ORDERS}}}": always(2), f"acquire_wait_seconds_sum{{{ORDERS}}}": always(0)}
    panel = next(panel for panel in panels_of(BOARDS["pool.json"])
                 if (panel["type"], panel["title"]) == ("timeseries", "Callers waiting"))  # fmt: skip
    lines = told("pool.json", panel, world, tmp_path)
    assert [list(values.values()) for values in lines] == [[2], [2]]
    assert number("pool.json", "Callers waiting", world, tmp_path) == 2


def test_leak_of_ten_minutes_ago_still_colours_its_row(tmp_path: Path) -> None:
    """It has not come back since; the range that is shown is 15 minutes here."""
    world = {f"leaked_connections_total{{{ORDERS}}}": "0x40 1x39"}
    columns = told("overview.json", "Pools, the fullest first", world, tmp_path)
    assert sum(values != {} for values in columns) == 1
    (leaks,) = (value for values in columns for value in values.values())
    assert leaks == pytest.approx(1, rel=0.1)


OF_TRAFFIC = {
    "pool.json": ["Waited too long", "No connection", "Cannot connect", "Dead on use"],
    "overview.json": ["Waited too long", "No connection", "Cannot connect", "Failed requests", "New connections"],
    "workers.json": ["Busiest worker's share of the load"],
}


@boards
def test_tiles_show_no_number_when_the_last_call_was_long_ago(name: str, tmp_path: Path) -> None:
    """Neither an old one nor "NaN": Grafana has their text then."""
    outcomes = ("reused", "opened", "timeout")
    world = {f'acquires_total{{{ORDERS},outcome="{outcome}"}}': "" for outcome in outcomes}
    world |= {f'acquire_wait_seconds_bucket{{{ORDERS},le="{bound}"}}': "" for bound in ("0.05", "0.1", "+Inf")}
    world |= {
        f"acquire_wait_seconds_count{{{ORDERS}}}": "",
        f"connect_duration_seconds_count{{{ORDERS}}}": "",
        f'connect_failures_total{{{ORDERS},reason="refused"}}': "",
        f'stale_connections_total{{{ORDERS},outcome="raised"}}': "",
        f'requests_total{{{ORDERS},outcome="error"}}': "",
    }
    world = dict.fromkeys(world, "0+10x40 400x39")
    world[BUILD_INFO] = always(1)
    for title in OF_TRAFFIC[name]:
        assert all(len(values) == 1 for values in told(name, title, world, tmp_path, "10m")), title
        assert not any(told(name, title, world, tmp_path)), title


# --- what comes with the package --------------------------------------------------------------------------------------


def run_command(*arguments: str, program: tuple[str, ...] = (sys.executable, "-m", "pooledhttp")) -> tuple[int, str]:
    done = subprocess.run(
        [*program, "dashboards", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def for_use() -> dict[str, bytes]:
    left_out = re.compile(r"(generator|schema)/|.*__pycache__")
    return {name: data for name, data in contents(FOLDER).items() if not left_out.match(name)}


def test_command_writes_everything_that_is_for_use(tmp_path: Path) -> None:
    status, said = run_command("--out", str(tmp_path / "new" / "folder"))
    assert status == 0, said
    assert contents(tmp_path / "new" / "folder") == for_use()
    assert {"pool.json", "alerts.yml", "runbook.md", "compose.yaml"} <= for_use().keys()
    assert said.count("\n") == len(for_use())


def test_command_leaves_files_alone_that_differ_unless_it_is_forced(tmp_path: Path) -> None:
    assert run_command("--out", str(tmp_path))[0] == 0
    (tmp_path / "alerts.yml").write_text("mine", encoding="utf-8")
    (tmp_path / "pool.json").unlink()
    status, said = run_command("--out", str(tmp_path))
    assert status == 1
    assert "  alerts.yml\n" in said
    assert not (tmp_path / "pool.json").exists()
    assert run_command("--out", str(tmp_path), "--force")[0] == 0
    assert contents(tmp_path) == for_use()


def test_command_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, said = run_command("--out", str(tmp_path / "file"))
    assert (status, "cannot write" in said) == (1, True)


@pytest.mark.timeout(300)
def test_wheel_brings_them_along(tmp_path: Path) -> None:
    """Built and installed as a user would, without the clone."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True, timeout=200)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=100)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from pooledhttp.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, "dashboards", "--out", str(out)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert contents(out) == for_use()


def test_compose_file_mounts_what_is_there() -> None:
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    assert compose["services"].keys() == {"demo", "prometheus", "grafana"}
    mounted = [volume for service in compose["services"].values() for volume in service["volumes"]]
    for volume in mounted:
        source = volume.split(":")[0]
        assert source.startswith("${") or (FOLDER / source).exists(), source
    provider = yaml.safe_load((FOLDER / "provisioning/dashboards/pooledhttp.yaml").read_text(encoding="utf-8"))
    path = provider["providers"][0]["options"]["path"]
    assert {volume.split(":")[1] for volume in mounted} >= {f"{path}/{name}" for name in NAMES}
    source = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8"))
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def test_prometheus_accepts_its_configuration() -> None:
    done = subprocess.run(
        [find_promtool(), "check", "config", "prometheus.yml"],
        cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
