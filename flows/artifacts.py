"""Prefect artifacts of a flow run: the table of candidates, the Pareto front, the promotion, and links."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from tasks.project import running_servers
from tasks.project.paths import ProjectPaths
from tasks.project.run_summary import candidate_table, promotion_lines, rows_on_front
from tasks.tracking import tracked_runs
from winnow.config import load_config
from winnow.printable import markdown
from winnow.records import RECORD


def create_result_artifacts(paths: ProjectPaths) -> None:
    """Create all artifacts after a run of the chain."""
    table = candidate_table(paths)
    create_table_artifact(key="candidates", table=table, description="Candidates of this run")
    create_table_artifact(
        key="front",
        table=rows_on_front(paths, table),
        description="Pareto front: no candidate is better in accuracy, size and latency at once",
    )
    if location := _mlflow_location(paths):
        page, _, run = location
        image_url = f"{page}/get-artifact?path=pareto.png&run_uuid={run}"
        create_image_artifact(key="front-picture", image_url=image_url, description="Accuracy, latency and size")
    create_promotion_artifact(promotion_lines(paths))
    create_markdown_artifact(key="links", markdown="\n".join(link_lines(paths)), description="Report and MLflow")


def create_promotion_artifact(reasons: Sequence[str]) -> None:
    """Create the artifact with the outcome of the promotion and its reasons."""
    bullet_list = "\n".join(f"- {markdown(line)}" for line in reasons)
    create_markdown_artifact(key="promotion", markdown=bullet_list, description="The model in production, and why")


def link_lines(paths: ProjectPaths) -> list[str]:
    """Return Markdown lines with links to the report and MLflow's pages, or the way to open them."""
    location = _mlflow_location(paths)
    if location is None:
        return [f"- report: `{paths.artifacts / 'report' / 'report.html'}`", "- MLflow: `winnow ui`"]
    page, experiment, run = location
    run_page = f"{page}/#/experiments/{experiment}/runs/{run}"
    return [
        f"- [report]({run_page}/artifacts/report.html)",
        f"- [this run in MLflow]({run_page})",
        f"- [models]({page}/#/models)",
    ]


def _mlflow_location(paths: ProjectPaths) -> tuple[str, str, str] | None:
    """Return (MLflow's URL, experiment, run) of the last execution; None without one, or where MLflow is down."""
    if not (paths.artifacts / "select" / RECORD).is_file():
        return None
    page = running_servers.mlflow_url(paths)
    run = tracked_runs.last_execution(paths, load_config(paths.root / "params.yaml"))
    return (page, *run) if page and run else None
