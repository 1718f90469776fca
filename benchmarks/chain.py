"""What the scripts share: the library's steps on a folder of their own, skipping what is there, and results files."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from tasks.project import environment

ROOT = Path(__file__).resolve().parent.parent
environment.apply(ROOT)

from winnow.config import Config, check_config, topological_order  # noqa: E402
from winnow.data.dataset import TEST, ImageSet  # noqa: E402
from winnow.deploy.onnx_session import MODEL  # noqa: E402
from winnow.errors import WinnowError  # noqa: E402
from winnow.hardware import cpu_flags, int8_sums_saturate  # noqa: E402
from winnow.records import RECORD, Machine, read_json, this_machine, write_json  # noqa: E402
from winnow.records.candidate import QuantizationRung  # noqa: E402
from winnow.records.selection import Drop  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
SATURATES = int8_sums_saturate(cpu_flags())
"""Whether int8 files need weights of 7 bits on this machine."""
SAMPLE = {"data.source": "sample", "data.path": "data/cifar10-jpeg-sample.tar.xz"}


def configure(changes: dict[str, Any], candidates: dict[str, Any] | None = None) -> Config:
    """params.yaml on the sample, with dotted keys replaced and, where given, another tree."""
    raw = deepcopy(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")))
    for key, value in {**SAMPLE, **changes}.items():
        *above, last = key.split(".")
        at = raw
        for part in above:
            at = at.setdefault(part, {})
        at[last] = value
    if candidates is not None:
        raw["candidates"] = candidates
    return check_config(raw, f"params.yaml with {changes}")


def all_labels(backbone: str, images: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """Keys of a dense network from random weights, on every label of the sample or of a folder of images."""
    source = {"data.source": "folder", "data.path": str(images.resolve())} if images else {}
    return {
        **source,
        "data.labels_per_class": "all",
        "pretrain": {"method": "none", "backbone": backbone, "seed": seed},
        "finetune.seeds": [seed],
        "finetune.learning_rates": [0.1],
        "finetune.augmentation": {"crop_scale_min": 0.6},
    }


class Chain:
    """Steps of the library in .winnow/benchmarks/NAME/, each run once; delete the folder to start anew.

    Raises WinnowError when the folder holds work with other settings: a figure must not mix two.
    """

    def __init__(self, name: str, config: Config) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        os.chdir(ROOT)  # params.yaml names the sample relative to the project
        self.name, self.config = name, config
        self.folder = ROOT / ".winnow" / "benchmarks" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scratch = self.folder / "scratch"
        self.candidates = self.folder / "candidates"
        self._spent = self.folder / "seconds.json"
        settings = config.model_dump(mode="json", include={"data", "pretrain", "finetune", "candidates", "benchmark"})
        del settings["data"]["path"]  # images may lie elsewhere where work goes on
        kept = self.folder / "settings.json"
        if not any(self.folder.iterdir()):
            write_json(kept, settings)
        if not kept.exists() or read_json(kept) != settings:
            raise WinnowError(f"{self.folder} holds work with other settings than these; delete it to start anew")

    def _once(self, out: Path, act: Any) -> Path:
        if not (out / RECORD).is_file():
            logging.getLogger(__name__).info("== %s", out.name)
            began = time.monotonic()
            try:
                act()
            finally:
                spent = self.seconds()
                spent[out.name] = spent.get(out.name, 0.0) + time.monotonic() - began
                write_json(self._spent, spent)
        return out

    def seconds(self) -> dict[str, float]:
        """What each step has taken, over all calls."""
        return dict(read_json(self._spent)) if self._spent.exists() else {}

    def data(self) -> Path:
        """Ingested images."""
        from winnow.steps.ingest import ingest

        return self._once(self.folder / "data", lambda: ingest(self.config, self.folder / "data", self.scratch))

    def pretrained(self) -> Path:
        """The backbone."""
        from winnow.steps.pretrain import pretrain

        data, out = self.data(), self.folder / "pretrain"
        return self._once(out, lambda: pretrain(self.config, data, out, self.scratch / "pretrain"))

    def dense(self) -> Path:
        """The fine-tuned root of the tree."""
        from winnow.steps.finetune import finetune

        data, pretrained, out = self.data(), self.pretrained(), self.candidates / "dense"
        return self._once(out, lambda: finetune(self.config, data, pretrained, out, self.scratch / "finetune"))

    def tree(self, names: Collection[str] | None = None) -> Path:
        """Those candidates, or all, each once."""
        from winnow.steps.compress import CandidateFolders, compress

        data, pretrained = self.data(), self.pretrained()
        self.dense()
        for name in topological_order(dict(self.config.candidates)):
            if names is not None and name not in names:
                continue
            out, scratch, answers = self.candidates / name, self.scratch / name, self.folder / "answers"
            folders = CandidateFolders(data, pretrained, self.candidates, scratch, answers)
            self._once(out, lambda n=name, o=out, f=folders: compress(self.config, n, f, o))
        return self.candidates

    def benchmark(self) -> Path:
        """Times of all files."""
        self.tree()
        return self.benchmark_of(list(self.config.candidates))

    def benchmark_of(self, names: list[str]) -> Path:
        """Times of dense and of those candidates, which are there with their parents."""
        from winnow.steps.benchmark import benchmark

        some = {name: self.config.candidates[name] for name in names}
        config = self.config.model_copy(update={"candidates": some})
        which = "" if len(some) == len(self.config.candidates) else f"-of-{'-'.join(sorted(names))}"
        data, out = self.data(), self.folder / f"benchmark{which}"
        return self._once(out, lambda: benchmark(config, data, self.candidates, out))


def right_on_test(folder: Path, images: ImageSet) -> NDArray[np.bool_]:
    """Which images of the test split the file in `folder` has right."""
    from winnow.deploy.batch_inference import predict_file

    indices = images.indices(TEST)
    logits_NC = predict_file(folder / MODEL, images.images_NHWC, indices)
    return np.asarray(logits_NC.argmax(1) == images.labels_N[indices])


def leave(name: str, conditions: str, figures: dict[str, Any], table: str, machine: Machine | None = None) -> None:
    """results/NAME.json and results/NAME.md, stamped with the machine: this one unless said otherwise."""
    machine = machine or this_machine()
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"{name}.json", {"machine": machine.model_dump(mode="json"), **figures})
    stamp = f"{machine.cpu}, {machine.threads} threads, {' '.join(machine.flags)}; " + ", ".join(
        f"{package} {version}" for package, version in machine.versions.items()
    )
    text = f"# {name}\n\n{conditions}\n\nMachine: {stamp}\n\n{table}\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def markdown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; the keys of the first row are the heading."""
    heading = list(rows[0])
    lines = [" | ".join(heading), " | ".join("---" for _ in heading)]
    lines += [" | ".join(str(row[name]) for name in heading) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def span(drop: Drop, digits: int) -> str:
    """Points lost, and the ends of their interval."""
    return f"{drop.points:.{digits}f} ({drop.low:.{digits}f} to {drop.high:.{digits}f})"


def rungs_told(rungs: Sequence[QuantizationRung]) -> str:
    """What int8 lost on each rung of the ladder, in points."""
    return "; ".join(
        f"{rung.rung} {'impossible' if rung.points_lost is None else f'{rung.points_lost:.2f}'}" for rung in rungs
    )
