from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tasks.project.paths import ProjectPaths
from tasks.project.templates import template
from winnow.cli.params_editor import apply_assignments, apply_preset, set_keys
from winnow.cli.presets import FULL
from winnow.config import Optimiser, Propagation, RotNet, SimCLR, check_config, load_config
from winnow.errors import ConfigError

SHIPPED = apply_preset(template("params.yaml"), template(FULL))


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    (tmp_path / "params.yaml").write_text(SHIPPED, encoding="utf-8")
    (tmp_path / "data").mkdir()
    for name in ("none", "cifar10-jpeg-sample.tar.xz"):
        (tmp_path / "data" / name).touch()
    return ProjectPaths(tmp_path)


def read_params(paths: ProjectPaths) -> str:
    assert not list(paths.root.glob(".*"))
    return (paths.root / "params.yaml").read_text(encoding="utf-8")


def test_only_the_line_changes_and_the_diff_is_shown(paths: ProjectPaths, capsys: pytest.CaptureFixture[str]) -> None:
    set_keys(paths, ["data.image_size=64", "candidates.pruned.recovery.epochs=3"])
    before, after = SHIPPED.splitlines(), read_params(paths).splitlines()
    assert len(before) == len(after)
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert changed == [("  image_size: 32", "  image_size: 64"), ("      epochs: 20", "      epochs: 3")]
    assert capsys.readouterr().out.splitlines() == [
        "+++ params.yaml",
        "-  image_size: 32",
        "+  image_size: 64",
        "-      epochs: 20",
        "+      epochs: 3",
    ]
    config = load_config(paths.root / "params.yaml")
    assert (config.data.image_size, config.candidates["pruned"].recovery.epochs) == (64, 3)  # type: ignore[union-attr]


def test_comments_are_preserved(paths: ProjectPaths) -> None:
    (paths.root / "photos").mkdir()
    set_keys(paths, ["data.source=folder", "data.path=photos", "finetune.seeds=[3, 4, 5]"])
    comments = [line.partition("#")[2] for line in SHIPPED.splitlines() if "#" in line]
    after = read_params(paths)
    assert [line.partition("#")[2] for line in after.splitlines() if "#" in line] == comments
    assert "  seeds: [3, 4, 5] " in after
    assert "  source: folder              # sample | folder | archive | cifar10" in after


