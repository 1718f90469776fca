"""The page of a search: its front as a plot and a table, what was chosen, and under which conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from winnow.records.selection import Drop
from winnow.reporting.html import (
    Row,
    bullets,
    document,
    figure,
    format_interval,
    number,
    paragraph,
    percent,
    section,
    signed,
    table,
    tag,
)

PLOT_ALT = "Points of accuracy lost over cost, a mark for each finished trial, the front as a line"
FRONT_CAPTION = (
    "The front: no other trial is cheaper and more accurate at once. Points are lost against the better of dense and "
    "dense-kd on the half of the validation split that selects, where the best of many trials looks too good; those of "
    "the selected trial on the other half, which confirms. The interval is paired, 95 %, against dense alone. A "
    "selected trial that is not on the front is last: the trials that beat it are not shown to be within the allowance."
)
FRONT_HEADINGS = ("trial", "candidate", "points lost", "against dense", "cost", "× dense", "of peak", "")
TRIAL_HEADINGS = ("trial", "candidate", "outcome", "points lost", "cost")
TRIALS_CAPTION = (
    "In the order of their proposal. Trials that were given up show the figures of their short evaluation, after fewer "
    "epochs than finished ones had: the two are not comparable"
)


@dataclass(frozen=True)
class FrontRow:
    """A row of the front: a trial that no other beats, or the chosen one, which may not be on the front."""

    number: int
    what: str
    drop: Drop
    """The drop against the better of dense and dense-kd."""
    drop_to_dense: Drop
    """The drop against dense."""
    cost: float
    cost_text: str
    times_dense: float
    of_peak: float | None
    """Its multiply-adds per second as a share of the processor's peak; None where cost is not a time."""
    marks: tuple[str, ...]
    """Of "chosen", "not confirmed" and "knee"."""
    reason: str = ""
    """The result of the chosen trial on the confirming half of validation."""

    @property
    def chosen(self) -> bool:
        """Return whether it is the cheapest within the allowance, and confirmed."""
        return "chosen" in self.marks

    @property
    def not_confirmed(self) -> bool:
        """Return whether it was chosen, and the confirming half of validation does not confirm it."""
        return "not confirmed" in self.marks


def render_search_page(
    name: str,
    verdict: str,
    rows: Sequence[FrontRow],
    trials: Sequence[Row],
    plot: bytes,
    conditions: Sequence[str],
) -> str:
    """Return one HTML file that loads nothing from the network. `trials`: all trials, their cells as TRIAL_HEADINGS."""
    cells = [
        Row(
            (
                str(row.number),
                row.what,
                signed(row.drop.points),
                format_interval(row.drop_to_dense.low, row.drop_to_dense.high),
                row.cost_text,
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
        figure(plot, PLOT_ALT, "Marks with a bar are on the front, or selected; bars are 95 % intervals.", css="wide"),
        section("front", "The front", table(FRONT_HEADINGS, cells, caption=FRONT_CAPTION, left=2)),
        section(
            "trials",
            "Every trial",
            tag("div", table(TRIAL_HEADINGS, trials, caption=TRIALS_CAPTION, left=len(TRIAL_HEADINGS)), css="prose"),
        ),
        section("conditions", "Conditions", bullets(conditions)),
    )
