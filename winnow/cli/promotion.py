"""`winnow promote`, `rollback`, `approve`, `deny` and `account`: the commands on the model registry."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from tasks.project.paths import ProjectPaths, registered_model_name
from winnow.cli.command_setup import load_project_config
from winnow.cli.progress import print_line
from winnow.config import Config

if TYPE_CHECKING:
    from tasks.registry.promotion import PromotionResult


def promote_winner(paths: ProjectPaths, replace: bool) -> int:
    """Compare the winner with the champion, and promote it if it is better."""
    from tasks.project import run_lock, running_servers
    from tasks.registry.promotion import promote

    config = load_project_config(paths)
    with run_lock.lock_run(paths):
        outcome = promote(paths, config, replace=replace)
    status = _report_promotion(paths, config, outcome)
    if outcome.waits and running_servers.report_to_prefect(paths):
        from flows.promote import show_form

        if warning := show_form(config):
            print_line(f"winnow: {warning}", sys.stderr)
    return status


def roll_back(paths: ProjectPaths, reason: str) -> int:
    """Put the previous champion back into production."""
    from tasks.registry.rollback import rollback

    config = load_project_config(paths)
    return _report_promotion(paths, config, rollback(paths, config, reason))


def decide(paths: ProjectPaths, is_approved: bool, reason: str, version: int | None) -> int:
    """Approve or deny the challenger that waits for manual approval, and close its form in Prefect.

    Raises WinnowError where the challenger is not `version`.
    """
    from tasks.project import running_servers
    from tasks.project.run_origin import approver_name
    from tasks.registry import approval_decision

    config = load_project_config(paths)
    waiting = approval_decision.pending_approval(paths, config)
    expected = str(version) if version else waiting.version.number if waiting else None
    outcome = approval_decision.decide(paths, config, is_approved, approver_name(), reason, expected)
    _report_promotion(paths, config, outcome)
    if waiting and waiting.request.form and running_servers.report_to_prefect(paths):
        from flows.promote import close_form

        if warning := close_form(waiting.request.form, is_approved, approver_name(), reason):
            print_line(f"winnow: {warning}", sys.stderr)
    return 0


def _report_promotion(paths: ProjectPaths, config: Config, outcome: PromotionResult) -> int:
    """Print the result, and send an event on a new champion to Prefect's server, if it runs, for notifications."""
    from tasks.project import running_servers

    print_line("\n".join(outcome.reasons))
    if outcome.is_new and running_servers.report_to_prefect(paths):
        from tasks.model_events import emit_promoted

        logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # it warns that it has one event left to send
        emit_promoted(outcome, registered_model_name(config))
    return 0


def manage_account(paths: ProjectPaths, name: str, role: str, reset: bool, remove: bool) -> int:
    """Create, change or remove an account of the team's MLflow; exactly one of `role`, `reset`, `remove` is set."""
    from tasks.registry import accounts

    accounts.check_name(name)
    if remove:
        accounts.delete_account(paths, name)
        print_line(f"the account {name} was removed")
        return 0
    if role:
        accounts.check_role(role)  # before there is an account without one
    set_password = accounts.reset_password if reset else accounts.create_account
    if password := set_password(paths, name):
        print_line(f"password of {name}: {password}")
    if role:
        accounts.assign_role(paths, name, role)
        print_line(f"{name} is {role}")
    return 0
