"""Compare the Pareto fronts of `winnow search` and of the shipped tree, in the tree's time and in 30 minutes.

    python -m benchmarks.search_or_tree [--minutes 30] [--seeds 0 1 2]

On the embedded sample; each seed has its own labels and dense network. The tree is that of `winnow run --full` without
controls; its time is that of compressing all its candidates. Both fronts are of points of top-1 lost against dense and
median latency in OpenVINO, measured interleaved with dense. The measure is the area that a front dominates up to 5
points and dense's own latency (hypervolume), as a share of the whole area. It is computed twice: as selected, on the
validation split; and for the same files on the test split, which is read once, with the latencies of the files of all
fronts measured again, interleaved. A search tries many files, so the first area alone would be biased in its favour.

Seeds may be run one at a time: results/search_or_tree.json keeps the results of each with its machine.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chain import INT8_SATURATES, RESULTS, Chain, configure, correct_on_test, markdown_table, write_results
from winnow.config import ROOT, Config, Quantize
from winnow.data.dataset import ImageSet, load_images
from winnow.data.splits import selection_half
from winnow.errors import WinnowError
from winnow.evaluation.metrics import load_logits
from winnow.records import CandidateRecord, read_json
from winnow.search.cost import CostMeasurer
from winnow.search.loop import SearchProgress, search
from winnow.search.trial import SearchContext, candidates_folder, machine_identity, make_cost_measurer
from winnow.search.trial_accuracy import points_lost, reference_logits
from winnow.search.trial_front import TrialPoint, hypervolume, trials_on_front
from winnow.steps.compress import CandidateFolders

NAME = "search_or_tree"
CONTROLS = ("dense-kd", "student-alone")
WORST = (5.0, 1.0)
"""Reference point of the hypervolume: points lost, and share of dense's latency."""
ROUNDS = 5
"""Number of times that the latency of each file on a front is measured again; the median counts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of each search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    results_file = RESULTS / f"{NAME}.json"
    runs: dict[str, Any] = read_json(results_file)["runs"] if results_file.exists() else {}
    for seed in args.seeds:
        config = tree_config(seed, args.minutes)
        settings = shared_settings(config)
        if any(run["asked"] != settings for run in runs.values()):
            raise WinnowError(f"{results_file} holds seeds with other settings; delete it to start again")
        runs[str(seed)] = {**compare(seed, config), "asked": settings}
        _write_table(dict(sorted(runs.items())))


def tree_config(seed: int, minutes: float) -> Config:
    """Return the full settings with this seed, without controls; int8 weights in 7 bits where sums would saturate."""
    overrides = {"finetune.seeds": [seed], "search.seed": seed, "search.minutes": minutes}
    tree = {}
    for name, settings in configure(overrides).candidates.items():
        if name not in CONTROLS and settings.parent not in CONTROLS:
            tree[name] = settings.model_dump(mode="json", by_alias=True)
            if isinstance(settings, Quantize):
                tree[name]["overflow_safe"] = INT8_SATURATES
    return configure(overrides, tree)


def shared_settings(config: Config) -> dict[str, Any]:
    """Return the settings that must be equal for all seeds; `overflow_safe` depends on the machine."""
    tree = config.model_dump(
        mode="json", include={"candidates"}, exclude={"candidates": {"__all__": {"overflow_safe"}}}
    )
    return {**tree, "search": config.search.model_dump(mode="json", exclude={"seed"})}


def compare(seed: int, config: Config) -> dict[str, Any]:
    """Return the fronts of the tree and of a search with one seed, and the machine."""
    chain = Chain(f"{NAME}/{seed}", config)
    chain.compress()
    tree_seconds = sum(chain.seconds()[name] for name in config.candidates)
    teacher_cache = chain.folder / "search-answers"  # the search must not reuse the tree's cached teacher outputs
    folders = CandidateFolders(
        chain.ingest(), chain.pretrain(), chain.candidates, chain.scratch / "search", teacher_cache, chain.embed()
    )
    context = SearchContext(config, folders, chain.folder / "trials", overflow_safe=INT8_SATURATES)
    measurer, images = make_cost_measurer(context), load_images(chain.ingest())
    reference_VC = reference_logits(context.references, images)
    tree_files, tree_points = {}, []
    for number, name in enumerate(config.candidates):
        file = tree_files[number] = chain.candidates / name
        drop = points_lost(reference_VC, load_logits(file, images), images, selection_half(images)).points
        tree_points.append(TrialPoint(number, drop, relative_latency(measurer, file)))
    progress = search(context, chain.folder / "study.db", lambda _trial: None)
    trial_files = {
        trial.number: candidates_folder(context, trial.folder, config.search.epochs) / trial.evaluation.names[-1]
        for trial in progress.trials
        if trial.evaluation is not None and trial.state == "finished"
    }
    arms = {
        "the shipped tree": Arm(tree_points, tree_files, tree_seconds),
        "search, in the tree's time": Arm(points_within(progress, tree_seconds), trial_files, tree_seconds),
        "search": Arm(points_within(progress, math.inf), trial_files, progress.seconds),
    }
    latencies = measure_again(measurer, {file for arm in arms.values() for _, file in arm.front})
    evaluator = FrontEvaluator(images, chain.candidates / ROOT, latencies)
    return {
        "machine": machine_identity(),
        "dense_ms": measurer.dense_cost,
        "rows": {name: evaluator.evaluate(arm) for name, arm in arms.items()},
        "tried": len(progress.trials),
    }


def relative_latency(measurer: CostMeasurer, folder: Path) -> float:
    """Return the median latency of a file as a share of dense's."""
    return measurer.cost(folder, CandidateRecord.read(folder).details.precision) / measurer.dense_cost


