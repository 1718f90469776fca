"""`winnow init`: create a project in any folder, with a params.yaml that fits its images."""

from __future__ import annotations

import configparser
import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tasks.project import gpu_slots
from tasks.project.paths import ProjectPaths, holds_project
from tasks.project.templates import template
from tasks.versioning import dvc_stages, installed_code
from winnow.cli.params_editor import edit_document, to_yaml
from winnow.cli.progress import print_line
from winnow.cli.suggested_settings import Setting, suggest_settings
from winnow.config import Data, check_config, load_config
from winnow.config.data import ARCHIVES, TABLES
from winnow.config.section import NO_FILE
from winnow.data.survey import Survey, survey_images
from winnow.errors import ConfigError, WinnowError
from winnow.records import write_text

FETCHED = "photos"
"""The folder inside the project into which images from S3 are copied."""
S3 = "s3://"
GIT_IGNORE = "/.venv/\n/.winnow/\n/artifacts/\n/data/weights/*\n!/data/weights/README.md\n"
DVC_IGNORE = "__pycache__/\n.*.tmp\n"
DVC_SETTINGS = {"core": {"analytics": "false", "check_update": "false"}, "cache": {"type": '"hardlink,reflink,copy"'}}
WEIGHTS_README_FILE = "data/weights/README.md"
WEIGHTS_README = "Put files with known weights here, and name them in teacher.weights or pretrain.start.\n"
FOREIGN_OWNER = ("dubious ownership", "not owned by current user")
"""Parts of the errors of git and of libgit2, which DVC uses, for a folder of another user."""
DVC_SUPPORT = "dvc.org/support"
FILES = ("params.yaml", "dvc.yaml", "prefect.yaml", ".gitignore", ".dvcignore")


def create_project(folder: Path, images: str | None) -> int:
    """Create a project in `folder` for these images: a folder, an archive, a table of labels, or s3://bucket/prefix.

    Nothing is left behind if the images cannot be used, or a file, git or DVC fails. Raises WinnowError, also where the
    folder has such files already.
    """
    root = folder.resolve()
    if existing := [name for name in FILES if (root / name).exists()]:
        raise ConfigError(
            f"{root} has {', '.join(existing)} already; choose another folder. In a project, `winnow init --update` "
            "renews what depends on the installed version"
        )
    data = _data_settings(root, images) if images else {"source": "folder", "path": FETCHED}
    settings = [Setting(f"data.{key}", value, "") for key, value in data.items()]
    survey = None
    if images and not images.startswith(S3):
        survey = _survey(root, data)
        settings += _suggest(settings, survey)
    params = _params(settings)
    with _undone_on_failure(root):
        _write_files(root, params)
        versioned = _initialise_versioning(root)
    _describe(root, versioned, survey, settings)
    return 0


def update_project(paths: ProjectPaths) -> int:
    """Renew dvc.yaml and code_digests/ after an upgrade of winnow; params.yaml stays."""
    if not installed_code.is_separate_project(paths.root):
        raise ConfigError("this is winnow's own repository: its dvc.yaml needs no update")
    changed = installed_code.changed_code(paths.root, load_config(paths.root / "params.yaml"))
    for stage, files in changed.items():
        print_line(f"{stage}: {len(files)} code files have changed, {files[0]} is the first")
    stages = installed_code.project_stages()
    if (paths.root / "dvc.yaml").read_text(encoding="utf-8") != stages:
        write_text(paths.root / "dvc.yaml", stages)
        print_line("dvc.yaml is that of the installed version")
    installed_code.write_digests(paths.root)
    print_line(f"{len(changed)} steps are stale" if changed else "no step has other code than before")
    return 0


