"""The comparison of a challenger with the champion: both files are measured side by side, then judged.

Accuracy is a paired comparison on the labelled validation images, with each file in the runtime and precision that its
card names, because those will serve. Speed is timed in alternating rounds on the runtime of the card. Where the card is
from another machine or for another objective, the file is timed on every runtime, and its fastest one counts. Both are
then compared in further rounds, so that the gain has an interval. A runtime whose predictions differ from those of the
file in ONNX Runtime is not timed.

For a refitted file, the file before the refit is measured: the refitted one was trained on the validation images.

`judge_challenge` is a pure function. The challenger must pass the gates on top-1 and macro F1 against the champion (the
drop within the limit, the worse end of its interval within twice the limit), and must be better: in accuracy, where the
whole interval is above zero, or on the objective, where the lower end of the gain is at least promotion.min_gain.
Nothing here moves an alias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark import grid
from winnow.benchmark.cases import plan_cases
from winnow.benchmark.grid import screening_settings
from winnow.benchmark.measurement_error import time_difference
from winnow.benchmark.prediction_check import CHECKED_IMAGES, predict_all
from winnow.benchmark.speedups import best_row, speedup
from winnow.benchmark.target_measurements import TargetMeasurements
from winnow.config import Config, Promotion
from winnow.data.dataset import VALIDATION, ImageSet, load_images, spread_indices
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtime_properties import OPENVINO_RUNTIMES, Predict, RuntimeUnavailable, openvino_modes
from winnow.evaluation.accuracy_drop import DropReport, measure_drops
from winnow.evaluation.intervals import Ratio
from winnow.hardware import cores
from winnow.records import DeploymentCard, Machine, sha256_of, this_machine
from winnow.records.benchmark import BenchmarkCase, BenchmarkRow
from winnow.selection.decision import UNITS, batch_of_objective
from winnow.selection.gates import judge_drop, judge_macro_f1

SIDES, REPEATED_CHAMPION = ("champion", "challenger"), "champion again"

Side = tuple[Path, DeploymentCard]
Sides = tuple[Side, Side]
"""Champion and challenger: folder and card."""

ComparedRows = tuple[BenchmarkRow | None, BenchmarkRow | None, BenchmarkRow | None]
"""The rows of champion, challenger, and the champion a second time; None where a side was not timed."""


@dataclass(frozen=True)
class ContestResult:
    """The measurements of champion and challenger."""

    losses: DropReport
    """The drop in accuracy from champion to challenger."""
    champion: float | None
    """The objective in ms, images/s or MB; None where no runtime here reproduces the file's predictions."""
    challenger: float | None
    times_better: Ratio | None
    """The factor by which the challenger is better on the objective, with its interval (a point for sizes)."""
    substituted: tuple[str, ...] = ()
    """A sentence for each side that was evaluated in ONNX Runtime, because its own runtime cannot run here."""


def judge_challenge(contest: ContestResult, policy: Promotion) -> tuple[bool, str]:
    """Return (whether the challenger replaces the champion, the reason with both values)."""
    passed, reason = _judged(contest, policy)
    return passed, "; ".join([reason, *contest.substituted])


def _judged(contest: ContestResult, policy: Promotion) -> tuple[bool, str]:
    passed, accuracy = _judge_accuracy(contest, policy)
    if not passed:
        return False, accuracy
    gain, compared = _gain(contest, policy.objective)
    if contest.losses.top1.labelled is not None and contest.losses.top1.labelled.high < 0:
        return True, f"{accuracy}, which is shown to be better; {compared}"
    if gain is None:
        return False, f"{accuracy}, but {compared}"
    needed = f"{policy.min_gain * 100:g} %"
    if gain.low >= policy.min_gain and gain.low > 0:
        return True, f"{accuracy}, and {compared}, at least {needed} better"
    if gain.value >= policy.min_gain and gain.value > 0:
        return False, f"{accuracy}, but not shown to be more accurate, and {compared}, not shown to be {needed} better"
    return False, f"{accuracy}, but not shown to be more accurate, and {compared}, not {needed} better"


