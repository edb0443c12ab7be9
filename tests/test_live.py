"""The live proof: a real Prometheus scrapes real pools in every kind of trouble, and the dashboards tell the truth.

Two worker processes work for some seconds, and count what they do.  Then every query of every panel is run, and what
the panels say is compared with what the workers counted.  The demo is put into each of its troubles, and the first row
of the pool's dashboard has to show which one it is.

With POOLEDHTTP_DRAW=FOLDER the panels are drawn there, from these very answers (`make pictures`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dashboards.generator.pictures import Ask, draw, legend_of
from tests.real_prometheus import Prometheus
from tests.waits import wait_until

pytestmark = [
    pytest.mark.unmeasured,
    pytest.mark.timeout(180),
]

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "dashboards"
LOAD = 14.0  # seconds
RATE_INTERVAL = "5s"
BOUND = 60.0
Json = dict[str, Any]

BOARDS: dict[str, Json] = {
    name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in ("overview", "pool", "workers")
}
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['id']}-{panel['title']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]


class Worker:
    """A process of tests/apps/proof_worker.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.apps.proof_worker"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._watchdog = threading.Timer(3 * BOUND, self._process.kill)  # reading its lines has no bound of its own
        self._watchdog.start()
        self.address = f"127.0.0.1:{int(self._line())}"

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the worker has ended"
        return line

    def tell(self, word: str) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def stop(self) -> Json:
        """Have it finish what it does, and return what it has done."""
        self.tell("stop")
        done: Json = json.loads(self._line())
        return done

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(BOUND)
        self._process.stdout.close()
        self._watchdog.cancel()
        self._watchdog.join()
        assert self._process.returncode == 0


@dataclass
class Proof:
    """What has been, and whom to ask.

    Attributes:
        prometheus: Whom.
        begin: When the load began.
        end: When it ended.
        calls: What callers counted, by pool and outcome.
        leaks: How many leases were forgotten.
        instances: The workers' addresses.
    """

    prometheus: Prometheus
    begin: float
    end: float
    instances: list[str]
    calls: dict[str, Counter[str]] = field(default_factory=dict)
    leaks: int = 0

    def ask(self, expr: str, *, instant: bool = False, **variables: str) -> list[Json]:
        """Run a panel's query as Grafana would, over the load or at its end."""
        query = substituted(expr, variables)
        if instant:
            result = self.prometheus.ask("query", query=query, time=self.end)["result"]
        else:
            result = self.prometheus.ask("query_range", query=query, start=self.begin, end=self.end, step=1)["result"]
        found: list[Json] = result
        return found


def substituted(
    expr: str, variables: Mapping[str, str], rate_interval: str = RATE_INTERVAL, *, shown: float = LOAD
) -> str:
    """Put values where Grafana would: `All` is `.+`; `shown` are the seconds that the dashboard shows."""
    for name in ("job", "instance", "pool"):
        expr = expr.replace(f"${name}", variables.get(name, ".+"))
    return expr.replace("$__rate_interval", rate_interval).replace("$__range", f"{math.ceil(shown)}s")


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    with contextlib.ExitStack() as stack:
        workers = [Worker(), Worker()]
        for worker in workers:
            stack.callback(worker.close)
        instances = [worker.address for worker in workers]
        prometheus = stack.enter_context(
            Prometheus(
                tmp_path_factory.mktemp("prometheus"),
                {"proof": instances},
                [FOLDER / "recording.yml", FOLDER / "alerts.yml"],
            )
        )
        wait_until(lambda: prometheus.value("count(up == 1)") == 2, pause=0.1)
        begin = time.time()
        for worker in workers:
            worker.tell("go")
        threading.Event().wait(LOAD)
        end = time.time()
        found = Proof(prometheus, begin, end, instances)
        for worker in workers:
            done = worker.stop()
            found.leaks += done["leaks"]
            for pool, calls in done["calls"].items():
                found.calls.setdefault(pool, Counter()).update(calls)
        expected = sum(calls.total() for calls in found.calls.values())
        wait_until(lambda: prometheus.value("sum(pooledhttp_requests_total)") == expected, pause=0.2)
        if folder := os.environ.get("POOLEDHTTP_DRAW"):
            ask: Ask = lambda expr, instant: found.ask(expr, instant=instant)  # noqa: E731
            for name, board in BOARDS.items():
                draw(board, ask, Path(folder, f"{name}.png"))
        yield found