def test_equal_values_change_nothing(paths: ProjectPaths, capsys: pytest.CaptureFixture[str]) -> None:
    stamp = (paths.root / "params.yaml").stat()
    set_keys(paths, ["data.image_size=32", "data.max_rejected= 10"])
    assert (paths.root / "params.yaml").stat() == stamp
    assert capsys.readouterr().out == ""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "path",
    [
        "photos",
        "/my photos/2024, summer=hot",
        "Fotos/Müller & Söhne/größe",
        "写真/猫",
        "a: b",
        "photos #2",
        "#1",
        "[2024] trip",
        "{odd",
        "*star",
        "it's",
        'the "best" of',
        "2024-05-01",
        "~/photos",
        "- dash",
        "null island",
        "100%",
        "a\\b",
    ],
)
def test_paths_are_quoted_as_needed(path: str) -> None:
    after = apply_assignments(SHIPPED, ["data.source=folder", f"data.path={path}"])
    assert check_config(yaml.safe_load(after)).data.path == path
    after = apply_assignments(after, ["data.max_rejected=3"])  # and it survives the next change of another key
    assert check_config(yaml.safe_load(after)).data.path == path


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["2024", "on", "null", "1:30", "1e-1", "0x10", "~", "1_000", "=", "2024-05-01"])
def test_quoted_values_are_text(path: str) -> None:
    after = apply_assignments(SHIPPED, ["data.source=folder", f"data.path='{path}'"])
    assert check_config(yaml.safe_load(after)).data.path == path


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("finetune.seeds=[0,1]", (0, 1)),
        ("finetune.seeds=[7]", (7,)),
        ("finetune.learning_rates=[0.00002, 1]", (2e-5, 1.0)),
        ("finetune.weight_decay=1.0e-5", 1e-5),
        ("finetune.weight_decay=0.00001", 1e-5),
        ("finetune.weight_decay=0", 0.0),
        ("data.labels_per_class=all", "all"),
        ("data.labels_per_class=40", 40),
        ("pretrain.augmentation.flip=false", False),
        (" data.max_rejected = 7 ", 7),
    ],
)
def test_values_are_yaml(paths: ProjectPaths, assignment: str, value: object) -> None:
    set_keys(paths, [assignment])
    section: object = load_config(paths.root / "params.yaml")
    for key in assignment.partition("=")[0].strip().split("."):
        section = getattr(section, key)
    assert section == value
    assert type(section) is type(value)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["data.sorce=folder"],
            r"data has no key 'sorce'; it has source, path, fetch, unlabelled, labels, ",
        ),
        (["dta.source=folder"], r"params\.yaml has no key 'dta'; it has data, teacher, pretrain, finetune, candidates"),
        (["candidates.small.epochs=1"], r"candidates has no key 'small'; it has dense-int8, pruned, pruned-int8"),
        (["candidates.dense-int8.overflow=true"], r"has no key 'overflow'; it has from, .*, seed, ranges, bias_corr"),
        (["candidates.dense-int8.recovery.epochs=1"], r"dense-int8\.recovery\.optimiser: missing"),
        (["data.path.x=1"], r"data\.path has no key 'x'; it has nothing below it"),
        (["data.image_size"], "expected key=value, as in -S data.source=folder"),
        (["data.path="], "the value is empty"),
        (["data.path=  "], "the value is empty"),
        (["data.image_size=64", "data.sorce=folder"], "no key 'sorce'"),
        (["data.image_size=64", "pretrain.epochs=ten"], r"pretrain\.epochs: expected a number, got the text 'ten'"),
        (["finetune.learning_rates=[1e-1]"], "YAML reads 1e-1 as text"),
        (["data.path=2024", "data.source=folder"], r"data\.path: .*found 2024"),
        (["candidates.pruned-int8.from=dense-int8"], r"candidates\.pruned-int8\.from: 'dense-int8' is quantized"),
        (["data.source=folder", "data.path=/typo"], r"cannot be used:\n  data\.path: '/typo' does not exist"),
        (["finetune.weights=mine.pth"], r"finetune\.weights: 'mine\.pth' is not a file"),
        (["data=photos"], r"these settings has 1 mistake:\n  data: "),
    ],
)
def test_nothing_is_written_on_a_mistake(
    paths: ProjectPaths, capsys: pytest.CaptureFixture[str], assignments: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        set_keys(paths, assignments)
    assert read_params(paths) == SHIPPED
    assert capsys.readouterr().out == ""


def test_a_broken_file_is_refused(paths: ProjectPaths) -> None:
    (paths.root / "params.yaml").write_text("data: [1, 2")
    with pytest.raises(ConfigError, match=r"params\.yaml is not valid YAML"):
        set_keys(paths, ["data.image_size=64"])
    assert read_params(paths) == "data: [1, 2"


@pytest.mark.thorough
def test_deep_nesting_is_refused(paths: ProjectPaths) -> None:
    with pytest.raises(ConfigError, match=r"-S data\.path=\[\[.*nested too deeply"):
        set_keys(paths, ["data.path=" + "[" * 3000])
    (paths.root / "params.yaml").write_text("data: " + "[" * 3000 + "]" * 3000)
    with pytest.raises(ConfigError, match=r"params\.yaml: nested too deeply"):
        set_keys(paths, ["data.image_size=64"])


def test_another_pretraining_method_sets_its_own_defaults(paths: ProjectPaths) -> None:
    set_keys(paths, ["pretrain.method=simclr"])
    settings = load_config(paths.root / "params.yaml").pretrain
    assert settings == SimCLR(method="simclr")
    assert (settings.batch_size, settings.augmentation.jitter) == (256, 0.4)


def test_without_a_teacher_nothing_that_needs_one_is_left(paths: ProjectPaths) -> None:
    text = SHIPPED.replace("  method: auto", "  method: distill")
    assert "hint: embeddings" in text
    on_top = "  large-int8:\n    from: large\n    method: quantize\n  pruned:"
    (paths.root / "params.yaml").write_text(text.replace("  pruned:", on_top, 1), encoding="utf-8")
    before = load_config(paths.root / "params.yaml")
    set_keys(paths, ["teacher.weights=none"])
    after = load_config(paths.root / "params.yaml")
    assert after.pretrain.method == "rotnet"
    assert set(before.candidates) - set(after.candidates) == {"large", "large-int8"}
    assert "embeddings" not in {line.split(":")[-1].strip() for line in read_params(paths).splitlines()}


def test_settings_of_the_previous_method_are_removed(paths: ProjectPaths, capsys: pytest.CaptureFixture[str]) -> None:
    """The file holds RotNet's values, as if written by hand or by an earlier version."""
    set_keys(paths, ["pretrain.epochs=3", "pretrain.augmentation.crop_scale_min=0.9", "pretrain.seed=7"])
    assert "removed" not in capsys.readouterr().out
    set_keys(paths, ["pretrain.method=simclr", "pretrain.batch_size=64", "pretrain.augmentation.flip=false"])
    defaults = SimCLR(method="simclr")
    settings = load_config(paths.root / "params.yaml").pretrain
    augmentation = defaults.augmentation.model_copy(update={"flip": False})
    assert settings == defaults.model_copy(update={"seed": 7, "batch_size": 64, "augmentation": augmentation})
    assert "by the method simclr: the values of epochs, augmentation in params.yaml" in capsys.readouterr().out


def test_settings_are_kept_where_another_name_means_the_same_method(paths: ProjectPaths) -> None:
    set_keys(paths, ["pretrain.epochs=3"])
    set_keys(paths, ["pretrain.method=distill"])
    assert load_config(paths.root / "params.yaml").pretrain.epochs == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "changes",
    [
        ["pretrain.method=rotnet"],
        ["teacher.weights=none"],
        ["teacher.weights='none'"],
        ["pretrain.method=none", "pretrain.method=rotnet"],
    ],
    ids=lambda changes: " ".join(changes),
)
def test_each_method_has_its_own_settings(paths: ProjectPaths, changes: list[str]) -> None:
    set_keys(paths, ["pretrain.epochs=3", "pretrain.optimiser.learning_rate=0.7"])
    for change in changes:
        set_keys(paths, [change])
    assert load_config(paths.root / "params.yaml").pretrain == RotNet(method="rotnet")


