"""Writes the dashboards, the rules and the alerts: `python -m dashboards.generator [FOLDER]`, or `make dashboards`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from .overview import overview
from .pool import pool
from .rules import rule_files
from .thresholds import THRESHOLDS, Thresholds
from .workers import workers

HERE = Path(__file__).resolve().parent.parent


def files(thresholds: Thresholds = THRESHOLDS) -> dict[str, str]:
    """Return what is generated, by its name."""
    boards = {"overview.json": overview, "pool.json": pool, "workers.json": workers}
    return {**{name: encoded(make(thresholds)) for name, make in boards.items()}, **rule_files(thresholds)}


def encoded(board: Dashboard) -> str:
    """Return a dashboard as Grafana imports it."""
    return json.dumps(json.loads(JSONEncoder(sort_keys=True, indent=2).encode(board)), indent=2) + "\n"


def main(folder: Path) -> None:
    """Write all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
