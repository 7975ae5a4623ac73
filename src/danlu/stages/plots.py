"""Plots without a plotting library: places for SVG and HTML that stretch to any width, follow the page's theme and need no script.

What is given back is drawn by a macro of page.html. The drawing stretches, strokes and text do not: lines carry
`non-scaling-stroke`, and the labels are HTML placed in per cent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


_POINTS = 600  # of one line; more than the pixels of a phone, fewer than a page takes notice of


@dataclass(frozen=True)
class Series:
    """A line of a plot. look: raw (faint), line, or dots (joined points). colour: 0 to 2. spans: (low, high) of each point."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    look: str = "line"
    colour: int = 0
    spans: Sequence[tuple[float, float]] = ()


def finite(value: Any) -> bool:
    """Whether it is a number that can be placed on an axis."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def number(value: Any, digits: int = 4) -> str:
    """A number for people: `12,345`, `0.8315`, `2e-05`; a dash for what is none."""
    if not isinstance(value, (int, float)) or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers within low..high, about as many as wanted."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power, 2 * power, 5 * power, 10 * power), key=lambda step: abs(math.log(step / rough)))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def smooth(ys: Sequence[float], weight: float) -> list[float]:
    """An exponential moving average without the bias of its start (Kingma and Ba 2015, section 3); broken values are passed over."""
    total, mass, result = 0.0, 0.0, []
    for y in ys:
        if math.isfinite(y):
            total, mass = weight * total + (1 - weight) * y, weight * mass + 1 - weight
        result.append(total / mass if mass else math.nan)
    return result


def thin(xs: Sequence[float], ys: Sequence[float], points: int = _POINTS) -> tuple[list[float], list[float]]:
    """At most so many points with the same outline: the ends, and the lowest and highest of each stretch."""
    kept = set(range(len(xs))) if len(xs) <= points else {0, len(xs) - 1}
    for stretch in np.array_split(np.arange(len(xs)), points // 2) if len(xs) > points else ():
        if members := [int(i) for i in stretch if math.isfinite(ys[i])]:
            kept |= {min(members, key=ys.__getitem__), max(members, key=ys.__getitem__)}
    return [xs[i] for i in sorted(kept)], [ys[i] for i in sorted(kept)]


def line_plot(
    title: str, series: Sequence[Series], *, about: str = "", zero: bool = False, wide: bool = False, across: str = "step", log: bool = False
) -> dict[str, Any] | None:  # fmt: skip
    """A figure with its legend, axes and a text for screen readers; None when no series holds a finite point.

    zero: the vertical axis begins at 0. wide: room for more ticks. across: what the horizontal axis counts. log: it is logarithmic,
    with a tick at each point.
    """
    lines = [(one, *thin(one.xs, one.ys)) for one in series if len(one.xs)]
    points = [(x, y) for _, xs, ys in lines for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if not points:
        return None
    heights = [y for _, y in points] + [end for one in series for span in one.spans for end in span]
    left, right, low, high = min(points)[0], max(points)[0], min(heights), max(heights)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (0.0 if zero and low >= 0 else low - margin), high + margin
    scale: Callable[[float], float] = math.log if log else float

    def along(x: float) -> float:
        """Per mille from the left."""
        return round(1000 * (scale(x) - scale(left)) / (scale(right) - scale(left)), 1) if right > left else 500.0

    def down(y: float) -> float:
        """Per mille from the top."""
        return round(1000 * (high - y) / (high - low), 1)

    shapes, data = [("grid", f"M0 {down(y)}H1000") for y in ticks(low, high, 4)], []
    for one, xs, ys in lines:
        there = [math.isfinite(y) for y in ys]  # a line is broken where a value is missing
        pens = ["L" if before else "M" for before in [False, *there]]
        marks = [(pen, along(x), down(y)) for pen, x, y, ok in zip(pens, xs, ys, there, strict=False) if ok]
        shapes.append((f"c{one.colour} stroke {one.look}", "".join(f"{pen}{x} {y}" for pen, x, y in marks)))
        if one.look == "dots" or len(marks) == 1:  # a line of no length, which round caps turn into a dot
            shapes.append((f"c{one.colour} dot", "".join(f"M{x} {y}h0" for _, x, y in marks)))
        if one.spans:
            ends = zip(one.xs, one.spans, strict=True)
            shapes.append((f"c{one.colour} span", "".join(f"M{along(x)} {down(a)}V{down(b)}" for x, (a, b) in ends)))
        known = {"x": xs, "y": [y if ok else None for y, ok in zip(ys, there, strict=True)], "at": list(map(along, xs))}
        data.append({"name": one.name, "look": f"c{one.colour} {one.look}", **known})
    across_ticks = sorted({x for x, _ in points}) if log else ticks(left, right, 8 if wide else 4)
    return {
        "title": title,
        "about": about,
        "across": across,
        "shapes": shapes,
        "series": data,
        "ys": [(down(y) / 10, number(y)) for y in ticks(low, high, 4)],
        "xs": [(along(x) / 10, number(x)) for x in across_ticks if x == int(x)],
        "said": "; ".join(f"{one.name}: {number(ys[-1])} at {across} {number(xs[-1])}" for one, xs, ys in lines),
    }