def _data_settings(root: Path, images: str) -> dict[str, str]:
    """Return the keys of the section `data` that name these images. Raises ConfigError."""
    if images.startswith(S3):
        return {"source": "folder", "path": FETCHED, "fetch": images}
    path = Path(images).expanduser().resolve()
    if not path.exists():
        raise ConfigError(f"--from {images}: {path} does not exist")
    folder = path if path.is_dir() else path.parent
    if holds_project(folder, root) and not _is_archive(path):
        raise ConfigError(
            f"--from {images}: {folder} holds the project itself ({root}), whose results would be among the images; "
            "put them into a folder of their own, or create the project elsewhere"
        )
    if path.is_dir():
        return {"source": "folder", "path": _inside(root, path)}
    if _is_archive(path):
        return {"source": "archive", "path": _inside(root, path)}
    if path.name.lower().endswith(TABLES):
        return {"source": "folder", "path": _inside(root, path.parent), "labels": _inside(root, path)}
    raise ConfigError(
        f"--from {images}: expected a folder with images, an archive ({', '.join(ARCHIVES)}), a table of labels "
        f"({', '.join(TABLES)}), or {S3}bucket/prefix"
    )


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def _inside(root: Path, path: Path) -> str:
    """Return a path relative to the project where it lies inside, so that the project can be moved."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) and path != root else str(path)


def _survey(root: Path, data: dict[str, str]) -> Survey:
    """Survey the images. Their paths are relative to the project, which need not exist yet."""
    settings = {"labels_per_class": "auto", "image_size": 32, **data}
    for key in ("path", "labels"):
        if key in settings:
            settings[key] = str(root / str(settings[key]))
    return survey_images(Data.model_validate(settings), root / ".winnow")


def _suggest(settings: Sequence[Setting], survey: Survey) -> list[Setting]:
    config = check_config(yaml.safe_load(_params(settings)))
    return suggest_settings(survey, config, has_gpu=gpu_slots.has_gpu())


def _params(settings: Sequence[Setting]) -> str:
    """Return the shipped params.yaml with these settings, and their reasons in place of its comments."""

    def change(document: Any) -> None:
        for setting in settings:
            section_name, key = setting.key.rsplit(".", 1)
            section = document
            for part in section_name.split("."):
                section = section[part]
            section[key] = to_yaml(setting.value)
            if setting.reason:
                section.yaml_add_eol_comment(setting.reason, key)

    return edit_document(template("params.yaml"), change)


@contextlib.contextmanager
def _undone_on_failure(root: Path) -> Iterator[None]:
    """Remove what the block has created in the project where it fails. Raises WinnowError for an OSError."""
    created = not root.exists()
    names = (*FILES, "data", NO_FILE, WEIGHTS_README_FILE, installed_code.FOLDER, ".git", ".dvc")
    new = [path for name in names if not (path := root / name).exists()]
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(_remove, [root] if created else new)
        try:
            yield
        except OSError as error:
            raise WinnowError(f"{root} cannot be written: {error.strerror}") from error
        on_failure.pop_all()


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.exists():
            path.unlink()


def _write_files(root: Path, params: str) -> None:
    """Write the files of a project, except those that the user's data/ contains already."""
    texts = {
        "params.yaml": params,
        "dvc.yaml": installed_code.project_stages(),
        "prefect.yaml": _deployments(),
        ".gitignore": GIT_IGNORE,
        ".dvcignore": DVC_IGNORE,
        NO_FILE: "",
        WEIGHTS_README_FILE: WEIGHTS_README,
    }
    for name, text in texts.items():
        path = root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
    installed_code.write_digests(root)


def _deployments() -> str:
    """Return prefect.yaml with flows by their module: a project has no file flows/pipeline.py."""
    lines = []
    for line in template("prefect.yaml").splitlines():
        key, _, value = line.partition("entrypoint: ")
        lines.append(f"{key}entrypoint: {value.replace('/', '.').replace('.py:', '.')}" if value else line)
    return "\n".join(lines) + "\n"


def _initialise_versioning(root: Path) -> str:
    """Initialise git, unless the project is in a repository already, and DVC. Return what was done."""
    has_git = shutil.which("git") is not None
    is_inside = has_git and _runs(["git", "rev-parse", "--show-toplevel"], root)
    done = "DVC"
    if has_git and not is_inside:
        _call(["git", "init", "--quiet"], root)
        done = "git and DVC"
    if (root / ".dvc").exists():
        return "nothing: .dvc/ exists"
    option = [] if (root / ".git").exists() else ["--subdir"] if is_inside else ["--no-scm"]
    _call(dvc_stages.command("init", *option), root)
    path, settings = root / ".dvc" / "config", configparser.ConfigParser(interpolation=None)
    settings.read(path, encoding="utf-8")
    settings.read_dict(
        {name: {**settings[name], **values} if name in settings else values for name, values in DVC_SETTINGS.items()}
    )
    with path.open("w", encoding="utf-8") as file:
        settings.write(file)
    return done


def _runs(command: list[str], folder: Path) -> bool:
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


def _call(command: list[str], folder: Path) -> None:
    """Run a command of git or DVC. Raises WinnowError with its error where it fails."""
    result = subprocess.run(
        command, cwd=folder, env=dvc_stages.environment(), capture_output=True, text=True, check=False
    )
    if result.returncode == 0:
        return
    output = result.stderr or result.stdout
    if any(text in output for text in FOREIGN_OWNER):
        raise WinnowError(
            f"{folder} belongs to another user, so git refuses to use it: run winnow as its owner, or allow it by "
            f"`git config --global --add safe.directory {shlex.quote(str(folder))}`"
        )
    lines = [line for line in output.splitlines() if line.strip() and DVC_SUPPORT not in line]
    raise WinnowError(f"`{' '.join(command[-3:])}` failed in {folder}: {lines[-1] if lines else result.returncode}")


def _describe(root: Path, versioned: str, survey: Survey | None, settings: Sequence[Setting]) -> None:
    """Print what was created, the settings with their reasons, and the next commands."""
    print_line(f"Created a project in {root}; initialised {versioned}.")
    if survey:
        classes = ", ".join(f"{name} {count}" for name, count in list(survey.labelled.items())[:10])
        more = f" and {len(survey.labelled) - 10} more classes" if len(survey.labelled) > 10 else ""
        print_line(
            f"{survey.images} images: {classes}{more}; {survey.unlabelled} without a label, {survey.test} in a test set"
        )
    for setting in settings:
        print_line(f"  {setting.key}: {setting.value}" + (f"   # {setting.reason}" if setting.reason else ""))
    folder = Path(os.path.relpath(root))
    steps = [f"cd {folder}"] if folder != Path() else []
    if any(setting.key == "data.fetch" for setting in settings):
        steps.append("winnow fetch")
    elif survey is None:
        steps.append(f"put images into {FETCHED}/CLASS/ and {FETCHED}/unlabelled/")
    print_line("Next: " + ", ".join([*steps, "read params.yaml, `winnow plan`, `winnow run`"]))
