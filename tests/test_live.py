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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dashboards.generator.pictures import Ask, draw, legend_of
from pooledhttp import __version__
from tests.apps.proof_worker import SLOW
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
        end: When it was told to end.
        done: When it had.
        instances: The workers' addresses.
        counts: What the workers counted, by instance, pool and kind, as tests/apps/proof_worker.py says.
    """

    prometheus: Prometheus
    begin: float
    end: float
    done: float
    instances: list[str]
    counts: dict[str, dict[str, dict[str, Counter[str]]]]

    def counted(self, pool: str, kind: str, instance: str = "") -> Counter[str]:
        """Return what was counted, by all workers or by one."""
        every = Counter[str]()
        for address, counts in self.counts.items():
            if not instance or address == instance:
                every.update(counts.get(pool, {}).get(kind, {}))
        return every

    def totals(self, expr: str, label: str = "", **variables: str) -> dict[str, float]:
        """Run a panel's query with the counters themselves where it has their rates.

        They began at 0 with the load, so this is what Grafana would show for a range that has all of it, without what
        Prometheus extrapolates: the numbers are exact, and all else is the panel's.
        """
        counters = re.sub(r"\b(?:rate|increase)\(([^()]+)\[\$__(?:rate_interval|range)\]\)", r"\1", expr)
        assert counters != expr
        return self.prometheus.values(substituted(counters, variables), label)

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
        counts = {
            worker.address: {
                pool: {kind: Counter(count) for kind, count in kinds.items()} for pool, kinds in worker.stop().items()
            }
            for worker in workers
        }
        done = time.time()
        found = Proof(prometheus, begin, end, done, instances, counts)
        wait_until(lambda: (prometheus.value("min(timestamp(up))") or 0) > done, pause=0.2)  # seen by both scrapes
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
        (series,) = proof.ask(annotation["expr"])
        assert series["metric"] == {"job": "proof", "version": __version__}
        assert {value for _, value in series["values"]} == {"2"}  # workers of that version, which nobody had before


def test_rules_are_evaluated_without_an_error(proof: Proof) -> None:
    groups = proof.prometheus.ask("rules")["groups"]
    assert groups
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}


# --- the numbers ------------------------------------------------------------------------------------------------------


def panel_called(name: str, title: str, kind: str = "timeseries") -> Json:
    return next(panel for panel in BOARDS[name]["panels"] if (panel["title"], panel["type"]) == (title, kind))


def positive(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value}


class Split(NamedTuple):
    """A panel of the pool's dashboard that splits a counter by a label, and what it has to show of a pool."""

    title: str
    label: str
    expected: Callable[[Proof, str], Mapping[str, float]]
    kind: str = "timeseries"


def unread(proof: Proof, pool: str) -> Mapping[str, float]:
    return proof.counted(pool, "unread")


def calls(proof: Proof, pool: str) -> Mapping[str, float]:
    return proof.counted(pool, "calls")


def failed(proof: Proof, pool: str) -> Mapping[str, float]:
    return {outcome: number for outcome, number in calls(proof, pool).items() if outcome in {"5xx", "timeout", "error"}}


def retried(proof: Proof, pool: str) -> Mapping[str, float]:
    """The server was asked more often than callers did."""
    if pool != "healthy":
        return {}
    asked = proof.counted(pool, "requests").total()
    return {"status": asked - proof.counted(pool, "calls").total() - proof.counted(pool, "lent").total()}


def gone_stale(proof: Proof, pool: str) -> dict[str, int]:
    """The server hung up; callers heard of it where the request could not be sent again."""
    raised = proof.counted(pool, "calls")["error"] if pool == "stale" else 0
    every = proof.counted(pool, "hung up").total()
    return {"all": every, "raised": raised, "retried": every - raised}


def stale_by_outcome(proof: Proof, pool: str) -> Mapping[str, float]:
    return {outcome: number for outcome, number in gone_stale(proof, pool).items() if outcome != "all"}


def unreachable(proof: Proof, pool: str) -> Mapping[str, float]:
    return {"refused": proof.counted(pool, "calls").total()} if pool == "refused" else {}


def acquired(proof: Proof, pool: str) -> dict[str, int]:
    """Return how acquires ended.

    Those that were served are the requests that a server heard, but for what was sent again at once because the
    connection was dead: that is the same lease.  Which of them had to open a connection only the pool knows, but they
    are no more than there were connections.
    """
    resent = gone_stale(proof, pool)["retried"]
    return {
        "served": proof.counted(pool, "requests").total() - resent,
        "timeout": proof.counted(pool, "calls")["timeout"] if pool in {"slow", "hung"} else 0,
        "error": int(sum(unreachable(proof, pool).values())),
    }


