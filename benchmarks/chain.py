"""Helpers of all scripts: settings, the pipeline steps in a folder per benchmark, and the results files.

A step whose record.json exists is not run again, so an interrupted benchmark resumes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from tasks.project import environment
from tasks.project.templates import template

ROOT = Path(__file__).resolve().parent.parent
environment.apply(ROOT)

from winnow.cli.presets import FULL, merge_preset  # noqa: E402
from winnow.config import Config, check_config, topological_order  # noqa: E402
from winnow.config.weights import NO_WEIGHTS  # noqa: E402
from winnow.data.dataset import TEST, ImageSet  # noqa: E402
from winnow.deploy.onnx_session import MODEL  # noqa: E402
from winnow.errors import WinnowError  # noqa: E402
from winnow.hardware import cpu_flags, int8_sums_saturate  # noqa: E402
from winnow.records import RECORD, Machine, read_json, this_machine, write_json  # noqa: E402
from winnow.records.method_results import QuantizationRung  # noqa: E402
from winnow.records.selection import Drop  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
WEIGHTS = ROOT / ".winnow" / "weights"
"""Folder of downloaded weights."""
INT8_SATURATES = int8_sums_saturate(cpu_flags())
"""Whether this processor saturates int8 sums, so that int8 files need 7-bit weights."""
SAMPLE = {"data.source": "sample", "data.path": "data/cifar10-jpeg-sample.tar.xz"}


def full_settings() -> dict[str, Any]:
    """Return params.yaml as `winnow run --full` changes it, parsed."""
    raw: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    merge_preset(raw, yaml.safe_load(template(FULL)))
    return raw


def configure(overrides: dict[str, Any], candidates: dict[str, Any] | None = None) -> Config:
    """Return the full settings on the sample, with `overrides` (dotted key -> value).

    `candidates`: other candidates; None: those of the full settings.
    """
    raw = full_settings()
    for key, value in {**SAMPLE, **overrides}.items():
        *parents, last = key.split(".")
        section = raw
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    if candidates is not None:
        raw["candidates"] = candidates
    return check_config(raw, f"the full settings with {overrides}")


def all_labels_overrides(backbone: str, images: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """Return overrides for a dense network trained from random weights on all labels.

    `images`: a folder of class folders; None for the embedded sample.
    """
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
    """The pipeline steps of one benchmark, in .winnow/benchmarks/NAME/. Each step runs once and returns its folder.

    Raises WinnowError if the folder holds results of other settings, which must not be mixed; delete it to start again.
    """

    def __init__(self, name: str, config: Config) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        os.chdir(ROOT)  # params.yaml names the sample relative to the project
        self.name, self.config = name, config
        self.folder = ROOT / ".winnow" / "benchmarks" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scratch = self.folder / "scratch"
        self.candidates = self.folder / "candidates"
        self._seconds_file = self.folder / "seconds.json"
        settings = config.model_dump(mode="json", include={"data", "pretrain", "finetune", "candidates", "benchmark"})
        del settings["data"]["path"]  # a resumed benchmark may read the same images from another folder
        if config.teacher.weights != NO_WEIGHTS:
            settings["teacher"] = config.teacher.model_dump(mode="json")
        settings_file = self.folder / "settings.json"
        if not any(self.folder.iterdir()):
            write_json(settings_file, settings)
        if not settings_file.exists() or read_json(settings_file) != settings:
            raise WinnowError(f"{self.folder} holds results of other settings; delete it to start again")

    def _run_once(self, out: Path, step: Callable[[], object]) -> Path:
        if not (out / RECORD).is_file():
            logging.getLogger(__name__).info("== %s", out.name)
            start = time.monotonic()
            try:
                step()
            finally:
                seconds = self.seconds()
                seconds[out.name] = seconds.get(out.name, 0.0) + time.monotonic() - start
                write_json(self._seconds_file, seconds)
        return out

    def seconds(self) -> dict[str, float]:
        """Return step -> seconds that it took, summed over interrupted attempts."""
        return dict(read_json(self._seconds_file)) if self._seconds_file.exists() else {}

    def ingest(self) -> Path:
        """Ingest the images."""
        from winnow.steps.ingest import ingest

        out = self.folder / "data"
        return self._run_once(out, partial(ingest, self.config, out, self.scratch))

    def embed(self) -> Path:
        """Compute the teacher's embeddings, after ingest; without a teacher there is a record alone."""
        from winnow.steps.embed import embed

        data, out = self.ingest(), self.folder / "embed"
        return self._run_once(out, partial(embed, self.config, data, out, self.scratch / "embed", WEIGHTS))

    def pretrain(self) -> Path:
        """Pretrain the backbone, after the steps before it."""
        from winnow.steps.pretrain import pretrain

        data, embedded, out = self.ingest(), self.embed(), self.folder / "pretrain"
        scratch = self.scratch / "pretrain"
        return self._run_once(out, partial(pretrain, self.config, data, out, scratch, embedded, WEIGHTS))

    def finetune(self) -> Path:
        """Fine-tune the dense network, after the steps before it."""
        from winnow.steps.finetune import finetune

        data, pretrained, out = self.ingest(), self.pretrain(), self.candidates / "dense"
        scratch, embedded = self.scratch / "finetune", self.embed()
        return self._run_once(out, partial(finetune, self.config, data, pretrained, out, scratch, embedded))

    def compress(self, names: Collection[str] | None = None) -> Path:
        """Make these candidates, or all, parents first, after the steps before; return the folder of candidates."""
        from winnow.steps.compress import CandidateFolders, compress

        data, pretrained = self.ingest(), self.pretrain()
        self.finetune()
        for name in topological_order(dict(self.config.candidates)):
            if names is not None and name not in names:
                continue
            out, scratch, teacher_cache = self.candidates / name, self.scratch / name, self.folder / "answers"
            folders = CandidateFolders(data, pretrained, self.candidates, scratch, teacher_cache, self.embed())
            self._run_once(out, partial(compress, self.config, name, folders, out))
        return self.candidates

    def benchmark(self) -> Path:
        """Time dense and all candidates, after the steps before."""
        self.compress()
        return self.benchmark_candidates(list(self.config.candidates))

    def benchmark_candidates(self, names: list[str]) -> Path:
        """Time dense and these candidates, which must exist with their parents."""
        from winnow.steps.benchmark import benchmark

        selected = {name: self.config.candidates[name] for name in names}
        config = self.config.model_copy(update={"candidates": selected})
        suffix = "" if len(selected) == len(self.config.candidates) else f"-of-{'-'.join(sorted(names))}"
        data, out = self.ingest(), self.folder / f"benchmark{suffix}"
        return self._run_once(out, partial(benchmark, config, data, self.candidates, out))


