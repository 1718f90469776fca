"""The page of a search: its front as a picture and a table, what was chosen, and under which conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from winnow.evaluation.intervals import Drop
from winnow.reporting.html import (
    MISSING,
    Row,
    bullets,
    document,
    figure,
    number,
    paragraph,
    percent,
    section,
    signed,
    table,
    tag,
)

PICTURE = "Points of accuracy lost over cost, a mark for each finished trial, the front as a line"
FRONT = (
    "The front: nobody is cheaper and better at once. Points are lost against the better of dense and dense-kd on the "
    "half of the validation split that chooses, where the best of many flatters; those of the chosen trial on the "
    "other half, which did not choose. The interval is paired, 95 %, against dense alone. A chosen trial that is not "
    "on the front stands last: what beats it is not shown to be within the allowance."
)
HEADINGS = ("trial", "what", "points lost", "against dense", "cost", "× dense", "of peak", "")
TRIED = ("trial", "what", "outcome", "points lost", "cost")
EVERY = (
    "In the order of their proposal. What was given up shows the figures of its first look, after fewer epochs than "
    "finished ones had: the two kinds do not compare"
)


@dataclass(frozen=True)
class OnFront:
    """A trial that nobody beats, or the chosen one, where what beats it is not shown to be within the allowance."""

    number: int
    what: str
    drop: Drop
    """Against the better of dense and dense-kd."""
    to_dense: Drop
    cost: float
    cost_told: str
    times_dense: float
    of_peak: float | None
    """Its multiply-adds a second as a share of what the processor can do; None where its cost is no time."""
    marks: tuple[str, ...]
    """chosen, not confirmed, knee."""
    reason: str = ""
    """Of the chosen trial: what the half of validation says that did not choose."""

    @property
    def chosen(self) -> bool:
        """Whether it is the cheapest within the allowance, and confirmed."""
        return "chosen" in self.marks

    @property
    def not_confirmed(self) -> bool:
        """Whether it was chosen, and the half that did not choose does not confirm it."""
        return "not confirmed" in self.marks


def span(drop: Drop) -> str:
    """-0.4 to 1.2"""
    return f"{signed(drop.low)} to {signed(drop.high)}"


@dataclass(frozen=True)
class Tried:
    """Any trial, as the table of all has it."""

    number: int
    what: str
    state: str
    """finished, given up, impossible; with the reason."""
    drop: float | None
    cost_told: str
    """Empty where it was not measured."""


def page(
    name: str,
    verdict: str,
    rows: Sequence[OnFront],
    tried: Sequence[Tried],
    picture: bytes,
    conditions: Sequence[str],
) -> str:
    """One HTML file that asks the network for nothing."""
    every = [Row((str(one.number), one.what, one.state, signed(one.drop), one.cost_told or MISSING)) for one in tried]
    cells = [
        Row(
            (
                str(row.number),
                row.what,
                signed(row.drop.points),
                span(row.to_dense),
                row.cost_told,
                number(row.times_dense, 2),
                percent(row.of_peak),
                ", ".join(row.marks),
            ),
            css="marked" if row.chosen else "",
        )
        for row in rows
    ]
    return document(
        f"Search {name}",
        paragraph("winnow search", css="above"),
        tag("h1", f"Search {name}"),
        paragraph(verdict, css="lead"),
        figure(picture, PICTURE, "Marks with a bar are on the front, or chosen; bars are 95 % intervals.", css="wide"),
        section("front", "The front", table(HEADINGS, cells, caption=FRONT, left=2)),
        section("trials", "Every trial", tag("div", table(TRIED, every, caption=EVERY, left=len(TRIED)), css="prose")),
        section("conditions", "Conditions", bullets(conditions)),
    )
