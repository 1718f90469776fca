"""The errors that a user has to act on. All are ValueErrors; the command line prints them and exits with status 2.

    ValueError
    └── WinnowError
        ├── ConfigError     params.yaml: dotted path, value, valid choices; all mistakes at once
        ├── DataError       the user's images, labels and archives
        ├── ArtifactError   a record, checkpoint or model file is missing, damaged or from another version
        ├── TrainingError   a training that cannot continue (the loss is not a number)
        └── MissingExtra    an optional package is not installed; names the extra that installs it

`assert` is for our own bugs only.
"""

from __future__ import annotations


class WinnowError(ValueError):
    """An error whose message says what is wrong, where, and what to do about it."""


class ConfigError(WinnowError):
    """params.yaml does not describe a run."""


class DataError(WinnowError):
    """The images or labels cannot be used as they are."""


class ArtifactError(WinnowError):
    """A file of an earlier step is missing, damaged or from another version."""


class TrainingError(WinnowError):
    """Training cannot continue."""


class MissingExtra(WinnowError):
    """An optional package is missing."""

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"the package {package!r} is not installed; get it with: pip install 'winnow-vision[{extra}]'")

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        """Return how to rebuild the error from its two arguments, so that it can be pickled between processes."""
        return type(self), (self.package, self.extra)
