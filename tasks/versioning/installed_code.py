"""The installed winnow as a dependency of the stages of a project outside of winnow's repository.

In the repository dvc.yaml lists the code files that decide the result of each stage. In a project that `winnow init`
created there are none, so each stage depends on a file in code_digests/ with the digests of the same files as they are
installed. `winnow run` writes those that have changed: a stage is stale exactly if its code is another one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

import winnow
from tasks.project.templates import template
from winnow.config import Config
from winnow.config.candidates import METHOD_SETTINGS
from winnow.errors import WinnowError
from winnow.records import sha256_of, write_text

FOLDER = "code_digests"
CANDIDATE, CANDIDATE_PREFIX = "candidate", "candidate@"
"""The stage of all candidates, and what stands before a candidate's name in the name of its own stage."""
METHOD_FILE = "winnow/compression/${item.method}.py"
HEADER = "# Digests of winnow's code, by `winnow run`.\n"
STAGES_HEADER = """\
# One stage per step; `foreach` over the tree of candidates in params.yaml. Every stage runs `python -m tasks`.
# code_digests/ holds the digests of the installed code that decides the result of a stage.
# Created by `winnow init`; `winnow init --update` creates it again.
"""


def is_separate_project(root: Path) -> bool:
    """Return whether the stages of a project depend on code_digests/, and not on code files as in the repository."""
    stages = root / "dvc.yaml"
    return stages.is_file() and f"{FOLDER}/" in stages.read_text(encoding="utf-8", errors="replace")


def project_stages() -> str:
    """Return the text of a project's dvc.yaml: that of the repository, with code_digests/ in place of code files."""
    document = yaml.safe_load(template("stages.yaml"))
    for name, stage in document["stages"].items():
        settings = stage.get("do", stage)
        code = [f"{FOLDER}/{name}.yaml"]
        if METHOD_FILE in settings["deps"]:
            code.append(f"{FOLDER}/${{item.method}}.yaml")
        settings["deps"] = [*(dep for dep in settings["deps"] if not _is_code(dep)), *code]
    return STAGES_HEADER + yaml.safe_dump(document, sort_keys=False, width=120)


def _is_code(dep: str) -> bool:
    return dep.startswith("winnow/")


@functools.cache
def installed_digests() -> Mapping[str, Mapping[str, str]]:
    """Return name of a file in code_digests/ -> {code file: sha256}: a file for each step, and one for each method."""
    package = Path(winnow.__file__).parent
    digests = {}
    for name, stage in yaml.safe_load(template("stages.yaml"))["stages"].items():
        deps = [dep for dep in stage.get("do", stage)["deps"] if _is_code(dep)]
        digests[name] = _digests(package, (dep for dep in deps if dep != METHOD_FILE))
    for method in METHOD_SETTINGS:
        digests[method] = _digests(package, [METHOD_FILE.replace("${item.method}", method)])
    return digests


def _digests(package: Path, deps: Iterable[str]) -> dict[str, str]:
    """Return the digests of code files; of a folder, those of its files."""
    files: list[Path] = []
    for dep in deps:
        path = package.parent / dep
        files += sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {file.relative_to(package.parent).as_posix(): sha256_of(file) for file in files}


def changed_code(root: Path, config: Config) -> dict[str, list[str]]:
    """Return stage -> code files that differ from those in code_digests/; {} where stages depend on code files."""
    steps = [name for name in installed_digests() if name not in METHOD_SETTINGS and name != CANDIDATE]
    return _changed_code(root, config, [*steps, *(CANDIDATE_PREFIX + name for name in config.candidates)])


def _changed_code(root: Path, config: Config, stages: Sequence[str]) -> dict[str, list[str]]:
    if not is_separate_project(root):
        return {}
    names = {stage: _digest_names(stage, config) for stage in stages}
    changed = {name: _changed_files(root, name) for name in dict.fromkeys(itertools.chain(*names.values()))}
    files = {stage: [file for name in names[stage] for file in changed[name]] for stage in stages}
    return {stage: changes for stage, changes in files.items() if changes}


def _digest_names(stage: str, config: Config) -> list[str]:
    """Return the names of the files in code_digests/ on which a stage depends."""
    step, _, candidate = stage.partition("@")
    return [step, config.candidates[candidate].method] if candidate else [step]


def _changed_files(root: Path, name: str) -> list[str]:
    installed, known = installed_digests()[name], _read(root / FOLDER / f"{name}.yaml")
    return sorted(file for file in {*installed, *known} if installed.get(file) != known.get(file))


def _read(path: Path) -> dict[str, str]:
    """Return the digests in a file of code_digests/; {} where it is missing or damaged, as it is written again."""
    try:
        digests = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return digests if isinstance(digests, dict) else {}


def write_digests(root: Path) -> None:
    """Write the files of code_digests/ that differ from the installed code, where stages depend on them."""
    if not is_separate_project(root):
        return
    (root / FOLDER).mkdir(exist_ok=True)
    for name, digests in installed_digests().items():
        path = root / FOLDER / f"{name}.yaml"
        if _read(path) != digests:
            write_text(path, HEADER + yaml.safe_dump(dict(digests)))


def check(root: Path, config: Config, stage: str) -> None:
    """Raise WinnowError where code_digests/ is not of the installed code: DVC would record the wrong one."""
    if files := _changed_code(root, config, [stage]).get(stage):
        raise WinnowError(
            f"the installed winnow has other code for {stage} than {FOLDER}/ in {root} says ({', '.join(files[:3])}); "
            "`winnow run` updates it, and so does `winnow init --update` before `dvc repro`"
        )
