from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tasks.project.templates import template
from tests.closure import ROOT
from tests.conftest import OPTIMISER, RECOVERY, tiny_params
from winnow.cli.params_editor import apply_preset
from winnow.cli.presets import FULL
from winnow.config import (
    Augmentation,
    Config,
    DistillEmbeddings,
    NoPretraining,
    Prune,
    RotNet,
    TrainedCandidate,
    check_config,
    load_config,
    topological_order,
)
from winnow.config.key_listing import section_keys
from winnow.errors import ConfigError
from winnow.search.space import Point, candidate_chain

INT8 = {"from": "dense", "method": "quantize"}
PRUNE = {"from": "dense", "method": "prune", "remove": {"channels": 0.3}, "recovery": RECOVERY}
WITHOUT_TEACHER = RECOVERY | {"teacher": "none", "images": "labelled"}
CLUSTER = {"from": "dense", "method": "cluster", "recovery": RECOVERY}
NO_PRETRAINING = {"pretrain": {"method": "none", "backbone": "resnet8"}, "finetune__learning_rates": [0.1]}
SELF_DISTILLATION = {"from": "dense", "method": "distill", "recovery": RECOVERY}
NOT_A_NUMBER = "write it with a decimal point and a signed exponent, as in 1.0e-1"


def params_with(**values: Any) -> dict[str, Any]:
    """Return tiny_params with `section__key=value`; a value of `...` removes the key."""
    raw = json.loads(json.dumps(tiny_params()))  # nothing shared
    for dotted, value in values.items():
        *sections, key = dotted.split("__")
        section = raw
        for section_name in sections:
            section = section[section_name]
        if value is ...:
            del section[key]
        else:
            section[key] = value
    return raw


LOW_RANK = {"from": "dense", "method": "factorize", "remove": {"macs": 0.5}, "recovery": RECOVERY}


def error_messages(raw: Any) -> dict[str, str]:
    """Return dotted path -> message, after a check of the count in the headline."""
    with pytest.raises(ConfigError) as exc_info:
        check_config(raw, "my.yaml")
    headline, *lines = str(exc_info.value).splitlines()
    assert headline == f"my.yaml has {len(lines)} mistake{'s' * (len(lines) != 1)}:"
    messages = dict(line.strip().split(": ", 1) for line in lines)
    assert len(messages) == len(lines)
    return messages


def test_the_shipped_file_loads() -> None:
    config = load_config(ROOT / "params.yaml")
    assert config.data.source == "sample"
    assert list(config.candidates) == list(yaml.safe_load((ROOT / "params.yaml").read_text())["candidates"])
    assert isinstance(config.candidates["pruned"], Prune)
    assert load_config(str(ROOT / "params.yaml")) == config


def test_config_is_frozen_and_imports_no_torch(tiny_config: Config) -> None:
    with pytest.raises(ValidationError):
        tiny_config.data.image_size = 64  # type: ignore[misc]
    code = "import sys, winnow.config; print({'torch', 'PIL', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("source", "labels", "budget"),
    [
        ("sample", "auto", 25),
        ("folder", "auto", None),
        ("cifar10", "auto", None),
        ("sample", "all", None),
        ("folder", 7, 7),
    ],
)
def test_label_budget(source: str, labels: str | int, budget: int | None) -> None:
    path = "a.tar.xz" if source == "sample" else "photos"
    raw = params_with(data__source=source, data__path=path, data__labels_per_class=labels)
    assert check_config(raw).data.label_budget == budget


