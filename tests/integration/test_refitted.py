"""Test a refitted model on a real MLflow registry: deployment, comparison and rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks import drift
from tasks.project.paths import ProjectPaths
from tasks.registry import promotion_state
from tasks.registry.promotion import promote
from tasks.registry.rollback import rollback
from tests.handmade import aliases, fetch_version, tag, with_size_objective, write_refit, write_run
from tests.integration.test_drift import new_images
from tests.records import report_details
from tests.tiny_run import rewrite
from winnow.config import Config
from winnow.deploy.model_card import render_model_card
from winnow.errors import ArtifactError
from winnow.records import DeploymentCard, read_json, record_digest, sha256_of

pytest_plugins = "tests.stores"
SELECTED, REFITTED = {"salt": 0.5}, {"salt": 0.25}
"""Two files of equal size and predictions: the selected file and its refit."""


def write_refitted_run(paths: ProjectPaths, selected: dict[str, Any], refitted_variant: dict[str, Any]) -> Config:
    config = with_size_objective(write_run(paths.root, "quick", {"quick": selected}))
    write_refit(paths.artifacts, "quick", refitted_variant)
    return config


def test_the_refitted_file_is_registered_with_the_selected_file(paths: ProjectPaths) -> None:
    config = write_refitted_run(paths, SELECTED, REFITTED)
    outcome = promote(paths, config)
    folder = fetch_version(paths, "champion")
    assert outcome.sha256 == sha256_of(paths.artifacts / "refit" / "model.onnx") == sha256_of(folder / "model.onnx")
    selected = paths.artifacts / "candidates" / "quick" / "model.onnx"
    card = read_json(folder / "card.json")
    assert card["refit"]["selected_sha256"] == sha256_of(selected) == sha256_of(folder / "selected" / "model.onnx")
    assert card["labels"] == {"training": 170, "choosing": 60}
    (folder / "selected" / "model.onnx").unlink()
    assert (fetch_version(paths, "champion") / "selected" / "model.onnx").is_file()
    card["metrics"] |= {"size/parameters": 1e6, "delta/top1": 0.0, "quality/top1_low": 0.9, "quality/top1_high": 1.0}
    card["metrics"] |= {"quality/macro_f1": 1.0}
    text = render_model_card(DeploymentCard(**card), "photos")
    assert "Refitted after its selection, on 170 labels (training and validation)" in text
    assert "same prediction as before on 90.0 % of 110 training images" in text


def test_a_refitted_champion_is_compared_by_its_selected_file(paths: ProjectPaths) -> None:
    """The refitted file predicts all validation images correctly, as if trained on them; the selected misses a class.
    A challenger that predicts all of them correctly is better than the selected file, not than the refitted one."""
    promote(paths, write_refitted_run(paths, {"never_predicted": 1}, REFITTED))
    outcome = promote(paths, with_size_objective(write_run(paths.root, "quick", {"quick": SELECTED})))
    assert (outcome.version, outcome.champion) == ("2", "2"), outcome.reasons
    assert "which is shown to be better" in outcome.reasons[-1]


def test_a_refitted_challenger_has_no_advantage(paths: ProjectPaths) -> None:
    promote(paths, with_size_objective(write_run(paths.root, "quick", {"quick": SELECTED})))
    outcome = promote(paths, write_refitted_run(paths, {"never_predicted": 1}, REFITTED))
    assert (outcome.version, outcome.champion) == ("2", "1")
    assert "exceeds" in outcome.reasons[-1]


def test_a_refit_of_the_champion_is_promoted_and_rolled_back(paths: ProjectPaths) -> None:
    promote(paths, with_size_objective(write_run(paths.root, "quick", {"quick": SELECTED})))
    config = write_refitted_run(paths, SELECTED, REFITTED)
    assert not promotion_state.is_up_to_date(paths, config)
    outcome = promote(paths, config)
    assert (outcome.version, outcome.champion) == ("2", "2")
    assert "the champion's file, refitted on 170 labels, and the champion was trained on 110" in tag(
        paths, "2", "winnow.reason"
    )
    assert promotion_state.is_up_to_date(paths, config)
    rollback(paths, config, "worse in the field")
    assert aliases(paths)["champion"] == "1"
    promotion_state.clear(paths)
    assert "was rolled back" in promote(paths, config).reasons[-1]
    assert aliases(paths)["champion"] == "1"


def test_a_refit_of_another_candidate_is_not_promoted(paths: ProjectPaths) -> None:
    config = write_refitted_run(paths, SELECTED, REFITTED)
    rewrite(paths.artifacts / "refit", inputs={"quick": "0" * 64})
    with pytest.raises(ArtifactError, match="does not belong to the current quick; run winnow again"):
        promote(paths, config)
    assert aliases(paths) == {}


def test_test_metrics_of_another_refit_are_not_on_the_card(paths: ProjectPaths) -> None:
    config = write_refitted_run(paths, SELECTED, REFITTED)
    figures = {f"test/winner_{key}": 0.5 for key in ("top1", "top1_low", "top1_high")}
    inputs = {"select": record_digest(paths.artifacts / "select"), "refit": "0" * 64}
    changes = {"inputs": inputs, "metrics": {"test/images": 30.0, **figures}}
    rewrite(paths.artifacts / "report", details=report_details(winner="quick"), **changes)
    promote(paths, config)
    assert read_json(fetch_version(paths, "champion") / "card.json")["test"] == {}


@pytest.mark.thorough
def test_drift_uses_the_selected_file(paths: ProjectPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_refitted_run(paths, SELECTED, REFITTED)
    config = config.model_copy(update={"drift": config.drift.model_copy(update={"min_images": 60})})
    promote(paths, config)
    files: list[Path] = []
    compute_original_features = drift.compute_features

    def recording_compute_features(path: Path, *arguments: Any, **options: Any) -> Any:
        files.append(path)
        return compute_original_features(path, *arguments, **options)

    monkeypatch.setattr(drift, "compute_features", recording_compute_features)
    drift.detect_drift(paths, config, str(new_images(tmp_path / "new")))
    assert files == [fetch_version(paths, "champion") / "selected" / "model.onnx"] * 2