def kept(proof: Proof, pool: str) -> int:
    """Return how many connections were lent to those who asked nothing and gave nothing back."""
    workers = len(proof.instances)
    return {"leaky": proof.counted("leaky", "leaks").total() + workers, "hung": 2 * workers}.get(pool, 0)


def opened_connections(proof: Proof, pool: str) -> int:
    return kept(proof, pool) or proof.counted(pool, "connections").total()


POOLS = ("healthy", "slow", "stale", "refused", "leaky", "hung")
SERVED = {"healthy", "slow", "stale"}  # by a server that answers
SPLITS = [
    Split("Requests by outcome", "outcome", calls),
    Split("Failed requests by kind", "outcome", failed),
    Split("Tried again", "reason", retried),
    Split("Given back unread", "outcome", unread),
    Split("Failures to connect", "reason", unreachable),
    Split("Dead on use", "outcome", stale_by_outcome),
    Split("Leaks", "pool", lambda proof, pool: {pool: proof.counted(pool, "leaks").total()}),
    Split("Not tried again", "reason", lambda proof, pool: {"attempts": proof.counted(pool, "in vain").total()}),
]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.title)
def test_panel_counts_what_was_counted(split: Split, pool: str, proof: Proof) -> None:
    (target,) = panel_called("pool", split.title, split.kind)["targets"]
    assert positive(proof.totals(target["expr"], split.label, pool=pool)) == positive(split.expected(proof, pool))


def test_something_of_each_kind_was_counted(proof: Proof) -> None:
    """Otherwise nothing would have been compared."""
    for split in SPLITS:
        assert any(positive(split.expected(proof, pool)) for pool in POOLS), split.title


def closed(proof: Proof, pool: str) -> dict[str, int]:
    """Return why connections ended, but for those that went stale, which are told apart by what the client met."""
    return {
        "healthy": {"unread": proof.counted(pool, "unread")["closed"]},
        "leaky": {"leaked": proof.counted(pool, "leaks").total()},
    }.get(pool, {})


@pytest.mark.parametrize("pool", POOLS)
def test_connections_are_opened_and_closed_as_the_servers_saw_it(pool: str, proof: Proof) -> None:
    opened, ended = panel_called("pool", "Opened and closed")["targets"]
    (badly,) = panel_called("pool", "Ended by an error")["targets"]
    assert proof.totals(opened["expr"], pool=pool) == {"": opened_connections(proof, pool)}
    reasons = positive(proof.totals(ended["expr"], "reason", pool=pool))
    assert reasons == positive(proof.totals(badly["expr"], "reason", pool=pool))  # none ended well, within this time
    met_dead = reasons.pop("stale_eof", 0) + reasons.pop("stale_reset", 0)
    assert met_dead == proof.counted(pool, "hung up").total()
    # Which others had been idle for longer only the pool knows; but they are gone.
    open_now = proof.prometheus.value(f'sum(pooledhttp_connections{{pool="{pool}",state=~"active|idle"}})')
    assumed = opened_connections(proof, pool) - met_dead - sum(closed(proof, pool).values()) - (open_now or 0)
    assert reasons.pop("stale_assumed", 0) == assumed
    assert reasons == positive(closed(proof, pool))


@pytest.mark.parametrize("pool", POOLS)
def test_acquires_ended_as_callers_and_servers_saw_it(pool: str, proof: Proof) -> None:
    (target,) = panel_called("pool", "Acquires by outcome")["targets"]
    shown = positive(proof.totals(target["expr"], "outcome", pool=pool))
    opened, reused = shown.pop("opened", 0), shown.pop("reused", 0)
    expected = acquired(proof, pool)
    assert shown == positive({"timeout": expected["timeout"], "error": expected["error"]})
    if pool in SERVED:
        assert opened + reused == expected["served"]
        assert 0 < opened <= opened_connections(proof, pool) < reused
    else:
        assert (opened, reused) == (opened_connections(proof, pool), 0)  # and kept, or forgotten


@pytest.mark.parametrize("pool", sorted(SERVED))
def test_heat_maps_have_every_wait_every_lease_and_every_call(pool: str, proof: Proof) -> None:
    def highest(title: str) -> float:
        (target,) = panel_called("pool", title, "heatmap")["targets"]
        return proof.totals(target["expr"], "le", pool=pool)["+Inf"]

    counts = acquired(proof, pool)
    served = counts["served"]
    resent = gone_stale(proof, pool)["retried"]  # over another connection, which is lent for it
    assert highest("Calls by duration") == proof.counted(pool, "calls").total()
    assert highest("Leases by duration") == served + resent
    assert highest("Waits by duration") == served + counts["timeout"]


def between(least: float, greatest: float) -> object:
    """Return what is equal to any number in between; the last digit is floating point's."""
    return pytest.approx((least + greatest) / 2, rel=0, abs=(greatest - least) / 2 + 1e-9)