def test_all_mistakes_at_once_with_path_value_and_choices() -> None:
    unknown = "unknown key; remove it, or see params.yaml as shipped for the keys of this section"
    messages = error_messages(
        params_with(
            data__source="ftp",
            data__validation_fraction=0.7,
            data__tint="red",
            pretrain__method="byol",
            finetune__learning_rates=["1e-1", 0.1],
            finetune__epochs=True,
            candidates__pruned__remove__channels=2,
            candidates__student__recovery__optimiser__momentum="high",
            candidates__magic={"from": "dense", "method": "magic"},
            benchmark=...,
            promotion__gates={"max_drop": 1},
            extra={},
        )
    )
    assert messages == {
        "data.source": "Input should be 'sample', 'folder', 'archive' or 'cifar10' (found 'ftp')",
        "data.validation_fraction": "Input should be less than or equal to 0.5 (found 0.7)",
        "data.tint": unknown,
        "pretrain.method": "'byol' is not one of 'none', 'rotnet', 'simclr', 'distill', 'auto'",
        "finetune.learning_rates.0": f"YAML reads 1e-1 as text; {NOT_A_NUMBER} (found '1e-1')",
        "finetune.epochs": "expected a number, got true (found True)",
        "candidates.pruned.remove.channels": "Input should be less than 1 (found 2)",
        "candidates.student.recovery.optimiser.momentum": "expected a number, got the text 'high' (found 'high')",
        "candidates.magic.method": "'magic' is not one of 'prune', 'sparsify', 'factorize', 'cluster', 'quantize', "
        "'distill', 'probe'",
        "benchmark": "missing; every section of params.yaml as shipped is required",
        "promotion.gates.max_drop": unknown,
        "extra": unknown,
    }


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"data__labels_per_class": 0}, "data.labels_per_class", "'auto' or 'all'; or: .* equal to 1"),
        (
            {"data__image_size": 32, "data__training_size": 32},
            "data",
            r"32 must be above data.image_size \(32\) and at most 64",
        ),
        ({"data__image_size": 32, "data__training_size": 65}, "data", "at most 64; or auto, or none"),
        ({"data__labels_per_class": "1e1"}, "data.labels_per_class", "YAML reads 1e1 as text"),
        ({"data__image_size": 32.5}, "data.image_size", "fractional part"),
        ({"data__path": ""}, "data.path", "at least 1 character"),
        ({"data__path": "a.tar.gz"}, "data", r"'a\.tar\.gz' is an archive; set data\.source: archive"),
        ({"data__source": "archive"}, "data", r"'photos' is not an archive; it must end in \.zip"),
        ({"data__labels": "a.xlsx"}, "data", r"'a\.xlsx' must end in \.csv, \.tsv, \.parquet"),
        ({"data__source": "cifar10", "data__labels": "a.csv"}, "data", "needs data.source: folder or archive"),
        ({"data__fetch": "https://x/y"}, "data.fetch", "match pattern"),
        ({"data__fetch": "s3://key:secret@bucket/x"}, "data.fetch", "match pattern"),
        ({"data__source": "cifar10", "data__fetch": "s3://bucket/x"}, "data", "set data.source: folder"),
        ({"data__group_by": "table"}, "data", "data.labels, which names no table"),
        ({"data__group_by": "burst"}, "data", r"or a regular expression with a group in \(\)"),
        ({"data__group_by": "(burst"}, "data", "is not a valid regular expression"),
        ({"data__source": "sample"}, "data", r"'photos' is not an archive.*-S data\.source=folder"),
        ({"data__unlabelled": "a/b"}, "data", "plain name"),
        ({"finetune__seeds": [1, 1]}, "finetune.seeds", "duplicate values"),
        ({"finetune__seeds": []}, "finetune.seeds", "at least one value"),
        ({"finetune__seeds": [-1]}, "finetune.seeds.0", "greater than or equal to 0"),
        ({"pretrain__seed": 2**32}, "pretrain.seed", "less than 4294967296"),
        ({"finetune__weights": "net.pkl"}, "finetune.weights", r"must end in \.safetensors"),
        ({"pretrain__optimiser__warmup": float("nan")}, "pretrain.optimiser.warmup", "finite"),
        ({"pretrain__optimiser__learning_rate": "1e-1"}, "pretrain.optimiser.learning_rate", "YAML reads 1e-1"),
        ({"promotion__registered_model": "a/b"}, "promotion.registered_model", "pattern"),
        ({"pretrain__backbone": "resnet19"}, "pretrain.backbone", "'resnet19' is not a backbone.* resnet18"),
        (
            {"pretrain__backbone": "ResNet"},
            "pretrain.backbone",
            r"'ResNet' is not a backbone.* resnet8.*found 'ResNet'",
        ),
        ({"pretrain__backbone": "same"}, "pretrain.backbone", "'same' is not a backbone"),
        (
            {"candidates__student": SELF_DISTILLATION | {"student": "mobilnet_v2"}},
            "candidates.student.student",
            "'mobilnet_v2' is not a backbone.* mobilenet_v2.* or same: the parent itself",
        ),
        ({"candidates__x": 3}, "candidates.x", "expected a section"),
        ({"candidates__x": {"from": "dense"}}, "candidates.x.method", "missing"),
        ({"candidates__x": {"method": "quantize"}}, "candidates.x.from", "missing"),
        (
            {"candidates__prune": PRUNE | {"remove": {"channels": 1.5}}},
            "candidates.prune.remove.channels",
            "less than 1",
        ),
        (
            {"candidates__student__recovery": RECOVERY | {"teacher": "none"}},
            "candidates.student.recovery",
            "images: labelled",
        ),
        (
            {"candidates__dense-kd__width": 0.5},
            "candidates.dense-kd",
            "width: 'same' has width 1.0 only",
        ),
        (
            {
                "candidates__q": INT8 | {"scheme": "qat", "recovery": RECOVERY | {"hint": "pretrained"}},
                **NO_PRETRAINING,
            },
            "candidates.q.recovery.hint",
            "pretrained needs pretraining",
        ),
        (
            {
                "candidates__v": SELF_DISTILLATION
                | {"student": "vit_b_16", "recovery": RECOVERY | {"hint": "attention"}}
            },
            "candidates.v.recovery.hint",
            "which a vit_b_16 has only in its first layer; set features",
        ),
        (
            {"candidates__d": INT8 | {"scheme": "dynamic", "overflow_safe": True}},
            "candidates.d",
            "scheme: dynamic has no overflow_safe",
        ),
        (
            {"candidates__c": CLUSTER | {"values": "16"}},
            "candidates.c.values",
            "YAML reads 16 as text",
        ),
        ({"search": {"trials": True}}, "search.trials", "expected a number, got true"),
        (
            {"search": {"runtime": "openvino-throughput"}},
            "search",
            "openvino-throughput needs objective: throughput, not latency",
        ),
    ],
)
def test_one_mistake_is_reported(changes: dict[str, Any], path: str, message: str) -> None:
    messages = error_messages(params_with(**changes))
    assert list(messages) == [path]
    assert re.search(message, messages[path])


