# ruff: noqa: F401  the names are those of `winnow.__all__`
"""The library in memory: data sets, networks and files without a project, for notebooks and scripts.

    import winnow

    images = winnow.limit_labels(winnow.read_images("photos", "stored"), per_class=25)
    backbone = winnow.pretrain(images, epochs=10)
    network = winnow.finetune(backbone, images)
    student = winnow.distill(network, images, student="resnet8", width=0.5)
    int8 = winnow.quantize(student, images)
    print(winnow.evaluate(int8, images))
    winnow.save(int8, "deployed")

Settings are the keys of params.yaml and are checked like them; what is left out has its default. Training uses the
labels of the training split; labels of the validation split are for `evaluate` and for the schemes of `quantize` that
select. With `checkpoints`, a folder of its own for each training, an interrupted training resumes from its last step.
"""

from __future__ import annotations

from winnow import __all__
from winnow.api.compressed_networks import cluster, distill, factorize, probe, prune, quantize, sparsify
from winnow.api.measured_networks import Accuracy, evaluate, load, predict, save, time_networks
from winnow.api.trained_networks import Teacher, embed, finetune, pretrain, pseudo_labels, read_images
from winnow.data.arrays import images_from_arrays, limit_labels
from winnow.data.dataset import ImageSet
from winnow.models.network import Network, OnnxNetwork
