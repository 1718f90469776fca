"""What "of peak" means, in words: for the report, the terminal and the page of a search."""

from __future__ import annotations

from collections.abc import Mapping


def of_peak_told(peaks: Mapping[str, float]) -> str:
    """A sentence without its full stop; `peaks`: precision -> multiply-adds a second of the processor at its best."""
    rates = ", ".join(f"{precision} {rate / 1e9:,.0f} billion" for precision, rate in peaks.items())
    return (
        "Of peak: multiply-adds a second as a share of what the fastest library does in large matrix products of the "
        f"same precision on all threads ({rates})"
    )
