"""Measure how small and fast ResNet-18 on all of CIFAR-10 can become, and the accuracy that each step costs.

    python -m benchmarks.smallest_resnet18 IMAGES [--epochs 15] [--recovery-epochs 12] [--only NAME,NAME]

IMAGES holds train/ and test/ of class folders. The tree: dense; a half, a quarter and an eighth of its multiply-adds by
pruning; int8 of each by the ladder (quantization-aware training only if all other rungs fail); a student (resnet8); and
controls: dense trained further for as long, no teacher, random channels. Variants of the eighth: feature distillation,
sparse learning first (a sixth of the same epochs), and, with twice the epochs in total, the eighth trained further or
pruned from the quarter. Validation selects everything; --test then reads the test split once for dense and the fastest
file within the allowance. --only limits the candidates that are made, since all take hours on two cores. --untimed
makes them without a table, on a GPU, say. --made, with the same epochs, writes the table of the candidates that exist
in a copied .winnow/benchmarks/.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.chain import (
    Chain,
    all_labels_overrides,
    configure,
    correct_on_test,
    format_drop,
    format_rungs,
    markdown_table,
    write_results,
)
from winnow.benchmark.speedups import best_row
from winnow.config import Config
from winnow.data.dataset import VALIDATION, load_images
from winnow.evaluation.ablations import stronger_baseline
from winnow.evaluation.intervals import paired_drop
from winnow.evaluation.metrics import load_logits
from winnow.records import RECORD, BenchmarkRecord, CandidateRecord, read_record
from winnow.records.benchmark import PeakShares
from winnow.records.candidate import QuantizeDetails
from winnow.records.selection import Drop

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
QAT_RECOVERY = {**RECOVERY, "epochs": 3, "optimiser": {"learning_rate": 0.01}}
"""Recovery of quantization-aware training, the last rung of the ladder."""
SPARSE_DIVISOR = 6
"""Sparse learning takes the recovery epochs divided by this."""


def pruned_candidate(macs_left: float, recovery: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the candidate that is pruned from dense to a share of its multiply-adds; `more`: other settings."""
    removed = {"macs": round(1 - macs_left, 4)}
    return {"from": "dense", "method": "prune", "remove": removed, "max_channels": 0.95, "recovery": recovery} | more


def int8_candidate(parent: str) -> dict[str, Any]:
    """Return the int8 candidate of a parent: the first rung of the ladder within half of the allowance."""
    return {
        "from": parent,
        "method": "quantize",
        "scheme": "ladder",
        "max_drop_points": ALLOWED_POINTS / 2,
        "recovery": QAT_RECOVERY,
    }


QUANTIZED = ("dense", "half", "quarter", "eighth", "eighth-longer", "eighth-stepwise", "student")
UNTIMED = ("dense-kd", "student-alone", "eighth-random", "eighth-hinted", "eighth-alone", "eighth-sparse-first")
"""Compared by accuracy only; each is as large and fast as a file that is timed."""


