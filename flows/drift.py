"""The flow that watches fresh images, and `winnow drift`."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from flows.runtime import working
from tasks import drift as drift_task
from tasks.events import emit_drifted
from tasks.project.paths import ProjectPaths, registered_model_name
from winnow.config import load_config
from winnow.config.section import NOTHING


@flow(name="drift", validate_parameters=False, persist_result=True, result_serializer="json")
def drift(root: str = ".", path: str = "") -> dict[str, Any]:
    """Compare the fresh images of `path` (drift.path by default) with the validation split; returns the advice."""
    with working(root) as places:
        return _look(places, path)


def _look(places: ProjectPaths, path: str) -> dict[str, Any]:
    config = load_config(places.root / "params.yaml")
    if not path and config.drift.path == NOTHING:
        get_run_logger().info("drift.path names no folder of fresh images: nothing is compared.")
        return {}
    try:
        finding = drift_task.look(places, config, path or None)
    except drift_task.NothingToCompare as error:
        get_run_logger().warning("nothing is compared: %s", error)
        return {}
    run_id = drift_task.track(places, config, finding)
    told = "\n".join(drift_task.lines(finding, for_markdown=True))
    create_markdown_artifact(key="drift", markdown=told, description=f"MLflow run {run_id}")
    if finding.wanted:
        rows = [
            {"file": file, "predicted": name, "probability": f"{chance:.2f}"} for file, name, chance in finding.wanted
        ]
        create_table_artifact(key="to-label", table=rows, description="Labels of these would teach most")
    if finding.is_real:
        emit_drifted(registered_model_name(config), told)
    return {"is_real": finding.is_real, "advice": str(finding.advice), "run": run_id}
