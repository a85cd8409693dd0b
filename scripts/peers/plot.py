"""Grouped horizontal bars as SVG, by hand: the same figures give the same file, and nothing need be installed."""

from xml.sax.saxutils import escape

COLOURS = {"lingqu": "#0b7285", "llama.cpp": "#adb5bd", "ik_llama.cpp": "#f08c00", "candle": "#9c36b5"}
BAR, GAP, LEFT, WIDTH = 16, 14, 190, 460  # pixels


def bars(title, groups):
    """`groups`: name -> contender -> (median, lowest, highest). Each group has a scale of its own: its best is full."""
    parts, y = [], 56
    for name, contenders in groups.items():
        if not contenders:
            continue
        full = max(highest for _, _, highest in contenders.values())
        middle = y + BAR * len(contenders) / 2 + 4
        parts.append(f'<text x="{LEFT - 10}" y="{middle:.0f}" text-anchor="end">{escape(name)}</text>')
        for contender, (median, lowest, highest) in contenders.items():
            to = [LEFT + WIDTH * value / full for value in (median, lowest, highest)]
            middle = y + BAR / 2 - 1
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{to[0] - LEFT:.1f}" height="{BAR - 2}" fill="{COLOURS[contender]}"/>'
                f'<line x1="{to[1]:.1f}" y1="{middle}" x2="{to[2]:.1f}" y2="{middle}" stroke="#212529"/>'
                f'<text x="{LEFT + WIDTH + 8}" y="{y + BAR - 4}">{median:.1f}</text>'
            )
            y += BAR
        y += GAP
    x, legend = LEFT, []
    for contender, colour in COLOURS.items():
        legend.append(f'<rect x="{x}" y="32" width="10" height="10" fill="{colour}"/>')
        legend.append(f'<text x="{x + 14}" y="41">{contender}</text>')
        x += 110
    size = f'width="{LEFT + WIDTH + 70}" height="{y}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
        f'<rect {size} fill="white"/><text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>'
        + "".join(legend)
        + "".join(parts)
        + "</svg>\n"
    )
