"""The candidates' files as the benchmark sees them: what is known of each, how a case is opened, which are compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from winnow.benchmark.measurement_error import REPEATED_DENSE, identical_graphs
from winnow.benchmark.speedups import best_row, shortlist_cases
from winnow.config import ROOT, Benchmark, Config, topological_order
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.onnx_export import graph_digest
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtime_properties import COMPILED_RUNTIMES, Predict
from winnow.hardware import cores, has_fast_bf16
from winnow.models.backbones import WEIGHTS_FILE
from winnow.records import CandidateRecord
from winnow.records.benchmark import BenchmarkCase, BenchmarkRow, BestRows, Layout, Precision, Runtime


@dataclass(frozen=True)
class CandidateFiles:
    """The candidates whose files are timed, dense first, by name."""

    folder: Path
    records: Mapping[str, CandidateRecord]
    int8: Mapping[str, bool]
    """Whether its file is int8."""
    ancestors: Mapping[str, str]
    """The last network of its lineage that is not int8."""
    networks: Collection[str]
    """Those with weights for PyTorch."""
    identical: list[tuple[str, str]]
    """Pairs with the same graph."""

    @classmethod
    def read(cls, config: Config, folder: Path) -> CandidateFiles:
        """Read the records in a folder of candidates. Raises RecordError."""
        names = (ROOT, *topological_order(dict(config.candidates)))
        records = {name: CandidateRecord.read(folder / name) for name in names}
        int8 = {name: record.details.precision == "int8" for name, record in records.items()}
        return cls(
            folder,
            records,
            int8,
            {name: _float_ancestor(record.details.lineage, int8) for name, record in records.items()},
            {name for name in names if (folder / name / WEIGHTS_FILE).is_file()},
            identical_graphs({name: graph_digest(folder / name / MODEL) for name in names}),
        )


class CaseOpener:
    """Opens cases of candidates. Compiled dense is kept: to compile it takes seconds, and both passes time it."""

    def __init__(self, candidates: Path) -> None:
        self._candidates = candidates
        self._compiled: dict[BenchmarkCase, Predict] = {}

    def __call__(self, case: BenchmarkCase) -> Predict:
        """Return the function that predicts a batch in this case."""
        if case in self._compiled:
            return self._compiled[case]
        predict = open_case(self._candidates / (ROOT if case.candidate == REPEATED_DENSE else case.candidate), case)
        if case.candidate == ROOT and case.runtime in COMPILED_RUNTIMES:
            self._compiled[case] = predict
        return predict


def finalists(rows: list[BenchmarkRow], files: CandidateFiles, large: int) -> list[BenchmarkCase]:
    """Return the cases that are compared in rounds of their own, with the fastest of dense once more."""
    fastest = [case for batch in (large, 1) for case in shortlist_cases(rows, files.ancestors, files.identical, batch)]
    dense = [row for batch in (large, 1) if (row := best_row(rows, ROOT, batch)) is not None]
    return [*fastest, *(replace(row.case, candidate=REPEATED_DENSE) for row in dense)]


def footprint_cases(
    files: CandidateFiles, settings: Benchmark, best_rows: Mapping[str, BestRows]
) -> list[BenchmarkCase]:
    """Return the cases whose memory and start-up are measured: of dense also PyTorch eager.

    Grid `quick`: each file in the runtime in which dense is fastest for one image, so that files can be compared, and
    in that in which it is fastest itself. Grid `full`: in all of them.
    """
    is_full, cases = settings.grid == "full", []
    common = best_rows[ROOT].latency
    for name, is_int8 in files.int8.items():
        precision: Precision = "int8" if is_int8 else "f32"
        latency = best_rows[name].latency
        kinds: list[tuple[Runtime, Precision, Layout]] = []
        if is_full:
            kinds += [("ort", precision, "file"), ("openvino", precision, "file")]
            kinds += [("openvino", "bf16", "file")] if not is_int8 and has_fast_bf16() else []
        else:
            runtimes = dict.fromkeys(row.runtime for row in (common, latency) if row is not None)
            kinds += [(runtime, precision, "file") for runtime in runtimes]
        if name in files.networks and (is_full or name == ROOT):
            kinds.append(("eager", "f32", "contiguous"))
        cases += [BenchmarkCase(name, *kind, batch=1, threads=cores()) for kind in kinds]
    return cases


def _float_ancestor(lineage: list[str], int8: dict[str, bool]) -> str:
    """Return the last network of the lineage that is not int8; candidates missing from params.yaml count as float."""
    return next(name for name in reversed(lineage) if not int8.get(name, False))
