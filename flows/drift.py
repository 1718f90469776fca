"""The drift flow: compare fresh images with the validation split, log the result and emit an event on drift."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from flows.runtime import locked_project
from tasks import drift as drift_task
from tasks.model_events import emit_drifted
from tasks.project.paths import ProjectPaths, registered_model_name
from winnow.config import load_config
from winnow.config.section import NO_FILE


@flow(name="drift", validate_parameters=False, persist_result=True, result_serializer="json")
def drift(root: str = ".", path: str = "") -> dict[str, Any]:
    """Compare the images in `path` (drift.path by default) with the validation split.

    Returns {is_real, advice, run}, or {} where nothing can be compared.
    """
    with locked_project(root) as paths:
        return _detect(paths, path)


def _detect(paths: ProjectPaths, path: str) -> dict[str, Any]:
    config = load_config(paths.root / "params.yaml")
    if not path and config.drift.path == NO_FILE:
        get_run_logger().info("drift.path is not set: no images are compared.")
        return {}
    try:
        finding = drift_task.detect_drift(paths, config, path or None)
    except drift_task.NothingToCompare as error:
        get_run_logger().warning("no images are compared: %s", error)
        return {}
    report = "\n".join(drift_task.report_lines(finding, for_markdown=True))
    create_markdown_artifact(key="drift", markdown=report, description="New images against the validation split")
    if finding.to_label:
        rows = [
            {"file": file, "predicted": name, "probability": f"{probability:.2f}"}
            for file, name, probability in finding.to_label
        ]
        create_table_artifact(key="to-label", table=rows, description="Images most worth labelling")
    if finding.is_real:
        emit_drifted(registered_model_name(config), report)
    run_id = drift_task.log_drift(paths, config, finding)  # last: what it shows does not depend on MLflow
    return {"is_real": finding.is_real, "advice": str(finding.advice), "run": run_id}
