"""Where a project keeps what, and an environment in which no library writes elsewhere or phones home.

`apply` must run before Prefect, MLflow, OpenVINO or matplotlib are imported: they read their variables once. What a
person has set stays (a team's MLFLOW_TRACKING_URI, a Prefect server); what winnow set for another project is replaced.
This file imports nothing heavy: the command line starts with it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.project.compile_cache import compile_cache
from winnow.config import Config
from winnow.config.section import NOTHING
from winnow.errors import ConfigError
from winnow.hardware import thread_limit

NOISY = ("nncf", "onnxscript", "torch", "matplotlib", "httpx")
"""Loggers that tell a user nothing below an error."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OWNER = "WINNOW_ROOT"
"""Names the project whose defaults are in the environment."""
QUEUED = f"{os.sep}.dvc{os.sep}tmp{os.sep}exps{os.sep}"
"""Where, inside the project, `dvc exp run --queue` makes the copy that it runs in."""


@dataclass(frozen=True)
class ProjectPaths:
    """The folders of a project. Two of them are left behind by runs, both ignored by git: artifacts/ and .winnow/."""

    root: Path

    @property
    def artifacts(self) -> Path:
        """DVC's outs: one folder per step and candidate."""
        return self.root / "artifacts"

    @property
    def state_dir(self) -> Path:
        """Everything that is no artifact: stores, checkpoints, logs, caches."""
        return self.root / ".winnow"

    @property
    def checkpoints(self) -> Path:
        """Where interrupted trainings go on."""
        return self.state_dir / "checkpoints"

    @property
    def answers(self) -> Path:
        """What teachers said, kept for candidates that see the same views."""
        return self.state_dir / "answers"

    @property
    def logs(self) -> Path:
        """Output of servers and of scheduled runs."""
        return self.state_dir / "logs"

    @property
    def mlflow_store(self) -> str:
        """Address of the project's own MLflow store."""
        return f"sqlite:///{self.state_dir / 'mlflow' / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """Files of the project's own MLflow store."""
        return self.state_dir / "mlflow" / "artifacts"

    @property
    def test_readings(self) -> Path:
        """How often the report has read each version of the test split; experiments that DVC queues count too."""
        project = str(self.root).partition(QUEUED)[0]
        return Path(project) / ".winnow" / "test-readings.json"


def quieten() -> None:
    """Silence the libraries in NOISY."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def thread_variables(limit: int) -> dict[str, str]:
    """Return the variables that keep PyTorch, NumPy and compilers to `limit` threads; none for 0.

    They look at the process's affinity themselves, but at no quota of a container, and take the cores of its host.
    """
    return {name: str(limit) for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")} if limit else {}


def defaults(root: Path) -> dict[str, str]:
    """Environment variables that keep libraries quiet and inside the project."""
    places = ProjectPaths(root)
    cache = places.state_dir / "cache"
    return {
        OWNER: str(root),
        **thread_variables(thread_limit()),
        "DO_NOT_TRACK": "1",
        # OpenVINO's telemetry obeys nothing else; without it `import openvino` writes into the home.
        "CI": "true",
        "NNCF_CI": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(cache / "dvc"),
        "DVC_GLOBAL_CONFIG_DIR": str(cache / "dvc-config"),
        "HF_HUB_OFFLINE": "1",
        "MPLCONFIGDIR": str(cache / "matplotlib"),
        "TORCH_HOME": str(cache / "torch"),
        "TORCHINDUCTOR_CACHE_DIR": str(compile_cache(cache / "inductor")),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "XDG_CACHE_HOME": str(cache),
        "MLFLOW_TRACKING_URI": places.mlflow_store,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        # Files come through MLflow: whoever loads a model need not reach the S3 behind it.
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
        "MLFLOW_UV_AUTO_DETECT": "false",
        # A store that does not answer should be an error in seconds, not in minutes.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "PREFECT_HOME": str(places.state_dir / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        # flows/automations.yaml takes a flow that is silent for three of these for dead; Prefect takes no less.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # A server that was down for a minute forgets what came due then: runs that died would stay Running for ever.
        "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P7D",
        # In memory, as Prefect has it, a restart of the server takes its slot from a run that works, which ends it.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    }


def environment(root: Path) -> dict[str, str]:
    """os.environ with `defaults`: a person's own values stay, those that winnow set for another project do not."""
    owner = os.environ.get(OWNER)
    stale = {} if owner is None else {k: v for k, v in defaults(Path(owner)).items() if os.environ.get(k) == v}
    kept = {key: value for key, value in os.environ.items() if key not in stale}
    return {**defaults(root), **kept, **loopback_without_proxy(kept)}


def loopback_without_proxy(variables: Mapping[str, str]) -> dict[str, str]:
    """Return NO_PROXY in both spellings: what a person has set, and this machine's own addresses.

    With HTTP_PROXY alone, winnow's own servers on 127.0.0.1 would be asked through the proxy, which knows them not.
    """
    set_by_user = [variables.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = [host.strip() for value in set_by_user for host in value.split(",") if host.strip()]
    merged = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))
    value = "*" if "*" in hosts else merged
    return {"no_proxy": value, "NO_PROXY": value}


def apply(root: Path) -> None:
    """Put `environment` into this process and make the folders that libraries expect."""
    os.environ.update(environment(root))
    places = ProjectPaths(root)
    for folder in (places.mlflow_artifacts, places.checkpoints, places.state_dir / "cache" / "matplotlib"):
        folder.mkdir(parents=True, exist_ok=True)


def check_files(config: Config, root: Path) -> None:
    """Raise ConfigError when a file or folder that params.yaml names is not there: DVC would only say "missing"."""
    problems = []
    if config.data.fetch == "none" and not (root / config.data.path).exists():
        problems.append(f"  data.path: {config.data.path!r} does not exist (looked for in {root})")
    if not (root / config.finetune.weights).is_file():
        problems.append(
            f"  finetune.weights: {config.finetune.weights!r} is no file (looked for in {root}); "
            f"for no weights of your own set it to {NOTHING}"
        )
    if not (root / config.data.labels).is_file():
        problems.append(
            f"  data.labels: {config.data.labels!r} is no file (looked for in {root}); for none set it to {NOTHING}"
        )
    if not (root / config.benchmark.target).is_file():
        problems.append(
            f"  benchmark.target: {config.benchmark.target!r} is no file (looked for in {root}); `winnow check-host` "
            f"makes it; for this machine set it to {NOTHING}"
        )
    if problems:
        raise ConfigError("params.yaml names what is not there:\n" + "\n".join(problems))


def registered_model_name(config: Config) -> str:
    """Return promotion.registered_model, or the data's name in small letters, digits and hyphens.

    A name that loses letters by that gets a digest, so that two folders whose names leave the same, or nothing, do not
    share a model.
    """
    if config.promotion.registered_model != "auto":
        return config.promotion.registered_model
    title = unicodedata.normalize("NFC", config.data.title)
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    if name and not any(letter.isalnum() and not letter.isascii() for letter in title):
        return name
    digest = hashlib.blake2b(title.encode("utf-8", "backslashreplace"), digest_size=4).hexdigest()
    return f"{name or 'images'}-{digest}"
