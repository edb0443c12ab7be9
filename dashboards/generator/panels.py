"""How a panel is made: few kinds, each with the same manners, so that the dashboards read as a list of questions.

What every panel has: a title, a description that says what to do, a unit, the data source of the variable, and queries
that keep to the chosen jobs, instances and pools.  Where it shows what an alert goes by, it changes colour at the
alert's number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as m_common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as m_heatmap
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from .thresholds import Thresholds

Builder: TypeAlias = stat.Panel | timeseries.Panel | heatmap.Panel | table.Panel

GREEN: Final = "green"
YELLOW: Final = "yellow"
ORANGE: Final = "orange"
RED: Final = "red"
BLUE: Final = "blue"
GREY: Final = "#8e8e8e"

# One colour for one thing, on every panel: by the label that splits a query, or by the legend of one without split.
COLOURS: Final[Mapping[str, Mapping[str, str]]] = {
    "outcome": {
        "reused": GREEN, "opened": BLUE, "timeout": RED, "rejected": "purple", "error": "dark-red",
        "1xx": GREY, "2xx": GREEN, "3xx": BLUE, "4xx": YELLOW, "5xx": ORANGE,
        "retried": ORANGE, "raised": RED, "drained": GREEN, "closed": ORANGE,
    },
    "state": {"active": ORANGE, "idle": GREEN, "opening": BLUE},
    "": {
        "maximum": RED, "waiting": RED, "connecting": BLUE, "in use": GREEN,
        "p50": GREEN, "p95": ORANGE, "p99": RED, "mean": BLUE, "fullest": RED,
    },
}  # fmt: skip

CHOSEN: Final = 'job=~"$job",instance=~"$instance",pool=~"$pool"'
CHOSEN_PROCESSES: Final = 'job=~"$job",instance=~"$instance"'
_SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_ACROSS: Final = 24  # columns of the grid


# --- PromQL -----------------------------------------------------------------------------------------------------------


def chosen(metric: str, only: str = "") -> str:
    """Return the selector of a metric of pools."""
    return f"pooledhttp_{metric}{{{CHOSEN}{',' if only else ''}{only}}}"


def rate(metric: str, by: str = "job, pool", only: str = "") -> str:
    """Return the rate of a counter, summed; `by`: the labels that stay."""
    return f"sum by ({by}) (rate({chosen(metric, only)}[$__rate_interval]))"


def quantile(q: float, metric: str, by: str = "") -> str:
    """Return a quantile of a histogram in seconds."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q:g}, {rate(f'{metric}_bucket', labels)})"


def greater(one: str, other: str, by: str = "job, pool") -> str:
    """Return the greater of two values; `by`: the labels that both have."""
    marked = " or ".join(f'label_replace({expr}, "way", "{way}", "", "")' for way, expr in (("1", one), ("2", other)))
    return f"max by ({by}) ({marked})"


def of_open(per_series: str, by: str) -> str:
    """Return a sum over the pools that are open where they are scraped now."""
    return f"sum by ({by}) ({per_series} and on (job, instance, pool) {chosen('connections_max')} > 0)"


def in_use(thresholds: Thresholds, by: str = "job, pool") -> str:
    """Return the share of the limit that is lent, seen both ways, and no more than all.

    Each way is blind where the other sees.  The gauge sees nothing of bursts between two scrapes, but they are short,
    and their time is counted well.  Time is counted when a connection comes back: nothing of a lease that lasts and
    lasts, and when a long one ends all at once, most of it from before the window; ten that lasted for ten minutes
    would be a hundred connections.  A cap by what the gauge saw would make the counted time as blind as the gauge.  So
    the counted time is left out only where long leases have ended, which the gauge cannot have missed.  Long ones are
    told by the histogram.

    Use and limit are of the same pools and of the same time.  What an instance that is gone has used would fill the
    limits of those that are there, at each deployment anew; so would the use of processes that have ended behind one
    address (`PROMETHEUS_MULTIPROC_DIR`), were the limit that of the moment.
    """
    window = "[$__rate_interval]"
    active = chosen("connections", 'state="active"')
    seen = of_open(f"avg_over_time({active}{window})", by)
    counted = of_open(f"rate({chosen('connection_use_seconds_sum')}{window})", by)
    short = chosen("connection_use_seconds_bucket", f'le="{float(thresholds.long_lease_seconds)}"')
    ended = of_open(f"increase({chosen('connection_use_seconds_count')}{window})", by)
    long = f"{ended} - {of_open(f'increase({short}{window})', by)}"
    limit = of_open(f"avg_over_time({chosen('connections_max')}{window})", by)
    return f"clamp_max({greater(f'{counted} unless {long} > {thresholds.some_events:g}', seen, by)} / {limit}, 1)"


