from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from winnow.config import FixMatch
from winnow.data.augmentation import normalise, to_float
from winnow.training.fixmatch import AdaptiveThresholds, fixmatch_loss

PLAIN = {"crop_scale_min": 1.0, "flip": False}
SETTINGS = FixMatch.model_validate(
    {"method": "fixmatch", "augmentation": PLAIN, "strong_augmentation": PLAIN, "momentum": 0.9, "unlabelled_weight": 2}
)


def make_model(prior: list[float]) -> AdaptiveThresholds:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, len(prior)))
    return AdaptiveThresholds(network, torch.tensor(prior))


def test_running_means_are_those_of_freematch() -> None:
    model = make_model([0.5, 0.5])
    assert (model.confidence.item(), model.mean_probability_C.tolist()) == (0.5, [0.5, 0.5])
    model.update(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), momentum=0.9)
    assert model.confidence.item() == pytest.approx(0.9 * 0.5 + 0.1 * 0.75)
    assert model.mean_probability_C.tolist() == pytest.approx([0.9 * 0.5 + 0.1 * 0.75, 0.9 * 0.5 + 0.1 * 0.25])


def test_a_rare_answer_has_a_lower_threshold_and_is_aligned_with_the_prior() -> None:
    model = make_model([0.5, 0.5])
    model.confidence.fill_(0.9)
    model.mean_probability_C.copy_(torch.tensor([0.75, 0.25]))
    classes_B, passed_B = model.pseudo_labels(torch.tensor([[0.88, 0.12], [0.5, 0.5], [0.99, 0.01]]))
    # Aligned, 0.88 of class 0 is 0.71, below 0.9; 0.5 of class 1 is 0.75, above its threshold of 0.3.
    assert classes_B.tolist() == [0, 1, 0]
    assert passed_B.tolist() == [False, True, True]


def test_the_loss_is_that_of_the_papers() -> None:
    model = make_model([0.25, 0.75])
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([-1, -1, -1, -1, 1, 0])
    with torch.no_grad():
        logits = model(normalise(to_float(images)))
        loss = fixmatch_loss(SETTINGS, 8, labelled=2)(model, images, labels)
        classes, passed = model.pseudo_labels(logits[:4].softmax(1))  # with the means after the update, as in the loss
        expected = F.cross_entropy(logits[4:], labels[4:])
        expected += 2 * (F.cross_entropy(logits[:4], classes, reduction="none") * passed).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_pseudo_labels_get_no_gradient_and_strong_views_do() -> None:
    model = make_model([0.5, 0.5])
    model.confidence.fill_(0.0)  # all pass
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    fixmatch_loss(SETTINGS, 8, labelled=1)(model, images, torch.tensor([-1, -1, 0])).backward()
    assert model.network[1].weight.grad.abs().sum() > 0
    assert model.confidence.grad is None


def test_running_means_are_in_checkpoints() -> None:
    assert {"confidence", "mean_probability_C", "prior_C"} < set(make_model([0.5, 0.5]).state_dict())
