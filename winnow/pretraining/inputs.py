"""The inputs of a pretraining method beside its settings and the backbone."""

from __future__ import annotations

from dataclasses import dataclass

from winnow.deploy.teacher_embeddings import TeacherTargets


@dataclass(frozen=True)
class PretrainingInputs:
    """The size of views, and what the teacher gives to learn."""

    side: int
    """The side of the views in pixels."""
    targets: TeacherTargets | None = None
    """The teacher's embedding of each image; None without a teacher."""
