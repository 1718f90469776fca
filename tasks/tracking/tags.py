"""The tags that winnow sets in MLflow: tag -> (where, meaning). A test holds that the code sets no other."""

from __future__ import annotations

RUN, PARENT, VERSION, SEARCH = "runs of steps and candidates", "parent run", "model versions", "runs of a search"
TAGS: dict[str, tuple[str, str]] = {
    "winnow.step": (RUN, "name of the step"),
    "winnow.name": (RUN, "name of the step or candidate"),
    "winnow.record": (RUN, "digest of record.json"),
    "winnow.digest": (
        RUN,
        "digest of record, benchmark figures and verdict; its presence shows that the run is complete",
    ),
    "winnow.candidate": (f"{RUN}, {VERSION}", "name of the candidate"),
    "winnow.parent": (RUN, "parent: the candidate that it was made from"),
    "winnow.lineage": (f"{RUN}, {VERSION}", "all candidates from dense to this one"),
    "winnow.method": (RUN, "the compression method"),
    "winnow.precision": (RUN, "f32 or int8"),
    "winnow.labels.training": (RUN, "number of labels that trained it"),
    "winnow.labels.choosing": (RUN, "number of labelled validation images, which select"),
    "winnow.verdict": (RUN, "winner, passed, not shown, failed or reference"),
    "winnow.reason": (
        f"{RUN}, {PARENT}, {VERSION}",
        "values and thresholds of the gates, or the reason of a decision",
    ),
    "winnow.machine": (RUN, "the machine on which the figures were measured"),
    "winnow.device": (RUN, "cpu, or the name of the GPU"),
    "winnow.error": (RUN, "the message of a failed step"),
    "winnow.promotion": (RUN, "the model version that was registered from this run"),
    "winnow.kind": (PARENT, "execution, search, trial or drift"),
    "winnow.winner": (PARENT, "name of the winner, or nobody"),
    "winnow.test.baseline": (
        f"report, {PARENT}",
        "dense or dense-kd, from which the drop on the test split is counted",
    ),
    "winnow.test.measured_in": (f"report, {PARENT}", "runtime and precision in which the winner was measured"),
    "winnow.test.warning": (f"report, {PARENT}, {VERSION}", "warnings about the test split"),
    "winnow.host": (RUN, "the computer that logged it"),
    "winnow.pid": (RUN, "the process that logged it"),
    "winnow.git_dirty": (RUN, "true if the working tree had uncommitted changes"),
    "winnow.search": (SEARCH, "the name of the search"),
    "winnow.trial": (SEARCH, "the number of the trial"),
    "winnow.state": (SEARCH, "finished, given up or impossible"),
    "winnow.champion": ("runs of drift", "version of the champion that predicted the images"),
    "winnow.advice": ("runs of drift", "labels, retrain or nothing"),
    "winnow.data_version": (VERSION, "DVC's hash of artifacts/data"),
    "winnow.sha256": (VERSION, "digest of model.onnx"),
    "winnow.card_sha256": (VERSION, "digest of card.json"),
    "winnow.accuracy": (VERSION, "accuracy on validation and test, for the person who approves"),
    "winnow.approval": (VERSION, "request for approval and its answer, as JSON"),
    "winnow.champion_since": (VERSION, "time at which it became champion"),
    "winnow.replaced": (VERSION, "the version that it replaced"),
    "winnow.rolled_back": (VERSION, "time at which it was rolled back"),
}
