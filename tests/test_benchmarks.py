"""What the benchmarks report is what they measured, and running them leaves nothing behind.  No time is asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import guard
from benchmarks.__main__ import main
from benchmarks.measure import Round, interleave, medians, ratio
from benchmarks.picture import bars
from benchmarks.report import (
    BEGIN,
    END,
    PUBLISHED,
    README,
    BadResult,
    Report,
    load,
    markdown,
    readme_table,
    rows,
    store,
)
from benchmarks.report import write_readme as write_into
from benchmarks.scenarios import Outcome, Result

pytestmark = pytest.mark.unmeasured

ROOT = Path(__file__).resolve().parent.parent
BOUND = 50.0

FLOOR, POOL = "floor", "pooledhttp pool.request"


def outcome() -> Outcome:
    return Outcome(
        base=FLOOR,
        is_pinned=True,
        cases={
            "urllib3 HTTPConnectionPool": Result(
                group="peer", rounds=[(80e-6, 200e-6), (60e-6, 100e-6), (70e-6, 150e-6)]
            ),
            "pycurl": Result(group="peer", rounds=[(30e-6, 60e-6)]),
            POOL: Result(group="ours", rounds=[(25e-6, 75e-6)]),
            FLOOR: Result(group="floor", rounds=[(20e-6, 50e-6)]),
        },
        missing={"primp": "not installed (No module named 'primp')"},
    )


def report() -> Report:
    imports = Outcome(
        base="nothing",
        cases={
            "nothing": Result(group="floor", rounds=[(0.010, 0.010)]),
            "pooledhttp": Result(group="ours", rounds=[(0.011, 0.012)]),
            "pooledhttp, with its ConnectionPool": Result(group="ours", rounds=[(0.030, 0.032)]),
        },
    )
    names = ("small-get", "small-get-16", "tls", "down-read")
    return Report(
        made="2026-01-31T12:00:00Z",
        machine={"processor": "abacus", "cores": "2", "system": "Linux 6", "python": "CPython 3.11"},
        server="nginx 1.22.1",
        rounds=3,
        is_quick=False,
        versions={"pycurl": "7.45"},
        outcomes={name: outcome() for name in names} | {"import": imports},
    )


def test_median_and_ratio_are_of_cpu_and_wall_apart() -> None:
    assert medians([Round(3, 10), Round(1, 30), Round(2, 20)]) == Round(2, 20)
    assert ratio(3.0, 2.0) == 1.5
    assert ratio(3.0, 0.0) is None


def test_rows_hold_each_case_against_the_floor_and_the_best_peer() -> None:
    found = {row.name: row for row in rows(outcome())}
    assert list(found) == [FLOOR, POOL, "pycurl", "urllib3 HTTPConnectionPool"]
    assert found[POOL].to_floor == pytest.approx((1.25, 1.5))
    assert found[POOL].to_best == pytest.approx((25 / 30, 75 / 60))
    assert found["urllib3 HTTPConnectionPool"].to_floor == pytest.approx((3.5, 3.0))


def test_case_of_another_process_is_held_against_the_floor_of_that_process() -> None:
    apart = outcome()
    # A machine that was twice as slow then: as good as pycurl would have been.
    apart.cases["niquests"] = Result(group="peer", rounds=[(40e-6, 120e-6)], floor=[(40e-6, 100e-6)])
    found = {row.name: row for row in rows(apart)}
    assert found["niquests"].to_floor == pytest.approx((1.0, 1.2))
    assert found[POOL].to_best == pytest.approx((25 / 20, 75 / 60))


def test_interleaved_cases_take_turns_and_a_failing_one_stops_nobody() -> None:
    seen: list[str] = []

    def fail(count: int) -> None:
        raise ValueError(f"not {count} times")

    measured = interleave(
        {"a": lambda _: seen.append("a"), "bad": fail, "b": lambda _: seen.append("b")}, rounds=2, seconds=1e-9
    )
    assert "".join(seen)[-4:] == "abba"
    assert {name: len(rounds) for name, rounds in measured.rounds.items()} == {"a": 2, "b": 2}
    assert measured.failed == {"bad": "ValueError: not 1 times"}


def test_stored_result_is_read_back_as_it_was(tmp_path: Path) -> None:
    store(report(), tmp_path / "results" / "one.json")
    assert load(tmp_path / "results" / "one.json") == report()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "made": ""}'])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadResult):
        load(tmp_path / "x.json")


def test_tables_show_the_ratios_and_who_is_missing() -> None:
    text = markdown(report())
    assert f"| **{POOL}** | 25.0 | 1.25 | 75.0 | 1.50 | 0.83 | 1.25 |" in text
    assert "Missing: primp: not installed (No module named 'primp')." in text
    assert "server nginx 1.22.1 on loopback; clients of one thread on one core" in text
    assert "| **pooledhttp** | 2.0 | 1.0 |" in text
    assert "| **pooledhttp, with its ConnectionPool** | 22.0 | 20.0 |" in text


def test_picture_has_a_bar_for_each_case() -> None:
    picture = bars(rows(outcome()), title="a < b", note="")
    assert picture.count("<rect") == 4
    assert "a &lt; b" in picture
    assert "prefers-color-scheme: dark" in picture


def test_readme_gets_the_table_between_its_markers_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n", encoding="utf-8")
    write_into(report(), path)
    text = path.read_text(encoding="utf-8")
    assert text == f"above\n{BEGIN}\n{readme_table(report())}\n{END}\nbelow\n"
    assert f"| **{POOL}** | 1.25 | 1.50 | 13,333 | 1.25 | 1.50 | 22 |" in text


def test_readme_says_what_it_takes_to_import_what_was_measured_and_not_the_package_alone() -> None:
    kept = report()
    assert "| 22 |" in readme_table(kept)
    del kept.outcomes["import"].cases["pooledhttp, with its ConnectionPool"]  # a result of before there were two
    assert "| 2 |" in readme_table(kept)


def test_readme_takes_no_quick_and_no_partial_run(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"{BEGIN}{END}", encoding="utf-8")
    quick, partial = report(), report()
    quick.is_quick = True
    del partial.outcomes["tls"]
    with pytest.raises(BadResult, match="--quick"):
        write_into(quick, path)
    with pytest.raises(BadResult, match="tls"):
        write_into(partial, path)


def test_table_of_the_readme_is_what_the_published_result_says() -> None:
    _, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    assert rest.partition(END)[0].strip() == readme_table(load(PUBLISHED)).strip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "small-get,tsl"], "no scenario is named tsl; there are small-get, "),
        (["--only", ""], "no scenario is named; there are small-get, "),
        (["--rounds", "0"], "a number of at least 1, not '0'"),
        (["--quick", "--write-readme"], "needs a whole run"),
        (["--from", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_bad_arguments_are_a_clear_error(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_quick_run_against_the_embedded_server_measures_from_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--embedded", "--quick", "--rounds", "2", "--only", "small-get"]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=BOUND
    )
    assert done.returncode == 0, done.stderr
    assert "server embedded (not nginx)" in done.stdout
    (stored,) = tmp_path.glob("*.json")
    cases = json.loads(stored.read_text(encoding="utf-8"))["scenarios"]["small-get"]["cases"]
    assert {FLOOR, POOL, "pooledhttp HTTPConnection", "http.client"} <= cases.keys()
    assert all(len(case["rounds"]) == 2 for case in cases.values())
    assert stored.with_suffix(".md").exists()
    assert stored.with_suffix(".svg").exists()


def test_scrape_is_measured_for_one_pool_and_for_many_alone_and_of_many_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--embedded", "--quick", "--rounds", "1", "--only", "scrape"]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=BOUND
    )
    assert done.returncode == 0, done.stderr
    (stored,) = tmp_path.glob("*.json")
    found = json.loads(stored.read_text(encoding="utf-8"))["scenarios"]["scrape"]
    ways = ("collect()", "generate_latest()", "generate_latest(), files of a process")
    assert found["cases"].keys() == {f"{pools}, {way}" for pools in ("1 pool", "100 pools") for way in ways}
    assert found["missing"] == {}


def test_interrupted_run_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    scratch, results = tmp_path / "scratch", tmp_path / "results"
    scratch.mkdir()
    process = subprocess.Popen(
        # So many rounds that it cannot be over before it is interrupted, however busy the machine is.
        [sys.executable, "-m", "benchmarks", "--embedded", "--only", "small-get", "--rounds", "10000",
         "--results", str(results)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    with process:
        try:
            assert process.stderr is not None
            while not process.stderr.readline().startswith("small-get:"):
                assert process.poll() is None, process.communicate(timeout=BOUND)
            process.send_signal(signal.SIGINT)
            # Its children have inherited nothing of these pipes, so this ends with the process, and the servers'
            # folder is removed after the servers have ended.
            _, said = process.communicate(timeout=BOUND)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "nothing was written" in said
    assert list(scratch.iterdir()) == []
    assert not results.exists()


# --- the guard --------------------------------------------------------------------------------------------------------


def test_guard_compares_with_the_reference_of_the_same_run() -> None:
    assert guard.ratios({"request": 80.0, guard.REFERENCE: 400.0}) == {"request": 0.2}


@pytest.mark.parametrize(
    ("now", "is_good", "word"),
    [(0.2, True, "ok"), (0.2039, True, "ok"), (0.2041, False, "COSTS MORE"), (0.19, True, "--store")],
)
def test_guard_fails_when_something_costs_more_than_is_stored(now: float, is_good: bool, word: str) -> None:
    (line,), verdict = guard.verdicts({"request": now}, {"request": 0.2})
    assert verdict is is_good
    assert word in line


@pytest.mark.parametrize(("with_metrics", "is_good", "word"), [(0.2059, True, "ok"), (0.2061, False, "COSTS MORE")])
def test_guard_compares_metrics_on_with_metrics_off(with_metrics: float, is_good: bool, word: str) -> None:
    ratios = {"request": 0.2, "request, with metrics": with_metrics}
    (_, line), verdict = guard.verdicts(ratios, {"request": 0.2})
    assert verdict is is_good
    assert line.endswith(word)


def test_guard_fails_where_nothing_is_stored() -> None:
    (line,), is_good = guard.verdicts({"request": 0.2}, {})
    assert not is_good
    assert "nothing is stored" in line


def test_what_the_guard_has_stored_is_what_it_counts() -> None:
    for ratios in json.loads(guard.STORED.read_text()).values():
        assert ratios.keys() == guard.LOOPS.keys() - {guard.REFERENCE} - guard.WITHIN.keys()


@pytest.mark.parametrize("name", guard.LOOPS)
def test_loop_of_the_guard_runs(name: str) -> None:
    with guard.serving() as port:
        guard.LOOPS[name](port, 3)
