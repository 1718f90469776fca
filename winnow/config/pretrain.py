"""`pretrain:`: the backbone and how it learns without labels. The method's name picks the model below it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from winnow.config.backbones import Backbone
from winnow.config.section import Augmentation, Count, Optimiser, Positive, Section, Seed, steps_of_epoch


class _Pretraining(Section):
    backbone: Backbone = "resnet8"
    """resnet8, resnet18 or another torchvision classifier."""
    seed: Seed = 0


class _Trained(_Pretraining):
    """What both methods are told. Values that params.yaml leaves out are the method's own, key by key."""

    epochs: Count = 10
    min_steps: Count = 600
    """With few images `epochs` would be over at once; at least this many steps are taken, in as many epochs."""
    batch_size: Count = 128
    optimiser: Optimiser
    augmentation: Augmentation
    monitor_every: Count = 2
    """Epochs between two looks at kNN accuracy and the spread of the embeddings."""

    @model_validator(mode="before")
    @classmethod
    def _own_values(cls, raw: Any) -> Any:
        """Fill what a section leaves out from the method's own values, not from those of sections at large."""
        if not isinstance(raw, dict):
            return raw
        filled = dict(raw)
        for name in ("optimiser", "augmentation"):
            own, given = cls.model_fields[name].get_default().model_dump(), raw.get(name, {})
            filled[name] = own | given if isinstance(given, dict) else given
        return filled

    def steps_for(self, images: int) -> int:
        """Return the steps of the training, on so many images."""
        return self.epochs * steps_of_epoch(images, self.batch_size, self.epochs, self.min_steps)


class NoPretraining(_Pretraining):
    """Random initial weights, for comparison. Settings of a training are passed over, so that they may stay."""

    method: Literal["none"]

    @model_validator(mode="before")
    @classmethod
    def _trains_nothing(cls, raw: Any) -> Any:
        of_trainings = set(_Trained.model_fields) - set(_Pretraining.model_fields)
        return {key: raw[key] for key in raw if key not in of_trainings} if isinstance(raw, dict) else raw


class RotNet(_Trained):
    """Tell by how much an image was turned: winnow/pretraining/rotnet.py."""

    method: Literal["rotnet"]
    optimiser: Optimiser = Optimiser(learning_rate=0.1)
    augmentation: Augmentation = Augmentation()


class SimCLR(_Trained):
    """Find the other crop of the same image: winnow/pretraining/simclr.py.

    Views are those of the paper's experiment on CIFAR-10 (appendix B.9: no blur, colour at strength 0.5), the rate is
    one for SGD. The larger the batch, the more images to tell an image from; an epoch takes half as long as RotNet's,
    which shows each image four times.
    """

    method: Literal["simclr"]
    epochs: Count = 20
    batch_size: Count = 256
    optimiser: Optimiser = Optimiser(learning_rate=0.12)
    augmentation: Augmentation = Augmentation(crop_scale_min=0.2, jitter=0.4, grayscale=0.2)
    temperature: Positive = 0.5
    projector_width: Count = 512
    projection_dim: Count = 128


Pretrain = Annotated[NoPretraining | RotNet | SimCLR, Field(discriminator="method")]
