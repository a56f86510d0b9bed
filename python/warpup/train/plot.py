"""Line and bar charts as SVG text, without a plotting package."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 30, 36


@dataclass(frozen=True)
class Line:
    """One curve: points (x, mean, spread), joined in order; a spread above 0 draws a band of +- spread around it."""

    label: str
    color: str
    points: Sequence[tuple[float, float, float]]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(title: str, x_label: str, lines: Sequence[Line], y_range: tuple[float, float] | None = None) -> str:
    """Chart of the curves; an empty text if no curve has a point."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    y_low, y_high = y_range or (min(p[1] - p[2] for p in points), max(p[1] + p[2] for p in points))
    if y_range is None:
        pad = (y_high - y_low) * 0.06 or 1.0
        y_low, y_high = (0.0 if 0 <= y_low < 0.3 * y_high else y_low - pad), y_high + pad

    def x(value):
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - x_low) / ((x_high - x_low) or 1)

    def y(value):
        value = min(max(value, y_low), y_high)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y_low) / ((y_high - y_low) or 1)

    parts = [grid(title, x_label, [(x(t), t) for t in ticks(x_low, x_high)], [(y(t), t) for t in ticks(y_low, y_high)])]
    for line in lines:
        if not line.points:
            continue
        if any(spread for _, _, spread in line.points):
            upper = [f"{x(a):.1f},{y(m + s):.1f}" for a, m, s in line.points]
            lower = [f"{x(a):.1f},{y(m - s):.1f}" for a, m, s in reversed(line.points)]
            parts.append(f'<polygon points="{" ".join(upper + lower)}" fill="{line.color}" opacity=".15"/>')
        path = " ".join(f"{x(a):.1f},{y(m):.1f}" for a, m, _ in line.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.color}" stroke-width="2"/>')
        if len(line.points) <= 30:
            parts += [
                f'<circle cx="{x(a):.1f}" cy="{y(m):.1f}" r="2.6" fill="{line.color}"/>' for a, m, _ in line.points
            ]
    return svg(parts, title)


def bar_chart(title: str, bars: Sequence[tuple[str, str, Sequence[tuple[str, float, float, float]]]]) -> str:
    """Groups of bars in 0..1: (group, color, [(bar, value, spread, opacity)]), each with its value above it."""
    parts = [grid(title, "", [], [(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * t, t) for t in ticks(0, 1)])]
    group_width = (WIDTH - LEFT - RIGHT) / len(bars)
    for i, (group, color, values) in enumerate(bars):
        start, width = LEFT + group_width * (i + 0.12), group_width * 0.76 / len(values)
        for j, (name, value, spread, opacity) in enumerate(values):
            top = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value
            a, middle = start + j * width, start + (j + 0.5) * width
            parts.append(
                f'<rect x="{a:.1f}" y="{top:.1f}" width="{width - 2:.1f}" height="{HEIGHT - BOTTOM - top:.1f}" '
                f'fill="{color}" opacity="{opacity}"><title>{escape(f"{group}, {name}: {value:.3f}")}</title></rect>'
            )
            reach = (HEIGHT - TOP - BOTTOM) * spread
            if spread:
                parts.append(
                    f'<path d="M{middle:.1f} {top - reach:.1f}V{top + reach:.1f}" class="axis" stroke-width="1.5"/>'
                )
            parts.append(f'<text x="{middle:.1f}" y="{top - reach - 4:.1f}" text-anchor="middle">{value:.2f}</text>')
        parts.append(
            f'<text x="{start + group_width * 0.38:.1f}" y="{HEIGHT - 18}" text-anchor="middle">{escape(group)}</text>'
        )
    return svg(parts, title)


def grid(title: str, x_label: str, x_ticks, y_ticks) -> str:
    """Title, axis label, grid lines and tick labels."""
    parts = [f'<text x="{LEFT}" y="16" class="title">{escape(title)}</text>']
    for place, value in y_ticks:
        parts.append(f'<path d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{value:g}</text>')
    for place, value in x_ticks:
        parts.append(f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<path d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}" class="axis"/>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return "".join(parts)


def svg(parts: Sequence[str], title: str) -> str:
    """The parts as one picture."""
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
