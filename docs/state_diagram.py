"""Writes `docs/states.md` from the table in `pooledhttp/states.py`: ``python docs/state_diagram.py``.

The table is the truth and the picture is made from it, so that they cannot differ; `tests/test_docs.py` compares them.
"""  # noqa: INP001  # a script beside the pages that it writes, not a package

from __future__ import annotations

from pathlib import Path

from pooledhttp.states import TRANSITIONS, State

PAGE = Path(__file__).with_name("states.md")

_TEXT = """\
# The states of a connection

Made by `python docs/state_diagram.py` from `TRANSITIONS` in `pooledhttp/states.py`; a change belongs there.

An arrow is a pair of a state and an event. A pair without an arrow is an error, raised before a byte is written:
that is how a second request before the first response is read gets refused.

"""


def state_diagram() -> str:
    """Return the page that shows the table as a Mermaid state diagram.

    Events that lead from one state to the same other one share an arrow; states and events stand in the order of
    their enumerations.
    """
    events: dict[tuple[State, State], list[str]] = {}
    for (state, event), following in sorted(TRANSITIONS.items()):
        events.setdefault((state, following), []).append(event.name)
    arrows = [f"    {state.name} --> {following.name}: {', '.join(names)}"
              for (state, following), names in events.items()]  # fmt: skip
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.CLOSED.name}", *arrows, "```"]
    return _TEXT + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(state_diagram(), encoding="utf-8")