def test_the_parent_key_is_from() -> None:
    messages = error_messages(params_with(candidates__x={"parent": "dense", "method": "quantize"}))
    assert set(messages) == {"candidates.x.from", "candidates.x.parent"}


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ({"x": INT8 | {"from": "y"}}, {"candidates.x.from": "no candidate is called 'y'; valid: dense, x"}),
        ({"x": PRUNE | {"from": "x"}}, {"candidates.x.from": "'x' descends from itself"}),
        ({"x": INT8 | {"from": "x"}}, {"candidates.x.from": "'x' descends from itself"}),
        (
            {"x": PRUNE | {"from": "y"}, "y": PRUNE | {"from": "x"}, "z": INT8 | {"from": "x"}},
            {"candidates.x.from": "'x' descends from itself", "candidates.y.from": "'y' descends from itself"},
        ),
        (
            {"q": INT8, "p": PRUNE | {"from": "q"}},
            {"candidates.p.from": "'q' is quantized .* make 'p' from 'dense' and quantize last"},
        ),
        ({"q": INT8, "r": INT8 | {"from": "q"}}, {"candidates.r.from": "'q' is quantized"}),
        (
            {"f": LOW_RANK, "s": SELF_DISTILLATION | {"from": "f"}, "p": PRUNE | {"from": "s"}},
            {"candidates.p.from": "'s' is factorized already: prune first"},
        ),
        ({"dense": INT8}, {"candidates.dense": "the root of the tree"}),
        *[
            ({name: INT8}, {f"candidates.{name}": f"step or its folder; choose another name, such as {name}-1"})
            for name in ("data", "ingest", "pretrain", "finetune", "benchmark", "select", "report")
        ],
        ({"dense-kd": INT8}, {"candidates.dense-kd.method": "'dense' trained further .* must be distill"}),
        (
            {
                "dense-kd": SELF_DISTILLATION | {"from": "p", "student": "resnet8", "recovery": WITHOUT_TEACHER},
                "p": PRUNE,
            },
            {
                "candidates.dense-kd.from": "must be dense, not 'p'",
                "candidates.dense-kd.student": "must be same, not 'resnet8'",
                "candidates.dense-kd.recovery.teacher": "must be auto or dense, not 'none'",
            },
        ),
        *[
            ({name: INT8}, {f"candidates.{name}": "is not a valid name"})
            for name in ("A", "a_b", "-a", "a--b", "a/b", "ä")
        ],
    ],
)
def test_mistakes_in_the_candidate_tree(candidates: dict[str, Any], expected: dict[str, str]) -> None:
    for other_changes in ({}, {"finetune__epochs": 0}):  # with and without a mistake in another section
        messages = error_messages(params_with(candidates=candidates, **other_changes))
        messages.pop("finetune.epochs", None)
        assert set(messages) == set(expected)
        assert all(re.search(message, messages[path]) for path, message in expected.items())


