"""`winnow serve`: the promoted model over HTTP. Fetches it, then becomes the server (flows/answering.py)."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

from tasks import registry
from tasks.settings import Places, registered_model_name
from winnow.config import Config
from winnow.config.serving import Serving
from winnow.errors import ConfigError, MissingExtra

HOSTS = ("127.0.0.1", "0.0.0.0", "::")
PORTS = range(1024, 65536)


def serve(places: Places, config: Config, which: str, asked: Serving) -> int:
    """Never comes back where all is well: this process becomes the server, without MLflow's libraries and threads."""
    if importlib.util.find_spec("litserve") is None:
        raise MissingExtra("litserve", "serve")
    _check(asked)
    name = registered_model_name(config)
    version = registry.get(places, name, which)
    folder = registry.fetch(places, name, version)
    told = asdict(replace(asked, folder=str(folder), title=f"{name}, {version}"))
    print(f"{version} of {name}: POST an image to http://{asked.host}:{asked.port}/predict; Ctrl-C ends it")  # noqa: T201
    sys.stdout.flush()
    here = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    os.execve(sys.executable, [sys.executable, "-m", "flows.answering", json.dumps(told)], environment)


def _check(asked: Serving) -> None:
    if asked.host not in HOSTS:
        raise ConfigError(f"--host {asked.host}: it is to be {', '.join(HOSTS)}; 127.0.0.1 is this machine alone")
    if asked.port not in PORTS:
        raise ConfigError(f"--port {asked.port}: it is to be from 1024 to 65535")
    for key, value in asdict(asked).items():
        if not isinstance(value, str) and (value < 0 or (value == 0 and key != "max_wait_ms")):
            raise ConfigError(f"--{key.replace('_', '-')} {value}: it is to be a positive number")