def waiting(by: str = "job, pool") -> str:
    """Return how many callers wait, seen both ways: a wait is counted when it ends, and some never do.

    Of an instance that is gone nobody waits any more.
    """
    pending = chosen("pending_acquires")
    seen = f"sum by ({by}) (avg_over_time({pending}[$__rate_interval]) and {pending})"
    return greater(rate("acquire_wait_seconds_sum", by), seen, by)


def slow(thresholds: Thresholds, by: str = "job, pool") -> str:
    """Return the share of acquires that waited too long, in vain or not; where there were none there is none."""
    bound = f'le="{float(thresholds.slow_wait_seconds)}"'
    return f"1 - {rate('acquire_wait_seconds_bucket', by, bound)} / ({rate('acquire_wait_seconds_count', by)} > 0)"


def burning(thresholds: Thresholds, budget: float) -> Sequence[tuple[float, str]]:
    """Return the steps of a share that has a budget: more than may, and where each of the two alerts on it calls."""
    return [
        (budget, YELLOW),
        (round(thresholds.slow_burn * budget, 9), ORANGE),
        (round(thresholds.fast_burn * budget, 9), RED),
    ]


def burned(thresholds: Thresholds, budget: float) -> str:
    """Say what these steps mean."""
    slow_burn, fast_burn = (f"{factor * budget * 100:g} %" for factor in (thresholds.slow_burn, thresholds.fast_burn))
    return (
        f"Yellow: more than the {budget * 100:g} % that may. Orange, red: so much that somebody is told, if it lasts "
        f"(over {slow_burn}), or called (over {fast_burn})."
    )


def share(part: str, whole: str) -> str:
    """Return a share; where there is no traffic there is none."""
    return f"{part} / ({whole} > 0)"


# --- what a panel is told ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """One line of PromQL.

    Attributes:
        expr: It.
        legend: How its series are called; ``{{label}}`` stands for a label's value.
        warn: For a stat with more than one query: where this one changes to red.
    """

    expr: str
    legend: str = ""
    warn: float | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What all kinds have.

    Attributes:
        title: The question in few words.
        description: What it shows, and what to do when it is bad.
        queries: What is asked.
        unit: Grafana's name of the unit.
        width: In columns, of 24.
        height: In rows of the grid.
    """

    title: str
    description: str
    queries: Sequence[Query]
    unit: str
    width: int = 8
    height: int = 8


@dataclass(frozen=True, kw_only=True)
class Stat(Panel):
    """One number that changes colour: of now, and therefore without a line behind it.

    With a line it would be the last number of the range, however old, and stay red long after the last call.

    Attributes:
        steps: From which value on it has which colour; green below.
        no_value: What stands there when there is none.
        decimals: How many are shown; as many as Grafana likes where it is not said.
    """

    steps: Sequence[tuple[float, str]] = ()
    decimals: int | None = None
    no_value: str = "no traffic"
    height: int = 4
    width: int = 3


@dataclass(frozen=True, kw_only=True)
class Lines(Panel):
    """Lines over time.

    Attributes:
        stacked: Whether they stand on each other.
        steps: Thresholds that are drawn, and in which colour.
        greatest: The end of the axis, where there is one.
    """

    stacked: bool = False
    steps: Sequence[tuple[float, str]] = ()
    greatest: float | None = None


@dataclass(frozen=True, kw_only=True)
class Heat(Panel):
    """A histogram over time."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table: a query by job and pool.

    Attributes:
        name: Its head.
        expr: The query.
        unit: Grafana's name of the unit.
        steps: As in `Stat`.
        decimals: As in `Stat`.
    """

    name: str
    expr: str
    unit: str
    steps: Sequence[tuple[float, str]] = ()
    decimals: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rows(Panel):
    """A table with a row for each pool; the first column decides the order."""

    columns: Sequence[Column] = field(default=())
    link: str = ""
    labels: Sequence[str] = ("job", "pool")