def test_a_student_of_a_low_rank_network_is_not_low_rank() -> None:
    student = SELF_DISTILLATION | {"from": "f", "student": "resnet8"}
    assert check_config(params_with(candidates={"f": LOW_RANK, "s": student, "p": PRUNE | {"from": "s"}}))


def test_trained_candidates_share_a_type(tiny_config: Config) -> None:
    recovered = {name for name, candidate in tiny_config.candidates.items() if isinstance(candidate, TrainedCandidate)}
    assert recovered == {"pruned", "sparse", "student", "student-alone", "dense-kd"}
    assert (
        check_config(params_with(candidates={"dense-kd": SELF_DISTILLATION})).candidates["dense-kd"].parent == "dense"
    )


def test_parents_come_before_children() -> None:
    candidates = {"c": PRUNE | {"from": "b"}, "d": INT8 | {"from": "c"}, "a": PRUNE, "b": PRUNE | {"from": "a"}}
    config = check_config(params_with(candidates=candidates))
    assert topological_order(dict(config.candidates)) == ["a", "b", "c", "d"]
    assert topological_order(dict(check_config(params_with(candidates={})).candidates)) == []


def test_pretraining_can_be_none() -> None:
    assert isinstance(check_config(params_with(pretrain={"method": "none"})).pretrain, NoPretraining)
    leftover = {"method": "none", "optimiser": OPTIMISER, "epochs": 3}  # of the previous method
    assert check_config(params_with(pretrain=leftover)).pretrain == NoPretraining(method="none")
    assert set(error_messages(params_with(pretrain={"method": "none", "optimizer": OPTIMISER}))) == {
        "pretrain.optimizer"
    }


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "cannot be read .* run winnow from the project's folder"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda path: path.write_text("data: [1, 2"), "not valid YAML"),
        (lambda path: path.write_text("a: {x: 1, y: 2, x: 3}"), "not valid YAML: duplicate key 'x'\n.*line 1"),
        (lambda path: path.write_text("data: " + "[" * 3000 + "]" * 3000), "nested too deeply"),
        (lambda path: path.write_text("{data: " * 3000 + "1" + "}" * 3000), "nested too deeply"),
        (lambda path: path.write_text("data: &x [*x]"), "mistakes:\n  data: expected a section"),
        (lambda path: path.write_text(""), "expected sections .*found NoneType"),
        (lambda path: path.write_text("- data"), "expected sections .*found list"),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "params.yaml"
    write(path)
    with pytest.raises(ConfigError, match=rf"params\.yaml.*{message}"):
        load_config(path)


def test_anchors_and_merge_keys_are_read(tmp_path: Path) -> None:
    raw = tiny_params()
    candidates = "candidates:\n  a: &a {from: dense, method: quantize}\n  b: {<<: *a, preset: performance}\n"
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({**raw, "candidates": 0}).replace("candidates: 0\n", candidates)
    )
    assert {name: c.preset for name, c in load_config(tmp_path / "params.yaml").candidates.items()} == {  # type: ignore[union-attr]
        "a": "mixed",
        "b": "performance",
    }


@pytest.mark.parametrize("method", ["rotnet", "simclr"])
def test_pretraining_defaults_are_those_of_the_method_key_by_key(method: str) -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    defaults = check_config({**raw, "pretrain": {"method": method}}).pretrain
    section = {"method": method, "augmentation": {"flip": False}, "optimiser": {"momentum": 0.8}, "epochs": 3}
    mixed = check_config({**raw, "pretrain": section}).pretrain
    assert not isinstance(defaults, NoPretraining)
    assert not isinstance(mixed, NoPretraining)
    assert mixed.augmentation == defaults.augmentation.model_copy(update={"flip": False})
    assert mixed.optimiser == defaults.optimiser.model_copy(update={"momentum": 0.8})
    assert (mixed.epochs, mixed.batch_size) == (3, defaults.batch_size)