def candidate_tree(epochs: int) -> dict[str, Any]:
    """Return all candidates, with this number of recovery epochs."""
    recovery = {**RECOVERY, "epochs": epochs}
    no_teacher = {**recovery, "teacher": "none", "images": "labelled"}
    sparse_epochs = max(1, epochs // SPARSE_DIVISOR)
    student = {"from": "dense", "method": "distill", "student": "resnet8", "recovery": recovery}
    tree: dict[str, Any] = {
        "eighth": pruned_candidate(1 / 8, recovery),
        "quarter": pruned_candidate(1 / 4, recovery),
        "half": pruned_candidate(1 / 2, recovery),
        "eighth-random": pruned_candidate(1 / 8, recovery, importance="random"),
        "eighth-hinted": pruned_candidate(1 / 8, {**recovery, "hint": "features"}),
        "eighth-alone": pruned_candidate(1 / 8, no_teacher),
        "eighth-longer": {**student, "from": "eighth", "student": "same"},
        "eighth-stepwise": pruned_candidate(1 / 2, recovery) | {"from": "quarter"},
        "eighth-sparse-first": pruned_candidate(
            1 / 8,
            {**recovery, "epochs": epochs - sparse_epochs},
            sparse_learning={"epochs": sparse_epochs, "strength": 5.0e-4},
        ),
        "student": student,
        "student-alone": {**student, "recovery": no_teacher},
        "dense-kd": {**student, "student": "same"},
    }
    return tree | {f"{name}-int8": int8_candidate(name) for name in QUANTIZED}


class ValidationResults:
    """The correct validation images of each file, and the stronger of dense and dense-kd."""

    def __init__(self, chain: Chain, names: list[str]) -> None:
        self.images = load_images(chain.ingest())
        labels_V = self.images.labels_N[self.images.indices(VALIDATION)]
        self.correct: dict[str, NDArray[np.bool_]] = {
            name: load_logits(chain.candidates / name, self.images).argmax(1) == labels_V for name in names
        }
        self.reference = stronger_baseline(self.correct)

    def drop(self, name: str) -> Drop:
        """Return the points that a file loses against the reference."""
        return paired_drop(self.correct[self.reference], self.correct[name])


def make_config(images: Path, epochs: int, recovery_epochs: int) -> Config:
    overrides = all_labels_overrides("resnet18", images) | {"finetune.epochs": epochs}
    overrides |= {"finetune.cross_validation": "never", "benchmark.grid": "full"}
    return configure(overrides, candidate_tree(recovery_epochs))


def table_row(chain: Chain, benchmark: BenchmarkRecord, name: str, validation: ValidationResults) -> dict[str, str]:
    """Return the row of one file: size, accuracy, speed, and the factors of its speed-up."""
    record, dense = (read_record(chain.candidates / candidate) for candidate in (name, "dense"))
    figures, large = benchmark.details.candidates.get(name, {}), chain.config.benchmark.large_batch
    row = {
        "file": name,
        "top-1 %": f"{validation.correct[name].mean() * 100:.2f}",
        f"points below {validation.reference}": format_drop(validation.drop(name), 2),
        "MACs": f"1/{dense.metrics['compute/macs'] / record.metrics['compute/macs']:.1f}",
        "bytes": f"1/{dense.metrics['size/mb'] / record.metrics['size/mb']:.1f}",
    }
    shares = benchmark.details.peak_share.get(name, PeakShares())
    for batch, share in ((1, shares.latency), (large, shares.throughput)):
        fastest = best_row(benchmark.details.rows, name, batch)
        speedups = [figures.get(f"speedup/{kind}_b{batch}") for kind in ("eager", "pytorch", "float")]
        row[f"fastest, batch {batch}"] = (
            "not timed"
            if fastest is None
            else f"{fastest.runtime} {fastest.precision}, {fastest.p50_ms:.2f} ms, {fastest.images_per_s:,.0f}/s"
        )
        row[f"x eager / PyTorch / float, batch {batch}"] = " / ".join(
            "-" if value is None else f"{value:.1f}" for value in speedups
        )
        row[f"of peak, batch {batch}"] = "-" if share is None else f"{share:.0%}"
    attribution = benchmark.details.attribution
    causes = attribution[name].throughput if name in attribution else None
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
    parser.add_argument("--untimed", action="store_true", help="make the candidates without timing or a table")
    parser.add_argument("--made", action="store_true", help="make no candidates; write the table of those that exist")
    parser.add_argument("--trained-on", default="the same machine", help="the training machine, for the table")
    parser.add_argument("--test", action="store_true", help="read the test split after everything is selected")
    args = parser.parse_args()
    chain = Chain(NAME, make_config(args.images, args.epochs, args.recovery_epochs))
    chain.compress([] if args.made else args.only.split(",") if args.only else None)
    if args.untimed:
        return
    names = ["dense", *(name for name in chain.config.candidates if (chain.candidates / name / RECORD).is_file())]
    benchmark = BenchmarkRecord.read(chain.benchmark_candidates([name for name in names[1:] if name not in UNTIMED]))
    validation = ValidationResults(chain, names)
    rows = [table_row(chain, benchmark, name, validation) for name in names]
    allowed = [name for name in names if validation.drop(name).points <= ALLOWED_POINTS]
    latency_ms = {name: row.p50_ms for name in allowed if (row := best_row(benchmark.details.rows, name, 1))}
    winner = min(latency_ms, key=lambda name: latency_ms[name])
    tested = ["dense", winner] if args.test else []
    correct_test = {name: correct_on_test(chain.candidates / name, validation.images) for name in tested}
    records = {name: CandidateRecord.read(chain.candidates / name) for name in names}
    rungs = [
        f"- {name}: {format_rungs(record.details.rungs)}"
        for name, record in records.items()
        if isinstance(record.details, QuantizeDetails) and record.details.rungs
    ]
    conditions = (
        f"CIFAR-10 (JPEG), all labels, one seed; dense trained for {chain.config.finetune.epochs} epochs from random "
        f"weights, every recovery for {args.recovery_epochs} (longer and stepwise: in addition to those of the parent; "
        "sparse-first: including sparse learning; quantization-aware training: "
        f"{QAT_RECOVERY['epochs']}). Trained on {args.trained_on}. Points lost on "
        f"{len(validation.correct['dense']):,} validation images against {validation.reference}, the better of dense "
        "and, if it was made, dense-kd; paired, 95 % intervals."
    )
    verdict = f"The fastest within {ALLOWED_POINTS} points at batch 1: {winner}. {_describe_test(correct_test, winner)}"
    rung_title = "Points that int8 lost against its float parent on each rung:"
    table = "\n".join([markdown_table(rows), "", verdict, "", rung_title, "", *rungs])
    figures = {
        **benchmark.details.model_dump(mode="json", include={"rows", "attribution", "peaks", "peak_share"}),
        "test": {name: float(is_correct.mean()) for name, is_correct in correct_test.items()},
        "records": {name: record.metrics for name, record in records.items()},
        "config": chain.config.model_dump(mode="json", by_alias=True, exclude={"data": {"path"}}),
    }
    write_results(NAME, conditions, figures, table, benchmark.machine)


def _describe_test(correct_test: dict[str, NDArray[np.bool_]], winner: str) -> str:
    if not correct_test:
        return "The test split was not read."
    dense, selected = correct_test["dense"], correct_test[winner]
    lost = paired_drop(dense, selected)
    return (
        f"On the {len(dense):,} test images, read for this table only: dense {dense.mean() * 100:.2f} %, {winner} "
        f"{selected.mean() * 100:.2f} %, {lost.points:.2f} points less (95 % interval {lost.low:.2f} to "
        f"{lost.high:.2f})."
    )


if __name__ == "__main__":
    main()