# --- every panel, every variable --------------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", PANELS)
def test_panel_is_not_empty(panel: Json, proof: Proof) -> None:
    for target in panel["targets"]:
        result = proof.ask(target["expr"], instant=bool(target.get("instant")))
        assert result, target["expr"]
        points = [point for series in result for point in series.get("values", [series.get("value")])]
        assert any(not math.isnan(float(value)) for _, value in points), target["expr"]
        legends = [legend_of(target.get("legendFormat", ""), series["metric"]) for series in result]
        assert len(set(legends)) == len(legends), legends
        assert not any("{{" in legend for legend in legends)


@pytest.mark.parametrize("name", BOARDS)
def test_variable_offers_what_there_is(name: str, proof: Proof) -> None:
    expected = {
        "job": {"proof"},
        "instance": set(proof.instances),
        "pool": {"healthy", "slow", "stale", "refused", "leaky", "hung"},
    }
    for variable in BOARDS[name]["templating"]["list"]:
        if variable["type"] != "query":
            continue
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
        assert match is not None
        values = proof.prometheus.ask(f"label/{match[2]}/values", **{"match[]": substituted(match[1], {})})
        assert set(values) == expected[variable["name"]]


@pytest.mark.parametrize("name", BOARDS)
def test_annotation_can_be_asked_for(name: str, proof: Proof) -> None:
    for annotation in BOARDS[name]["annotations"]["list"]:
        proof.ask(annotation["expr"])


def test_rules_are_evaluated_without_an_error(proof: Proof) -> None:
    groups = proof.prometheus.ask("rules")["groups"]
    assert groups
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_requests_are_those_that_callers_counted(proof: Proof) -> None:
    for pool, calls in proof.calls.items():
        shown = proof.prometheus.values(f'sum by (outcome) (pooledhttp_requests_total{{pool="{pool}"}}) > 0', "outcome")
        assert shown == dict(calls), pool


def test_leaks_are_those_that_were_made(proof: Proof) -> None:
    assert proof.prometheus.value("sum(pooledhttp_leaked_connections_total)") == proof.leaks
    assert proof.leaks > 10


def test_every_acquire_and_every_connection_is_accounted_for(proof: Proof) -> None:
    ask = proof.prometheus.value
    assert ask('sum(pooledhttp_acquires_total{outcome="error",pool="refused"})') == sum(proof.calls["refused"].values())
    opened = ask("sum(pooledhttp_connect_duration_seconds_count)")
    closed = ask("sum(pooledhttp_connections_closed_total)")
    open_now = ask('sum(pooledhttp_connections{state=~"active|idle"})')
    assert opened is not None
    assert closed is not None
    assert open_now is not None
    assert opened == closed + open_now


def panel_called(name: str, title: str) -> Json:
    return next(panel for panel in BOARDS[name]["panels"] if panel["title"] == title and panel["type"] != "row")


@pytest.mark.parametrize("pool", ["healthy", "slow", "stale", "refused"])
def test_rate_over_the_whole_load_is_what_callers_counted(pool: str, proof: Proof) -> None:
    """The panel's own query, with one window over all of it: Prometheus extrapolates, so about so."""
    (target,) = panel_called("pool", "Requests by outcome")["targets"]
    window = int(proof.end - proof.begin)
    query = substituted(target["expr"], {"pool": pool}, f"{window}s")
    shown = sum(proof.prometheus.values(query, "outcome", proof.end).values()) * window
    counted = proof.calls[pool].total()
    assert shown == pytest.approx(counted, rel=0.2)


def test_limits_are_those_of_all_workers_together(proof: Proof) -> None:
    shown = proof.prometheus.values("sum by (pool) (pooledhttp_connections_max)", "pool")
    assert shown == {"healthy": 16, "slow": 4, "stale": 8, "refused": 8, "leaky": 100, "hung": 4}


# --- what the first row says ------------------------------------------------------------------------------------------


FIRST_ROW = [panel for panel in BOARDS["pool"]["panels"] if panel["type"] == "stat"]