def test_a_method_with_keys_of_its_own_can_be_switched_off(paths: ProjectPaths) -> None:
    set_keys(paths, ["pretrain.method=simclr", "pretrain.temperature=0.2"])
    set_keys(paths, ["pretrain.method=none"])
    assert load_config(paths.root / "params.yaml").pretrain.method == "none"


def test_a_key_of_a_method_that_is_named_alone_can_be_set(paths: ProjectPaths) -> None:
    set_keys(paths, ["finetune.unlabelled.epochs=7"])
    unlabelled = load_config(paths.root / "params.yaml").finetune.unlabelled
    assert unlabelled == Propagation(method="propagation", epochs=7)


def test_a_key_of_a_missing_section_can_be_set(paths: ProjectPaths) -> None:
    set_keys(paths, ["pretrain.optimiser.learning_rate=0.05"])
    assert load_config(paths.root / "params.yaml").pretrain.optimiser == Optimiser(learning_rate=0.05)  # type: ignore[union-attr]


def test_comments_below_keys_of_another_method_stay() -> None:
    text = template("params.yaml").replace("  seed: 0\n\nfinetune:", "\n# FINETUNE NOTES\nfinetune:", 1)
    changed = apply_assignments(text, ["pretrain.method=none"])
    assert "min_steps" not in yaml.safe_load(changed)["pretrain"]
    assert "# FINETUNE NOTES\nfinetune:" in changed
