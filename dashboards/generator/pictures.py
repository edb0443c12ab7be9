"""Draws a dashboard from what Prometheus answers, panel by panel in Grafana's grid, so that a person can look at it.

It is no Grafana: lines, numbers, heat maps and tables, with the dashboard's own titles, units, colours and thresholds.
`make pictures` draws those in docs/ during the live proof.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

Json: TypeAlias = dict[str, Any]
# Takes PromQL with Grafana's variables, and whether only the last moment is asked for; returns Prometheus' `result`.
Ask: TypeAlias = Callable[[str, bool], list[Json]]

_COLOURS: Final = {
    "green": "#56a64b", "orange": "#ff9830", "red": "#e02f44", "blue": "#3274d9", "yellow": "#f2cc0c",
    "purple": "#8f3bb8", "dark-red": "#ad0317", "dark-orange": "#fa6400",
}  # fmt: skip
_OTHERS: Final = ("#5794f2", "#b877d9", "#ffb357", "#73bf69", "#f2495c", "#8d6e63", "#26a69a", "#c4162a", "#37872d")
_COLUMN, _ROW = 0.72, 0.42  # inches of a cell of the grid
_AXIS = 0.7  # inches that the numbers beside an axis take


def legend_of(pattern: str, labels: Mapping[str, str]) -> str:
    """Return the name of a series, as Grafana writes it."""
    if not pattern:
        return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), pattern)


def shown(value: float, unit: str, decimals: int | None = None) -> str:
    """Return a number with its unit, short."""
    if math.isnan(value):
        return "-"
    if decimals is not None:
        return f"{value:.{decimals}f}"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if 0 < value < 1 else f"{value:.3g} s"
    return f"{value:.3g}" + {"reqps": " req/s", "ops": " ops/s"}.get(unit, "")


def draw(board: Json, ask: Ask, path: Path) -> None:
    """Draw a dashboard.

    Args:
        board: Its JSON.
        ask: Runs a query.
        path: Where the PNG goes.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = plt.figure(figsize=(24 * _COLUMN, bottom * _ROW + 0.6), dpi=80, facecolor="#f4f5f5")
    figure.text(0.01, 1 - 0.25 / (bottom * _ROW + 0.6), board["title"], fontsize=15, weight="bold", va="center")
    scale = bottom * _ROW / (bottom * _ROW + 0.6)
    for panel in board["panels"]:
        place = panel["gridPos"]
        left, width = place["x"] / 24, place["w"] / 24
        top = 1 - (1 - scale) - place["y"] / bottom * scale
        height = place["h"] / bottom * scale
        if panel["type"] == "row":
            figure.text(left + 0.006, top - height / 2, panel["title"], fontsize=12, weight="bold", va="center")
            continue
        pad_x, pad_y = 0.004, 0.12 / (bottom * _ROW)
        axes = figure.add_axes((left + pad_x, top - height + pad_y, width - 2 * pad_x, height - 2 * pad_y))
        axes.set_facecolor("white")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.012, 0.97, panel["title"], transform=axes.transAxes, fontsize=9, weight="bold", va="top", zorder=5)
        inner = axes.inset_axes((0.0, 0.0, 1.0, 0.88))
        inner.axis("off")
        {"stat": _stat, "timeseries": _lines, "heatmap": _heat, "table": _table}[panel["type"]](panel, ask, inner)
    figure.savefig(path)
    plt.close(figure)


def _steps(panel: Json, series: str) -> Sequence[Json]:
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == series:
            for prop in override["properties"]:
                if prop["id"] == "thresholds":
                    steps: Sequence[Json] = prop["value"]["steps"]
                    return steps
    found: Sequence[Json] = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
    return found


