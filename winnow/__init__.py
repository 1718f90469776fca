"""The winnow library: pretrain without labels, fine-tune on few labels, compress, accelerate and compare.

In memory, for notebooks and scripts (docs/library.md):

    import winnow

    images = winnow.read_images("photos", "stored")
    network = winnow.finetune(winnow.pretrain(images), images)
    int8 = winnow.quantize(winnow.prune(network, images, remove={"channels": 0.3}), images)
    print(winnow.evaluate(int8, images))

On folders, as DVC runs it: `winnow.steps`. Apart from `cli` and `servers`, nothing here imports prefect, mlflow or dvc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from winnow.api.compressed_networks import cluster, distill, factorize, probe, prune, quantize, sparsify
    from winnow.api.measured_networks import Accuracy, evaluate, load, predict, save, time_networks
    from winnow.api.trained_networks import Teacher, embed, finetune, pretrain, read_images
    from winnow.data.arrays import images_from_arrays, limit_labels
    from winnow.data.dataset import ImageSet
    from winnow.models.network import Network, OnnxNetwork

__version__ = "0.1.0"
__all__ = [
    "Accuracy",
    "ImageSet",
    "Network",
    "OnnxNetwork",
    "Teacher",
    "cluster",
    "distill",
    "embed",
    "evaluate",
    "factorize",
    "finetune",
    "images_from_arrays",
    "limit_labels",
    "load",
    "predict",
    "pretrain",
    "probe",
    "prune",
    "pseudo_labels",
    "quantize",
    "read_images",
    "save",
    "sparsify",
    "time_networks",
]


def __getattr__(name: str) -> Any:
    """Import the in-memory interface on first use: it needs torch, which takes seconds to import."""
    if name in __all__:
        from winnow import api

        return getattr(api, name)
    raise AttributeError(f"module 'winnow' has no attribute {name!r}")