def full_settings() -> dict[str, Any]:
    """Return params.yaml as `winnow run --full` changes it."""
    return yaml.safe_load(apply_preset(template("params.yaml"), template(FULL)))  # type: ignore[no-any-return]


def test_full_pretraining_equals_the_defaults_of_its_method_and_the_shipped_one_is_shorter() -> None:
    full, shipped = check_config(full_settings()).pretrain, load_config(ROOT / "params.yaml").pretrain
    assert full == DistillEmbeddings(method="distill")
    assert isinstance(shipped, DistillEmbeddings)
    assert shipped.model_copy(update={"epochs": full.epochs, "min_steps": full.min_steps}) == full
    assert (shipped.epochs, shipped.min_steps) < (full.epochs, full.min_steps)


@pytest.mark.parametrize(
    ("teacher", "false_keys", "method"),
    [
        ("package:efficientnet-lite0", (), "distill"),
        ("package:efficientnet-lite0", ("up",), "distill"),
        ("none", (), "rotnet"),
        ("none", ("up",), "simclr"),
        ("none", ("up", "colour", "scale"), "none"),
    ],
)
def test_the_automatic_pretraining_method_suits_teacher_and_images(
    teacher: str, false_keys: tuple[str, ...], method: str
) -> None:
    raw = tiny_params()
    raw["teacher"] = {"weights": teacher}
    raw["data"] |= dict.fromkeys(false_keys, False)
    raw["pretrain"] = {"method": "auto", "epochs": 3}
    for candidate in raw["candidates"].values():
        if isinstance(candidate.get("recovery"), dict) and candidate["recovery"].get("hint") == "pretrained":
            candidate["recovery"]["hint"] = "none"
    assert check_config(raw).pretrain.method == method
    assert ("monitor_every" in section_keys(["pretrain"], raw)) == (method != "none")


@pytest.mark.parametrize("start", ["none", "data/weights/mine.pth", "models:/flowers@best"])
def test_an_automatic_backbone_needs_weights_that_name_it(start: str) -> None:
    raw = tiny_params()
    raw["pretrain"] = {"method": "none", "backbone": "auto", "start": start}
    with pytest.raises(ConfigError, match=r"pretrain: backbone: auto needs a start whose name says the network"):
        check_config(raw)


