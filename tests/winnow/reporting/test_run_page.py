from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup

from tests.conftest import tiny_params
from tests.records import pretrain_details
from tests.tiny_run import CANDIDATES, arm_training, build, rewrite_details, select_and_refit
from winnow.config import check_config
from winnow.data.dataset import VALIDATION
from winnow.records import CandidateRecord
from winnow.records.benchmark import BenchmarkCase, RefusedCase
from winnow.records.finetune import CrossValidationSummary, PretrainingGain
from winnow.reporting.html import Row, digits, document, join, number, percent, signed, table, tag
from winnow.reporting.interactive_front import FrontPoint, draw_interactive_front
from winnow.reporting.plots import TradeOffPoint
from winnow.reporting.run_page import TestResult, render_run_page
from winnow.reporting.run_records import RunRecords, read_run_records

TEST_RESULT = TestResult(
    "0123abcd",
    {
        "test/images": 30.0,
        **{f"test/{role}_{part}": 0.9 for role in ("dense", "winner") for part in ("top1", "macro_f1", "ece")},
        **{f"test/{role}_top1_{end}": 0.8 for role in ("dense", "winner") for end in ("low", "high")},
        "test/drop_from_dense_points": 1.25,
        "test/drop_from_dense_low": -3.75,
        "test/drop_from_dense_high": 6.25,
    },
    measured_in="openvino int8, batches of 1",
)
VOID_ELEMENTS = {"meta", "img"}


SCRIPT = re.compile("<script>.*?</script>", re.DOTALL)


def render(run_records: RunRecords, test_result: TestResult) -> str:
    """Return the page without its scripts, of which Bokeh's library alone has more than a megabyte."""
    return SCRIPT.sub("", render_run_page(run_records, test_result))


