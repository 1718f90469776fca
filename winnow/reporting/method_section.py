"""The sections of the page on the conditions: memory and start-up, controls, method, machine, and a glossary."""

from __future__ import annotations

from typing import Any

from winnow.config import CONTROL, FEW_LABELS, ROOT
from winnow.config.finetune import DEFAULT_MIN_STEPS, DEFAULT_MIN_STEPS_FEW_LABELS
from winnow.deploy.onnx_session import MODEL
from winnow.reporting.html import (
    MISSING,
    Html,
    Row,
    bullets,
    digits,
    format_interval,
    join,
    number,
    paragraph,
    percent,
    signed,
    table,
    tag,
    two_lines,
)
from winnow.reporting.run_records import RunRecords
from winnow.reporting.speed_section import RUNTIME_NAMES

NOTICEABLE = 1.1
"""Speed-ups below this are no gain."""
GAIN_SOURCES = {"training on": "longer training", "a teacher": "a teacher"}
"""The difference in training as the record names it -> in the table of controls."""
GLOSSARY = {
    "drop": "Points of top-1 accuracy that a candidate loses against its reference, on the same labelled validation "
    "images, with a score interval for paired predictions. The reference is dense, or dense-kd if that is better. The "
    "winner is selected from several candidates by these intervals, so they are simultaneous: all of them are right in "
    "95 of 100 cases (Bonferroni). Candidates that fail a gate on size, speed or int8 do not count. A drop passes its "
    "gate if the difference is within the allowance, and the worst end of the interval within twice the allowance; "
    "otherwise it is not shown, which does not pass. No drop exceeds the share of images whose prediction changes, if "
    "labelled and unlabelled images come from one distribution: with few labels this share decides. Macro F1 has the "
    "same gate, with a bootstrap within the classes; there the predictions of the reference only replace labels.",
    "agreement": "Share of the validation images, labelled or not, on which a candidate and dense predict the same "
    "class. Against dense itself the drop in accuracy cannot exceed the disagreement; against dense-kd it can.",
    "speed-up": "Ratio of speeds, each file on its fastest runtime. There are three baselines: dense in PyTorch eager "
    "f32 (the better of two memory layouts, and for one image of one thread and all), dense on the best float PyTorch "
    "(compiled on all threads; one thread may be faster for a small network), and dense as the best float of any "
    "precision and runtime. Only the last shows the gain by compression alone; gates "
    "use it.",
    "dense": "The fine-tuned network from which all candidates are made.",
    "front": "The candidates that no other beats in accuracy, size and latency at once (Pareto).",
    "top-1, macro F1": "Share of images whose predicted class is correct; mean over the classes of the harmonic mean "
    "of precision and recall.",
    "calibration error": "Mean difference between the confidence of predictions and the share of correct ones at that "
    "confidence. A temperature, fitted on validation, divides the logits before they become probabilities; the error "
    "with it is measured on the half of the images that it was not fitted on.",
    "MACs": "Multiply-adds for one image. They are no measure of time: see the speed-ups.",
    "p50, p95": "Median, and the time that 95 of 100 calls stay below.",
    "MB": "1,000,000 bytes; zipped: after deflate.",
    "refit": "A last training of the selected model with the same settings, on training and validation labels; done "
    "if labels are few. The refitted file is deployed if it has the graph of the measured file and similar "
    "predictions.",
    "labels used": "Training labels beyond the budget are hidden; validation labels select, test labels measure the "
    "result.",
}