def _stat(panel: Json, ask: Ask, axes: Any) -> None:  # noqa: ANN401  # matplotlib's axes
    defaults = panel["fieldConfig"]["defaults"]
    numbers = []
    for target in panel["targets"]:
        values = [float(series["value"][1]) for series in ask(target["expr"], True)]
        numbers.append((target.get("legendFormat", ""), values[-1] if values else None))
    for number, (name, value) in enumerate(numbers):
        nothing = defaults["mappings"][0]["options"]["result"]
        colour = nothing["color"]
        if value is not None:
            reached = [step["color"] for step in _steps(panel, name) if step["value"] is None or value >= step["value"]]
            colour = _COLOURS.get(reached[-1], reached[-1]) if reached else colour
        share = 1 / len(numbers)
        axes.add_patch(_box(number * share, share, colour))
        text = nothing["text"] if value is None else shown(value, defaults["unit"], defaults.get("decimals"))
        caption = f"{name}\n" if len(numbers) > 1 else ""
        axes.text((number + 0.5) * share, 0.45, caption + text, ha="center", va="center", fontsize=12, color="white")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _box(left: float, width: float, colour: str) -> Any:  # noqa: ANN401  # a patch
    from matplotlib.patches import Rectangle

    return Rectangle((left + 0.01, 0.04), width - 0.02, 0.86, color=colour)


def _inside(panel: Json, *, bottom: float, height: float) -> tuple[float, float, float, float]:
    """Return the place of an axis within its panel, with room for its numbers however narrow that is."""
    left = _AXIS / (panel["gridPos"]["w"] * _COLUMN)
    return left, bottom, 0.98 - left, height


