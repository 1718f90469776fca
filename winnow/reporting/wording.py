"""The explanation of "of peak" for the report, the terminal and the page of a search."""

from __future__ import annotations

from collections.abc import Mapping

from winnow.records.benchmark import Precision


def describe_peak_share(peaks: Mapping[Precision, float]) -> str:
    """Return a sentence without its full stop. `peaks`: precision -> the processor's peak multiply-adds per second."""
    rates = ", ".join(f"{precision} {rate / 1e9:,.0f} billion" for precision, rate in peaks.items())
    return (
        "Of peak: multiply-adds per second as a share of the rate of the fastest library in large matrix products of "
        f"the same precision on all threads ({rates})"
    )