class PageParser(HTMLParser):
    """Check that tags are balanced; collect text, ids and links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += attributes
        if name not in VOID_ELEMENTS:
            self.open.append(name)
        if name == "tr":
            self.cells.append([])
        if name in ("th", "td"):
            self.cells[-1].append("")

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, text: str) -> None:
        self.text.append(text)
        if self.cells and {"th", "td"} & set(self.open):
            self.cells[-1][-1] += text

    def row(self, *start: str) -> list[list[str]]:
        return [cells for cells in self.cells if cells[0].startswith(start)]

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def select_and_read(artifacts: Path, params: dict | None = None) -> RunRecords:
    config = check_config(params or tiny_params())
    select_and_refit(config, artifacts)
    return read_run_records(artifacts, ["dense", *config.candidates])


@pytest.fixture(scope="module")
def run_records(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunRecords:
    return select_and_read(build(tiny_data, tmp_path_factory.mktemp("run") / "artifacts"))


@pytest.fixture(scope="module")
def html(run_records: RunRecords) -> str:
    return render(run_records, TEST_RESULT)


def test_the_verdict_is_at_the_top(run_records: RunRecords, html: str) -> None:
    words = PageParser(html).words
    top = words[: words.index("The candidates")]
    assert "Proposed for production: pruned-int8" in top
    assert "6.7 times smaller than dense" in top
    assert "4.0 times faster on one image" in top
    assert (
        "costs 0.0 points of top-1 accuracy (interval of the loss, 95 % over 5 candidates, −10.0 to 10.0 points" in top
    )
    assert "60 labelled validation images of tiny <shapes>" in top
    assert run_records.selection.details.why in top
    assert "On 30 test images of tiny <shapes>" in top
    assert "loses 1.2 points against dense (95 % interval of the loss −3.8 to 6.2), measured in openvino int8" in top
    assert "only 60 labelled validation images" in top
    assert "0123abcd" in words


def test_the_page_is_one_valid_file_without_external_resources(run_records: RunRecords, html: str) -> None:
    outline = PageParser(html)
    addresses = [value or "" for name, value in outline.attributes if name in ("src", "href")]
    ids = [value for name, value in outline.attributes if name == "id"]
    assert len([address for address in addresses if address.startswith("data:image/")]) == 7
    assert all(address.startswith("data:image/") for address in addresses)
    assert len(ids) == len(set(ids))
    assert not re.search(r"https?:|url\(|@import|<script", html)
    assert all(value for name, value in outline.attributes if name == "alt")
    page = render_run_page(run_records, TEST_RESULT)
    assert SCRIPT.sub("", page) == html
    assert page.count("<script>") == 2
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=.?http", page)
    is_same = page == render_run_page(run_records, TEST_RESULT)
    assert is_same


def test_figures_of_the_serving_machine_come_first(run_records: RunRecords) -> None:
    """Figures of two machines never stand side by side: the plot and the first table are of the one that serves."""
    details = run_records.selection.details
    machine = details.speeds.machine.model_copy(update={"cpu": "Cortex-A76", "threads": 4})
    times = {name: {**speed, "best/latency_ms": 31.25} for name, speed in details.speeds.candidates.items()}
    speeds = details.speeds.model_copy(update={"machine": machine, "is_target": True, "candidates": times})
    selection = run_records.selection.model_copy(update={"details": details.model_copy(update={"speeds": speeds})})
    outline = PageParser(render(replace(run_records, selection=selection), TEST_RESULT))
    heading, first = outline.cells[0], outline.row("pruned-int8")[0]
    assert heading[4:] == ["one image, ms", "× best floatdense, any runtime", "verdict"]
    assert first[4] == "31.2"
    assert "Speed-ups are over dense, on the serving machine, Cortex-A76, 4 threads" in outline.words
    page = render_run_page(replace(run_records, selection=selection), TEST_RESULT)
    item = page.partition("Bokeh.embed.embed_item(")[2].partition(");</script>")[0]
    assert "PyTorch" not in item


def test_every_candidate_has_its_rows(run_records: RunRecords, html: str) -> None:
    outline = PageParser(html)
    for name in CANDIDATES:
        name_rows = [cells for cells in outline.cells if re.match(rf"{name}( |$|the |dense →|pruned →)", cells[0])]
        assert len(name_rows) >= 5, name
    quality = next(cells for cells in outline.row("student") if "\xa0M" in cells[5] and "dense → distill" in cells[0])
    metrics = run_records.quality("student")
    assert quality[1].startswith(percent(metrics["quality/top1"]))
    assert quality[2].startswith("5.0")
    assert quality[3:] == [
        percent(metrics["quality/macro_f1"]),
        percent(metrics["quality/agreement"]),
        "0.750\xa0M",
        "12.5\xa0M",
        "0.500",
        "0.450",
    ]
    speed = next(cells for cells in outline.row("pruned-int8") if "OpenVINO int8, 2 threads" in cells[1])
    assert speed[2:] == [
        "0.500",
        "0.600",
        "4,000",
        "1.0\xa0% / 10.0\xa0%",
        "12.00 (12.00 to 12.00)12.00 (12.00 to 12.00)",  # one image; below: a batch
        "12.00 (12.00 to 12.00)12.00 (12.00 to 12.00)",
        "4.00 (4.00 to 4.00)4.00 (4.00 to 4.00)",
    ]


def test_gates_show_both_numbers_and_mark_failures(run_records: RunRecords, html: str) -> None:
    rows = {cells[0]: cells for cells in PageParser(html).cells if len(cells) == 8 and "on the front" in cells[1]}
    assert set(rows) == set(CANDIDATES) - {"dense"}
    assert rows["pruned-int8"][1].startswith("winner")
    assert rows["dense-int8"][1].startswith("passes")
    assert rows["student"][1].startswith("does not pass")
    assert re.fullmatch(
        r"Fails: drop 5\.0 points \(.* to .*; 95\xa0% over 5 candidates\) exceeds 4.99", rows["student"][2]
    )
    assert rows["sparse"][5] == "Fails: 2.00 MB are 100\xa0% of dense's 2.00 MB, more than 50\xa0%"
    failed_count = sum(not gate.passed for verdict in run_records.verdicts.values() for gate in verdict.gates)
    assert html.count('class="fails"') == failed_count > 0


def test_the_attribution_of_the_speedup(html: str) -> None:
    row = next(cells for cells in PageParser(html).row("pruned-int8") if "=" in cells[1])
    assert row[1].startswith("3.00 × 1.82 × 2.20 = 12.00")


def test_controls_and_sparse_candidates_are_described(run_records: RunRecords, html: str) -> None:
    words = PageParser(html).words
    control_gain = next(row for row in run_records.selection.details.controls if row.bought_by == "a teacher")
    assert f"student over student-alone {signed(control_gain.points, plus=True)}" in _text_of(html)
    assert "sparse: 80 % of its parameters are zero" in words
    assert "zipped it takes 1.80 MB instead of 1.80 MB" in words
    assert "1.00 times as fast as dense: runtimes multiply zeros like any other number" in words


def _text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_a_gain_of_few_seeds_is_called_a_hint(html: str) -> None:
    words = PageParser(html).words
    gain = "Fine-tuning after pretraining by rotnet instead of from random weights: +17.5 points of top-1"
    assert (
        f"{gain} (95 % interval −14.3 to +49.3, 2 label seeds). These are fewer than 5 seeds, so it is a hint." in words
    )
    assert "own weights" not in words


def replace_dense(run_records: RunRecords, arms: dict[str, Any], **changes: Any) -> RunRecords:
    """Return the run with other fields of dense's record and of its arms."""
    details = run_records.fine_tuning
    details = details.model_copy(update={"arms": details.arms.model_copy(update=arms)})
    dense: CandidateRecord = run_records.dense.model_copy(update={"details": details, **changes})
    return replace(run_records, candidates={**run_records.candidates, "dense": dense})


