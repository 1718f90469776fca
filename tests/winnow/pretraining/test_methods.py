from __future__ import annotations

import numpy as np
import pytest
import torch

from winnow.config import Augmentation, Optimiser, RotNet, SimCLR
from winnow.data.batches import Batches
from winnow.data.dataset import TRAIN, VALIDATION, ImageSet
from winnow.deploy.batch_inference import embed
from winnow.models.backbones import Architecture, build_model
from winnow.pretraining import METHODS
from winnow.pretraining.inputs import PretrainingInputs
from winnow.pretraining.monitoring import KnnBank, embedding_spread, knn_accuracy, monitor_embeddings
from winnow.pretraining.rotnet import rotations
from winnow.pretraining.simclr import nt_xent
from winnow.training.loop import TrainingPlan, fit, run_to_end

OPTIMISER = Optimiser(learning_rate=0.05)
COMMON = {"epochs": 3, "min_steps": 1, "batch_size": 32, "optimiser": OPTIMISER, "augmentation": Augmentation()}
ROTNET = RotNet(method="rotnet", **COMMON)
SIMCLR = SimCLR(method="simclr", projector_width=32, projection_dim=16, **COMMON)


def tiny_model() -> torch.nn.Module:
    return build_model(Architecture(backbone="resnet8", num_classes=3, image_size=16, width=0.2))


def test_rotations_equal_numpy() -> None:
    x = torch.arange(2 * 3 * 4 * 4).float().reshape(2, 3, 4, 4)
    rotated, labels = rotations(x)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for quarter in range(4):
        expected = np.rot90(x[1].permute(1, 2, 0).numpy(), quarter)
        np.testing.assert_array_equal(rotated[2 * quarter + 1].permute(1, 2, 0).numpy(), expected)


def test_four_quarter_rotations_are_the_identity() -> None:
    x = torch.rand(1, 3, 8, 8)
    rotated = rotations(x)[0][1:2]
    assert torch.equal(rotations(rotations(rotations(rotated)[0][1:2])[0][1:2])[0][1:2], x)


def test_rotations_need_squares() -> None:
    with pytest.raises(ValueError, match="square"):
        rotations(torch.zeros(1, 3, 4, 6))


def nt_xent_reference(first: torch.Tensor, second: torch.Tensor, temperature: float) -> float:
    """Compute equation 1 and algorithm 1 of the paper, view by view: the pairs (2k-1, 2k) are rows 2k and 2k+1 here."""
    views = torch.stack([first, second], 1).reshape(-1, first.shape[1]).double()
    similarity = torch.zeros(len(views), len(views), dtype=torch.float64)
    for i in range(len(views)):
        for j in range(len(views)):
            similarity[i, j] = views[i] @ views[j] / (views[i].norm() * views[j].norm())

    def pair_loss(i: int, j: int) -> float:
        denominator = sum(torch.exp(similarity[i, k] / temperature) for k in range(len(views)) if k != i)
        return float(-torch.log(torch.exp(similarity[i, j] / temperature) / denominator))

    count = len(first)
    return sum(pair_loss(2 * k, 2 * k + 1) + pair_loss(2 * k + 1, 2 * k) for k in range(count)) / (2 * count)


def test_nt_xent_equals_the_paper() -> None:
    torch.manual_seed(1)
    first, second = torch.randn(5, 7), torch.randn(5, 7)
    for temperature in (0.1, 0.5, 1.0):
        assert float(nt_xent(first, second, temperature)) == pytest.approx(
            nt_xent_reference(first, second, temperature), abs=1e-5
        )


def test_nt_xent_is_symmetric_scale_free_and_least_for_equal_views() -> None:
    torch.manual_seed(2)
    first, second = torch.randn(6, 8), torch.randn(6, 8)
    value = nt_xent(first, second, 0.5)
    torch.testing.assert_close(value, nt_xent(second, first, 0.5))
    torch.testing.assert_close(value, nt_xent(first * 3, second * 0.2, 0.5))
    assert nt_xent(first, first, 0.5) < value


