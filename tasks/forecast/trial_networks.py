"""The networks, images and rates that the forecasts of one process share: untrained, made up, measured once."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path

import numpy as np

from tasks.forecast.data_counts import Counts
from tasks.forecast.microbenchmarks import Microbenchmarks, random_images
from winnow.config import ROOT, Config
from winnow.config.weights import NO_WEIGHTS
from winnow.deploy.feature_extraction import embed_images, open_features
from winnow.deploy.teacher_embeddings import TeacherTargets, load_targets
from winnow.models.backbones import build_model, save_model
from winnow.models.image_size_check import check_image_size
from winnow.models.weights_lookup import find_weights
from winnow.steps.pretrain import check_students, find_start

EMBED = "embed"
"""The folder of the teacher and its embeddings."""


class TrialNetworks:
    """Networks with random weights in a folder, and random images; their speed is that of trained ones."""

    def __init__(self, config: Config, counts: Counts, folder: Path, weights_cache: Path) -> None:
        """Build the networks in `folder`. Raises WinnowError where the steps would."""
        self.config, self.counts, self.folder, self.weights_cache = config, counts, folder, weights_cache
        image_size = config.data.image_size
        _, self.architecture = find_start(config.pretrain, counts.classes, image_size, weights_cache)
        check_image_size(self.architecture, "pretrain.backbone")
        check_students(config.candidates, counts.classes, image_size)
        self.images = random_images(folder / "data", config.data, counts.classes)
        self.microbenchmarks = Microbenchmarks(self.images, folder)
        for network_folder in (folder / ROOT, folder / "pretrain"):
            network_folder.mkdir()
            save_model(network_folder, build_model(self.architecture), self.architecture)

    @property
    def has_teacher(self) -> bool:
        """Return whether the section `teacher` names weights."""
        return self.config.teacher.weights != NO_WEIGHTS

    def ensure_teacher(self) -> float:
        """Write the teacher and its embeddings of the made-up images, once; return the seconds that one image took."""
        return self._embedding_seconds

    @cached_property
    def _embedding_seconds(self) -> float:
        settings, folder = self.config.teacher, self.folder / EMBED
        weights = find_weights(settings.weights, settings.network, self.weights_cache)
        size = None if settings.input_size == "auto" else settings.input_size
        architecture = weights.architecture(self.counts.classes, self.config.data.image_size, size)
        teacher = weights.load(architecture)
        folder.mkdir()
        save_model(folder, teacher, architecture)
        features = open_features(teacher, architecture, folder, self.counts.train + self.counts.validation)
        every = np.arange(len(self.images.labels_N))
        started = time.monotonic()
        embed_images(features, self.images, every, folder)
        return (time.monotonic() - started) / len(every)

    def targets(self) -> TeacherTargets:
        """Return the teacher's embeddings as targets."""
        self.ensure_teacher()
        return load_targets(self.folder / EMBED, self.images)


def describe_steps(steps: int, batch: int, per_step: float) -> str:
    """Return the basis of a training's forecast, for users. `per_step`: seconds."""
    return f"{steps} steps of {batch} images at {per_step * 1e3:.0f} ms"