def _judge_accuracy(contest: ContestResult, policy: Promotion) -> tuple[bool, str]:
    """Apply the gates on top-1 and macro F1 against the champion; return (passed, reason)."""
    top1, macro_f1, gates = contest.losses.top1, contest.losses.macro_f1, policy.gates
    results = judge_drop(top1, gates.max_drop_points), judge_macro_f1(macro_f1, gates.max_macro_f1_drop_points)
    for metric, gate in zip(("top-1", "macro F1"), results, strict=True):
        if not gate.passed:
            return False, f"{metric} against the champion: {gate.reason}"
    if top1.labelled is None:
        return True, f"{top1.answers.points:.1f} % of the validation images get another prediction than the champion's"
    gain, low, high = (
        f"{round(-end, 1) + 0.0:+.1f}" for end in (top1.labelled.points, top1.labelled.high, top1.labelled.low)
    )
    return True, f"top-1 {gain} points ({low} to {high}) against the champion"


def _gain(contest: ContestResult, objective: str) -> tuple[Ratio | None, str]:
    """Return (the relative gain on the objective with its interval, both values for users); None without times."""
    champion_value, challenger_value, unit = contest.champion, contest.challenger, UNITS[objective]
    if challenger_value is None or champion_value is None or contest.times_better is None:
        side = "the challenger" if challenger_value is None else "the champion"
        reason = "no runtime, here or on benchmark.target, reproduced the predictions of its file"
        return None, f"{side} has no times: {reason}"
    factors = contest.times_better.value, contest.times_better.low, contest.times_better.high
    # Throughput is multiplied by the factor; times and sizes are divided by it.
    gain = Ratio(*(factor - 1 if objective == "throughput" else 1 - 1 / factor for factor in factors))
    percent = f"{gain.value * 100:+.1f} %"
    if objective != "size":
        percent += f", 95 % interval {gain.low * 100:+.1f} to {gain.high * 100:+.1f} %"
    return gain, f"{objective} {challenger_value:.4g} {unit} against {champion_value:.4g} ({percent})"


def measure_contest(
    config: Config, data: Path, champion: Side, challenger: Side, target: TargetMeasurements | None = None
) -> ContestResult:
    """Measure both files, given as (folder, card), on the validation split of `data`; `target` holds measured times."""
    images, policy, sides = load_images(data), config.promotion, (champion, challenger)
    indices = images.indices(VALIDATION)
    answers = [_serve(folder, card, images, indices) for folder, card in sides]
    champion_logits, challenger_logits = (logits for logits, _ in answers)
    substituted = _substituted([missing for _, missing in answers])
    labels_V, groups_V = images.labels_N[indices], images.groups_N[indices]
    drop_report = measure_drops(champion_logits, challenger_logits, labels_V, groups_N=groups_V, classes=images.classes)
    champion_value: float | None
    challenger_value: float | None
    if policy.objective == "size":
        champion_value, challenger_value = ((folder / MODEL).stat().st_size / 1e6 for folder, _ in sides)
        size_ratio = Ratio(*[champion_value / challenger_value] * 3)
        return ContestResult(drop_report, champion_value, challenger_value, size_ratio, substituted)
    rows = _target_rows(target, sides, config) if target is not None else _local_rows(sides, config, images)
    (champion_value, challenger_value), ratio = [_value(row, policy.objective) for row in rows[:2]], None
    if rows[0] is not None and rows[1] is not None:
        error = 0.0 if rows[2] is None else time_difference(rows[0].p50_ms, rows[2].p50_ms)
        ratio = speedup(rows[0], rows[1], error)
    return ContestResult(drop_report, champion_value, challenger_value, ratio, substituted)


def _value(row: BenchmarkRow | None, objective: str) -> float | None:
    if row is None:
        return None
    return row.images_per_s if objective == "throughput" else row.p50_ms


