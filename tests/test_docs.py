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
