from __future__ import annotations

from typing import Any

import pytest

from winnow.cli import serve
from winnow.config.serving import ServingConfig
from winnow.errors import ConfigError


@pytest.mark.parametrize("option", ["timeout", "max_wait_ms", "header_timeout"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e9])
def test_times_that_are_no_times_are_refused(option: str, value: float) -> None:
    settings: dict[str, Any] = {option: value}
    with pytest.raises(ConfigError, match=rf"--{option.replace('_', '-')} "):
        serve.check_serving(ServingConfig(port=18_237, **settings))
