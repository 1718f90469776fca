"""Check the commands: each has a help text, and mistakes on the command line are explained with status 2."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from winnow.cli.main import CONTEXT, cli, main
from winnow.config.field_docs import field_docs
from winnow.config.serving import ServingConfig


def all_commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    """Return whole name -> command, of the groups inside, too."""
    commands: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        commands[prefix + name] = command
        if isinstance(command, click.Group):
            commands |= all_commands(command, f"{prefix}{name} ")
    return commands


COMMANDS = all_commands(cli)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_and_option_has_a_help_text(name: str) -> None:
    command = COMMANDS[name]
    help_text = command.get_short_help_str(limit=62)
    assert help_text.endswith(".")
    assert not help_text.endswith("...")
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.name.endswith("_port"):
            assert parameter.help, f"winnow {name} {parameter.opts[0]}"


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not isinstance(command, click.Group)])
def test_every_command_shows_an_example_that_it_accepts(name: str) -> None:
    command = COMMANDS[name]
    words = shlex.split((command.epilog or "").partition(f"winnow {name}")[2], comments=False)
    assert command.epilog.startswith("Example: ")
    command.make_context(name, words, **CONTEXT)  # raises for unknown options and invalid values


def test_settings_of_the_server_are_its_options() -> None:
    options = {parameter.name for parameter in cli.commands["serve"].params}
    assert options == {"model", *field_docs(ServingConfig)} - {"folder", "title"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "--batches", "1,a"], "'1,a' is not a list of counts from 1 to 4096"),
        (["predict"], "Missing argument 'PATH...'"),
        (["deny"], "Missing option '--reason'"),
        (["nothing"], "No such command 'nothing'"),
        (["label"], "Choose images to label, and check labels."),
        (["label", "suggest", "0"], "0 is not in the range x>=1"),
        (["label", "suggest", "5", "--method", "best"], "'best' is not one of 'typiclust', 'k-center', 'margin'"),
        (["run", "--fast"], "No such option '--fast'"),
        (["sweep", "--batches", "99999999"], "not a list of counts from 1 to 4096"),
        (["predict", ""], "an empty path; the current folder is ."),
        (["predict", "a.png", "--out", ""], "an empty path"),
        (["export", ""], "an empty path"),
        (["init", ""], "an empty path"),
        (["label", "suggest", "--out", ""], "an empty path"),
    ],
)
def test_a_mistake_is_explained_with_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exc_info:
        main(arguments)
    assert exc_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--role", "reader", "--remove"]])
def test_an_account_takes_exactly_one_change(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exc_info:
        main(["account", "name", *options])
    assert exc_info.value.code == 2
    assert "exactly one of --role, --reset and --remove" in capsys.readouterr().err


@pytest.mark.thorough
def test_outside_a_project_only_help_works(tmp_path: Path) -> None:
    def run_winnow(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "winnow.cli.main", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    result = run_winnow("status")
    assert result.returncode == 2
    assert result.stderr.startswith(f"winnow: no params.yaml and dvc.yaml in {tmp_path} or above")
    assert run_winnow("run", "--help").returncode == 0
