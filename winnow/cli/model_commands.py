"""The commands on registered models: promote, rollback, approve, deny, predict, serve, export, check-host, drift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from tasks.project.paths import ProjectPaths
from winnow.cli.command_setup import NonEmptyPath, load_project_config, project_command
from winnow.cli.progress import print_line
from winnow.config import load_config
from winnow.config.export_formats import FORMAT_FILES
from winnow.config.field_docs import field_docs
from winnow.config.serving import ServingConfig

PATH = NonEmptyPath(path_type=Path)
model_option = click.option(
    "--model", default="champion", show_default=True, help="Alias or version of the registered model."
)

version_option = click.option(
    "--version",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="The version that you reviewed; refuse if another one is the challenger by now.",
)


@click.command(epilog="Example: winnow promote")
@click.option(
    "--replace",
    is_flag=True,
    help="Consider even a version that was denied or rolled back, or that cannot be compared with the champion.",
)
@project_command
def promote(paths: ProjectPaths, replace: bool) -> int:
    """Register the winner and compare it with the champion."""
    from winnow.cli.promotion import promote_winner

    return promote_winner(paths, replace)


@click.command(epilog='Example: winnow rollback --reason "wrong on photographs at night"')
@click.option("--reason", default="", help="Stored on the version that is rolled back.")
@project_command
def rollback(paths: ProjectPaths, reason: str) -> int:
    """Put the previous champion back into production."""
    from winnow.cli.promotion import roll_back

    return roll_back(paths, reason)


@click.command(epilog='Example: winnow approve --version 7 --reason "confusions checked"')
@click.option("--reason", default="", help="Stored on the version.")
@version_option
@project_command
def approve(paths: ProjectPaths, reason: str, version: int | None) -> int:
    """Make the challenger that waits for approval the champion."""
    from winnow.cli.promotion import decide

    return decide(paths, True, reason, version)


@click.command(epilog='Example: winnow deny --version 7 --reason "confuses cats and dogs"')
@click.option("--reason", required=True, help="Stored on the version.")
@version_option
@project_command
def deny(paths: ProjectPaths, reason: str, version: int | None) -> int:
    """Reject the challenger that waits for approval."""
    from winnow.cli.promotion import decide

    return decide(paths, False, reason, version)


@click.command(epilog="Example: winnow predict photos/new --out predictions.csv --abstain-below 0.8")
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="PATH...")
@click.option("--out", type=PATH, default=None, help="Write the predictions to this .csv or .parquet file.")
@click.option(
    "--top", type=int, default=1, show_default=True, help="The number of classes per file, the most probable first."
)
@click.option(
    "--abstain-below", type=float, default=0.0, help="Give no class if the highest probability is below this."
)
@model_option
@project_command
def predict(
    paths: ProjectPaths, images: tuple[Path, ...], out: Path | None, top: int, abstain_below: float, model: str
) -> int:
    """Predict the classes of images with the promoted model.

    PATH: image files, and folders at any depth.
    """
    from winnow.cli.predict import PredictOptions, predict_paths

    config = load_config(paths.root / "params.yaml")
    return predict_paths(paths, config, list(images), model, PredictOptions(top, abstain_below, out))


def _serving_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each setting of the server."""
    docs = field_docs(ServingConfig)
    for field in reversed(fields(ServingConfig)):
        if field.name not in ("folder", "title", "allow_host"):
            flag = f"--{field.name.replace('_', '-')}"
            option = click.option(
                flag, type=type(field.default), default=field.default, show_default=True, help=docs[field.name]
            )
            function = option(function)
    return function


@click.command(epilog="Example: winnow serve --port 8000")
@model_option
@_serving_options
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A name or address by which clients call this server, in addition to 127.0.0.1 and localhost; * for any.",
)
@project_command
def serve(paths: ProjectPaths, /, model: str, **settings: Any) -> int:
    """Serve the promoted model over HTTP, until Ctrl-C.

    POST an image to /predict.
    """
    from winnow.cli.serve import start_server

    return start_server(paths, load_config(paths.root / "params.yaml"), model, ServingConfig(**settings))


@click.command(epilog="Example: winnow export model --candidates")
@click.argument("folder", type=PATH, metavar="DIR")
@model_option
@click.option("--candidates", is_flag=True, help="Export all candidates, too, to time them on the serving machine.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(list(FORMAT_FILES)),
    help="Another format beside ONNX: OpenVINO IR, or a program of torch.export (float models); may be repeated.",
)
@project_command
def export(paths: ProjectPaths, folder: Path, model: str, candidates: bool, formats: tuple[str, ...]) -> int:
    """Export the promoted model: file, labels, cards, example."""
    from winnow.cli.export import export_folder

    return export_folder(paths, folder, model, candidates, tuple(dict.fromkeys(formats)))


@click.command(epilog="Example: winnow check-host host.json")
@click.argument("file", type=PATH, metavar="FILE")
@project_command
def check_host(paths: ProjectPaths, file: Path) -> int:
    """Import what check_host.py measured on the serving machine.

    FILE: the host.json that it wrote. Gates use its figures from then on.
    """
    from winnow.cli.export import import_host_figures

    return import_host_figures(paths, file)


@click.command(epilog="Example: winnow drift photos/today")
@click.argument("folder", default="", required=False)
@project_command
def drift(paths: ProjectPaths, folder: str) -> int:
    """Test whether new images still resemble the training images.

    FOLDER: a folder of images, at any depth; default: drift.path.
    """
    from tasks import drift

    config = load_project_config(paths)
    # A folder on the command line is relative to the shell's folder, drift.path to the project's.
    report = drift.detect_drift(paths, config, str(Path(folder).absolute()) if folder else None)
    print_line("\n".join(drift.report_lines(report)))
    for file, name, probability in report.to_label:
        print_line(f"  label {file} (now {name}, {probability:.2f})")
    print_line(f"MLflow run {drift.log_drift(paths, config, report)}")
    return 0


MODEL_COMMANDS = (promote, rollback, approve, deny, predict, serve, export, check_host, drift)