def test_own_weights_are_an_arm(run_records: RunRecords) -> None:
    gain = PretrainingGain(arm="weights", mean=25.0, low=25.0, high=25.0, pairs=1)
    parameters = {**run_records.dense.parameters, "weights": "somewhere/mine.safetensors"}
    changed = replace_dense(run_records, {"weights": [arm_training(0, 0.95)], "gain": gain}, parameters=parameters)
    page = render(changed, TEST_RESULT)
    outline = PageParser(page)
    assert outline.row("own weights (mine.safetensors)")[0][1:] == ["95.0\xa0%", "+25.0", "95.0\xa0%", "–", "0.05"]
    assert "Fine-tuning own weights (mine.safetensors) instead of random ones: +25.0 points" in outline.words
    assert "single label seed: a hint" in outline.words


def test_without_pretraining_no_gain_is_shown(run_records: RunRecords) -> None:
    pretrained = run_records.pretrain.model_copy(
        update={"parameters": {"method": "none", "backbone": "resnet8"}, "details": pretrain_details()}
    )
    without_pretraining = replace(replace_dense(run_records, {"gain": None, "pretrained": []}), pretrain=pretrained)
    words = PageParser(render(without_pretraining, TEST_RESULT)).words
    assert "There was no pretraining: dense started from random weights." in words
    assert "instead of random" not in words


def test_the_page_without_a_winner(tiny_data: Path, tmp_path: Path) -> None:
    params = tiny_params()
    params["promotion"]["gates"] |= {"min_speedup": 9.0}
    run_records = select_and_read(build(tiny_data, tmp_path / "artifacts"), params)
    dense_metrics = {
        key: value for key, value in TEST_RESULT.metrics.items() if "winner" not in key and "drop" not in key
    }
    words = PageParser(render(run_records, TestResult("0123abcd", dense_metrics))).words
    assert "Nothing is proposed for production" in words
    assert "No candidate passes every gate; the nearest is dense-int8, which fails speed-up" in words
    assert "The nearest candidate, dense-int8, compared with dense:" in words
    assert "dense is correct on 90.0 %; no candidate is proposed, so no other was evaluated" in words


