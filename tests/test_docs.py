"""What the pages in `docs/` take from the code is still what the code says."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from pooledhttp.states import TRANSITIONS, Event, State
from tests.exposition import exposed

DOCS = Path(__file__).resolve().parent.parent / "docs"
GENERATOR = DOCS / "state_diagram.py"


def generated() -> str:
    page = runpy.run_path(str(GENERATOR))["state_diagram"]()
    assert isinstance(page, str)
    return page


def test_state_diagram_in_the_docs_is_the_one_generated_from_the_table() -> None:
    assert (DOCS / "states.md").read_text(encoding="utf-8") == generated()


def test_state_diagram_shows_every_transition_and_no_other() -> None:
    arrows = re.findall(r"^    (\w+) --> (\w+): (.+)$", generated(), re.MULTILINE)
    shown = {
        (State[source], Event[name]): State[target] for source, target, names in arrows for name in names.split(", ")
    }
    assert shown == TRANSITIONS


def test_state_diagram_begins_closed() -> None:
    assert re.findall(r"^    \[\*\] --> (\w+)$", generated(), re.MULTILINE) == ["CLOSED"]


def test_generator_writes_the_page_next_to_itself(tmp_path: Path) -> None:
    shutil.copy(GENERATOR, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(DOCS.parent)}
    subprocess.run([sys.executable, str(tmp_path / GENERATOR.name)], check=True, timeout=30, env=environment)
    assert (tmp_path / "states.md").read_text(encoding="utf-8") == generated()


# --- metrics.md -------------------------------------------------------------------------------------------------------

METRICS = (DOCS / "metrics.md").read_text(encoding="utf-8")
SHOWN = exposed()


def cells_below(heading: str) -> list[list[str]]:
    """Return the rows of the table with that heading, without the heading."""
    (table,) = re.findall(rf"^{re.escape(heading)}\n\|[-|]+\n((?:\|.*\n)+)", METRICS, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]


def named(text: str) -> list[str]:
    """Return what stands in the typewriter's letters."""
    return re.findall(r"`([^`]+)`", text)


def test_row_of_a_metric_lists_exactly_the_values_of_its_label() -> None:
    """A value that only another row has does not count, and neither does one that no pool shows."""
    rows = cells_below("| name | type | further label | meaning | the question it answers | alerts |")
    elsewhere = 0
    for name, _, further, *_ in rows:
        (metric,) = named(name)
        labels = next(SHOWN[sample] for sample in (metric, f"{metric}_count") if sample in SHOWN)
        values = {label: shown for label, shown in labels.items() if label not in {"pool", "le"}}
        if "see below" in further:
            elsewhere += 1
            assert named(further) == list(values), metric
        elif "=" in further:
            label, *listed = named(further)
            assert (len(listed), {label: set(listed)}) == (len(set(listed)), values), metric
        else:
            assert named(further) == list(values), metric
            assert not values or values.keys() == {"version"}, metric
    assert len(rows) > 15
    assert elsewhere == 1


def test_table_of_reasons_is_that_of_the_closed_connections() -> None:
    listed = [reason for reasons, _ in cells_below("| reason | what happened |") for reason in named(reasons)]
    assert sorted(listed) == sorted(SHOWN["pooledhttp_connections_closed_total"]["reason"])


def test_names_beside_those_of_opentelemetry_exist() -> None:
    here = [row[1] for row in cells_below("| OpenTelemetry | here |")]
    metrics = 0
    for text in here:
        first, *rest = named(text)
        if first == "pool":
            continue
        metrics += 1
        labels = next((SHOWN[sample] for sample in (first, f"{first}_count") if sample in SHOWN), None)
        assert labels is not None, first
        if rest:
            label, *values = rest
            assert set(values) <= labels[label], text
    assert metrics == len(here) - 1 > 5
