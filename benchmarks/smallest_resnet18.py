"""ResNet-18 on all of CIFAR-10: how small and how fast, and what each step costs in accuracy.

    python -m benchmarks.smallest_resnet18 IMAGES [--epochs 15] [--recovery-epochs 12] [--only NAME,NAME]

IMAGES holds train/ and test/ of class folders. Dense, then a half, a quarter and an eighth of its multiply-adds by
pruning, int8 of each by the ladder (which trains under rounding only where everything else fails), a student (resnet8),
and controls: dense trained on as long, without a teacher, channels drawn at random. At an eighth, what else was tried:
hints, sparse learning first (a sixth of the same epochs), and, with twice the epochs in all, the eighth trained on or
pruned from the quarter. Everything is chosen on validation; with --test, at the end, the test split is read for dense
and the fastest file within the allowance. --only makes some candidates, which take hours together on two cores;
--untimed makes them and no table, on a GPU, say; --made, with the same epochs, makes the table of those that are
there, where .winnow/benchmarks/ was copied to.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.chain import Chain, all_labels, configure, leave, markdown, right_on_test, rungs_told, span
from winnow.benchmark.speedups import best_row
from winnow.config import Config
from winnow.data.dataset import VALIDATION, load_images
from winnow.evaluation.ablations import stronger_baseline
from winnow.evaluation.intervals import paired_drop
from winnow.evaluation.metrics import load_logits
from winnow.records import RECORD, BenchmarkRecord, CandidateRecord, read_record
from winnow.records.benchmark import PeakShares
from winnow.records.candidate import QuantizeDetails

NAME = "smallest_resnet18"
ALLOWED_POINTS = 0.5
RECOVERY: dict[str, Any] = {
    "batch_size": 128,
    "optimiser": {"learning_rate": 0.05},
    "teacher": "dense",
    "temperature": 4.0,
    "teacher_weight": 0.9,
    "images": "all",
    "augmentation": {"crop_scale_min": 0.6},
}
SHORT = {**RECOVERY, "epochs": 3, "optimiser": {"learning_rate": 0.01}}
"""Under rounding, where the ladder comes to that."""
SPARSE_PART = 6
"""Of the epochs, where sparse learning comes first."""


def pruned(macs_left: float, recovery: dict[str, Any], **more: Any) -> dict[str, Any]:
    """From dense to a share of its multiply-adds."""
    removed = {"macs": round(1 - macs_left, 4)}
    return {"from": "dense", "method": "prune", "remove": removed, "max_channels": 0.95, "recovery": recovery} | more


def int8(parent: str) -> dict[str, Any]:
    """The ladder: as far up as the allowance needs."""
    return {
        "from": parent,
        "method": "quantize",
        "scheme": "ladder",
        "max_drop_points": ALLOWED_POINTS / 2,
        "recovery": SHORT,
    }


IN_INT8 = ("dense", "half", "quarter", "eighth", "eighth-longer", "eighth-stepwise", "student")
LIKE_OTHERS = ("dense-kd", "student-alone", "eighth-random", "eighth-hinted", "eighth-alone", "eighth-sparse-first")
"""As large and as fast as a file that is timed: these are there for their accuracy."""


def tree(epochs: int) -> dict[str, Any]:
    """All candidates, recovering for so many epochs."""
    recovery = {**RECOVERY, "epochs": epochs}
    alone = {**recovery, "teacher": "none", "images": "labelled"}
    sparse = max(1, epochs // SPARSE_PART)
    student = {"from": "dense", "method": "distill", "student": "resnet8", "recovery": recovery}
    made: dict[str, Any] = {
        "eighth": pruned(1 / 8, recovery),
        "quarter": pruned(1 / 4, recovery),
        "half": pruned(1 / 2, recovery),
        "eighth-random": pruned(1 / 8, recovery, importance="random"),
        "eighth-hinted": pruned(1 / 8, {**recovery, "hint": "features"}),
        "eighth-alone": pruned(1 / 8, alone),
        "eighth-longer": {**student, "from": "eighth", "student": "same"},
        "eighth-stepwise": pruned(1 / 2, recovery) | {"from": "quarter"},
        "eighth-sparse-first": pruned(
            1 / 8, {**recovery, "epochs": epochs - sparse}, sparse_learning={"epochs": sparse, "strength": 5.0e-4}
        ),
        "student": student,
        "student-alone": {**student, "recovery": alone},
        "dense-kd": {**student, "student": "same"},
    }
    return made | {f"{name}-int8": int8(name) for name in IN_INT8}


class Answers:
    """Which validation images each file gets right."""

    def __init__(self, chain: Chain, names: list[str]) -> None:
        self.images = load_images(chain.data())
        self.labels_N = self.images.labels_N
        validation = self.labels_N[self.images.indices(VALIDATION)]
        self.right: dict[str, NDArray[np.bool_]] = {
            name: load_logits(chain.candidates / name, self.images).argmax(1) == validation for name in names
        }
        self.reference = stronger_baseline(self.right)


def config_of(images: Path, epochs: int, recovery_epochs: int) -> Config:
    """The whole experiment."""
    changes = all_labels("resnet18", images) | {"finetune.epochs": epochs}
    changes |= {"finetune.cross_validation": "never", "benchmark.grid": "full"}
    return configure(changes, tree(recovery_epochs))


def row_of(chain: Chain, timed: BenchmarkRecord, name: str, answers: Answers) -> dict[str, str]:
    """One file: size, accuracy, speed, where the speed came from."""
    record, dense = (read_record(chain.candidates / each) for each in (name, "dense"))
    drop = paired_drop(answers.right[answers.reference], answers.right[name])
    figures, large = timed.details.candidates.get(name, {}), chain.config.benchmark.large_batch
    row = {
        "file": name,
        "top-1 %": f"{answers.right[name].mean() * 100:.2f}",
        f"points below {answers.reference}": span(drop, 2),
        "MACs": f"1/{dense.metrics['compute/macs'] / record.metrics['compute/macs']:.1f}",
        "bytes": f"1/{dense.metrics['size/mb'] / record.metrics['size/mb']:.1f}",
    }
    shares = timed.details.peak_share.get(name, PeakShares())
    for batch, share in ((1, shares.latency), (large, shares.throughput)):
        fastest = best_row(timed.details.rows, name, batch)
        speeds = [figures.get(f"speedup/{kind}_b{batch}") for kind in ("eager", "pytorch", "float")]
        row[f"fastest, batch {batch}"] = (
            "not timed"
            if fastest is None
            else f"{fastest.runtime} {fastest.precision}, {fastest.p50_ms:.2f} ms, {fastest.images_per_s:,.0f}/s"
        )
        row[f"x eager / PyTorch / float, batch {batch}"] = " / ".join(
            "-" if value is None else f"{value:.1f}" for value in speeds
        )
        row[f"of peak, batch {batch}"] = "-" if share is None else f"{share:.0%}"
    causes = timed.details.attribution[name].throughput if name in timed.details.attribution else None
    row[f"runtime x structure x precision, batch {large}"] = (
        " x ".join(f"{factor:.2f}" for factor in (causes.runtime, causes.structure, causes.precision))
        if causes
        else "-"
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="holds train/ and test/ of class folders")
    parser.add_argument("--epochs", type=int, default=15, help="of dense")
    parser.add_argument("--recovery-epochs", type=int, default=12)
    parser.add_argument("--only", help="candidates to make; default: all")
    parser.add_argument("--untimed", action="store_true", help="make them, and no table")
    parser.add_argument("--made", action="store_true", help="make nothing more: the table of what is there")
    parser.add_argument("--trained-on", default="the same machine", help="said beside the table")
    parser.add_argument("--test", action="store_true", help="read the test split, once everything is chosen")
    given = parser.parse_args()
    chain = Chain(NAME, config_of(given.images, given.epochs, given.recovery_epochs))
    chain.tree([] if given.made else given.only.split(",") if given.only else None)
    if given.untimed:
        return
    there = ["dense", *(name for name in chain.config.candidates if (chain.candidates / name / RECORD).is_file())]
    timed = BenchmarkRecord.read(chain.benchmark_of([name for name in there[1:] if name not in LIKE_OTHERS]))
    answers = Answers(chain, there)
    rows = [row_of(chain, timed, name, answers) for name in there]
    within = [
        name
        for name in there
        if paired_drop(answers.right[answers.reference], answers.right[name]).points <= ALLOWED_POINTS
    ]
    cost = {name: row.p50_ms for name in within if (row := best_row(timed.details.rows, name, 1))}
    winner = min(cost, key=lambda name: cost[name])
    read = ["dense", winner] if given.test else []
    tested = {name: right_on_test(chain.candidates / name, answers.images) for name in read}
    told = f"The fastest within {ALLOWED_POINTS} points at batch 1: {winner}. " + _told(tested, winner)
    records = {name: CandidateRecord.read(chain.candidates / name) for name in there}
    climbed = [
        f"- {name}: {rungs_told(record.details.rungs)}"
        for name, record in records.items()
        if isinstance(record.details, QuantizeDetails) and record.details.rungs
    ]
    conditions = (
        f"CIFAR-10 (JPEG), all labels, one seed; dense trained for {chain.config.finetune.epochs} epochs from random "
        f"weights, every recovery for {given.recovery_epochs} (longer and stepwise: after those of their parent; "
        f"sparse-first: sparse learning is a part of them; training under rounding: {SHORT['epochs']}). "
        f"Trained on {given.trained_on}. "
        "Points lost on "
        f"{len(answers.right['dense']):,} validation images against {answers.reference}, the better of dense and "
        "dense-kd where that was made, paired, 95 % intervals."
    )
    rungs = "What int8 lost against its float parent, rung by rung:\n\n" + "\n".join(climbed)
    table = f"{markdown(rows)}\n\n{told}\n\n{rungs}"
    figures = {
        **timed.details.model_dump(mode="json", include={"rows", "attribution", "peaks", "peak_share"}),
        "test": {name: float(right.mean()) for name, right in tested.items()},
        "records": {name: record.metrics for name, record in records.items()},
        "config": chain.config.model_dump(mode="json", by_alias=True, exclude={"data": {"path"}}),
    }
    leave(NAME, conditions, figures, table, timed.machine)


def _told(tested: dict[str, NDArray[np.bool_]], winner: str) -> str:
    if not tested:
        return "The test split was not read."
    lost = paired_drop(tested["dense"], tested[winner])
    return (
        f"On the {len(tested['dense']):,} test images, read for this table alone: dense "
        f"{tested['dense'].mean() * 100:.2f} %, {winner} {tested[winner].mean() * 100:.2f} %, {lost.points:.2f} points "
        f"less (95 % interval {lost.low:.2f} to {lost.high:.2f})."
    )


if __name__ == "__main__":
    main()
