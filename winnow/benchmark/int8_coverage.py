"""Int8 coverage: the share of multiply-adds that a runtime really executes in int8, from its executed graph.

Int8 weights in a file prove nothing: a runtime without a kernel for a pattern silently computes in float, as slowly as
before. OpenVINO reports precision and kernel of each node of its compiled model. ONNX Runtime writes its optimised
graph, in which only QLinear... and ...Integer nodes compute in int8. Nodes are matched by their names in the file;
unmatched nodes count as float.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from winnow.deploy.onnx_export import load_onnx, macs_by_node
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.openvino_inference import compile_openvino
from winnow.deploy.runtime_properties import OPENVINO_RUNTIMES
from winnow.records.benchmark import BenchmarkCase, Int8Coverage

NODE_INFO_KEYS = ("originalLayersNames", "primitiveType", "runtimePrecision")
INT8 = ("u8", "i8", "int8_t", "uint8_t")
INTEGER_NODES = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantize")


def measure_int8_coverage(folder: Path, case: BenchmarkCase) -> Int8Coverage:
    """Return the share of a candidate's file that the case's runtime computes in int8, and its kernels.

    Raises ArtifactError for a file that cannot be opened.
    """
    macs = macs_by_node(folder / MODEL)
    total = sum(macs.values())
    nodes = (_by_openvino if case.runtime in OPENVINO_RUNTIMES else _by_onnxruntime)(folder, case)
    kernels: Counter[str] = Counter()
    in_int8 = 0
    for name, kernel, is_int8 in nodes:
        if name in macs:
            kernels[kernel] += macs[name]
            in_int8 += macs.pop(name) if is_int8 else 0
    return Int8Coverage(
        candidate=case.candidate,
        runtime=case.runtime,
        precision=case.precision,
        int8_share=in_int8 / total if total else 0.0,
        kernels={kernel: count / total for kernel, count in kernels.most_common()},
    )


def _by_openvino(folder: Path, case: BenchmarkCase) -> Iterator[tuple[str, str, bool]]:
    """Yield (name in the file, kernel, is it int8) of each executed node."""
    for node in compile_openvino(folder, case).get_runtime_model().get_ops():
        runtime_info = node.get_rt_info()
        info = {key: str(runtime_info[key].value) for key in NODE_INFO_KEYS if key in runtime_info}
        for name in info.get("originalLayersNames", "").split(","):
            # A fused node has several names; a linear layer is "node_linear/WithoutBiases/...".
            yield name.partition("/")[0], info.get("primitiveType", ""), info.get("runtimePrecision", "") in INT8


def _by_onnxruntime(folder: Path, case: BenchmarkCase) -> Iterator[tuple[str, str, bool]]:
    """Yield (name in the file, operator, is it int8) of each node of ONNX Runtime's optimised graph."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as temporary:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(temporary) / MODEL)
        onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
        graph = load_onnx(Path(temporary) / MODEL).graph
    for node in graph.node:
        # Fused nodes have names such as "node_Conv_198_token_11".
        yield node.name.partition("_token_")[0], node.op_type, node.op_type.startswith(INTEGER_NODES)
