"""The settings `recovery:` of a candidate: the training after a change of its structure."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from winnow.config.section import Augmentation, Count, Fraction, Optimiser, Positive, Section, Seed, steps_per_epoch


class Recovery(Section):
    """Training after a change of structure, with or without a teacher."""

    epochs: Count
    """Passes over the images. Without a teacher: as many steps, on the labelled images."""
    min_steps: Count = 600
    """The smallest number of training steps; more than `epochs` give if there are few images."""
    batch_size: Count = 128
    """The images of one step."""
    optimiser: Optimiser
    """The optimiser."""
    teacher: Literal["auto", "dense", "none"] = "auto"
    """What is learned beside the labels. dense: the outputs of dense; auto: the pseudo-labels of `finetune.unlabelled`
    where dense was trained on those of the large network and less than half of the training images have a label, else
    the outputs of dense; none: labels alone."""
    temperature: Positive = 4.0
    """The temperature that softens the outputs of dense and of the student; pseudo-labels are used as they are."""
    teacher_weight: Fraction = 0.9
    """The teacher's share of the loss; the rest is the mean cross-entropy of the labelled images in each batch."""
    images: Literal["all", "labelled"] = "all"
    """all: also images without a label, for which only the teacher's loss counts."""
    hint: Literal["none", "features", "attention", "pretrained", "embeddings"] = "none"
    """An intermediate output to learn as well. features: dense's features before the head; attention: dense's attention
    maps; pretrained: the features of the pretrained backbone; embeddings: those of the large network of the section
    `teacher`."""
    hint_weight: Positive = 1.0
    """The weight of the hint's loss; the other losses together have weight 1."""
    augmentation: Augmentation = Augmentation()
    """The random views of a training image."""
    seed: Seed = 0
    """The seed of the order, the views and new weights."""

    def steps_for(self, images: int) -> int:
        """Return the steps of a training on this many images."""
        return self.epochs * steps_per_epoch(images, self.batch_size, self.epochs, self.min_steps)

    def with_epochs(self, epochs: int) -> Recovery:
        """Return the same training with another number of epochs and unchanged steps per epoch."""
        return self.model_copy(update={"epochs": epochs, "min_steps": epochs * -(-self.min_steps // self.epochs)})

    @model_validator(mode="after")
    def _check_teacher(self) -> Recovery:
        if self.teacher == "none" and self.images == "all":
            raise ValueError("without a teacher training needs labels: set images: labelled")
        if self.teacher == "none" and self.hint in ("features", "attention"):
            raise ValueError(f"hint: {self.hint} needs a teacher; set teacher: auto or dense, or hint: none")
        return self
