"""Details of the record of a candidate: what was measured on its file, and what its method did.

One model for each method, distinguished by `method`. A method returns its `...Result` (method_results.py); the step
adds the measurements (candidate_file.py). The details of dense are in finetune.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from winnow.records.candidate_file import CandidateFile
from winnow.records.finetune import FinetuneDetails
from winnow.records.method_results import (
    ClusterResult,
    DistillResult,
    FactorizeResult,
    MethodResult,
    ProbeResult,
    PruneResult,
    QuantizeResult,
    SparsifyResult,
)
from winnow.records.step_record import StepRecord


class PruneDetails(PruneResult, CandidateFile):
    """Details of a pruned candidate."""

    method: Literal["prune"]


class SparsifyDetails(SparsifyResult, CandidateFile):
    """Details of a sparse candidate."""

    method: Literal["sparsify"]


class FactorizeDetails(FactorizeResult, CandidateFile):
    """Details of a factorised candidate."""

    method: Literal["factorize"]


class ClusterDetails(ClusterResult, CandidateFile):
    """Details of a clustered candidate."""

    method: Literal["cluster"]


class QuantizeDetails(QuantizeResult, CandidateFile):
    """Details of a quantized candidate."""

    method: Literal["quantize"]


class DistillDetails(DistillResult, CandidateFile):
    """Details of a student."""

    method: Literal["distill"]


class ProbeDetails(ProbeResult, CandidateFile):
    """Details of the teacher with a linear head."""

    method: Literal["probe"]


CandidateDetails = Annotated[
    FinetuneDetails
    | PruneDetails
    | SparsifyDetails
    | FactorizeDetails
    | ClusterDetails
    | QuantizeDetails
    | DistillDetails
    | ProbeDetails,
    Field(discriminator="method"),
]
CandidateRecord = StepRecord[CandidateDetails]
"""The record of dense or of a compressed candidate."""


def candidate_details(file: CandidateFile, result: MethodResult) -> CandidateDetails:
    """Return the details of a compressed candidate: what was measured on its file, and what its method did."""
    adapter: TypeAdapter[CandidateDetails] = TypeAdapter(CandidateDetails)
    return adapter.validate_python({**dict(file), **dict(result)})