def _fixed_colours(panel: Json) -> dict[str, str]:
    return {
        override["matcher"]["options"]: prop["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
        for prop in override["properties"]
        if prop["id"] == "color" and isinstance(prop["value"], dict) and "fixedColor" in prop["value"]
    }


def _mark_time(chart: Any, moments: Sequence[float], places: Sequence[float]) -> None:  # noqa: ANN401  # as above
    """Write the seconds since the first moment below the axis, at its ends and in between."""
    ends = sorted({0, len(moments) // 2, len(moments) - 1}) if moments else []
    labels = [f"{moments[end] - moments[0]:.0f} s" for end in ends]
    chart.set_xticks([places[end] for end in ends], labels, fontsize=6.5)


def _lines(panel: Json, ask: Ask, axes: Any) -> None:  # noqa: ANN401  # as above
    defaults = panel["fieldConfig"]["defaults"]
    fixed = _fixed_colours(panel)
    series = [
        (legend_of(target.get("legendFormat", ""), one["metric"]), one["values"])
        for target in panel["targets"]
        for one in ask(target["expr"], False)
    ]
    moments = sorted({moment for _, values in series for moment, _ in values})
    is_stacked = defaults.get("custom", {}).get("stacking", {}).get("mode") == "normal"
    below = dict.fromkeys(moments, 0.0)
    highest = 0.0
    chart = axes.inset_axes(_inside(panel, bottom=0.32, height=0.64))
    chart.spines[["top", "right"]].set_visible(False)
    used = [name for name, values in series if any(float(value) > 0 for _, value in values)]
    of_others = [name for name in used if name not in fixed]  # only what is seen takes a colour from the rest
    for name, values in series:
        number = of_others.index(name) if name in of_others else 0
        colour = fixed.get(name, _OTHERS[number % len(_OTHERS)])
        colour = _COLOURS.get(colour, colour)
        by_moment = {moment: float(value) for moment, value in values}
        points = [by_moment.get(moment, math.nan) for moment in moments]
        if is_stacked and name not in used:
            continue  # its line would lie on that of the one below
        if is_stacked:
            upper = [below[moment] + (0 if math.isnan(point) else point)
                     for moment, point in zip(moments, points, strict=True)]  # fmt: skip
            chart.fill_between(moments, [below[moment] for moment in moments], upper, color=colour, alpha=0.6, lw=0)
            below = dict(zip(moments, upper, strict=True))
            points = upper
        chart.plot(moments, points, color=colour, lw=1.2, label=name)
        highest = max([highest, *(point for point in points if not math.isnan(point))])
    is_dashed = defaults.get("custom", {}).get("thresholdsStyle", {}).get("mode") == "dashed"
    drawn = 3 * highest  # what is far above the lines would press them flat
    for step in _steps(panel, "") if is_dashed else ():
        if step["value"] is not None and step["value"] <= drawn:
            chart.axhline(step["value"], color=_COLOURS[step["color"]], ls="--", lw=0.9)
            highest = max(highest, step["value"])
    chart.set_ylim(0, highest * 1.1 or 1)
    _mark_time(chart, moments, moments)
    ticks = [0, highest / 2, highest] if highest else [0]
    chart.set_yticks(ticks, [shown(tick, defaults["unit"]) for tick in ticks], fontsize=7)
    chart.grid(axis="y", color="#e5e5e5", lw=0.6)
    handles, names = chart.get_legend_handles_labels()
    wanted = [(handle, name) for handle, name in zip(handles, names, strict=True) if name in used][:9] or [
        (handle, name) for handle, name in zip(handles, names, strict=True)
    ][:3]
    axes.legend(*zip(*wanted, strict=True), loc="lower left", ncols=3, fontsize=6.5, frameon=False) if wanted else None


def _heat(panel: Json, ask: Ask, axes: Any) -> None:  # noqa: ANN401  # as above
    (target,) = panel["targets"]
    rows = sorted(ask(target["expr"], False), key=lambda one: float(one["metric"]["le"]))
    moments = sorted({moment for one in rows for moment, _ in one["values"]})
    before = [0.0] * len(moments)
    cells = []
    for one in rows:
        by_moment = {moment: float(value) for moment, value in one["values"]}
        now = [by_moment.get(moment, 0.0) for moment in moments]
        cells.append([max(upper - lower, 0.0) for upper, lower in zip(now, before, strict=True)])
        before = now
    chart = axes.inset_axes(_inside(panel, bottom=0.12, height=0.82))
    chart.imshow(cells, aspect="auto", origin="lower", cmap="Oranges", norm="asinh")
    _mark_time(chart, moments, range(len(moments)))
    labels = ["inf" if one["metric"]["le"] == "+Inf" else shown(float(one["metric"]["le"]), "s") for one in rows]
    chart.set_yticks(range(len(rows)), labels, fontsize=6.5)


def _table(panel: Json, ask: Ask, axes: Any) -> None:  # noqa: ANN401  # as above
    heads = [override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]][: len(panel["targets"])]
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for head, target in zip(heads, panel["targets"], strict=True):
        for one in ask(target["expr"], True):
            key = one["metric"]["job"], one["metric"]["pool"]
            cells.setdefault(key, {})[head] = float(one["value"][1])
    units, decimals = (
        {
            override["matcher"]["options"]: prop["value"]
            for override in panel["fieldConfig"]["overrides"]
            for prop in override["properties"]
            if prop["id"] == wanted
        }
        for wanted in ("unit", "decimals")
    )
    order = sorted(cells, key=lambda key: -cells[key].get(heads[0], -1))
    text, colours = [], []
    for key in order:
        line, shades = [*key], ["white", "white"]
        for head in heads:
            value = cells[key].get(head, math.nan)
            reached = [step["color"] for step in _steps(panel, head)
                       if step["value"] is None or (not math.isnan(value) and value >= step["value"])]  # fmt: skip
            line.append(shown(value, units[head], decimals.get(head)))
            is_lit = reached and reached[-1] != "green" and not math.isnan(value)
            shades.append(_COLOURS.get(reached[-1], "white") if is_lit else "white")
        text.append(line)
        colours.append(shades)
    table = axes.table(text, cellColours=colours, colLabels=["job", "pool", *heads], loc="upper center", cellLoc="left")
    table.auto_set_font_size(False)  # that is how it is called
    table.set_fontsize(8)
    table.scale(1, 1.4)