def lights(ask: Prometheus, begin: float, end: float, **variables: str) -> dict[str, str]:
    """Return the colour of each stat of the first row, as Grafana would choose it; "" for no value."""
    found: dict[str, str] = {}
    for panel in FIRST_ROW:
        defaults = panel["fieldConfig"]["defaults"]
        of_series = {
            override["matcher"]["options"]: prop["value"]
            for override in panel["fieldConfig"]["overrides"]
            for prop in override["properties"]
            if prop["id"] == "thresholds"
        }
        for target in panel["targets"]:
            query = substituted(target["expr"], variables, shown=end - begin)
            if target["instant"]:
                result = ask.ask("query", query=query, time=end)["result"]
            else:
                result = ask.ask("query_range", query=query, start=begin, end=end, step=1)["result"]
            points = [point for series in result for point in series.get("values", [series.get("value")])]
            name = panel["title"] + (f": {target['legendFormat']}" if len(panel["targets"]) > 1 else "")
            if not points:
                found[name] = ""
                continue
            value = float(points[-1][1])  # as reduced by lastNotNull
            assert not math.isnan(value), name  # which Grafana would show
            steps = of_series.get(target["legendFormat"], defaults["thresholds"])["steps"]
            found[name] = [step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]
    return found


# What has to light up; everything else is green, or has no value for want of traffic.
EXPECTED: dict[str, dict[str, str]] = {
    "healthy": {},
    "saturated": {
        "In use": "red", "Callers waiting": "red", "Waited too long": "red", "No connection": "red",
    },
    "stale": {"Dead on use: all": "orange", "Dead on use: raised": "red"},
    "refused": {"Cannot connect": "red"},
    "leak": {"Leaks": "red"},
}  # fmt: skip
# Nothing comes back, and nothing is counted but in vain.
HUNG = {"In use": "red", "Callers waiting": "red", "No connection": "red"}


def lit(colours: dict[str, str]) -> dict[str, str]:
    return {name: colour for name, colour in colours.items() if colour not in {"", "green"}}


@pytest.mark.parametrize(
    ("pool", "trouble"),
    [("healthy", "healthy"), ("slow", "saturated"), ("stale", "stale"), ("refused", "refused"), ("leaky", "leak")],
)
def test_first_row_tells_the_trouble_of_a_pool(pool: str, trouble: str, proof: Proof) -> None:
    assert lit(lights(proof.prometheus, proof.begin, proof.end, pool=pool)) == EXPECTED[trouble]


def test_first_row_tells_of_a_pool_from_which_nothing_comes_back(proof: Proof) -> None:
    assert lit(lights(proof.prometheus, proof.begin, proof.end, pool="hung")) == HUNG


def test_first_row_is_of_now(proof: Proof) -> None:
    """It shows the load and what came after: shares of calls have no value any more, those that were red included."""
    left = {"In use": "red", "Oldest lease": "green", "Leaks": "red", "Callers waiting": "green"}

    def is_over() -> bool:
        colours = lights(proof.prometheus, proof.begin, time.time())
        return {name: colour for name, colour in colours.items() if colour} == left

    wait_until(is_over, pause=0.5)


def test_first_row_tells_the_trouble_of_the_demo(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        addresses: dict[str, list[str]] = {}
        for trouble in EXPECTED:
            arguments = ["demo", "--serve", "--quiet", "--no-https", "--duration", "1", "--workers", "8", "--seed", "3"]
            if trouble != "healthy":
                arguments += ["--trouble", trouble]
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "pooledhttp", *arguments],
                    cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                )
            )  # fmt: skip
            stack.callback(process.terminate)
            watchdog = threading.Timer(2 * BOUND, process.kill)
            watchdog.start()
            stack.callback(watchdog.join)
            stack.callback(watchdog.cancel)
            assert process.stdout is not None
            for line in process.stdout:
                if match := re.search(r"http://(127\.0\.0\.1:\d+)/metrics", line):
                    addresses[trouble] = [match[1]]
                if "staying up" in line:
                    break
        prometheus = stack.enter_context(Prometheus(tmp_path, addresses))
        wait_until(lambda: prometheus.value("count(up == 1)") == len(EXPECTED), pause=0.1)
        threading.Event().wait(8)  # so that five seconds of it are behind every rate
        seen: dict[str, dict[str, str]] = {}

        def is_told() -> bool:
            now = time.time()
            seen.update({trouble: lit(lights(prometheus, now - 8, now, job=trouble)) for trouble in EXPECTED})
            return seen == EXPECTED

        # A light load: what happens by chance may not have happened in these five seconds.
        with contextlib.suppress(AssertionError):
            wait_until(is_told, pause=1.0)
    assert seen == EXPECTED
