"""Check that the generated reference is current and complete."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tasks.tracking import tags
from tests.closure import ROOT
from tests.tiny_run import build
from winnow.records import read_record
from winnow.records.metric_names import METRICS, describe_metric

TAG = re.compile(r'"(winnow\.[a-z_0-9.]+)"')
NO_TAGS = re.compile(r"winnow\.(model|servers|models|benchmark|steps|cli|config)\..*|winnow\.held")
"""Names of events, modules and a request's state."""


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_pages_are_what_the_code_says(generator: ModuleType) -> None:
    for name, text in generator.pages().items():
        current = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        assert current == text, f"{name} is stale; run python docs/generate_reference.py"


def test_every_key_and_every_section_of_params_has_a_meaning(generator: ModuleType) -> None:
    rows = [line for line in generator.pages()["params.md"].splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row for row in rows if row.endswith("|  |")] == []


def test_every_field_of_a_record_has_a_meaning(generator: ModuleType) -> None:
    pages = generator.pages()
    for name in ("records.md", "functions.md", "metrics.md"):
        assert [row for row in pages[name].splitlines() if row.endswith("|  |")] == []


def test_every_command_is_listed_with_its_options(generator: ModuleType) -> None:
    page = generator.pages()["commands.md"]
    for command in ("run", "plan", "check-host", "serve", "account"):
        assert f"## winnow {command}\n" in page
    for option in ("-S, --set KEY=VALUE", "--max-client-bytes INTEGER", "--allow-host NAME"):
        assert option in page


def test_every_metric_of_a_run_is_described(tiny_data: Path, tmp_path: Path) -> None:
    artifacts = build(tiny_data, tmp_path / "artifacts")
    names: set[str] = set()
    for path in artifacts.rglob("record.json"):
        names |= read_record(path.parent).metrics.keys()
    for metrics in json.loads((artifacts / "benchmark" / "record.json").read_text())["details"]["candidates"].values():
        names |= metrics.keys()
    assert len(names) > 30
    assert {name for name in names if describe_metric(name) is None} == set()


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("speedup/float_b64_low", "speed-up over dense"),
        ("latency/ov-streams_b1_p95_ms", "p50 or p95"),
        ("test/dense-kd_top1", "test split: top-1"),
        ("data/labelled_train", "images of the split"),
    ],
)
def test_a_metric_is_described_by_its_pattern(name: str, prefix: str) -> None:
    text = describe_metric(name)
    assert text is not None
    assert text.startswith(prefix)


def test_an_unknown_metric_is_not_described() -> None:
    assert describe_metric("quality/top2") is None
    assert describe_metric("speedup/other_b1") is None
    assert "quality/top1" in METRICS


def test_every_tag_is_named_in_one_file_and_described() -> None:
    constants = {value for name, value in vars(tags).items() if name.endswith("_TAG")}
    assert {tag for tag in constants if tag.startswith("winnow.")} == set(tags.TAGS)
    files = [path for folder in ("tasks", "flows") for path in (ROOT / folder).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in files if path != ROOT / "tasks/tracking/tags.py"]
    assert {tag for text in texts for tag in TAG.findall(text) if not NO_TAGS.fullmatch(tag)} == set()