def test_nt_xent_needs_equal_shapes() -> None:
    with pytest.raises(ValueError, match="same shape"):
        nt_xent(torch.zeros(2, 3), torch.zeros(3, 3), 0.5)


@pytest.mark.thorough
@pytest.mark.parametrize("settings", [ROTNET, SIMCLR], ids=["rotnet", "simclr"])
def test_methods_learn_and_repeat(settings: RotNet | SimCLR, tiny_set: ImageSet) -> None:
    digests = []
    for _ in range(2):
        model = tiny_model()
        loss = METHODS[type(settings)](settings, model, PretrainingInputs(tiny_set.image_size))
        batches = Batches(tiny_set.images_NHWC, tiny_set.labels_N, tiny_set.indices(TRAIN), 32, 0)
        curves = run_to_end(fit(model, batches, loss, TrainingPlan(6, batches.steps_per_epoch, OPTIMISER, 0)))
        assert curves[-1]["loss"] < curves[0]["loss"]
        digests.append(b"".join(value.numpy().tobytes() for value in model.state_dict().values()))
    assert digests[0] == digests[1]


def test_pretraining_does_not_read_labels(tiny_set: ImageSet) -> None:
    results = []
    for labels in (tiny_set.labels_N, np.full_like(tiny_set.labels_N, -1)):
        model = tiny_model()
        loss = METHODS[RotNet](ROTNET, model, PretrainingInputs(tiny_set.image_size))
        batches = Batches(tiny_set.images_NHWC, np.asarray(labels), tiny_set.indices(TRAIN), 32, 0)
        results.append(run_to_end(fit(model, batches, loss, TrainingPlan(1, 2, OPTIMISER, 0))))
    assert results[0] == results[1]


def test_simclr_is_monitored_on_the_features_of_the_backbone(tiny_set: ImageSet) -> None:
    model, queries = tiny_model(), tiny_set.indices(VALIDATION)
    features_MD = embed(model, tiny_set.images_NHWC, queries)
    METHODS[SimCLR](SIMCLR, model, PretrainingInputs(tiny_set.image_size))
    assert torch.equal(embed(model, tiny_set.images_NHWC, queries), features_MD)


def test_knn_equals_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(3)
    bank, queries = rng.normal(size=(90, 6)), rng.normal(size=(40, 6))
    labels, query_labels = rng.integers(0, 3, 90), rng.integers(0, 3, 40)
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.1)).fit(bank, labels)
    accuracy = knn_accuracy(
        *(torch.tensor(array) for array in (bank.astype("f4"), labels, queries.astype("f4"), query_labels))
    )
    assert accuracy == pytest.approx(reference.score(queries, query_labels))


def test_knn_finds_its_own_points_and_needs_a_bank() -> None:
    points, labels = torch.eye(5), torch.arange(5)
    assert knn_accuracy(points, labels, points, labels) == 1.0
    with pytest.raises(ValueError, match="labelled images"):
        knn_accuracy(points[:0], labels[:0], points, labels)


def test_spread_distinguishes_collapse_from_a_uniform_sphere() -> None:
    torch.manual_seed(0)
    assert embedding_spread(torch.randn(4000, 64)) == pytest.approx(1, abs=0.02)
    assert embedding_spread(torch.ones(100, 64) + 1e-4 * torch.randn(100, 64)) < 0.01


def test_the_monitor_scores_labelled_validation_images(tiny_set: ImageSet) -> None:
    bank = KnnBank(
        tiny_set.images_NHWC, tiny_set.labels_N, tiny_set.indices(TRAIN, labelled=True), tiny_set.indices(VALIDATION)
    )
    metrics = monitor_embeddings(tiny_model(), bank)
    assert set(metrics) == {"knn", "spread"}
    assert metrics["knn"] > 0.5  # colours alone distinguish these classes