def _batch(config: Config) -> int:
    return batch_of_objective(config.promotion.objective, config.benchmark.large_batch)


def _target_rows(target: TargetMeasurements, sides: Sides, config: Config) -> ComparedRows:
    """Return each file's fastest row on the benchmark target; None where it was not timed there."""
    rows = [best_row(target.rows_of({"it": sha256_of(folder / MODEL)}), "it", _batch(config)) for folder, _ in sides]
    return rows[0], rows[1], None


def _serve(
    folder: Path, card: DeploymentCard, images: ImageSet, indices_V: NDArray[np.int64]
) -> tuple[NDArray[np.float32], str | None]:
    """Return (logits (V, C) in the runtime and precision of the card, None).

    Where that runtime cannot run here: (logits in ONNX Runtime, a description of the missing runtime).
    """
    runtime, precision, batch = card.serving.runtime, card.serving.precision, card.serving.batch
    case = BenchmarkCase(card.name, runtime, precision, "file", batch, min(card.serving.threads, cores()))
    try:
        return predict_all(open_case(folder, case), batch, images.images_NHWC, indices_V), None
    except RuntimeUnavailable as error:
        return predict_file(folder / MODEL, images.images_NHWC, indices_V), f"{runtime} {precision} ({error})"


def _substituted(missing: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(
        f"the {side} was evaluated in ONNX Runtime, as {runtime} cannot run here"
        for side, runtime in zip(SIDES, missing, strict=True)
        if runtime is not None
    )


def _local_rows(sides: Sides, config: Config, images: ImageSet) -> ComparedRows:
    """Return the rows of champion, challenger, and the champion a second time, compared in alternating rounds.

    The two rows of the champion show the measurement error.
    """
    indices = images.indices(VALIDATION)
    checked = spread_indices(len(indices), CHECKED_IMAGES)
    pixels_NHWC = np.ascontiguousarray(images.images_NHWC[indices[checked]])
    folders = dict(zip(SIDES, (folder for folder, _ in sides), strict=True)) | {REPEATED_CHAMPION: sides[0][0]}
    answers = {
        side: predict_file(folders[side] / MODEL, images.images_NHWC, indices[checked]).argmax(1).astype(np.int64)
        for side in SIDES
    }

    def opened(case: BenchmarkCase) -> Predict:
        return open_case(folders[case.candidate], case)

    cases = [
        replace(case, candidate=side)
        for side, (_, card) in zip(SIDES, sides, strict=True)
        for case in benchmark_cases(card, config, this_machine())
    ]
    screened = grid.time_cases(cases, opened, pixels_NHWC, answers, screening_settings(config.benchmark)).rows
    fastest = [best_row(screened, side, _batch(config)) for side in SIDES]
    if fastest[0] is None or fastest[1] is None:
        return fastest[0], fastest[1], None
    chosen = [fastest[0].case, fastest[1].case, replace(fastest[0].case, candidate=REPEATED_CHAMPION)]
    rows = grid.compare_cases(chosen, opened, pixels_NHWC, config.benchmark)
    return rows[0], rows[1], rows[2]


def benchmark_cases(card: DeploymentCard, config: Config, machine: Machine) -> list[BenchmarkCase]:
    """Return the benchmark cases of a file: the runtime of its card, or all runtimes for a card of another machine.

    OpenVINO is timed in both of its modes, so that no file wins by a mode in which the other was not timed.
    """
    objective, serving = config.promotion.objective, card.serving
    batch = _batch(config)
    if (serving.objective, serving.batch, card.machine.identity) == (objective, batch, machine.identity):
        runtime, threads = serving.runtime, serving.threads
        modes = openvino_modes(batch, threads) if runtime in OPENVINO_RUNTIMES else [runtime]
        return [BenchmarkCase(card.name, mode, serving.precision, "file", batch, threads) for mode in modes]
    cases = plan_cases({card.name: card.precision == "int8"}, config.benchmark, cores(), cuda=False)
    return [case for case in cases if case.layout == "file" and case.batch == batch]