def test_a_run_without_validation_labels(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    labels, split = np.load(data / "labels.npy"), np.load(data / "split.npy")
    labels[split == VALIDATION] = -1
    np.save(data / "labels.npy", labels)
    run_records = select_and_read(build(data, tmp_path / "artifacts"))
    outline = PageParser(render(run_records, TestResult("none", {"test/images": 0.0})))
    assert (
        "predicts the same class on 100.0 % of 60 validation images of tiny <shapes>; none of them has a label"
        in outline.words
    )
    assert "There is no labelled test image" in outline.words
    assert "nan" not in outline.words


@pytest.mark.thorough
def test_few_labels_are_supplemented_by_agreement_and_cross_validation(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    labels, split = np.load(data / "labels.npy"), np.load(data / "split.npy")
    labels[np.flatnonzero(split == VALIDATION)[12:]] = -1
    np.save(data / "labels.npy", labels)
    run_records = select_and_read(build(data, tmp_path / "artifacts"))
    record = run_records.dense
    summary = CrossValidationSummary(labels=42, folds=5, per_class={})
    cross_validated = {"top1": 0.9, "top1_low": 0.78, "top1_high": 0.96, "macro_f1": 0.88}
    metrics = record.metrics | {f"cross_validation/{key}": value for key, value in cross_validated.items()}
    details = record.details.model_copy(update={"cross_validation": summary})
    dense = record.model_copy(update={"metrics": metrics, "details": details})
    words = PageParser(
        render(replace(run_records, candidates={**run_records.candidates, "dense": dense}), TEST_RESULT)
    ).words
    assert (
        "Agreement bounds the loss to 10.0 points (95 % over 5 candidates): it predicts the same class as dense on "
        "100.0 % of 60 validation images, 48 of" in words
    )
    assert "each of all 42 labels predicted by one of 5 networks that were not trained on it: top-1 90.0 %" in words
    assert "its 12 validation labels alone are too few" in words


def test_a_winner_can_be_larger_slower_and_better(tiny_data: Path, tmp_path: Path) -> None:
    params = tiny_params()
    params["candidates"] = {"pruned": params["candidates"]["pruned"]}
    params["promotion"]["gates"] |= {"max_size_ratio": 3.0, "min_speedup": 0.1}
    changes = {"pruned": {"ms": 4.0, "mb": 3.0, "damping": 0.34}}
    words = PageParser(
        render(select_and_read(build(tiny_data, tmp_path / "artifacts", changes), params), TEST_RESULT)
    ).words
    assert "pruned is 1.5 times larger than dense" in words
    assert "2.0 times slower on one image" in words
    assert "gains 1.7 points of top-1 accuracy" in words


def test_a_refused_candidate_is_shown(tiny_data: Path, tmp_path: Path) -> None:
    artifacts = build(tiny_data, tmp_path / "artifacts", {"dense-int8": {"ms": None}})
    case = BenchmarkCase("dense-int8", "ort", "int8", "file", 1, 2)
    refused = RefusedCase(**asdict(case), agreement=0.913, needed=0.95, images=60)
    rewrite_details(artifacts / "benchmark", refused=[refused])
    html = render(select_and_read(artifacts), TEST_RESULT)
    assert "dense-int8 not timed: its predictions differ there" in _text_of(html)
    refusal = (
        "dense-int8 on ONNX Runtime int8 was refused: its predictions agree with the file's own on 91.3 %, needed 95 %"
    )
    assert refusal in PageParser(html).words


def test_the_page_with_dense_only(tiny_data: Path, tmp_path: Path) -> None:
    params = tiny_params()
    params["candidates"] = {}
    words = PageParser(render(select_and_read(build(tiny_data, tmp_path / "artifacts"), params), TEST_RESULT)).words
    assert "There is no candidate other than dense" in words


def test_names_are_escaped() -> None:
    markup = '<img src=x onerror="alert(1)"> & co'
    html = document(markup, table([markup], [Row([markup, markup])], caption=markup), tag("p", join(markup, markup)))
    assert "<img" not in html
    assert html.count("&lt;img") == 7
    PageParser(html)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (percent(0.6149), "61.5\xa0%"),
        (percent(None), "–"),
        (signed(-0.04), "0.0"),
        (signed(-1.25), "−1.2"),
        (signed(2.0, plus=True), "+2.0"),
        (signed(0.01, plus=True), "0.0"),
        (number(12512.4), "12,512"),
        (digits(0.02651), "0.0265"),
        (digits(0.265), "0.265"),
        (digits(2.654, "MB"), "2.65\xa0MB"),
        (digits(26.54), "26.5"),
        (digits(2654.0), "2,654"),
        (digits(0.0), "0.0000"),
    ],
)
def test_number_formats(value: str, expected: str) -> None:
    assert value == expected


def test_the_interactive_front_shows_every_timed_candidate(run_records: RunRecords) -> None:
    page = render_run_page(run_records, TEST_RESULT)
    item = page.partition("Bokeh.embed.embed_item(")[2].partition(");</script>")[0]
    document = json.loads(item)
    assert document["target_id"] == "interactive-front"
    assert 'id="interactive-front"' in SCRIPT.sub("", page)
    text = json.dumps(document)
    for name, record in run_records.candidates.items():
        assert f'"{name}"' in text
        assert run_records.row(name).outcome in text
        assert (record.details.method if name != "dense" else "fine-tuned") in text
    assert document["root_id"] == "p1000"  # counted in this page, not in the process


def test_names_that_look_like_identifiers_stay() -> None:
    points = [
        FrontPoint(TradeOffPoint(name, 1.0, 0.5, 1.0, False, True, False), "prune", False, (("made from", "p2024"),))
        for name in ("p1000", "p1007", "p2024")
    ]
    html = draw_interactive_front(points, "top-1", Markup(""))
    item = html.partition("Bokeh.embed.embed_item(")[2].partition(");</script>")[0]
    assert '["p1000", "p1007", "p2024"]' in item
    assert '["p2024", "p2024", "p2024"]' in item


def test_text_inside_the_interactive_front_ends_no_script() -> None:
    markup = "</script><script>alert(1)</script>"
    point = FrontPoint(TradeOffPoint(markup, 1.0, 0.5, 1.0, False, True, True), markup, False, (("made from", markup),))
    html = draw_interactive_front([point], "top-1", Markup("<p>picture</p>"))
    assert html.count("</script>") == 1
    assert "<noscript><p>picture</p></noscript>" in html
