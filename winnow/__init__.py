"""The winnow library: pretrain without labels, fine-tune on few labels, compress, accelerate and compare.

Apart from `cli` and `servers`, nothing here imports prefect, mlflow or dvc: the library alone runs on a GPU node or in
a notebook with torch, torchvision, numpy, pydantic, pyyaml, pillow and safetensors. Start with `winnow.steps`.
"""

__version__ = "0.1.0"
