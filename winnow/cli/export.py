"""`winnow export` and `winnow check-host`: take files to the serving machine, and import its figures."""

from __future__ import annotations

from pathlib import Path

from tasks.project.paths import ProjectPaths, registered_model_name
from winnow.cli.command_setup import load_project_config
from winnow.cli.progress import print_line
from winnow.config import load_config
from winnow.config.export_formats import TORCH
from winnow.errors import ConfigError


def export_folder(
    paths: ProjectPaths, folder: Path, model: str, with_candidates: bool, formats: tuple[str, ...] = ()
) -> int:
    """Export the promoted model to `folder`, also in these formats.

    `with_candidates`: also all candidates, to be timed on another machine. Raises ConfigError for formats without a
    promoted model.
    """
    from tasks.project import benchmark_target
    from tasks.registry import registered_models
    from winnow.deploy.bundle import OtherFormats, export_host_check, export_model

    config = load_config(paths.root / "params.yaml")
    name = registered_model_name(config)
    check = benchmark_target.build_host_check(paths, config, with_candidates)
    if with_candidates and registered_models.find(paths, name, model) is None:
        # No model is promoted, perhaps because no candidate is fast enough on this machine.
        if formats:
            raise ConfigError(f"--format {formats[0]} is for a registered model, and {name} has no {model}")
        export_host_check(folder, check, config.data.image_size)
    else:
        version = registered_models.get(paths, name, model)
        others = OtherFormats(formats, _find_weights(paths, version.sha256) if TORCH in formats else None)
        export_model(registered_models.fetch(paths, name, version), folder, f"{name}, {version}", check, others)
        print_line(f"{version} of {name} is in {folder}" + (f", also as {', '.join(formats)}" if formats else ""))
    if with_candidates:
        print_line(
            f"On the serving machine: python check_host.py; then here: winnow check-host host.json "
            f"({len(check.others)} candidates)"
        )
    return 0


def _find_weights(paths: ProjectPaths, sha256: str) -> Path | None:
    """Return the folder of the artifacts that holds the file of this digest and the network it was made from."""
    from winnow.deploy.onnx_session import MODEL
    from winnow.models.backbones import WEIGHTS_FILE
    from winnow.records import sha256_of

    folders = (paths.artifacts / "refit", *sorted((paths.artifacts / "candidates").glob("*")))
    for folder in folders:
        if (folder / WEIGHTS_FILE).is_file() and (folder / MODEL).is_file() and sha256_of(folder / MODEL) == sha256:
            return folder
    return None


def import_host_figures(paths: ProjectPaths, file: Path) -> int:
    """Import the figures of the serving machine, which gates use from then on."""
    from tasks.project import benchmark_target, run_lock
    from winnow.cli.params_editor import set_benchmark_target
    from winnow.selection.selection_warnings import overflowing_candidates

    with run_lock.lock_run(paths):
        config = load_project_config(paths)
        host, missing = benchmark_target.import_target(paths, config, file)
        unsafe = overflowing_candidates(config, host.machine.flags)
        set_benchmark_target(paths, benchmark_target.TARGET_FILE, unsafe)
    machine = host.machine
    print_line(f"Gates use {machine.cpu}, {machine.threads} threads, from now on; winnow run applies it.")
    for candidate, reason in missing.items():
        print_line(f"{candidate} was not timed there and cannot win: {reason}")
    if not host.machine.flags:
        print_line(
            f"{machine.system} does not list the flags of {machine.cpu}; if it is an x86 processor without VNNI, set "
            "overflow_safe: true in the int8 candidates."
        )
    if unsafe:
        print_line(
            f"{machine.cpu} has no VNNI: sums of int8 products saturate there. {', '.join(unsafe)} will be quantized "
            "again with weights in 7 bits; after that, time them there again: `winnow export DIR --candidates`."
        )
    return 0
