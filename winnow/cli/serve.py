"""`winnow serve`: fetch the promoted model, then become the HTTP server (winnow/servers/http.py)."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import asdict, replace

from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.registry import registered_models
from winnow.cli.progress import print_line
from winnow.config import Config
from winnow.config.serving import ALL_INTERFACES, ServingConfig
from winnow.deploy.request_predictor import RequestPredictor
from winnow.deploy.runtime_properties import RuntimeUnavailable
from winnow.errors import ConfigError, MissingExtra, WinnowError
from winnow.servers.supervisor import is_port_taken

HOSTS = ("127.0.0.1", *ALL_INTERFACES)
PORTS = range(1024, 65536)
DAY_S, DAY_MS = 86_400, 86_400_000
START = "import sys; from winnow.servers.http import main; raise SystemExit(main(sys.argv[1]))"
"""Not `-m`: each process that the server starts would import the module again."""


def start_server(paths: ProjectPaths, config: Config, model: str, settings: ServingConfig) -> int:
    """Become the server, without MLflow's libraries and threads; returns only by an error."""
    for package in ("litserve", "prometheus_client", "python_multipart"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package.replace("_", "-"), "serve")
    check_serving(settings)
    name = registered_model_name(config)
    version = registered_models.get(paths, name, model)
    folder = registered_models.fetch(paths, name, version)
    try:
        RequestPredictor(folder, 1)
    except RuntimeUnavailable as error:
        raise WinnowError(f"{version} of {name} cannot run here: {error}") from error
    if settings.host in ALL_INTERFACES and not settings.allow_host:
        print_line(
            f"winnow: {settings.host} is every address of this machine, but requests from elsewhere are refused until "
            "--allow-host lists the host name that they use (its address, or a proxy's name)",
            sys.stderr,
        )
    serving_json = asdict(replace(settings, folder=str(folder), title=f"{name}, {version}"))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print_line(f"{version} of {name}: POST an image to http://{host}:{settings.port}/predict; Ctrl-C ends it")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-c", START, json.dumps(serving_json)])


def check_serving(settings: ServingConfig) -> None:
    """Raise WinnowError for settings that no server can have, and for a port that is taken."""
    if settings.host not in HOSTS:
        raise ConfigError(f"--host {settings.host}: it must be {', '.join(HOSTS)}; 127.0.0.1 is this machine alone")
    if settings.port not in PORTS:
        raise ConfigError(f"--port {settings.port}: it must be from 1024 to 65535")
    if is_port_taken(settings.port, settings.host):
        raise WinnowError(f"port {settings.port} is taken; choose another one: --port {settings.port + 1}")
    for key, value in asdict(settings).items():
        if not isinstance(value, str | list | tuple) and (value < 0 or (value == 0 and key != "max_wait_ms")):
            raise ConfigError(f"--{key.replace('_', '-')} {value}: it must be a positive number")
        if isinstance(value, float) and not value <= (limit := DAY_MS if key.endswith("_ms") else DAY_S):
            unit = "milliseconds" if limit == DAY_MS else "seconds"
            raise ConfigError(f"--{key.replace('_', '-')} {value}: it must be at most {limit:,} {unit}, a day")
