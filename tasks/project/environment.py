"""The environment in which no library writes outside the project or sends telemetry.

Call `apply` before Prefect, MLflow, OpenVINO or matplotlib are imported: they read their variables once. Values that
the user has set stay (a team's MLFLOW_TRACKING_URI, a Prefect server); values that winnow set for another project are
replaced. This file imports nothing heavy: the command line starts with it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from tasks.project.compile_cache import compile_cache_folder
from tasks.project.paths import ProjectPaths
from winnow.hardware import thread_limit

NOISY_LOGGERS = ("nncf", "onnxscript", "torch", "matplotlib", "httpx")
"""Loggers whose messages below an error do not help users."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ROOT_VARIABLE = "WINNOW_ROOT"
"""The variable that holds the root of the project whose defaults are in the environment."""


def silence_loggers() -> None:
    """Silence the loggers in NOISY_LOGGERS below errors."""
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def thread_variables(limit: int) -> dict[str, str]:
    """Return the variables that keep PyTorch, NumPy and compilers to `limit` threads; none for 0.

    These libraries respect the process's CPU affinity, but not a container's CPU quota: without a limit they start one
    thread per core of the host.
    """
    return {name: str(limit) for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")} if limit else {}


def default_variables(root: Path) -> dict[str, str]:
    """Return the environment variables that limit the output of libraries and keep their files inside the project."""
    paths = ProjectPaths(root)
    cache = paths.state_dir / "cache"
    return {
        ROOT_VARIABLE: str(root),
        **thread_variables(thread_limit()),
        "DO_NOT_TRACK": "1",
        # The only switch of OpenVINO's telemetry; without it `import openvino` writes into the home folder.
        "CI": "true",
        "NNCF_CI": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(cache / "dvc"),
        "DVC_GLOBAL_CONFIG_DIR": str(cache / "dvc-config"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MPLCONFIGDIR": str(cache / "matplotlib"),
        "TORCH_HOME": str(cache / "torch"),
        "TORCHINDUCTOR_CACHE_DIR": str(compile_cache_folder(cache / "inductor")),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "XDG_CACHE_HOME": str(cache),
        "MLFLOW_TRACKING_URI": paths.mlflow_store,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        # Files come through the MLflow server: clients need no access to the S3 bucket behind it.
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
        "MLFLOW_UV_AUTO_DETECT": "false",
        # A server that does not answer should be an error after seconds, not minutes.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "PREFECT_HOME": str(paths.state_dir / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        # flows/automations.yaml restarts a flow that misses three heartbeats. 30 s is Prefect's minimum.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # By default a server that was down for a minute drops automations that were due: dead runs would stay Running.
        "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P7D",
        # By default leases are kept in memory: a server restart would release the slot of a running flow and end it.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    }


def process_environment(root: Path) -> dict[str, str]:
    """Return os.environ with `default_variables` added.

    Values that the user has set stay; values that winnow set for another project are replaced.
    """
    owner = os.environ.get(ROOT_VARIABLE)
    stale = {} if owner is None else {k: v for k, v in default_variables(Path(owner)).items() if os.environ.get(k) == v}
    user_values = {key: value for key, value in os.environ.items() if key not in stale}
    return {**default_variables(root), **user_values, **no_proxy_variables(user_values)}


def no_proxy_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return NO_PROXY in both spellings: the user's own hosts and this machine's loopback addresses.

    With HTTP_PROXY alone, requests to winnow's own servers on 127.0.0.1 would go through the proxy and fail.
    """
    set_by_user = [variables.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = [host.strip() for value in set_by_user for host in value.split(",") if host.strip()]
    merged = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))
    value = "*" if "*" in hosts else merged
    return {"no_proxy": value, "NO_PROXY": value}


def apply(root: Path) -> None:
    """Set the variables of `process_environment` in this process and create the folders that libraries expect."""
    os.environ.update(process_environment(root))
    paths = ProjectPaths(root)
    for folder in (paths.mlflow_artifacts, paths.checkpoints, paths.state_dir / "cache" / "matplotlib"):
        folder.mkdir(parents=True, exist_ok=True)
