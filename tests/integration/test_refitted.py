"""A refitted model on a real MLflow registry: what is deployed, what is compared, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks import drift
from tasks.project.paths import ProjectPaths
from tasks.registry import promotion_state, registered_models
from tasks.registry.promotion import promote, rollback
from tests.handmade import MODEL, aliases, tag, write_refit, write_run
from tests.integration.test_drift import fresh_images
from tests.records import report_details
from tests.tiny_run import rewrite
from winnow.config import Config
from winnow.deploy.bundle import render_model_card
from winnow.errors import ArtifactError
from winnow.records import DeploymentCard, read_json, record_digest, sha256_of

pytest_plugins = "tests.stores"
BEFORE, AFTER = {"salt": 0.5}, {"salt": 0.25}
"""Two files of one size that answer alike: the selected one and its refit."""


def by_size(config: Config) -> Config:
    """Decided by bytes: a test must not depend on a clock."""
    return config.model_copy(update={"promotion": config.promotion.model_copy(update={"objective": "size"})})


def refitted(paths: ProjectPaths, selected: dict[str, Any], after: dict[str, Any]) -> Config:
    config = by_size(write_run(paths.root, "quick", {"quick": selected}))
    write_refit(paths.artifacts, "quick", after)
    return config


def fetched(paths: ProjectPaths, which: str) -> Path:
    return registered_models.fetch(paths, MODEL, registered_models.get(paths, MODEL, which))


def test_the_refitted_file_is_registered_with_the_selected_one_beside_it(paths: ProjectPaths) -> None:
    config = refitted(paths, BEFORE, AFTER)
    outcome = promote(paths, config)
    folder = fetched(paths, "champion")
    assert outcome.sha256 == sha256_of(paths.artifacts / "refit" / "model.onnx") == sha256_of(folder / "model.onnx")
    selected = paths.artifacts / "candidates" / "quick" / "model.onnx"
    card = read_json(folder / "card.json")
    assert card["refit"]["selected_sha256"] == sha256_of(selected) == sha256_of(folder / "selected" / "model.onnx")
    assert card["labels"] == {"training": 170, "choosing": 60}
    (folder / "selected" / "model.onnx").unlink()
    assert (fetched(paths, "champion") / "selected" / "model.onnx").is_file()
    card["metrics"] |= {"size/parameters": 1e6, "delta/top1": 0.0, "quality/top1_low": 0.9, "quality/top1_high": 1.0}
    card["metrics"] |= {"quality/macro_f1": 1.0}
    text = render_model_card(DeploymentCard(**card), "photos")
    assert "Refitted after its selection, on 170 labels (training and validation)" in text
    assert "same prediction as before on 90.0 % of 110 training images" in text


def test_a_refitted_champion_is_compared_by_the_file_that_learned_no_validation_image(paths: ProjectPaths) -> None:
    """Its refitted file has every validation image right, as one would that has learned them; its selected file none
    of a class. A challenger that is right on all of them is better than that, and no better than the refitted one."""
    promote(paths, refitted(paths, {"never_predicted": 1}, AFTER))
    outcome = promote(paths, by_size(write_run(paths.root, "quick", {"quick": BEFORE})))
    assert (outcome.version, outcome.champion) == ("2", "2"), outcome.reasons
    assert "which is shown to be better" in outcome.reasons[-1]


def test_a_refitted_challenger_has_no_head_start(paths: ProjectPaths) -> None:
    promote(paths, by_size(write_run(paths.root, "quick", {"quick": BEFORE})))
    outcome = promote(paths, refitted(paths, {"never_predicted": 1}, AFTER))
    assert (outcome.version, outcome.champion) == ("2", "1")
    assert "exceeds" in outcome.reasons[-1]


def test_the_refit_of_the_champions_own_file_takes_its_place_and_goes_back(paths: ProjectPaths) -> None:
    promote(paths, by_size(write_run(paths.root, "quick", {"quick": BEFORE})))
    config = refitted(paths, BEFORE, AFTER)
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


def test_a_refit_of_something_else_is_not_promoted(paths: ProjectPaths) -> None:
    config = refitted(paths, BEFORE, AFTER)
    rewrite(paths.artifacts / "refit", inputs={"quick": "0" * 64})
    with pytest.raises(ArtifactError, match="does not belong to the current quick; run winnow again"):
        promote(paths, config)
    assert aliases(paths) == {}


def test_test_figures_of_another_refit_are_not_repeated(paths: ProjectPaths) -> None:
    config = refitted(paths, BEFORE, AFTER)
    figures = {f"test/winner_{key}": 0.5 for key in ("top1", "top1_low", "top1_high")}
    inputs = {"select": record_digest(paths.artifacts / "select"), "refit": "0" * 64}
    changes = {"inputs": inputs, "metrics": {"test/images": 30.0, **figures}}
    rewrite(paths.artifacts / "report", details=report_details(winner="quick"), **changes)
    promote(paths, config)
    assert read_json(fetched(paths, "champion") / "card.json")["test"] == {}


@pytest.mark.thorough
def test_drift_is_seen_by_the_file_that_learned_no_validation_image(
    paths: ProjectPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = refitted(paths, BEFORE, AFTER)
    config = config.model_copy(update={"drift": config.drift.model_copy(update={"min_images": 60})})
    promote(paths, config)
    asked: list[Path] = []
    real = drift.compute_features

    def compute_features(path: Path, *arguments: Any, **named: Any) -> Any:
        asked.append(path)
        return real(path, *arguments, **named)

    monkeypatch.setattr(drift, "compute_features", compute_features)
    drift.detect_drift(paths, config, str(fresh_images(tmp_path / "new")))
    assert asked == [fetched(paths, "champion") / "selected" / "model.onnx"] * 2