def measure_again(measurer: CostMeasurer, files: Collection[Path]) -> dict[Path, float]:
    """Return file -> median relative latency over ROUNDS rounds; the files take turns."""
    rounds = [{file: relative_latency(measurer, file) for file in sorted(files)} for _ in range(ROUNDS)]
    return {file: float(np.median([latencies[file] for latencies in rounds])) for file in files}


@dataclass(frozen=True)
class Arm:
    """The points and files of the tree or of a search, and its time."""

    points: list[TrialPoint]
    files: Mapping[int, Path]
    """Number of the point -> folder."""
    seconds: float

    @property
    def front(self) -> list[tuple[TrialPoint, Path]]:
        """Return the points of the Pareto front with their folders."""
        return [(point, self.files[point.number]) for point in trials_on_front(self.points)]


def points_within(progress: SearchProgress, seconds: float) -> list[TrialPoint]:
    """Return the points of the trials that ended within `seconds`; costs are shares of dense's."""
    elapsed, points = 0.0, []
    for trial in progress.trials:
        elapsed += trial.seconds
        if trial.finished_point and elapsed <= seconds:
            points.append(
                TrialPoint(trial.number, trial.finished_point.drop, trial.finished_point.cost / progress.dense_cost)
            )
    return points


class FrontEvaluator:
    """Evaluates the fronts of one seed on the test split and with latencies that were measured again."""

    def __init__(self, images: ImageSet, dense: Path, latencies: Mapping[Path, float]) -> None:
        self.images = images
        self.latencies = latencies
        """File -> share of dense's latency, measured again."""
        self._top1: dict[Path, float] = {}
        self.dense_top1 = self._test_top1(dense)

    def _test_top1(self, folder: Path) -> float:
        """Return top-1 on the test split (a fraction); each file is evaluated once."""
        if folder not in self._top1:
            self._top1[folder] = float(correct_on_test(folder, self.images).mean())
        return self._top1[folder]

    def evaluate(self, arm: Arm) -> dict[str, Any]:
        """Return an arm's front and dominated area as selected, and for its files measured again and on test."""
        selected = [point for point, _ in arm.front]
        again = trials_on_front([replace(point, cost=self.latencies[file]) for point, file in arm.front])
        test_drops = [(self.dense_top1 - self._test_top1(arm.files[point.number])) * 100 for point in again]
        return {
            "minutes": arm.seconds / 60,
            "files": len(arm.points),
            "front": [asdict(point) for point in selected],
            "front_anew": [asdict(point) | {"test_drop": drop} for point, drop in zip(again, test_drops, strict=True)],
            "area": hypervolume(selected, WORST) / WORST[0],
            "area_anew": hypervolume(again, WORST, test_drops) / WORST[0],
            "times_dense": max((1 / point.cost for point in again if point.drop <= 1.0), default=None),
        }


def _write_table(runs: Mapping[str, Any]) -> None:
    """Write the results of all seeds so far."""
    rows = []
    for name in next(iter(runs.values()))["rows"]:
        by_seed = [run["rows"][name] for run in runs.values()]
        rows.append(
            {
                "": name,
                "minutes": _join([row["minutes"] for row in by_seed], 1),
                "files": _join([row["files"] for row in by_seed], 0),
                "area, validation": _join_with_mean([row["area"] for row in by_seed]),
                "area, test, timed again": _join_with_mean([row["area_anew"] for row in by_seed]),
                "speed-up within 1 point": _join([row["times_dense"] for row in by_seed], 2),
            }
        )
    machines = {run["machine"] for run in runs.values()}
    conditions = (
        f"CIFAR-10 (JPEG) sample, 25 labels per class, resnet8; seeds {', '.join(runs)}. Area: share that the front "
        f"dominates of (0 to {WORST[0]:g} points lost) x (0 to dense's ms in OpenVINO f32); of each seed, mean ± "
        "standard deviation. Test, timed again: the same files on the test split, with latencies measured again in "
        "turns. Speed-up: over dense, of the fastest file that loses at most 1 point on validation, timed again."
    )
    machine_lines = "\n".join(f"- seed {seed}: {run['machine']}" for seed, run in runs.items())
    table = markdown_table(rows) + (f"\n\nMeasured on\n\n{machine_lines}" if len(machines) > 1 else "")
    write_results(NAME, conditions, {"runs": dict(runs)}, table)


def _join(values: Sequence[float | None], digits: int) -> str:
    return ", ".join("none" if value is None else f"{value:.{digits}f}" for value in values)


def _join_with_mean(values: Sequence[float]) -> str:
    joined = _join(values, 3)
    return joined if len(values) == 1 else f"{joined}: {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


if __name__ == "__main__":
    main()
