"""The setting `finetune.unlabelled`: how fine-tuning also learns from images without labels.

unlabelled: none | propagation | fixmatch                  # with the method's own settings, or
unlabelled: {method: propagation, epochs: 30}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from winnow.config.section import (
    Augmentation,
    Count,
    Fraction,
    Integer,
    Number,
    Optimiser,
    Positive,
    Section,
    steps_per_epoch,
)


class NoUnlabelled(Section):
    """Fine-tuning learns from labelled images alone."""

    method: Literal["none"] = "none"
    """Labelled images alone."""


class UnlabelledTraining(Section):
    """Settings of all methods. An epoch has as many images as the training split; one eighth of them has labels."""

    epochs: Count = 10
    """Passes over the training images."""
    min_steps: Count = 600
    """The smallest number of training steps; more than `epochs` give if there are few images."""
    batch_size: Annotated[Integer, Field(ge=2)] = 128
    """The images of one step."""
    optimiser: Optimiser = Optimiser(learning_rate=0.05)
    """The optimiser."""
    augmentation: Augmentation = Augmentation(crop_scale_min=0.5)
    """The random views of a training image; of FixMatch the weak ones, which get pseudo-labels."""

    def steps_for(self, images: int) -> int:
        """Return the steps of a training on this many images."""
        return self.epochs * steps_per_epoch(images, self.batch_size, self.epochs, self.min_steps)


class Propagation(UnlabelledTraining):
    """Train on pseudo-labels that are propagated from labelled images along a graph of similar images."""

    method: Literal["propagation"]
    """Label propagation on a graph of nearest neighbours."""
    epochs: Count = 20
    """Passes over the training images."""
    min_steps: Count = 1200
    """The smallest number of training steps; more than `epochs` give if there are few images."""
    batch_size: Annotated[Integer, Field(ge=2)] = 64
    """The images of one step."""
    neighbours: Count = 10
    """The most similar images that an image is connected to."""
    share: Annotated[Number, Field(ge=0, lt=1)] = 0.8
    """The share of a pseudo-label that comes from the neighbours; the rest is the initial prediction."""
    inverse_regularisation: Positive = 10.0
    """The parameter C of the logistic regression on the teacher's embeddings, which gives the initial predictions."""
    embedding_weight: Annotated[Number, Field(ge=0)] = 1.0
    """The weight of 1 - cosine of projected features and the teacher's embedding, which is learned beside the
    pseudo-label. Without a teacher it has no effect."""


class FixMatch(UnlabelledTraining):
    """Train strong views of an image on the confident predictions of the network for a weak view."""

    method: Literal["fixmatch"]
    """FixMatch with the adaptive thresholds of FreeMatch."""
    augmentation: Augmentation = Augmentation(crop_scale_min=0.8)
    """The weak views, which get pseudo-labels."""
    strong_augmentation: Augmentation = Augmentation(crop_scale_min=0.3, jitter=0.8, grayscale=0.2)
    """The strong views, which are trained on them."""
    momentum: Fraction = 0.99
    """The share of the old value in each step of the running means that set thresholds."""
    unlabelled_weight: Positive = 1.0
    """The weight of the loss on unlabelled images; that on labelled ones has weight 1."""


def _from_name(raw: Any) -> Any:
    """Return the settings for a method that is named alone."""
    return {"method": raw} if isinstance(raw, str) else raw


Unlabelled = Annotated[
    Annotated[NoUnlabelled | Propagation | FixMatch, Field(discriminator="method")], BeforeValidator(_from_name)
]
