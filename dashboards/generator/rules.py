"""The two files of rules that Prometheus loads, made of `recordings` and `alerts`.

`python -m dashboards.generator.rules FOLDER` writes both, with links of your own where you have a copy of the runbook,
and Grafana's address for notifications that are read elsewhere.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import yaml

from .alerts import LINKS, RUNBOOK, Links, alerts
from .recordings import FOR_USERS, recordings
from .thresholds import THRESHOLDS, Thresholds


def rule_files(thresholds: Thresholds = THRESHOLDS, links: Links = LINKS) -> dict[str, str]:
    """Return the text of each rule file by its name.

    Args:
        thresholds: When to call somebody.
        links: Where an alert's links lead.
    """
    questions = "".join(f"#   {record}: {question}\n" for record, question in FOR_USERS.items())
    return {
        "recording.yml": _text(
            f"# The alerts read these, and so may your panels; for them alone are\n{questions}",
            {name: [rule.as_rule() for rule in rules] for name, rules in recordings(thresholds).items()},
        ),
        "alerts.yml": _text(
            "# They read recording.yml; what to do about each stands in runbook.md.\n",
            {name: [rule.as_rule(links) for rule in rules] for name, rules in alerts(thresholds).items()},
        ),
    }


def main() -> None:
    """Write the rule files into a folder, with links of one's own."""
    parser = argparse.ArgumentParser(prog="dashboards.generator.rules", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where recording.yml and alerts.yml are written")
    parser.add_argument("--runbook", default=RUNBOOK, help="the runbook's page, without an anchor (%(default)s)")
    parser.add_argument("--grafana", default="", help="what stands before /d/pooledhttp-pool, such as https://grafana")
    arguments = parser.parse_args()
    links = Links(runbook=arguments.runbook, grafana=arguments.grafana.rstrip("/"))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, text in rule_files(links=links).items():
        (arguments.folder / name).write_text(text, encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, and lists indented below their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: FBT001, FBT002  # PyYAML's
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _text(comment: str, rules_by_group: dict[str, list[dict[str, object]]]) -> str:
    groups = [{"name": name, "rules": rules} for name, rules in rules_by_group.items()]
    body = yaml.dump({"groups": groups}, Dumper=_Dumper, sort_keys=False, width=1000)
    body = re.sub(r"\n(?=  - name:|      - (?:record|alert):)", r"\n\n", body)
    body = body.replace("groups:\n\n", "groups:\n").replace("rules:\n\n", "rules:\n")
    return f"# generated; do not edit: make dashboards\n{comment}\n{body}"


if __name__ == "__main__":
    main()