def correct_on_test(folder: Path, images: ImageSet) -> NDArray[np.bool_]:
    """Return True (N,) for each test image that the deployed file in `folder` classifies correctly."""
    from winnow.deploy.batch_inference import predict_file

    indices = images.indices(TEST)
    logits_NC = predict_file(folder / MODEL, images.images_NHWC, indices)
    return np.asarray(logits_NC.argmax(1) == images.labels_N[indices])


def write_results(
    name: str, conditions: str, figures: dict[str, Any], table: str, machine: Machine | None = None
) -> None:
    """Write results/NAME.json and results/NAME.md with the machine (default: this one), and print the latter."""
    machine = machine or this_machine()
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"{name}.json", {"machine": machine.model_dump(mode="json"), **figures})
    versions = ", ".join(f"{package} {version}" for package, version in machine.versions.items())
    description = f"{machine.cpu}, {machine.threads} threads, {' '.join(machine.flags)}; {versions}"
    text = f"# {name}\n\n{conditions}\n\nMachine: {description}\n\n{table}\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table; the keys of the first row are the column titles."""
    titles = list(rows[0])
    lines = [" | ".join(titles), " | ".join("---" for _ in titles)]
    lines += [" | ".join(str(row[title]) for title in titles) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def format_drop(drop: Drop, digits: int) -> str:
    """Return the points lost with their interval, as "1.0 (0.4 to 1.7)"."""
    return f"{drop.points:.{digits}f} ({drop.low:.{digits}f} to {drop.high:.{digits}f})"


def format_rungs(rungs: Sequence[QuantizationRung]) -> str:
    """Return the points that int8 lost on each rung of the ladder, as "static 0.63; min-max -0.10"."""
    return "; ".join(
        f"{rung.rung} {'failed' if rung.points_lost is None else f'{rung.points_lost:.2f}'}" for rung in rungs
    )
