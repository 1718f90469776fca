from __future__ import annotations

import pytest
import torch

from winnow.training.losses import cosine_distance


def test_cosine_distance_is_one_minus_the_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 7, generator=generator) for _ in range(2))
    expected = [1 - float(a @ b / (a.norm() * b.norm())) for a, b in zip(student, teacher, strict=True)]
    assert float(cosine_distance(student, teacher)) == pytest.approx(sum(expected) / 5, rel=1e-4)
    assert float(cosine_distance(student, 3 * student)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_distance(student, -student)) == pytest.approx(2, rel=1e-5)


def test_other_shapes_are_an_error() -> None:
    with pytest.raises(ValueError, match="both need the same shape"):
        cosine_distance(torch.zeros(2, 3), torch.zeros(2, 4))
