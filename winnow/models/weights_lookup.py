"""Look up known weights by their name in params.yaml.

    weights = find_weights("torchvision:resnet50", "auto", cache)
    architecture = weights.architecture(num_classes=10, image_size=64)
    network = weights.load(architecture)                  # with a new head for ten classes

Names are those of winnow/config/weights.py. Each source of weights has its file: torchvision_weights.py,
timm_weights.py, package_weights.py and file_weights.py.
"""

from __future__ import annotations

from pathlib import Path

from winnow.config.weights import weights_file
from winnow.models.file_weights import find_file_weights
from winnow.models.known_weights import KnownWeights
from winnow.models.package_weights import find_package_weights
from winnow.models.timm_weights import find_timm_weights
from winnow.models.torchvision_weights import find_torchvision_weights


def find_weights(name: str, backbone: str, cache: Path) -> KnownWeights:
    """Return the weights of this name; `backbone` is that of a file, and ignored for names that include theirs.

    Raises ConfigError for a name that its library does not know; ArtifactError where the file is missing and cannot be
    downloaded, or is damaged; MissingExtra without timm or the package.
    """
    if file := weights_file(name):
        return find_file_weights(name, Path(file), backbone)
    source, _, network = name.partition(":")
    finders = {"package": find_package_weights, "torchvision": find_torchvision_weights, "timm": find_timm_weights}
    return finders[source](network, cache)
