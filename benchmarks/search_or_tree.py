"""The search against the shipped tree: which finds the better front in the same time?

    python -m benchmarks.search_or_tree [MINUTES]

On the embedded sample with the shipped dense network; the tree is params.yaml's, its controls left out. The search gets
as many minutes as making the tree took, or MINUTES, with each of three seeds. Both fronts are of points of top-1 lost
on validation against dense, and p50 of a call in OpenVINO, every file measured beside dense in turn. What is compared
is the area that a front dominates up to 5 points and dense's own time (hypervolume), a share of the whole area.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from benchmarks.chain import Chain, configure, leave, markdown
from winnow.config import check_config
from winnow.data.images import load_images
from winnow.records import read_record
from winnow.search.front import Found, hypervolume
from winnow.search.study import search
from winnow.search.trial import Workplace, lost, meter_of, reference_logits
from winnow.steps.compress import Folders

NAME = "search_or_tree"
SEEDS = (0, 1, 2)
CONTROLS = ("dense-kd", "student-alone")
WORST_POINTS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=0.0, help="of each search; 0: what the tree took")
    minutes = parser.parse_args().minutes
    config = configure({"finetune.seeds": [0]})
    shipped = {
        name: settings.model_dump(mode="json", by_alias=True)
        for name, settings in config.candidates.items()
        if name not in CONTROLS
    }
    config = configure({"finetune.seeds": [0]}, shipped)
    chain = Chain(NAME, config)
    chain.dense()
    began = time.monotonic()
    chain.tree()
    kept = chain.folder / "tree-seconds"
    if not kept.exists():
        kept.write_text(str(time.monotonic() - began))
    tree_minutes = float(kept.read_text()) / 60
    folders = Folders(chain.data(), chain.pretrained(), chain.candidates, chain.scratch / "search")
    place = Workplace(config, folders, chain.folder / "unused")
    meter, images = meter_of(place), load_images(chain.data())
    tree = []
    for number, name in enumerate(shipped):
        record = read_record(chain.candidates / name)
        cost = meter.cost(chain.candidates / name, record.details["precision"])
        drop = lost(reference_logits(place, images), chain.candidates / name, images)
        tree.append(Found(number, drop.points, cost))
    worst = (WORST_POINTS, meter.dense_ms)
    whole = worst[0] * worst[1]
    rows = [_row("the shipped tree", tree, tree_minutes, worst)]
    areas, searches = [], []
    for seed in SEEDS:
        raw = config.model_dump(mode="json", by_alias=True)
        raw["search"] |= {"seed": seed, "minutes": minutes or tree_minutes}
        home = chain.folder / f"search-{seed}"
        own = Workplace(check_config(raw), folders, home / "trials")
        progress = search(own, home / "study.db", lambda _trial: None)
        found = progress.found
        areas.append(hypervolume(found, worst) / whole)
        rows.append(_row(f"search, seed {seed}", found, progress.seconds / 60, worst))
        searches.append([{"drop": each.drop, "cost": each.cost} for each in found])
    mean, spread = float(np.mean(areas)), float(np.std(areas, ddof=1))
    told = (
        f"Searches: {mean:.3f} ± {spread:.3f} (standard deviation of 3 seeds); the tree: {rows[0]['dominated area']}."
    )
    conditions = (
        f"CIFAR-10 (JPEG) sample, 25 labels per class, resnet8. Area dominated in (0 to {WORST_POINTS:g} points lost) "
        f"x (0 to {meter.dense_ms:.3f} ms, dense in OpenVINO f32), as a share of it."
    )
    figures = {"areas": areas, "searches": searches, "tree": [{"drop": e.drop, "cost": e.cost} for e in tree]}
    leave(NAME, conditions, figures, f"{markdown(rows)}\n\n{told}")


def _row(what: str, found: list[Found], minutes: float, worst: tuple[float, float]) -> dict[str, Any]:
    within = [each for each in found if each.drop <= 1.0]
    fastest = min((each.cost for each in within), default=float("nan"))
    return {
        "": what,
        "minutes": f"{minutes:.1f}",
        "files": str(len(found)),
        "dominated area": f"{hypervolume(found, worst) / (worst[0] * worst[1]):.3f}",
        "fastest within 1 point, ms": f"{fastest:.3f}",
    }


if __name__ == "__main__":
    main()
