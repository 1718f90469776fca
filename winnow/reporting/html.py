"""HTML written by hand: a dozen elements, the style sheet, and number formats.

Text is escaped where it meets markup (`tag`), so a class called <b> stays a name; only `Html` passes unchanged. The
page is one file that loads nothing from the network: pictures are data, fonts are the reader's own.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MISSING = "–"
NBSP = "\u00a0"


@dataclass(frozen=True)
class Html:
    """Markup that is already escaped."""

    markup: str


Content = str | Html


def tag(name: str, *children: Content, css: str = "", more: str = "") -> Html:
    """Return <name class=css more>children</name>; `more` is inserted unchanged."""
    opening = " ".join(part for part in (name, f'class="{html.escape(css)}"' if css else "", more) if part)
    return Html(f"<{opening}>{join(*children).markup}</{name}>")


def join(*parts: Content) -> Html:
    """Return the parts one after the other. A number and its percent sign stay on one line."""
    return Html("".join(part.markup if isinstance(part, Html) else _escape(part) for part in parts))


def _escape(text: str) -> str:
    return html.escape(text).replace(" %", f"{NBSP}%")


def paragraph(*children: Content, css: str = "") -> Html:
    """Return a <p>."""
    return tag("p", *children, css=css)


def strong(text: str) -> Html:
    """Return a <strong>."""
    return tag("strong", text)


def two_lines(first: Content, second: Content) -> Html:
    """Return a figure with a smaller second line, which qualifies it."""
    return join(first, tag("small", second))


def bullets(items: Iterable[Content]) -> Html:
    """Return a <ul>."""
    return tag("ul", *[tag("li", item) for item in items])


@dataclass(frozen=True)
class Row:
    """A table row; the first cell is its heading."""

    cells: Sequence[Content]
    css: str = ""


def table(heading: Sequence[Content], rows: Iterable[Row], *, caption: Content, left: int = 1) -> Html:
    """Return a table that scrolls sideways on narrow pages; the first `left` columns hold text, the rest numbers."""

    def css(column: int) -> str:
        return "left" if column < left else ""

    head = tag("tr", *[tag("th", cell, css=css(column), more='scope="col"') for column, cell in enumerate(heading)])
    body = []
    for row in rows:
        first = tag("th", row.cells[0], css="left", more='scope="row"')
        rest = [tag("td", cell, css=css(column)) for column, cell in enumerate(row.cells) if column > 0]
        body.append(tag("tr", first, *rest, css=row.css))
    table = tag("table", tag("thead", head), tag("tbody", *body))
    # The caption stays outside of the scrolling part, so that it can be read on a phone.
    return tag("figure", tag("figcaption", caption), tag("div", table, css="scroll", more='tabindex="0"'))


def figure(picture: bytes, alt: str, caption: Content, css: str = "") -> Html:
    """Return a picture (PNG or SVG) inside the page with its text alternative. css "wide": scrolls on narrow pages."""
    kind = "png" if picture.startswith(b"\x89PNG") else "svg+xml"
    data = base64.b64encode(picture).decode("ascii")
    image = Html(f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(alt)}">')
    return tag("figure", tag("div", image, css="scroll"), tag("figcaption", caption), css=css)


def side_by_side(*children: Html) -> Html:
    """Return the children next to each other where there is room."""
    return tag("div", *children, css="pair")


def section(anchor: str, title: str, *children: Html) -> Html:
    """Return a <section> with its heading."""
    return tag("section", tag("h2", title), *children, more=f'id="{html.escape(anchor)}"')


def document(title: str, *body: Html) -> str:
    """Return the whole HTML file."""
    head = join(
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        Html(f"<style>{CSS}</style>"),
    )
    page = tag("html", tag("head", head), tag("body", tag("main", *body)), more='lang="en"')
    return f"<!doctype html>\n{page.markup}\n"


def percent(fraction: float | None, decimals: int = 1) -> str:
    """Format a fraction: 0.614 -> 61.4 %."""
    return MISSING if fraction is None else f"{fraction * 100:.{decimals}f}{NBSP}%"


def signed(points: float | None, plus: bool = False) -> str:
    """Format with one decimal, a true minus sign and no minus zero; `plus`: gains get a sign, too."""
    if points is None:
        return MISSING
    rounded = round(points, 1) + 0.0
    return f"{rounded:{'+' if plus and rounded else ''}.1f}".replace("-", "−")


def number(value: float | None, decimals: int = 0) -> str:
    """Format with thousands separators: 1234.5 -> 1,234 or 1,234.5."""
    return MISSING if value is None else f"{value:,.{decimals}f}"


def digits(value: float | None, unit: str = "") -> str:
    """Format with three significant digits, never an exponent: 0.0265, 0.265, 2.65, 26.5, 265, 2,650."""
    if value is None:
        return MISSING
    decimals = next((count for count, limit in ((0, 100), (1, 10), (2, 1), (3, 0.1)) if abs(value) >= limit), 4)
    return f"{value:,.{decimals}f}" + (f"{NBSP}{unit}" if unit else "")


def millions(value: float | None) -> str:
    """Format in millions: 690000 -> 0.69 M."""
    return MISSING if value is None else digits(value / 1e6, "M")


CSS = """
:root { --ink: #1f2430; --muted: #5b6270; --rule: #d9dce3; --blue: #0072b2; --mark: #fdf1e7; --bad: #fbe9e1; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
p, li, dd, figcaption { max-width: 44rem; text-wrap: pretty; overflow-wrap: break-word; }
h1 { margin: 0.2rem 0 0.8rem; font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.12; letter-spacing: -0.015em; }
h2 { margin: 0 0 0.8rem; font-size: 1.35rem; line-height: 1.25; }
h3 { margin: 1.6rem 0 0.4rem; font-size: 1rem; }
section { margin-top: 2.6rem; padding-top: 1.4rem; border-top: 1px solid var(--rule); }
.above { margin: 0; color: var(--muted); font-size: 0.9rem; }
.lead { font-size: 1.18rem; line-height: 1.5; max-width: 50rem; }
.note { color: var(--muted); font-size: 0.9rem; }
.heed { border-left: 4px solid #e69f00; padding: 0.1rem 0 0.1rem 1rem; margin: 1.4rem 0; }
.heed h3, .heed ul { margin: 0.2rem 0; }
nav { margin-top: 1.6rem; font-size: 0.9rem; }
nav a { color: var(--blue); margin-right: 1.1rem; white-space: nowrap; }
ul { padding-left: 1.2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 0.8rem; margin: 1.4rem 0; }
.tile { border: 1px solid var(--rule); border-top: 3px solid var(--blue); padding: 0.7rem 0.9rem 0.8rem; }
.tile span, .tile small { display: block; color: var(--muted); font-size: 0.85rem; line-height: 1.35; }
.tile strong { display: block; font-size: 1.55rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.86rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
th, td { padding: 0.38rem 0.55rem; text-align: right; vertical-align: top; white-space: nowrap; font-weight: normal; }
.left { text-align: left; }
thead th { vertical-align: bottom; font-weight: 600; border-bottom: 2px solid var(--ink); }
tbody tr { border-bottom: 1px solid var(--rule); }
tbody th { position: sticky; left: 0; background: #fff; font-weight: 600; }
td small, th small { display: block; color: var(--muted); font-size: 0.9em; font-weight: normal; }
tr.marked, tr.marked th { background: var(--mark); }
.prose td { white-space: normal; min-width: 8.6rem; max-width: 17rem; text-align: left; font-size: 0.82rem; }
td:has(.fails) { background: var(--bad); }
td:has(.unshown) { background: #f3f4f6; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(25rem, 100%), 1fr)); gap: 0 2rem; }
.pair > * { min-width: 0; }
figure { margin: 1.2rem 0 1.6rem; }
img { display: block; max-width: min(100%, 46rem); height: auto; }
figcaption { color: var(--muted); font-size: 0.86rem; line-height: 1.45; margin: 0.4rem 0; }
@media (max-width: 40rem) { .wide img { max-width: none; width: 36rem; } }
dt { font-weight: 600; margin-top: 0.8rem; }
dd { margin: 0; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size: 0.88em;
  overflow-wrap: anywhere; }
@page { size: A4; margin: 14mm; }
@media print {
  html { font-size: 9.5pt; } main { max-width: none; padding: 0; } nav { display: none; }
  .scroll { overflow: visible; } table { font-size: 0.78rem; } th, td { padding: 0.25rem 0.38rem; }
  .prose td { min-width: 2.2cm; font-size: 0.76rem; }
  tbody th { position: static; } thead { display: table-header-group; }
  tr, img, .tile, .heed { break-inside: avoid; } .scroll:has(img) { break-after: avoid; }
  h2, h3, figcaption:first-child { break-after: avoid; }
  section { margin-top: 1.2rem; padding-top: 0.8rem; } .tiles { grid-template-columns: repeat(4, 1fr); }
  .pair { grid-template-columns: 1fr 1fr; } .pair table { font-size: 0.7rem; }
  .pair th, .pair td { padding: 0.2rem; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
