"""The tags that winnow sets in MLflow: their names, and what they mean. A test holds that the code sets no other."""

from __future__ import annotations

STEP_TAG = "winnow.step"
NAME_TAG = "winnow.name"
RECORD_TAG = "winnow.record"
DIGEST_TAG = "winnow.digest"
CANDIDATE_TAG = "winnow.candidate"
PARENT_CANDIDATE_TAG = "winnow.parent"
LINEAGE_TAG = "winnow.lineage"
METHOD_TAG = "winnow.method"
PRECISION_TAG = "winnow.precision"
WEIGHTS_TAG = "winnow.weights"
WEIGHTS_LICENCE_TAG = "winnow.weights.licence"
WEIGHTS_SHA256_TAG = "winnow.weights.sha256"
WEIGHTS_INPUT_SIZE_TAG = "winnow.weights.input_size"
TRAINING_LABELS_TAG = "winnow.labels.training"
SELECTION_LABELS_TAG = "winnow.labels.choosing"
VERDICT_TAG = "winnow.verdict"
REASON_TAG = "winnow.reason"
MACHINE_TAG = "winnow.machine"
DEVICE_TAG = "winnow.device"
ERROR_TAG = "winnow.error"
PROMOTION_TAG = "winnow.promotion"
KIND_TAG = "winnow.kind"
WINNER_TAG = "winnow.winner"
TEST_BASELINE_TAG = "winnow.test.baseline"
TEST_RUNTIME_TAG = "winnow.test.measured_in"
TEST_WARNING_TAG = "winnow.test.warning"
HOST_TAG = "winnow.host"
PROCESS_TAG = "winnow.pid"
GIT_DIRTY_TAG = "winnow.git_dirty"
SEARCH_TAG = "winnow.search"
TRIAL_TAG = "winnow.trial"
STATE_TAG = "winnow.state"
CHAMPION_TAG = "winnow.champion"
ADVICE_TAG = "winnow.advice"
DATA_VERSION_TAG = "winnow.data_version"
SHA256_TAG = "winnow.sha256"
CARD_SHA256_TAG = "winnow.card_sha256"
ACCURACY_TAG = "winnow.accuracy"
APPROVAL_TAG = "winnow.approval"
CHAMPION_SINCE_TAG = "winnow.champion_since"
REPLACED_TAG = "winnow.replaced"
ROLLED_BACK_TAG = "winnow.rolled_back"
PARENT_RUN_TAG, NOTE_TAG = "mlflow.parentRunId", "mlflow.note.content"
"""MLflow's own tags: the parent run, and the note on the page of a run."""

RUN, PARENT, VERSION, SEARCH = "runs of steps and candidates", "parent run", "model versions", "runs of a search"
TAGS: dict[str, tuple[str, str]] = {
    STEP_TAG: (RUN, "name of the step"),
    NAME_TAG: (RUN, "name of the step or candidate"),
    RECORD_TAG: (RUN, "digest of record.json"),
    DIGEST_TAG: (
        RUN,
        "digest of record, benchmark figures and verdict; its presence shows that the run is complete",
    ),
    CANDIDATE_TAG: (f"{RUN}, {VERSION}", "name of the candidate"),
    PARENT_CANDIDATE_TAG: (RUN, "parent: the candidate that it was made from"),
    LINEAGE_TAG: (f"{RUN}, {VERSION}", "all candidates from dense to this one"),
    METHOD_TAG: (RUN, "the compression method"),
    PRECISION_TAG: (RUN, "f32 or int8"),
    WEIGHTS_TAG: (RUN, "name of the known weights of the step"),
    WEIGHTS_LICENCE_TAG: (RUN, "licence of these weights"),
    WEIGHTS_SHA256_TAG: (RUN, "SHA-256 of their file"),
    WEIGHTS_INPUT_SIZE_TAG: (RUN, "side in pixels of the images that their network gets"),
    TRAINING_LABELS_TAG: (RUN, "number of labels that trained it"),
    SELECTION_LABELS_TAG: (RUN, "number of labelled validation images, which select"),
    VERDICT_TAG: (RUN, "winner, passed, not shown, failed or reference"),
    REASON_TAG: (
        f"{RUN}, {PARENT}, {VERSION}",
        "values and thresholds of the gates, or the reason of a decision",
    ),
    MACHINE_TAG: (RUN, "the machine on which the figures were measured"),
    DEVICE_TAG: (RUN, "cpu, or the name of the GPU"),
    ERROR_TAG: (RUN, "the message of a failed step"),
    PROMOTION_TAG: (RUN, "the model version that was registered from this run"),
    KIND_TAG: (PARENT, "execution, search, trial or drift"),
    WINNER_TAG: (PARENT, "name of the winner, or nobody"),
    TEST_BASELINE_TAG: (
        f"report, {PARENT}",
        "dense or dense-kd, from which the drop on the test split is counted",
    ),
    TEST_RUNTIME_TAG: (f"report, {PARENT}", "runtime and precision in which the winner was measured"),
    TEST_WARNING_TAG: (f"report, {PARENT}, {VERSION}", "warnings about the test split"),
    HOST_TAG: (RUN, "the computer that logged it"),
    PROCESS_TAG: (RUN, "the process that logged it"),
    GIT_DIRTY_TAG: (RUN, "true if the working tree had uncommitted changes"),
    SEARCH_TAG: (SEARCH, "the name of the search"),
    TRIAL_TAG: (SEARCH, "the number of the trial"),
    STATE_TAG: (SEARCH, "finished, given up or impossible"),
    CHAMPION_TAG: ("runs of drift", "version of the champion that predicted the images"),
    ADVICE_TAG: ("runs of drift", "labels, retrain or nothing"),
    DATA_VERSION_TAG: (VERSION, "DVC's hash of artifacts/data"),
    SHA256_TAG: (VERSION, "digest of model.onnx"),
    CARD_SHA256_TAG: (VERSION, "digest of card.json"),
    ACCURACY_TAG: (VERSION, "accuracy on validation and test, for those who approve"),
    APPROVAL_TAG: (VERSION, "request for approval and the decision, as JSON"),
    CHAMPION_SINCE_TAG: (VERSION, "time at which it became champion"),
    REPLACED_TAG: (VERSION, "the version that it replaced"),
    ROLLED_BACK_TAG: (VERSION, "time at which it was rolled back"),
}
"""Tag -> (where, meaning)."""
