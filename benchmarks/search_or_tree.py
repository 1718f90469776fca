"""The search against the shipped tree: which finds the better front, in the tree's time and in 30 minutes?

    python -m benchmarks.search_or_tree [--minutes 30] [--seeds 0 1 2]

On the embedded sample, with each seed its own labels and dense network; the tree is params.yaml's, its controls left
out, which needs the minutes that making it takes. Both fronts are of points of top-1 lost against dense, and p50 of a
call in OpenVINO, every file measured beside dense in turn. What is compared is the area that a front dominates up to 5
points and dense's own time (hypervolume), a share of the whole area: as the fronts were found, on the validation split,
and of the same files on other images and calls: the test split, read once, and times that are taken anew, of the files
of all fronts in turns. A search tries many files, so by the former alone its front would look better than it is.

Seeds may be run one at a time, on days of their own: results/search_or_tree.json keeps each with its machine.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chain import RESULTS, SATURATES, Chain, configure, leave, markdown, right_on_test
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
"""Points lost and share of dense's time, beyond which nothing counts."""
ROUNDS = 5
"""Times that each file of a front is measured anew; the median counts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of each search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    kept = RESULTS / f"{NAME}.json"
    runs: dict[str, Any] = read_json(kept)["runs"] if kept.exists() else {}
    for seed in given.seeds:
        config = shipped(seed, given.minutes)
        asked = asked_of(config)
        if any(run["asked"] != asked for run in runs.values()):
            raise WinnowError(f"{kept} holds seeds with other settings than these; delete it to start anew")
        runs[str(seed)] = {**compare(seed, config), "asked": asked}
        _leave(dict(sorted(runs.items())))


def shipped(seed: int, minutes: float) -> Config:
    """params.yaml with that seed and without its controls; int8 in 7 bits where sums would saturate."""
    changes = {"finetune.seeds": [seed], "search.seed": seed, "search.minutes": minutes}
    tree = {}
    for name, settings in configure(changes).candidates.items():
        if name not in CONTROLS:
            tree[name] = settings.model_dump(mode="json", by_alias=True)
            if isinstance(settings, Quantize):
                tree[name]["overflow_safe"] = SATURATES
    return configure(changes, tree)


def asked_of(config: Config) -> dict[str, Any]:
    """What has to be the same for every seed, whatever its machine needs of int8."""
    tree = config.model_dump(
        mode="json", include={"candidates"}, exclude={"candidates": {"__all__": {"overflow_safe"}}}
    )
    return {**tree, "search": config.search.model_dump(mode="json", exclude={"seed"})}


def compare(seed: int, config: Config) -> dict[str, Any]:
    """Fronts of the tree and of a search, with one seed."""
    chain = Chain(f"{NAME}/{seed}", config)
    chain.tree()
    tree_seconds = sum(chain.seconds()[name] for name in config.candidates)
    answers = chain.folder / "search-answers"  # of its own: the tree's work is not to be had for nothing
    folders = CandidateFolders(chain.data(), chain.pretrained(), chain.candidates, chain.scratch / "search", answers)
    place = SearchContext(config, folders, chain.folder / "trials", overflow_safe=SATURATES)
    meter, images = make_cost_measurer(place), load_images(chain.data())
    dense_VC = reference_logits(place.references, images)
    made, tree = {}, []
    for number, name in enumerate(config.candidates):
        made[number] = chain.candidates / name
        drop = points_lost(dense_VC, load_logits(made[number], images), images, selection_half(images)).points
        tree.append(TrialPoint(number, drop, share_of_dense(meter, made[number])))
    progress = search(place, chain.folder / "study.db", lambda _trial: None)
    trials = {
        trial.number: candidates_folder(place, trial.folder, config.search.epochs) / trial.look.names[-1]
        for trial in progress.trials
        if trial.look is not None and trial.state == "finished"
    }
    arms = {
        "the shipped tree": Arm(tree, made, tree_seconds),
        "search, in the tree's time": Arm(within(progress, tree_seconds), trials, tree_seconds),
        "search": Arm(within(progress, math.inf), trials, progress.seconds),
    }
    shares = shares_anew(meter, {file for arm in arms.values() for _, file in arm.front})
    scene = Scene(images, chain.candidates / ROOT, shares)
    return {
        "machine": machine_identity(),
        "dense_ms": meter.dense_cost,
        "rows": {what: scene.told(arm) for what, arm in arms.items()},
        "tried": len(progress.trials),
    }


def share_of_dense(meter: CostMeasurer, folder: Path) -> float:
    """Share of dense's time that a call of a file takes."""
    return meter.cost(folder, CandidateRecord.read(folder).details.precision) / meter.dense_cost