# --- how it is built --------------------------------------------------------------------------------------------------


def build(panel: Panel, number: int, place: model.GridPos) -> Builder:
    """Return a panel in the words of the SDK."""
    made: Builder
    if isinstance(panel, Stat):
        made = _stat(panel)
    elif isinstance(panel, Lines):
        made = _lines(panel)
    elif isinstance(panel, Heat):
        made = _heat()
    elif isinstance(panel, Rows):
        made = _rows(panel)
    else:
        raise TypeError(f"{panel!r} is of no kind")
    made.id(number).title(panel.title).description(panel.description).datasource(_SOURCE).grid_pos(place)
    if not isinstance(panel, Rows):
        made.unit(panel.unit)
        for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
            target = prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend)
            target = target.instant() if isinstance(panel, Stat) else target.range()
            if isinstance(panel, Heat):
                target.format(PromQueryFormat.HEATMAP)
            made.with_target(target.datasource(_SOURCE))
    return made


def _steps(steps: Sequence[tuple[float, str]]) -> dashboard.ThresholdsConfig:
    base = model.Threshold(value=None, color=GREEN)
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([base, *(model.Threshold(value=value, color=color) for value, color in steps)])
    )


def _nothing(text: str) -> model.SpecialValueMap:
    """Say in grey that there is no value: Grafana gives it the lowest step's colour otherwise, and that is green."""
    return model.SpecialValueMap(
        options=model.DashboardSpecialValueMapOptions(
            match=model.SpecialValueMatch.NULL_AND_NAN, result=model.ValueMappingResult(text=text, color=GREY)
        )
    )


def _stat(panel: Stat) -> stat.Panel:
    made = (
        stat.Panel()
        .thresholds(_steps(panel.steps))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .color_mode(m_common.BigValueColorMode.BACKGROUND_SOLID)
        .graph_mode(m_common.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(values=False))
        .text_mode(m_common.BigValueTextMode.AUTO)
        .no_value(panel.no_value)
        .mappings([_nothing(panel.no_value)])
        .min(0)
    )
    if panel.decimals is not None:
        made.decimals(panel.decimals)
    for query in panel.queries:
        if query.warn is not None:
            made.override_by_name(
                query.legend,
                [model.DynamicConfigValue(id_val="thresholds", value=_steps([(query.warn, RED)]).build())],
            )
    return made


def _coloured(made: timeseries.Panel, queries: Sequence[Query]) -> None:
    """Give what has a colour of its own that colour."""
    for query in queries:
        label = query.legend.removeprefix("{{").removesuffix("}}") if query.legend.startswith("{{") else ""
        of_label = COLOURS.get(label, {})
        wanted = of_label if label else {query.legend: of_label[query.legend]} if query.legend in of_label else {}
        for name, colour in wanted.items():
            made.override_by_name(
                name,
                [model.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})],
            )


def _lines(panel: Lines) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .min(0)
        .no_value("nothing")
        .line_width(1)
        .fill_opacity(60 if panel.stacked else 10)
        .show_points(m_common.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(m_common.LegendDisplayMode.TABLE)
            .placement(m_common.LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
            .calcs(["lastNotNull", "max"])
            .sort_by("Max")
            .sort_desc(sort_desc=True)
        )
        .tooltip(common.VizTooltipOptions().mode(m_common.TooltipDisplayMode.MULTI).sort(m_common.SortOrder.DESCENDING))
    )
    if panel.stacked:
        made.stacking(common.StackingConfig().mode(m_common.StackingMode.NORMAL).group("A"))
    if panel.greatest is not None:
        made.max(panel.greatest)
    if panel.steps:
        made.thresholds(_steps(panel.steps)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(m_common.GraphThresholdsStyleMode.DASHED)
        )
    _coloured(made, panel.queries)
    return made