def render_memory(records: RunRecords) -> Html:
    """Return the memory and start-up time of each file, each measured in a fresh process."""
    rows = []
    for row in records.benchmark.details.processes:
        runtime = f"{RUNTIME_NAMES[row.runtime]} {row.precision}"
        times = [digits(ms) for ms in (row.import_ms, row.load_ms, row.first_call_ms)]
        total_ms = digits(row.import_ms + row.load_ms + row.first_call_ms)
        rows.append(
            Row([row.candidate, runtime, number(row.peak_mb), *times, total_ms], records.row_css(row.candidate))
        )
    caption = (
        "Each file in a fresh process on one image. Peak memory includes the interpreter and the runtime's libraries"
    )
    heading = ["candidate", "on", "peak, MB", "import, ms", "load, ms", "first call, ms", "cold start, ms"]
    return table(heading, rows, caption=caption, left=2)


def render_controls(records: RunRecords) -> Html:
    """Return the gains by the teacher and by longer training, and the effect of sparsity on size and speed."""
    rows = []
    for row in records.selection.details.controls:
        points, interval = signed(row.points, plus=True), format_interval(row.low, row.high, plus=True)
        compared = f"{row.candidate} over {row.control}"
        rows.append(Row([f"gain by {GAIN_SOURCES[row.bought_by]}", compared, points, interval]))
    heading = ["control", "compared", "points of top-1", "95 % interval"]
    caption = (
        "Same training except for the named difference. The teacher includes the unlabelled images and the hint, which "
        "labels alone cannot teach; labels alone are learned with the augmentation of fine-tuning. Controls must pass "
        "the same gates as every candidate"
    )
    sparsity = [
        _describe_sparsity(records, name) for name, c in records.candidates.items() if c.details.method == "sparsify"
    ]
    absent = paragraph("There is no control among the candidates, or no validation image has a label.", css="note")
    return join(
        table(heading, rows, caption=caption, left=2) if rows else absent, *[paragraph(text) for text in sparsity]
    )


def _describe_sparsity(records: RunRecords, name: str) -> str:
    """Return how much smaller the zeros make the archive, and whether they make the file faster."""
    candidate, dense = records.quality(name), records.quality(ROOT)
    zeros = 1 - candidate["size/nonzero_parameters"] / candidate["size/parameters"]
    text = (
        f"{name}: {percent(zeros, 0)} of its parameters are zero. The file is as large as before "
        f"({digits(candidate['size/mb'], 'MB')}; dense {digits(dense['size/mb'], 'MB')}), zipped it takes "
        f"{digits(candidate['size/zipped_mb'], 'MB')} instead of {digits(dense['size/zipped_mb'], 'MB')}. "
    )
    speedup = records.speed(name).get("speedup/float_b1")
    if speedup is None:
        return text + "It was not timed."
    sentence = f"{text}One image runs {speedup:.2f} times as fast as dense"
    return f"{sentence}: runtimes multiply zeros like any other number." if speedup < NOTICEABLE else f"{sentence}."


def render_method(records: RunRecords) -> Html:
    """Return how the run was trained, timed and judged, on which machine, from which files."""
    machine, settings = records.benchmark.machine, records.benchmark.parameters
    assert machine is not None
    versions = ", ".join(f"{package} {version}" for package, version in machine.versions.items())
    spread = max((row.spread for row in records.benchmark.details.rows), default=0.0)
    conditions = records.benchmark.details.conditions
    pixels = conditions.image_size
    side = f"{pixels} × {pixels}"
    policy = records.data.details.resize_policy.replace("S x S", side).replace("to S", f"to {pixels}")
    items = {
        "Data": f"{records.source}, {side} pixels. {policy}.",
        "Training": f"{_describe_pretraining(records.pretrain.parameters)} "
        f"{_describe_finetuning(records.dense.parameters)}",
        "Selection": "Everything is selected on validation. Last epoch, single pass, no test-time augmentation. "
        f"{_describe_gates(records.selection.parameters)}",
        "Timing": f"{settings['rounds']} interleaved rounds, untimed warm-up, at least {settings['samples']} timed "
        f"calls for every latency of one image; medians of the rounds differ by up to {percent(spread, 0)}. A file is "
        f"timed only if its predictions on {conditions.images_checked} images agree with its own in ONNX Runtime.",
        "Machine": f"{machine.cpu}, {machine.threads} threads, {digits(machine.memory_gb, 'GB')} of memory, "
        f"{machine.gpu or 'no GPU'}. {machine.system}. Flags that matter here: {' '.join(machine.flags) or 'none'}. "
        "Figures of two machines are never compared.",
        "Versions": f"{versions}.",
    }
    terms = [part for name, text in items.items() for part in (tag("dt", name), tag("dd", text))]
    return join(tag("dl", *terms), _not_timed(records), _files(records))