def shares_anew(meter: CostMeasurer, files: Collection[Path]) -> dict[Path, float]:
    """The same of all these files, in turns."""
    rounds = [{file: share_of_dense(meter, file) for file in sorted(files)} for _ in range(ROUNDS)]
    return {file: float(np.median([each[file] for each in rounds])) for file in files}


@dataclass(frozen=True)
class Arm:
    """What one way has found."""

    found: list[TrialPoint]
    made: Mapping[int, Path]
    seconds: float

    @property
    def front(self) -> list[tuple[TrialPoint, Path]]:
        """What nobody beats, each with its file."""
        return [(each, self.made[each.number]) for each in trials_on_front(self.found)]


def within(progress: SearchProgress, seconds: float) -> list[TrialPoint]:
    """What the search had found by then; costs as shares of dense's."""
    spent, found = 0.0, []
    for trial in progress.trials:
        spent += trial.seconds
        if trial.found and spent <= seconds:
            found.append(TrialPoint(trial.number, trial.found.drop, trial.found.cost / progress.dense_cost))
    return found


class Scene:
    """What fronts of one seed are measured on."""

    def __init__(self, images: ImageSet, dense: Path, shares: Mapping[Path, float]) -> None:
        self.images = images
        self.shares = shares
        """Of dense's time, measured anew."""
        self._right: dict[Path, float] = {}
        self.dense = self._share_right(dense)

    def _share_right(self, folder: Path) -> float:
        """Right answers on the test split, each file asked once."""
        if folder not in self._right:
            self._right[folder] = float(right_on_test(folder, self.images).mean())
        return self._right[folder]

    def told(self, arm: Arm) -> dict[str, Any]:
        """A front as it was found, and its files on the test split, at times taken anew."""
        chosen = [each for each, _ in arm.front]
        anew = trials_on_front([replace(each, cost=self.shares[file]) for each, file in arm.front])
        tested = [(self.dense - self._share_right(arm.made[each.number])) * 100 for each in anew]
        return {
            "minutes": arm.seconds / 60,
            "files": len(arm.found),
            "front": [asdict(each) for each in chosen],
            "front_anew": [asdict(each) | {"test_drop": drop} for each, drop in zip(anew, tested, strict=True)],
            "area": hypervolume(chosen, WORST) / WORST[0],
            "area_anew": hypervolume(anew, WORST, tested) / WORST[0],
            "times_dense": max((1 / each.cost for each in anew if each.drop <= 1.0), default=None),
        }


def _leave(runs: Mapping[str, Any]) -> None:
    """The table of all seeds that there are."""
    rows = []
    for what in next(iter(runs.values()))["rows"]:
        each = [run["rows"][what] for run in runs.values()]
        rows.append(
            {
                "": what,
                "minutes": _listed([row["minutes"] for row in each], 1),
                "files": _listed([row["files"] for row in each], 0),
                "area as found, validation": _spread([row["area"] for row in each]),
                "area anew, test": _spread([row["area_anew"] for row in each]),
                "times dense within 1 point": _listed([row["times_dense"] for row in each], 2),
            }
        )
    machines = {run["machine"] for run in runs.values()}
    conditions = (
        f"CIFAR-10 (JPEG) sample, 25 labels per class, resnet8; seeds {', '.join(runs)}. Area dominated in (0 to "
        f"{WORST[0]:g} points lost) x (0 to dense's ms in OpenVINO f32), as a share of it: of each seed, mean ± "
        "standard deviation. Anew: those files on the test split, their times taken again in turns. Times dense: of "
        "the fastest that loses at most 1 point on validation, anew."
    )
    measured = "\n".join(f"- seed {seed}: {run['machine']}" for seed, run in runs.items())
    table = markdown(rows) + (f"\n\nMeasured on\n\n{measured}" if len(machines) > 1 else "")
    leave(NAME, conditions, {"runs": dict(runs)}, table)


def _listed(values: Sequence[float | None], digits: int) -> str:
    return ", ".join("none" if value is None else f"{value:.{digits}f}" for value in values)


def _spread(values: Sequence[float]) -> str:
    told = _listed(values, 3)
    return told if len(values) == 1 else f"{told}: {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


if __name__ == "__main__":
    main()
