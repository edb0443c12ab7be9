"""One scenario in a process of its own: reads what to do from standard input, writes the outcome to standard output.

What a client prints goes to standard error, so that it cannot get into the outcome.
"""

from __future__ import annotations

import json
import os
import sys

from .peers import versions
from .scenarios import SCENARIOS, Setting


def main() -> None:
    """Run the scenario that standard input names."""
    task = json.loads(sys.stdin.read())
    answer = os.dup(1)
    os.dup2(2, 1)
    outcome = SCENARIOS[task["scenario"]].run(Setting(**task["setting"]))
    with os.fdopen(answer, "w", encoding="utf-8") as file:
        json.dump({"outcome": outcome.as_json(), "versions": versions()}, file)
    sys.stderr.flush()
    os._exit(0)  # threads of other people's clients may not want to end


if __name__ == "__main__":
    main()
