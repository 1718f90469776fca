"""The section `pretrain:`: the backbone and the method that trains it without labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from winnow.config.backbones import Backbone
from winnow.config.section import Augmentation, Count, Optimiser, Positive, Section, Seed, steps_per_epoch
from winnow.config.teacher import InputSize, check_named_backbone
from winnow.config.weights import NO_WEIGHTS, Weights, backbone_of

AUTO = "auto"
"""The value of `pretrain.method` for the method that suits teacher and images."""


class Pretraining(Section):
    """The settings of every method."""

    method: str
    backbone: Backbone = "resnet8"
    """resnet8, resnet18, another torchvision classifier, or timm:NAME; auto: that of `start`."""
    start: Weights = NO_WEIGHTS
    """The weights that the backbone starts from, by name, such as package:efficientnet-lite0; none: random ones."""
    input_size: InputSize = "auto"
    """The side in pixels at which a network with known weights takes images; auto: its own, but images are enlarged
    five times at most."""
    non_commercial: bool = False
    """True to accept weights whose licence excludes commercial use."""
    seed: Seed = 0
    """The seed of initial weights, order and views."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_backbone(cls, raw: Any) -> Any:
        """Replace backbone: auto by the backbone of the start weights."""
        if not isinstance(raw, dict) or raw.get("backbone") != "auto":
            return raw
        start = raw.get("start", NO_WEIGHTS)
        if named := backbone_of(start) if isinstance(start, str) and ":" in start else None:
            return {**raw, "backbone": named}
        raise ValueError(f"backbone: auto needs a start whose name says the network, not {start!r}; name the backbone")

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        check_named_backbone(self.start, self.backbone)
        return self


def resolve_method(raw: Any) -> Any:
    """Return a parsed params.yaml in which the method `auto` is replaced by the one that it means.

    distill where there is a teacher; else rotnet, or simclr for images without an upright orientation, or none where
    neither can learn from the images (winnow/config/invariances.py).
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("pretrain"), dict) or raw["pretrain"].get("method") != AUTO:
        return raw
    teacher, data = ({} if not isinstance(raw.get(key), dict) else raw[key] for key in ("teacher", "data"))
    if teacher.get("weights", NO_WEIGHTS) != NO_WEIGHTS:
        method = "distill"
    else:
        has_views = data.get("colour", True) or data.get("scale", True)
        method = "rotnet" if data.get("up", True) else "simclr" if has_views else "none"
    return {**raw, "pretrain": {**raw["pretrain"], "method": method}}


class TrainedPretraining(Pretraining):
    """The settings of all trainings. Each key that params.yaml leaves out has the method's own default."""

    epochs: Count = 10
    """Passes over the training images."""
    min_steps: Count = 600
    """The smallest number of training steps; more than `epochs` give if there are few images."""
    batch_size: Count = 128
    """The images of one step."""
    optimiser: Optimiser
    """The optimiser."""
    augmentation: Augmentation
    """The random views of a training image."""
    monitor_every: Count = 2
    """The epochs between two evaluations of kNN accuracy and the spread of the embeddings."""

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, raw: Any) -> Any:
        """Fill missing keys of optimiser and augmentation with the method's defaults, not those of their sections."""
        if not isinstance(raw, dict):
            return raw
        filled = dict(raw)
        for name in ("optimiser", "augmentation"):
            defaults, values = cls.model_fields[name].get_default().model_dump(), raw.get(name, {})
            filled[name] = defaults | values if isinstance(values, dict) else values
        return filled

    def steps_for(self, images: int) -> int:
        """Return the steps of a training on this many images."""
        return self.epochs * steps_per_epoch(images, self.batch_size, self.epochs, self.min_steps)


class NoPretraining(Pretraining):
    """Random initial weights, for comparison. The training settings may stay in the file; they are ignored."""

    method: Literal["none"]
    """No pretraining."""

    @model_validator(mode="before")
    @classmethod
    def _drop_training_keys(cls, raw: Any) -> Any:
        training_keys = set(TrainedPretraining.model_fields) - set(Pretraining.model_fields)
        return {key: raw[key] for key in raw if key not in training_keys} if isinstance(raw, dict) else raw


class RotNet(TrainedPretraining):
    """Predict by which of four rotations an image was turned (Gidaris et al. 2018).

    Batch size and learning rate were chosen on validation data (docs/decisions/0033-small-batches-for-rotnet.md).
    """

    method: Literal["rotnet"]
    """Predict the rotation of an image."""
    min_steps: Count = 2400
    """The smallest number of training steps; more than `epochs` give if there are few images."""
    batch_size: Count = 32
    """The images of one step, each in four rotations."""
    optimiser: Optimiser = Optimiser(learning_rate=0.05)
    """The optimiser."""
    augmentation: Augmentation = Augmentation()
    """The random views of a training image."""


class SimCLR(TrainedPretraining):
    """Match two views of the same image among the views of others (Chen et al. 2020).

    The views are those of the paper's experiment on CIFAR-10 (appendix B.9: no blur, colour at strength 0.5); the
    learning rate suits SGD. An epoch takes half as long as RotNet's, which shows each image four times.
    """

    method: Literal["simclr"]
    """Match two views of the same image."""
    epochs: Count = 20
    """Passes over the training images."""
    batch_size: Count = 256
    """The images of one step; each has two views."""
    optimiser: Optimiser = Optimiser(learning_rate=0.12)
    """The optimiser."""
    augmentation: Augmentation = Augmentation(crop_scale_min=0.2, jitter=0.4, grayscale=0.2)
    """The random views of a training image."""
    temperature: Positive = 0.5
    """The temperature of the contrastive loss."""
    projector_width: Count = 512
    """The hidden units of the projector."""
    projection_dim: Count = 128
    """The dimension of the projections."""


class DistillEmbeddings(TrainedPretraining):
    """Predict the teacher's embedding of each image (winnow/pretraining/distill.py); needs the section `teacher`."""

    method: Literal["distill"]
    """Predict the embeddings of a large network with known weights."""
    epochs: Count = 30
    """Passes over the training images."""
    min_steps: Count = 1800
    """The smallest number of training steps; more than `epochs` give if there are few images."""
    optimiser: Optimiser = Optimiser(learning_rate=0.1)
    """The optimiser."""
    augmentation: Augmentation = Augmentation(crop_scale_min=0.5)
    """The random views of a training image."""


Pretrain = Annotated[NoPretraining | RotNet | SimCLR | DistillEmbeddings, Field(discriminator="method")]
