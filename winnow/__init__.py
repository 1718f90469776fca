"""winnow, the library: pretrain without labels, fine-tune on few, compress, accelerate, compare.

Pure steps and their parts. Nothing here imports prefect, mlflow or dvc: this package alone runs on a GPU node or in a
notebook with torch, torchvision, numpy, pydantic, pyyaml, pillow and safetensors. Start with `winnow.steps`.
"""

__version__ = "0.1.0"
