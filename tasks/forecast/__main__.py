"""`python -m tasks.forecast PARAMS COUNTS SCRATCH FOLDER WEIGHTS STEP ...`: one Forecast a line, in its own process."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil

from tasks.forecast.data_counts import Counts
from tasks.forecast.step_costs import StepForecaster
from winnow.config import load_config
from winnow.errors import WinnowError


def main(arguments: list[str]) -> int:
    """Print a forecast per line, or {"error": ...} as the last line and return 2 where a step refuses its settings."""
    params, counts, scratch, folder, weights_cache, *steps = arguments
    for logger_name in ("winnow", "nncf", "torch", "onnxscript"):
        logging.getLogger(logger_name).setLevel(logging.ERROR)
    try:
        forecaster = StepForecaster(
            load_config(Path(params)), Counts(**json.loads(counts)), Path(scratch), Path(folder), Path(weights_cache)
        )
        # Like the process of a step, this one has imported torch.
        forecaster.startup_seconds = time.time() - psutil.Process().create_time()
        for step in steps:
            print(json.dumps(asdict(forecaster.forecast_step(step))), flush=True)  # noqa: T201
    except WinnowError as error:
        print(json.dumps({"error": str(error)}))  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
