"""A line plot as SVG, so that the curve can be shown without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 760, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 30, 50
_COLOURS = ("#0060a8", "#c44e00", "#2a7f3f", "#7a3b9a", "#555555")


def line_plot(
    title: str, x_name: str, y_name: str, lines: Mapping[str, Sequence[tuple[float, float]]]
) -> str:
    """The SVG text of a plot with both axes starting at zero and a label at the end of each line."""
    points = [point for line in lines.values() for point in line]
    x_step, y_step = (_step(max((point[axis] for point in points), default=1.0)) for axis in (0, 1))
    x_top = x_step * 5
    y_top = y_step * 5
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + plot_width * x / x_top, _TOP + plot_height * (1 - y / y_top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for number in range(6):
        x, base = at(number * x_step, 0)
        _, y = at(0, number * y_step)
        parts += [
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + plot_width}" y2="{y:.1f}" stroke="#dddddd"/>',
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number * y_step:g}</text>',
            f'<text x="{x:.1f}" y="{base + 18:.1f}" text-anchor="middle">{number * x_step:g}</text>',
        ]
    middle = _LEFT + plot_width / 2
    parts += [
        f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text transform="translate(16 {_TOP + plot_height / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>",
    ]
    label_y = float("-inf")
    ends = sorted(lines.items(), key=lambda item: -item[1][-1][1])
    for colour, (name, line) in zip(_COLOURS * len(lines), ends, strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line))
        x, y = at(*line[-1])
        label_y = max(y + 4, label_y + 14)
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<text x="{x + 8:.1f}" y="{label_y:.1f}" fill="{colour}">{escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _step(top: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten of which five reach the top."""
    scale = 10.0**-6
    while True:
        for factor in (1.0, 2.0, 2.5, 5.0):
            if 5 * factor * scale >= top:
                return factor * scale
        scale *= 10
