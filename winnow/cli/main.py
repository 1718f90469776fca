"""The command line `winnow`. A command's heavy imports are inside its function, so that a command loads torch, Prefect
or MLflow only if it needs them.

Exit status: 0 done; 2 an error that the user can fix, explained in one message; 130 stopped; 1 a bug of ours, with a
traceback.
"""

from __future__ import annotations

import signal
import sys

import click

from tasks import STOP_SIGNALS
from winnow.cli.command_setup import handle_signals
from winnow.cli.label_commands import LABEL_COMMANDS
from winnow.cli.model_commands import MODEL_COMMANDS
from winnow.cli.run_commands import RUN_COMMANDS
from winnow.cli.search_commands import SEARCH_COMMANDS
from winnow.cli.server_commands import SERVER_COMMANDS

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class OrderedGroup(click.Group):
    """A group that lists its commands in the order of their registration."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the chain."""
        return list(self.commands)


@click.group(name="winnow", cls=OrderedGroup, context_settings=CONTEXT)
def cli() -> None:
    """From images, few of them labelled, to a small, fast model in production."""


for command in (*RUN_COMMANDS, *LABEL_COMMANDS, *MODEL_COMMANDS, *SEARCH_COMMANDS, *SERVER_COMMANDS):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments, run the command, and exit with its status."""
    handle_signals()
    try:
        status = cli.main(arguments, prog_name="winnow", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except click.Abort:
        raise SystemExit(130) from None
    for ending in STOP_SIGNALS:
        signal.signal(ending, signal.SIG_IGN)  # the command is done: a late Ctrl-C must not change the status
    sys.exit(status or 0)


if __name__ == "__main__":
    main()