def ratio(part: float, whole: float, least: float | None = None) -> dict[str, object]:
    """Return a share; with `least`, one of a whole that is only known to be from that on."""
    return {"": between(part / whole, part / (whole if least is None else least))} if whole else {}


@pytest.mark.parametrize("pool", POOLS)
def test_shares_are_those_of_what_was_counted(pool: str, proof: Proof) -> None:
    acquires, stale, asked = acquired(proof, pool), gone_stale(proof, pool), proof.counted(pool, "calls").total()
    opened = opened_connections(proof, pool)
    broken, served = acquires["error"], acquires["served"]
    least_reused = served - opened
    expected: dict[tuple[str, str], list[dict[str, object]]] = {
        ("Cannot connect", "stat"): [ratio(broken, broken + opened)],
        ("Share of failed requests", "timeseries"): [ratio(sum(failed(proof, pool).values()), asked)],
        ("Retries, of all calls", "timeseries"): [ratio(sum(retried(proof, pool).values()), asked)],
    }
    if pool in SERVED:
        expected |= {
            ("No connection", "stat"): [ratio(acquires["timeout"], sum(acquires.values()))],
            ("Leases per connection", "timeseries"): [ratio(served, opened)],
            ("Served by a kept-alive connection", "timeseries"): [{"": between(least_reused / served, 1 - 1 / served)}],
            ("Dead on use", "stat"): [ratio(stale[how], served, least_reused) for how in ("all", "raised")],
        }
    for (title, kind), values in expected.items():
        targets = panel_called("pool", title, kind)["targets"]
        assert [proof.totals(target["expr"], "", pool=pool) for target in targets] == values, title


def test_shares_of_the_fleet_are_those_of_all_pools_together(proof: Proof) -> None:
    acquires = Counter[str]()
    for pool in POOLS:
        acquires.update(acquired(proof, pool))
    unheard = sum(kept(proof, pool) for pool in POOLS)
    opened = sum(opened_connections(proof, pool) for pool in POOLS)
    asked = sum(proof.counted(pool, "calls").total() for pool in POOLS)
    broken = acquires["error"]
    for title, expected in (
        ("No connection", ratio(acquires["timeout"], acquires.total() + unheard)),
        ("Cannot connect", ratio(broken, broken + opened)),
        ("Failed requests", ratio(sum(sum(failed(proof, pool).values()) for pool in POOLS), asked)),
        (
            "New connections",
            {"": between(unheard / (acquires["served"] + unheard), opened / (acquires["served"] + unheard))},
        ),
    ):
        (target,) = panel_called("overview", title, "stat")["targets"]
        assert proof.totals(target["expr"]) == expected, title


def test_workers_are_told_apart(proof: Proof) -> None:
    for instance in proof.instances:
        alone = replace(proof, instances=[instance], counts={instance: proof.counts[instance]})
        for title, expected in (
            ("Acquires", lambda pool, one=alone: sum(acquired(one, pool).values()) + kept(one, pool)),
            ("Requests", lambda pool, one=alone: one.counted(pool, "calls").total()),
            ("Failures to connect", lambda pool, one=alone: sum(unreachable(one, pool).values())),
        ):
            (target,) = panel_called("workers", title)["targets"]
            shown = proof.totals(target["expr"], "pool", instance=instance)
            assert shown == {pool: expected(pool) for pool in POOLS}, title


def test_time_in_use_is_the_time_that_the_server_took(proof: Proof) -> None:
    """50 ms for each answer of the slow one, and no more than all connections for all of the time."""
    by_legend = {target["legendFormat"]: target["expr"] for target in
                 panel_called("pool", "Seconds per second")["targets"]}  # fmt: skip
    in_use, waiting = (proof.totals(by_legend[name], pool="slow")[""] for name in ("in use", "waiting"))
    assert SLOW * proof.counted("slow", "requests").total() <= in_use <= 4 * (proof.done - proof.begin)
    assert waiting > in_use  # fourteen callers, and two connections


@pytest.mark.parametrize("pool", ["healthy", "slow", "stale", "refused"])
def test_rate_over_the_whole_load_is_what_callers_counted(pool: str, proof: Proof) -> None:
    """The panel's own query, with one window over all of it: Prometheus extrapolates, so about so."""
    (target,) = panel_called("pool", "Requests by outcome")["targets"]
    window = int(proof.end - proof.begin)
    query = substituted(target["expr"], {"pool": pool}, f"{window}s")
    shown = sum(proof.prometheus.values(query, "outcome", proof.end).values()) * window
    assert shown == pytest.approx(proof.counted(pool, "calls").total(), rel=0.2)


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
HUNG = {"In use": "red", "Callers waiting": "red", "Waited too long": "red", "No connection": "red"}


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
