"""What a flow leaves on its own page in Prefect: the table of candidates, the front, the verdict, and where to look."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from tasks.project import announced_servers
from tasks.project.paths import ProjectPaths
from tasks.project.run_summary import candidate_rows, front_rows, promotion_lines
from tasks.tracking import mlflow_runs
from winnow.config import load_config
from winnow.printable import markdown
from winnow.records import RECORD


def results(places: ProjectPaths) -> None:
    """Everything, after a run of the chain."""
    create_table_artifact(key="candidates", table=candidate_rows(places), description="Candidates of this run")
    create_table_artifact(key="front", table=front_rows(places), description="Nobody is better in all three at once")
    if shown := _in_mlflow(places):
        page, _, run = shown
        picture = f"{page}/get-artifact?path=pareto.png&run_uuid={run}"
        create_image_artifact(key="front-picture", image_url=picture, description="Accuracy, latency and size")
    promotion(promotion_lines(places))
    create_markdown_artifact(key="links", markdown="\n".join(link_lines(places)), description="Where to look")


def promotion(reasons: Sequence[str]) -> None:
    """What became of the winner, and why."""
    listed = "\n".join(f"- {markdown(line)}" for line in reasons)
    create_markdown_artifact(key="promotion", markdown=listed, description="What serves, and why")


def link_lines(places: ProjectPaths) -> list[str]:
    """Markdown: the report and MLflow's pages, or how to open them."""
    shown = _in_mlflow(places)
    if shown is None:
        return [f"- report: `{places.artifacts / 'report' / 'report.html'}`", "- MLflow: `winnow ui`"]
    page, experiment, run = shown
    at = f"{page}/#/experiments/{experiment}/runs/{run}"
    return [f"- [report]({at}/artifacts/report.html)", f"- [this run in MLflow]({at})", f"- [models]({page}/#/models)"]


def _in_mlflow(places: ProjectPaths) -> tuple[str, str, str] | None:
    """(page, experiment, run) of the last execution for a browser; None where there is none or MLflow is not up."""
    if not (places.artifacts / "select" / RECORD).is_file():
        return None
    page, run = (
        announced_servers.mlflow_page(places),
        mlflow_runs.last_execution(places, load_config(places.root / "params.yaml")),
    )
    return (page, *run) if page and run else None
