"""What a run ended with, from its records: rows for the terminal and for Prefect's page. Imports nothing heavy."""

from __future__ import annotations

import json
from typing import Any

from tasks.settings import Places
from winnow.config import in_order, load_config
from winnow.config.candidates import ROOT
from winnow.records import StepRecord, read_record


def candidate_rows(places: Places) -> list[dict[str, str]]:
    """One row per candidate, dense first, ready to print; units are in the keys."""
    config = load_config(places.root / "params.yaml")
    benchmark = read_record(places.artifacts / "benchmark")
    selection = read_record(places.artifacts / "select")
    verdicts = {verdict["candidate"]: verdict for verdict in selection.details["verdicts"]}
    rows = []
    for name in [ROOT, *in_order(dict(config.candidates))]:
        record = read_record(places.artifacts / "candidates" / name)
        rows.append(_row(name, record, benchmark, verdicts.get(name), selection.details["winner"] == name))
    return rows


def _row(
    name: str, record: StepRecord, benchmark: StepRecord, verdict: dict[str, Any] | None, won: bool
) -> dict[str, str]:
    quality, speed = record.metrics, benchmark.details["candidates"][name]
    batch = benchmark.parameters["large_batch"]
    best = benchmark.details["best"][name]["latency"]
    half = (quality["quality/top1_high"] - quality["quality/top1_low"]) / 2
    return {
        "candidate": name,
        "top-1 %": f"{quality['quality/top1'] * 100:.1f} ± {half * 100:.1f}",
        "macro F1 %": f"{quality['quality/macro_f1'] * 100:.1f}",
        "parameters": f"{quality['size/parameters'] / 1e6:.2f} M",
        "MB": f"{quality['size/mb']:.2f}",
        "p50 ms (b1)": f"{speed['best/latency_ms']:.2f}",
        f"images/s (b{batch})": f"{speed['best/throughput_ips']:,.0f}",
        "x eager f32": f"{speed['speedup/eager_b1']:.1f} / {speed[f'speedup/eager_b{batch}']:.1f}",
        "x best PyTorch": f"{speed['speedup/pytorch_b1']:.1f} / {speed[f'speedup/pytorch_b{batch}']:.1f}",
        "x best float": f"{speed['speedup/float_b1']:.1f} / {speed[f'speedup/float_b{batch}']:.1f}",
        "fastest on": f"{best['runtime']} {best['precision']}",
        "verdict": _verdict(verdict, won),
    }


def _verdict(verdict: dict[str, Any] | None, won: bool) -> str:
    if verdict is None:
        return "reference"
    if won:
        return "winner"
    if verdict["passed"]:
        return "passed"
    return "; ".join(gate["reason"] for gate in verdict["gates"] if not gate["passed"])


def promotion_lines(places: Places) -> list[str]:
    """What is in production after this run, and why."""
    path = places.hidden / "promoted.json"
    selection = read_record(places.artifacts / "select")
    lines = [str(selection.details["why"])]
    if path.is_file():
        lines += json.loads(path.read_text(encoding="utf-8")).get("reasons", [])
    return lines


def learned_lines(places: Places) -> list[str]:
    """What pretraining bought, and the warnings of every step."""
    record = read_record(places.artifacts / "candidates" / ROOT)
    gain, lines = record.details["arms"]["gain"], []
    if gain is not None:
        interval = f" (95 % interval {gain['low']:+.1f} to {gain['high']:+.1f})" if gain["pairs"] > 1 else ""
        lines.append(
            f"{gain['arm']} against from scratch, same labels and steps: {gain['mean']:+.1f} points of top-1"
            f"{interval}, {gain['pairs']} label seed{'s' if gain['pairs'] != 1 else ''}"
        )
    for step in ("data", "pretrain"):
        lines += [f"{step}: {warning}" for warning in read_record(places.artifacts / step).warnings]
    return lines
