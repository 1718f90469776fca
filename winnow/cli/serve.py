"""`winnow serve`: the promoted model over HTTP. Fetches it, then becomes the server (winnow/servers/http.py)."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import asdict, replace

from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.registry import registered_models
from winnow.cli.progress import say
from winnow.config import Config
from winnow.config.serving import EVERYWHERE, Serving
from winnow.deploy.request_predictor import Model
from winnow.deploy.runtimes import RuntimeUnavailable
from winnow.errors import ConfigError, MissingExtra, WinnowError
from winnow.servers.supervisor import listens

HOSTS = ("127.0.0.1", *EVERYWHERE)
PORTS = range(1024, 65536)
START = "import sys; from winnow.servers.http import main; raise SystemExit(main(sys.argv[1]))"
"""Not -m: each process that the server starts would import it again."""


def serve(places: ProjectPaths, config: Config, which: str, asked: Serving) -> int:
    """Never comes back where all is well: this process becomes the server, without MLflow's libraries and threads."""
    for package in ("litserve", "prometheus_client", "python_multipart"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package.replace("_", "-"), "serve")
    _check(asked)
    name = registered_model_name(config)
    version = registered_models.get(places, name, which)
    folder = registered_models.fetch(places, name, version)
    try:
        Model(folder, 1)
    except RuntimeUnavailable as error:
        raise WinnowError(f"{version} of {name} cannot run here: {error}") from error
    if asked.host in EVERYWHERE and not asked.allow_host:
        say(
            f"winnow: {asked.host} is every address of this machine, but requests from elsewhere are refused until "
            "--allow-host names what they call it by (its address, or a proxy's name)",
            sys.stderr,
        )
    told = asdict(replace(asked, folder=str(folder), title=f"{name}, {version}"))
    say(f"{version} of {name}: POST an image to http://{asked.host}:{asked.port}/predict; Ctrl-C ends it")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-c", START, json.dumps(told)])


def _check(asked: Serving) -> None:
    if asked.host not in HOSTS:
        raise ConfigError(f"--host {asked.host}: it is to be {', '.join(HOSTS)}; 127.0.0.1 is this machine alone")
    if asked.port not in PORTS:
        raise ConfigError(f"--port {asked.port}: it is to be from 1024 to 65535")
    if listens(asked.port, asked.host):
        raise WinnowError(f"port {asked.port} is taken; choose another one: --port {asked.port + 1}")
    for key, value in asdict(asked).items():
        if not isinstance(value, str | list | tuple) and (value < 0 or (value == 0 and key != "max_wait_ms")):
            raise ConfigError(f"--{key.replace('_', '-')} {value}: it is to be a positive number")
