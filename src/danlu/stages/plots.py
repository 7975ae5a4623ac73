"""Line plots as SVG in HTML, without a plotting library: they stretch to any width, follow the page's theme, need no script.

The drawing stretches, strokes and text do not: lines carry `non-scaling-stroke`, and the labels are HTML placed in per cent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


_POINTS = 600  # of one line; more than the pixels of a phone, fewer than a page takes notice of


@dataclass(frozen=True)
class Series:
    """A line of a plot. look: raw (faint), line, or dots (joined points)."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    look: str = "line"


def number(value: float | None, digits: int = 4) -> str:
    """A number for people: `12,345`, `0.8315`, `2e-05`; a dash for none and for not-a-number."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


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
    """At most so many points with the same outline: the lowest and highest of each stretch are kept."""
    if len(xs) <= points:
        return list(xs), list(ys)
    kept: set[int] = {0, len(xs) - 1}
    stretch = 2 * len(xs) / points
    for part in range(points // 2):
        members = [
            i for i in range(int(part * stretch), min(int((part + 1) * stretch), len(xs))) if math.isfinite(ys[i])
        ]
        if members:
            kept |= {min(members, key=ys.__getitem__), max(members, key=ys.__getitem__)}
    return [xs[i] for i in sorted(kept)], [ys[i] for i in sorted(kept)]


def line_plot(
    title: str,
    series: Sequence[Series],
    *,
    about: str = "",
    zero: bool = False,
    wide: bool = False,
    across: str = "step",
) -> Markup:
    """A figure with its legend, axes and a text for screen readers; empty when no series holds a finite point.

    zero: the vertical axis begins at 0. wide: room for more ticks. across: what the horizontal axis counts.
    """
    thinned = [(one, *thin(one.xs, one.ys)) for one in series]
    finite = [(x, y) for _, xs, ys in thinned for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if not finite:
        return Markup()
    left, right = min(x for x, _ in finite), max(x for x, _ in finite)
    low, high = min(y for _, y in finite), max(y for _, y in finite)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (0.0 if zero and low >= 0 else low - margin), high + margin
    width = right - left or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - left) / width * 1000 if right > left else 500.0, (high - y) / (high - low) * 1000

    marks = [
        mark for one, xs, ys in thinned for mark in _marks(one.look, [place(x, y) for x, y in zip(xs, ys, strict=True)])
    ]
    across_ticks = [(x, place(x, low)[0] / 10) for x in ticks(left, right, 8 if wide else 4) if x == int(x)] or [
        (left, 50.0)
    ]
    up_ticks = [(y, place(left, y)[1] / 10) for y in ticks(low, high, 4)]
    grid = [Markup('<path class="grid" d="M0 {0:.1f}H1000"/>').format(at * 10) for _, at in up_ticks]
    last = "; ".join(f"{one.name}: {number(ys[-1])} at {across} {number(xs[-1])}" for one, xs, ys in thinned if xs)
    data = [
        {"name": one.name, "look": one.look, "x": xs, "y": [y if math.isfinite(y) else None for y in ys]}
        for one, xs, ys in thinned
        if xs
    ]
    legend = [Markup('<span class="key {}">{}</span>').format(one.look, one.name) for one, xs, _ in thinned if xs]
    return Markup(
        '<figure class="plot" data-across="{across}" data-box="{box}" data-series="{data}">'
        "<figcaption><b>{title}</b><span class=legend>{legend}</span></figcaption>"
        '<div class="frame"><div class="ys" aria-hidden="true">{ys}</div>'
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{label}">{shapes}</svg>'
        '<div class="xs" aria-hidden="true">{xs}</div></div>{about}</figure>'
    ).format(
        across=across,
        box=json.dumps([left, right, low, high]),
        data=json.dumps(data),
        title=title,
        legend=Markup().join(legend) if len(legend) > 1 else "",
        ys=Markup().join(Markup('<span style="top:{:.2f}%">{}</span>').format(at, number(y)) for y, at in up_ticks),
        xs=Markup().join(
            Markup('<span style="left:{:.2f}%">{}</span>').format(at, number(x)) for x, at in across_ticks
        ),
        label=f"{title}. {last}",
        shapes=Markup().join([*grid, *marks]),
        about=Markup("<p class=note>{}</p>").format(about) if about else "",
    )


def _marks(look: str, points: Sequence[tuple[float, float]]) -> Iterator[Markup]:
    """The line, broken where a value is missing; a lone point is a line of no length, which the round caps turn into a dot."""
    path, pen = [], "M"
    for x, y in points:
        if math.isfinite(y):
            path.append(f"{pen}{x:.1f} {y:.1f}")
            pen = "L"
        else:
            pen = "M"
    if path:
        yield Markup('<path class="stroke {}" d="{}"/>').format(escape(look), "".join(path))
    if look == "dots" or len(path) == 1:
        yield Markup('<path class="dot {}" d="{}"/>').format(
            look, "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points if math.isfinite(y))
        )
