"""HTML of the pages: elements, by Jinja2 templates that escape all text, and number formats.

A class called <b> stays a name: only `Html` (markupsafe's Markup) passes unchanged. A page is one file that loads
nothing from the network: pictures are data, fonts are the reader's own.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

MISSING = "–"
NBSP = "\u00a0"
Html = Markup
"""Markup that is already escaped."""
Content = str | Markup


def _keep_percent(value: Any) -> Any:
    """Keep a number and its percent sign on one line; markup passes unchanged."""
    return value.replace(" %", f"{NBSP}%") if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _environment() -> Environment:
    loader = PackageLoader("winnow.reporting")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=_keep_percent)


def _element(name: str, *arguments: Any) -> Html:
    """Return the markup of a macro of templates/elements.html."""
    macros: Any = _environment().get_template("elements.html").module
    return Markup(getattr(macros, name)(*arguments))


def tag(name: str, *children: Content, css: str = "", more: str = "") -> Html:
    """Return <name class=css more>children</name>; `more` is inserted unchanged."""
    opening = Markup(" ").join(
        part for part in (name, Markup('class="{}"').format(css) if css else "", Markup(more)) if part
    )
    return Markup("<{}>{}</{}>").format(opening, join(*children), name)


def join(*parts: Content) -> Html:
    """Return the parts one after the other."""
    return Markup("").join(escape(_keep_percent(part)) for part in parts)


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
    return _element("bullets", list(items))


@dataclass(frozen=True)
class Row:
    """A table row; the first cell is its heading."""

    cells: Sequence[Content]
    css: str = ""


def table(heading: Sequence[Content], rows: Iterable[Row], *, caption: Content, left: int = 1) -> Html:
    """Return a table that scrolls sideways on narrow pages; the first `left` columns hold text, the rest numbers."""
    return _element("table", heading, list(rows), caption, left)


def figure(picture: bytes, alt: str, caption: Content, css: str = "") -> Html:
    """Return a picture (PNG or SVG) inside the page with its text alternative. css "wide": scrolls on narrow pages."""
    kind = "png" if picture.startswith(b"\x89PNG") else "svg+xml"
    return _element("figure", kind, base64.b64encode(picture).decode("ascii"), alt, caption, css)


def side_by_side(*children: Html) -> Html:
    """Return the children next to each other if the page is wide enough."""
    return tag("div", *children, css="pair")


def section(anchor: str, title: str, *children: Html) -> Html:
    """Return a <section> with its heading."""
    return _element("section", anchor, title, children)


def folded(anchor: str, title: str, summary: str, *children: Html) -> Html:
    """Return a <section> that is closed until someone opens it; `summary`: what it holds, in a line."""
    return _element("folded", anchor, title, summary, children)


def document(title: str, *body: Html) -> str:
    """Return the whole HTML file."""
    return _environment().get_template("page.html").render(title=title, body=body)


def percent(fraction: float | None, decimals: int = 1) -> str:
    """Format a fraction: 0.614 -> 61.4 %."""
    return MISSING if fraction is None else f"{fraction * 100:.{decimals}f}{NBSP}%"


def signed(points: float | None, plus: bool = False) -> str:
    """Format with one decimal, a true minus sign and no minus zero; `plus`: gains get a sign, too."""
    if points is None:
        return MISSING
    rounded = round(points, 1) + 0.0
    return f"{rounded:{'+' if plus and rounded else ''}.1f}".replace("-", "−")


def format_interval(low: float, high: float, plus: bool = False) -> str:
    """Return the ends of an interval as `signed` formats them: -0.4 to 1.2."""
    return f"{signed(low, plus)} to {signed(high, plus)}"


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
