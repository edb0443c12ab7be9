"""Draws one scenario as horizontal bars: an SVG without scripts or fonts of its own, for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

from .peers import Group
from .report import Row

_WIDTH: Final = 800
_LABELS: Final = 300  # of the width, left of the bars
_VALUES: Final = 60  # right of them
_HEAD: Final = 54
_STEP: Final = 26
_BAR: Final = 16

_STYLE: Final = """\
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; }
.note { fill: #59636e; }
.floor { fill: #8c959f; }
.ours { fill: #0969da; }
.peer { fill: #c4ccd4; }
.line { stroke: #8c959f; stroke-dasharray: 3 3; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .note { fill: #9198a1; }
  .floor { fill: #6e7781; }
  .ours { fill: #4493f8; }
  .peer { fill: #3d444d; }
  .line { stroke: #6e7781; }
}"""


def bars(rows: Sequence[Row], *, title: str, note: str) -> str:
    """Return a picture of the CPU time of each case as a ratio to the floor's.

    Args:
        rows: The cases, in the order in which they are drawn; those without ratio are left out.
        title: What is shown.
        note: How it was measured, in a few words.
    """
    shown = [(row, row.to_floor[0]) for row in rows if row.to_floor[0] is not None]
    most = max((value for _, value in shown), default=1.0)
    room = _WIDTH - _LABELS - _VALUES
    height = _HEAD + _STEP * len(shown) + 12
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
            f'aria-label="{escape(title)}">'
        ),
        f"<style>\n{_STYLE}\n</style>",
        f'<text class="title" x="8" y="20">{escape(title)}</text>',
        f'<text class="note" x="8" y="40">{escape(note)}</text>',
    ]
    for number, (row, value) in enumerate(shown):
        top = _HEAD + number * _STEP
        width = max(1.0, room * value / most)
        kind = {Group.FLOOR: "floor", Group.OURS: "ours"}.get(Group(row.group), "peer")
        base = top + _BAR - 3
        lines += [
            f'<text x="{_LABELS - 8}" y="{base}" text-anchor="end">{escape(row.name)}</text>',
            f'<rect class="{kind}" x="{_LABELS}" y="{top}" width="{width:.1f}" height="{_BAR}" rx="2"/>',
            f'<text x="{_LABELS + width + 6:.1f}" y="{base}">{value:.2f}</text>',
        ]
    at = _LABELS + room / most
    lines.append(f'<line class="line" x1="{at:.1f}" x2="{at:.1f}" y1="{_HEAD - 4}" y2="{height - 10}"/>')
    return "\n".join([*lines, "</svg>", ""])