def test_changing_only_the_method_is_refused() -> None:
    """The candidate then lacks keys of the new method, or has keys of the old one."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, settings in raw["candidates"].items():
        for method in ("prune", "sparsify", "factorize", "cluster", "quantize", "distill"):
            if method == settings["method"] or set(settings) == {"from", "method"}:
                continue  # a candidate without keys of its own is valid with any method that needs none
            params = {**raw, "candidates": {**raw["candidates"], name: {**settings, "method": method}}}
            with pytest.raises(ConfigError, match=rf"candidates\.{name}"):
                check_config(params)


@pytest.mark.parametrize(
    ("images", "steps", "full_steps", "rotnet_steps"),
    [
        (1_000, {602, 600}, {1_200}, 2_400),
        (1_068, {602, 600}, {1_200}, 2_400),
        (7_930, {861, 984}, {2_460, 3_690}, 2_470),
        (40_000, {4_375, 5_000}, {12_500, 18_750}, 12_500),
        (100_000, {10_934, 12_496}, {31_240, 46_860}, 31_250),
    ],
)
def test_trainings_get_enough_steps_from_a_thousand_images_on(
    images: int, steps: set[int], full_steps: set[int], rotnet_steps: int
) -> None:
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())
    for raw, expected in ((shipped, steps), (full_settings(), full_steps)):
        config = check_config({**raw, "pretrain": {"method": "rotnet"}})
        trained = [candidate for candidate in config.candidates.values() if isinstance(candidate, TrainedCandidate)]
        assert {candidate.recovery.steps_for(images) for candidate in trained} == expected
    assert isinstance(config.pretrain, RotNet)
    assert config.pretrain.steps_for(images) == rotnet_steps
    assert rotnet_steps * config.pretrain.batch_size >= 600 * 128


def test_earlier_trainings_have_epochs_of_as_many_steps() -> None:
    recovery = check_config(full_settings()).candidates["pruned"].recovery  # type: ignore[union-attr]
    assert recovery is not None
    assert recovery.with_epochs(1).steps_for(1_000) == 60
    raw = {"from": "dense", "method": "prune", "remove": {"macs": 0.5}, "rounds": 3, "round_epochs": 2}
    pruned = Prune.model_validate({**raw, "sparse_learning": {"epochs": 1}, "recovery": recovery.model_dump()})
    assert pruned.steps_for(1_000) == 1_200 + 2 * 120 + 60


@pytest.mark.parametrize(
    ("labels", "steps"), [(30, 210), (250, 210), (499, 210), (500, 600), (1_073, 600), (7_930, 1830)]
)
def test_shipped_fine_tuning_gets_enough_steps_for_its_labels(labels: int, steps: int) -> None:
    assert load_config(ROOT / "params.yaml").finetune.steps_for(labels) == steps


def test_min_steps_of_fine_tuning_hold_for_any_number_of_labels() -> None:
    finetune = load_config(ROOT / "params.yaml").finetune.model_copy(update={"min_steps": 90})
    assert [finetune.steps_for(labels) for labels in (30, 1_073)] == [90, 240]


@pytest.mark.parametrize(
    ("switch", "changes"),
    [
        ("mirrors", {"flip": False}),
        ("colour", {"jitter": 0.0, "grayscale": 0.0}),
        ("scale", {"crop_scale_min": 1.0}),
    ],
)
@pytest.mark.parametrize("method", ["rotnet", "simclr"])
def test_one_switch_sets_every_augmentation(switch: str, changes: dict[str, Any], method: str) -> None:
    raw = {**yaml.safe_load((ROOT / "params.yaml").read_text()), "pretrain": {"method": method}}
    default, switched = check_config(raw), check_config({**raw, "data": {**raw["data"], switch: False}})
    count = 0
    for expected_base, augmentation in zip(augmentations(default), augmentations(switched), strict=True):
        assert augmentation == expected_base.model_copy(update=changes)
        count += 1
    assert count == 2 + sum(hasattr(candidate, "recovery") for candidate in switched.candidates.values()) - sum(
        getattr(candidate, "recovery", 0) is None for candidate in switched.candidates.values()
    )
    point = Point("student", 1.0, "none")
    trial = check_config(
        switched.model_dump(mode="json", by_alias=True) | {"candidates": candidate_chain(point, switched, 4)}
    )
    assert augmentations(trial)[-1] == augmentations(
        check_config({**raw, "candidates": candidate_chain(point, default, 4)})
    )[-1].model_copy(update=changes)


def augmentations(config: Config) -> list[Augmentation]:
    """Return the augmentation of pretraining, of fine-tuning and of each candidate, in their order."""
    assert not isinstance(config.pretrain, NoPretraining)
    recoveries = (candidate.training for candidate in config.candidates.values())
    return [
        config.pretrain.augmentation,
        config.finetune.augmentation,
        *(recovery.augmentation for recovery in recoveries if recovery is not None),
    ]


def test_rotnet_is_refused_without_an_upright_orientation() -> None:
    raw = {**yaml.safe_load((ROOT / "params.yaml").read_text()), "pretrain": {"method": "rotnet"}}
    params = {**raw, "data": {**raw["data"], "up": False}}
    with pytest.raises(ConfigError, match=r"pretrain\.method: rotnet .*data\.up: false\); set simclr, or none"):
        check_config(params)
    for method in ("simclr", "none"):
        check_config({**params, "pretrain": {"method": method}})
    without_views = {
        **params,
        "data": {**params["data"], "colour": False, "scale": False},
        "pretrain": {"method": "simclr"},
    }
    with pytest.raises(ConfigError, match=r"pretrain\.method: simclr .* set none$"):
        check_config(without_views)


def test_fixmatch_is_refused_where_strong_views_equal_weak_ones() -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    params = {**raw, "finetune": {**raw["finetune"], "unlabelled": "fixmatch"}}
    check_config(params)
    params["data"] = {**raw["data"], "colour": False, "scale": False}
    with pytest.raises(ConfigError, match=r"finetune\.unlabelled: fixmatch .* set propagation, or none"):
        check_config(params)
    check_config({**params, "finetune": {**raw["finetune"], "unlabelled": "propagation"}})
