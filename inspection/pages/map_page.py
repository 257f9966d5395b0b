"""Both spaces on a plane: every item a point, in the colour of its top category; one user's items marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from nicegui import events, ui
from numpy.typing import NDArray

from baguni.domain.release import Release
from inspection.connections import Connections, blocking
from inspection.pages.layout import (
    CARD,
    COLUMNS,
    SMALL,
    Problem,
    active_release,
    address,
    ask_for,
    attempt,
    frame,
    heading,
    is_seen,
    problem,
    wanted,
)
from inspection.words import plural

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#a463f2", "#9c6b4e", "#97bbf5", "#3ca951")
OTHER, OTHER_COLOUR, MARK_COLOUR = "other", "#9aa0a6", "#111111"
SPACES = {False: ("Content", "what an item's text says it is"), True: ("Collaborative", "who buys it, and when")}


def add_map_page(connections: Connections) -> None:
    """`/map?user=…`."""

    @ui.page("/map", title="Map · baguni inspect")
    async def map_page(user: str = "") -> None:
        with frame(connections, "/map"):
            with ui.row().classes("w-full items-center gap-3"):
                ask_for("Mark the items of user", user, "/map", "user", "w-56", "Mark")
                marks_label = ui.label().classes(SMALL).props("data-testid=marked")
            if not await is_seen():
                return
            release = await active_release(connections)
            if release is None:
                return
            marked = await _marked(connections, release, user.strip())
            if user:
                marks_label.set_text(f"{plural(len(marked), 'item')} of this user in black")
            await show_maps(connections, release, marked)


async def _marked(connections: Connections, release: Release, user_id: str) -> list[int]:
    """Indexes of the items that the user's history names."""
    if not user_id:
        return []
    history = await wanted(attempt(connections.history(user_id)))
    if isinstance(history, Problem):
        problem(history.sentence)
        return []
    if not history.events:
        problem(f"no history is stored for user {user_id!r}: nothing is marked")
    index = release.catalog.index
    return sorted({index[event.item_id] for event in history.events if event.item_id in index})


async def show_maps(connections: Connections, release: Release, marked: Sequence[int]) -> None:
    """Both spaces side by side."""
    colours = palette(release)
    with ui.element("div").classes(COLUMNS + " lg:grid-cols-2"):
        for collaborative, (name, meaning) in SPACES.items():
            plane = await wanted(blocking(partial(connections.plane, release.release_id, collaborative)))
            with ui.card().classes(CARD):
                kept = f"The two principal components keep {100 * plane.explained:.0f} % of the variance of the directions."
                heading(f"{name} space", f"{meaning[:1].upper()}{meaning[1:]}. {kept}")
                ui.echart(chart(release, plane.points_N2, colours, marked), on_point_click=_open).classes(
                    "w-full h-96 lg:h-[34rem]"
                )
    ui.label(
        "Directions are vectors at length 1, without the popularity that the collaborative space holds. Point at an item for "
        "its name, click for its page, turn the wheel to come closer; a name in the legend hides its items."
    ).classes(SMALL)


def palette(release: Release) -> dict[str, str]:
    """The largest top categories with their colours, largest first; all others are one."""
    largest = Counter(top_category(release, index) for index in range(len(release.catalog))).most_common(len(COLOURS))
    return {name: colour for (name, _), colour in zip(largest, COLOURS, strict=False)} | {OTHER: OTHER_COLOUR}


def top_category(release: Release, index: int) -> str:
    """The first part of the item's category path."""
    path = release.catalog.items[index].category_path
    return path[0] if path else OTHER


def chart(
    release: Release, points_N2: NDArray[np.float32], colours: dict[str, str], marked: Sequence[int]
) -> dict[str, Any]:
    """What ECharts draws. Names are drawn on the canvas, never put into the page as HTML."""
    rounded = np.round(points_N2.astype(float), 4).tolist()

    def point(index: int) -> list[object]:
        item = release.catalog.items[index]
        return [*rounded[index], item.title, item.category, item.item_id]

    groups: dict[str, list[list[object]]] = {name: [] for name in colours}
    for index in range(len(rounded)):
        name = top_category(release, index)
        groups[name if name in groups else OTHER].append(point(index))
    series = [
        {
            "type": "scatter",
            "name": name,
            "data": data,
            "symbolSize": 4,
            "color": colours[name],
            "itemStyle": {"opacity": 0.6},
        }
        for name, data in groups.items()
        if data
    ]
    if marked:
        marks = {"type": "scatter", "name": "the user's", "data": [point(index) for index in marked], "z": 5}
        series.append({**marks, "symbol": "diamond", "symbolSize": 7, "color": MARK_COLOUR})
    axis = {"show": False, "scale": True, "min": "dataMin", "max": "dataMax"}
    return {
        "animation": False,
        "grid": {"left": 8, "right": 8, "top": 40, "bottom": 8},
        "legend": {"type": "scroll", "top": 0},
        "tooltip": {
            "renderMode": "richText",
            "confine": True,
            ":formatter": "point => point.value[2] + '\\n' + point.value[3]",
        },
        "xAxis": axis,
        "yAxis": axis,
        "dataZoom": [{"type": "inside", "xAxisIndex": 0}, {"type": "inside", "yAxisIndex": 0}],
        "series": series,
    }


def _open(event: events.EChartPointClickEventArguments) -> None:
    if isinstance(event.value, list):
        ui.navigate.to(address("/item", id=str(event.value[-1])))