def _heat() -> heatmap.Panel:
    return (
        heatmap.Panel()
        .calculate(calculate=False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(m_heatmap.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .fill("dark-orange")
            .scale(m_heatmap.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
            .reverse(reverse=False)
        )
        .y_axis(heatmap.YAxisConfig().unit("s").min(0))
        .cell_gap(1)
        .show_legend()
        .mode(m_common.TooltipDisplayMode.SINGLE)
    )


def _rows(panel: Rows) -> table.Panel:
    made = (
        table.Panel()
        .show_header(show_header=True)
        .no_value("-")
        .sort_by([common.TableSortByFieldState().display_name(panel.columns[0].name).desc(desc=True)])
        .unit(panel.unit)
    )
    names: dict[str, str] = {}
    for letter, column in zip("ABCDEFGHIJKL", panel.columns, strict=False):
        made.with_target(
            prometheus.Dataquery()
            .ref_id(letter)
            .expr(column.expr)
            .instant()
            .format(PromQueryFormat.TABLE)
            .datasource(_SOURCE)
        )
        names[f"Value #{letter}"] = column.name
        properties = [model.DynamicConfigValue(id_val="unit", value=column.unit)]
        if column.decimals is not None:
            properties.append(model.DynamicConfigValue(id_val="decimals", value=column.decimals))
        if column.steps:
            properties += [
                model.DynamicConfigValue(id_val="thresholds", value=_steps(column.steps).build()),
                model.DynamicConfigValue(id_val="color", value={"mode": "thresholds"}),
                model.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-background"}),
            ]
        made.override_by_name(column.name, properties)
    if panel.link:
        made.override_by_name(
            "pool",
            [
                model.DynamicConfigValue(
                    id_val="links", value=[{"title": "Look into this pool", "url": panel.link, "targetBlank": False}]
                )
            ],
        )
    order = {name: index for index, name in enumerate([*panel.labels, *names])}
    made.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    made.with_transformation(
        model.DataTransformerConfig(
            id_val="organize",
            options={"excludeByName": {"Time": True}, "indexByName": order, "renameByName": names},
        )
    )
    return made


# --- a whole dashboard ------------------------------------------------------------------------------------------------

Row: TypeAlias = tuple[str, Sequence[Panel]]


def assemble(*, uid: str, title: str, description: str, rows: Sequence[Row]) -> model.Dashboard:
    """Lay rows of panels out from top to bottom, each from left to right, under the variables that all share."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["pooledhttp"])
        .readonly()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .link(
            dashboard.DashboardLink("pooledhttp")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["pooledhttp"])
            .as_dropdown(as_dropdown=False)
            .include_vars(include_vars=True)
            .keep_time(keep_time=True)
        )
        .annotation(
            dashboard.AnnotationQuery()
            .name("Versions")
            .datasource(_SOURCE)
            .enable(enable=True)
            .icon_color("purple")
            .expr(f"count by (job, version) (pooledhttp_build_info{{{CHOSEN_PROCESSES}}}) unless "
                  f"count by (job, version) (pooledhttp_build_info{{{CHOSEN_PROCESSES}}} offset 5m)")
        )
    )  # fmt: skip
    for variable in _variables():
        made.with_variable(variable)
    number, top = 1, 0
    for row, panels in rows:
        made.with_row(dashboard.Row(row).id(number).grid_pos(model.GridPos(h=1, w=_ACROSS, x=0, y=top)))
        number, top = number + 1, top + 1
        left, tallest = 0, 0
        for panel in panels:
            if left + panel.width > _ACROSS:
                left, top, tallest = 0, top + tallest, 0
            place = model.GridPos(h=panel.height, w=panel.width, x=left, y=top)
            made.with_panel(build(panel, number, place))
            number, left, tallest = number + 1, left + panel.width, max(tallest, panel.height)
        top += tallest
    return made.build()


def _variables() -> list[dashboard.DatasourceVariable | dashboard.QueryVariable]:
    of_processes = 'pooledhttp_build_info{job=~"$job"}'
    of_pools = f"pooledhttp_connections_max{{{CHOSEN_PROCESSES}}}"
    return [
        dashboard.DatasourceVariable("datasource")
        .label("Data source")
        .type("prometheus")
        .current(model.VariableOption(selected=True, text="default", value="default")),
        _query_variable("job", "Job", "label_values(pooledhttp_build_info, job)"),
        _query_variable("instance", "Instance", f"label_values({of_processes}, instance)"),
        _query_variable("pool", "Pool", f"label_values({of_pools}, pool)"),
    ]


def _query_variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(_SOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".+")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )
