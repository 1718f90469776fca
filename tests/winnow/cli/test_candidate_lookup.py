from __future__ import annotations

from pathlib import Path

import pytest

from tasks.project.paths import ProjectPaths
from winnow.cli.candidate_lookup import candidate_folder
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError
from winnow.models.backbones import WEIGHTS_FILE


def test_an_unknown_name_lists_the_existing_candidates(tmp_path: Path) -> None:
    paths = ProjectPaths(tmp_path)
    with pytest.raises(ConfigError, match=r"dense: no candidate of that name has .* winnow run makes them first"):
        candidate_folder(paths, "dense", WEIGHTS_FILE)
    for name, files in {"dense": (WEIGHTS_FILE, MODEL), "dense-int8": (MODEL,), ".pruned.12.tmp": (MODEL,)}.items():
        folder = paths.artifacts / "candidates" / name
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).touch()
    assert candidate_folder(paths, "dense-int8", MODEL) == paths.artifacts / "candidates" / "dense-int8"
    with pytest.raises(ConfigError, match=r"dense-int8: no candidate .* a weights\.safetensors in .*; valid: dense$"):
        candidate_folder(paths, "dense-int8", WEIGHTS_FILE)
    with pytest.raises(ConfigError, match=r"valid: dense, dense-int8$"):
        candidate_folder(paths, "../dense", MODEL)
