"""The record that each step leaves as `record.json`, with one model of details for each step; the cards of models; and
files that are complete or absent.
"""

from __future__ import annotations

from winnow.records.artifact_files import (
    atomic_path,
    json_text,
    publish,
    read_json,
    sha256_of,
    write_json,
    write_text,
)
from winnow.records.benchmark import BenchmarkDetails, BenchmarkRecord
from winnow.records.candidate import CandidateDetails, CandidateRecord
from winnow.records.card import CARD, CandidateCard, DeploymentCard
from winnow.records.embed import EmbedDetails, EmbedRecord, KnownWeightsDetails
from winnow.records.finetune import FinetuneDetails, FinetuneRecord
from winnow.records.ingest import IngestDetails, IngestRecord
from winnow.records.machine import Machine, this_machine
from winnow.records.model import CurveRow, RecordModel
from winnow.records.pretrain import PretrainDetails, PretrainRecord
from winnow.records.record_reader import read_record
from winnow.records.refit import RefitDetails, RefitRecord
from winnow.records.report import ReportDetails, ReportRecord
from winnow.records.selection import Gate, SelectionDetails, SelectionRecord, Verdict
from winnow.records.step_record import (
    FORMAT,
    RECORD,
    AnyRecord,
    Artifact,
    StepRecord,
    describe_files,
    record_digest,
    write_record,
)

__all__ = [
    "CARD",
    "FORMAT",
    "RECORD",
    "AnyRecord",
    "Artifact",
    "BenchmarkDetails",
    "BenchmarkRecord",
    "CandidateCard",
    "CandidateDetails",
    "CandidateRecord",
    "CurveRow",
    "DeploymentCard",
    "EmbedDetails",
    "EmbedRecord",
    "FinetuneDetails",
    "FinetuneRecord",
    "Gate",
    "IngestDetails",
    "IngestRecord",
    "KnownWeightsDetails",
    "Machine",
    "PretrainDetails",
    "PretrainRecord",
    "RecordModel",
    "RefitDetails",
    "RefitRecord",
    "ReportDetails",
    "ReportRecord",
    "SelectionDetails",
    "SelectionRecord",
    "StepRecord",
    "Verdict",
    "atomic_path",
    "describe_files",
    "json_text",
    "publish",
    "read_json",
    "read_record",
    "record_digest",
    "sha256_of",
    "this_machine",
    "write_json",
    "write_record",
    "write_text",
]