def _describe_pretraining(settings: dict[str, Any]) -> str:
    if settings["method"] == "none":
        return f"No pretraining: a {settings['backbone']} with its initial weights."
    return (
        f"{settings['method']} pretrains a {settings['backbone']} for {settings['epochs']} epochs in batches of "
        f"{settings['batch_size']}."
    )


def _describe_finetuning(settings: dict[str, Any]) -> str:
    seeds = ", ".join(str(seed) for seed in settings["seeds"])
    rates = " and ".join(f"{rate:g}" for rate in settings["learning_rates"])
    least_steps = settings["min_steps"]
    if least_steps == "auto":
        least_steps = f"{DEFAULT_MIN_STEPS} (with fewer than {FEW_LABELS} labels {DEFAULT_MIN_STEPS_FEW_LABELS})"
    return (
        f"Fine-tuning takes {settings['epochs']} epochs, at least {least_steps} steps, with rates {rates} "
        f"tried for every arm and label seeds {seeds}; dense is the network of the first seed, "
        "which was fixed before the run."
    )


def _describe_gates(settings: dict[str, Any]) -> str:
    gates = settings["gates"]
    return (
        f"Gates: drop at most {gates['max_drop_points']:g} points of top-1 and "
        f"{gates['max_macro_f1_drop_points']:g} of macro F1, agreement at least "
        f"{percent(gates['min_agreement'], 0)}, file at most {percent(gates['max_size_ratio'], 0)} of dense's, at "
        f"least {gates['min_speedup']:g} times as fast as dense's best float, of an int8 file at least "
        f"{percent(gates['min_int8_share'], 0)} of the multiply-adds executed in int8; "
        f"objective: {settings['objective']}."
    )


def _not_timed(records: RunRecords) -> Html:
    """Return the benchmark cases that were refused or could not run on this machine."""
    refused = sorted(
        {
            f"{row.candidate} on {RUNTIME_NAMES[row.runtime]} {row.precision} was refused: its predictions agree "
            f"with the file's own on {percent(row.agreement)}, needed {percent(row.needed, 0)}"
            for row in records.benchmark.details.refused
        }
    )
    absent = [
        f"{RUNTIME_NAMES.get(row.runtime, 'every runtime')} "
        f"{'' if row.precision == 'all' else row.precision + ' '}was left out: {row.reason}"
        for row in records.benchmark.details.absent
    ]
    return join(tag("h3", "Not timed"), bullets([*refused, *absent])) if refused or absent else join()


def _files(records: RunRecords) -> Html:
    """Return the digests of the files that were measured."""
    rows = []
    for name, record in records.candidates.items():
        digest = next((file.sha256 for file in record.artifacts if file.name == MODEL), MISSING)
        rows.append(Row([name, tag("code", digest)]))
    images = next((file.sha256 for file in records.data.artifacts if file.name == "images.npy"), MISSING)
    rows.append(Row([two_lines("images", "pixels, as decoded"), tag("code", images)]))
    return table(["file", "sha256"], rows, caption="The files that were measured: model.onnx of each", left=2)


def render_glossary(_facts: RunRecords) -> Html:
    """Return the terms of this page."""
    words = {
        **GLOSSARY,
        CONTROL: "The control: dense, trained further with the recovery of the candidates.",
    }
    return tag("dl", *[part for word, meaning in words.items() for part in (tag("dt", word), tag("dd", meaning))])
