"""The one-page report: what is proposed for production and why, for whoever decides, then for whoever asks further.

    html = page(facts, tested)

Every number on the page comes from a record of the run, and the test split's from the report step; nothing is computed
here but ratios. This file holds what everybody reads, down to the table of candidates; winnow/appendix.py the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from winnow import appendix, plots
from winnow.config import ROOT
from winnow.config.finetune import NOTHING
from winnow.facts import Facts
from winnow.page import (
    MISSING,
    Content,
    Html,
    Row,
    bullets,
    digits,
    document,
    figure,
    join,
    millions,
    number,
    paragraph,
    percent,
    section,
    side_by_side,
    signed,
    strong,
    table,
    tag,
    two_lines,
)

ENOUGH_PAIRS = 5
"""Label seeds from which on a gain over scratch counts as shown."""
SPEEDUPS = {"eager": "PyTorch eager f32", "pytorch": "the best PyTorch", "float": "dense as the best float"}
GATES = {"drop": "drop", "agreement": "agreement", "size": "size", "speedup": "speed-up"}


@dataclass(frozen=True)
class Tested:
    """What the test split said, once everything had been chosen."""

    version: str
    """Digest of its images."""
    metrics: dict[str, float]
    """test/images, test/dense_top1, test/winner_top1, test/drop_points, ..., each with its interval."""


def page(facts: Facts, tested: Tested) -> str:
    """The HTML file. Raises MissingExtra without matplotlib."""
    sections = {
        "data": ("The images", data(facts)),
        "pretraining": ("What pretraining bought", pretraining(facts)),
        "candidates": ("The candidates", candidates(facts)),
        **appendix.sections(facts),
    }
    links = [tag("a", title, more=f'href="#{anchor}"') for anchor, (title, _) in sections.items()]
    nav = tag("nav", *[join(link, " ") for link in links], more='aria-label="Sections"')
    parts = [section(anchor, title, content) for anchor, (title, content) in sections.items()]
    return document(f"winnow: {facts.source}", verdict(facts, tested), nav, *parts)


def verdict(facts: Facts, tested: Tested) -> Html:
    """The answer in a sentence, its figures, the test split, and what to know before relying on it."""
    name = facts.winner
    title = f"Proposed for production: {name}" if name else "Nothing is proposed for production"
    why = str(facts.selection.details["why"])
    lead = _cost_and_gain(facts, name) if name else _sentence(why)
    return tag(
        "header",
        paragraph(f"winnow report · {facts.source}", css="above"),
        tag("h1", title),
        paragraph(lead, css="lead"),
        *([paragraph(_sentence(why))] if name else []),
        *(_tiles(facts, facts.shown) if facts.shown else []),
        _test(facts, tested),
        _heed(facts),
    )


def _cost_and_gain(facts: Facts, name: str) -> str:
    """How much smaller and faster, what it costs, on which data."""
    ratio = facts.quality(ROOT)["size/mb"] / facts.quality(name)["size/mb"]
    objective = facts.selection.parameters["objective"]
    batch = facts.large if objective == "throughput" else 1
    speedup = facts.speed(name)[f"speedup/float_b{batch}"]
    drop, count = facts.drop(name), facts.dense.details["labels"]["choosing"]
    if drop is None:
        share = percent(facts.selection.details["agreement"][name])
        cost = f"and gives the same answer on {share} of {_validation(facts)} validation images of {facts.source}, "
        cost += "none of which has a label to count accuracy by"
    else:
        reference = facts.selection.details["reference"]
        verb = "costs" if drop["points"] >= 0 else "gains"
        points = signed(abs(drop["points"]))
        against = "" if reference == ROOT else f" against {reference}, which is better than dense"
        interval = f"95 % interval of the loss {signed(drop['low'])} to {signed(drop['high'])}"
        cost = f"and {verb} {points} points of top-1 accuracy{against} ({interval}), "
        cost += f"counted on {number(count)} labelled validation images of {facts.source}"
    on = "one image" if batch == 1 else f"batches of {batch} images"
    faster = f"{_times(speedup, 'faster', 'slower')} on {on}, each on its fastest runtime,"
    return f"{name} is {_times(ratio, 'smaller', 'larger')} than the fine-tuned network dense, {faster} {cost}."


def _times(ratio: float, above: str, below: str) -> str:
    return f"{ratio:.1f} times {above}" if ratio >= 1 else f"{1 / ratio:.1f} times {below}"


def _validation(facts: Facts) -> str:
    return number(facts.data.metrics["data/validation"])


def _sentence(text: str) -> str:
    """The first letter stays: it may be a candidate's name."""
    return text if text.endswith(".") else f"{text}."


def _tiles(facts: Facts, name: str) -> list[Html]:
    """Four figures beside dense's, and the three speed-ups for both batches."""
    own, dense, speed = facts.quality(name), facts.quality(ROOT), facts.speed(name)
    bases = facts.benchmark.details["baselines"]
    one, many = bases["b1"]["float"], bases[f"b{facts.large}"]["float"]
    top1 = (percent(own.get("quality/top1")), f"dense {percent(dense.get('quality/top1'))}")
    if "quality/top1" not in own:
        top1 = (percent(facts.selection.details["agreement"][name]), "same answer as dense")
    tiles = {
        "top-1 on validation" if "quality/top1" in own else "agreement": top1,
        "file": (digits(own["size/mb"], "MB"), f"dense {digits(dense['size/mb'], 'MB')}"),
        "one image, p50": (digits(speed.get("best/latency_ms"), "ms"), f"dense as float {digits(one['p50_ms'], 'ms')}"),
        f"images a second, batch {facts.large}": (
            number(speed.get("best/throughput_ips")),
            f"dense as float {number(many['images_per_s'])}",
        ),
    }
    boxes = [
        tag("div", tag("span", label), strong(value), tag("small", beside), css="tile")
        for label, (value, beside) in tiles.items()
    ]
    rows = [
        Row([f"against {base}", *[_ratio(speed.get(f"speedup/{kind}_b{batch}")) for batch in (1, facts.large)]])
        for kind, base in SPEEDUPS.items()
    ]
    heading = ["", "one image", f"batch of {facts.large}"]
    caption = f"{name}: how many times as fast, on its fastest runtime"
    intro = [] if facts.winner else [paragraph("The nearest candidate, ", strong(name), ", beside dense:")]
    return [*intro, tag("div", *boxes, css="tiles"), table(heading, rows, caption=caption)]


def _ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f} ×"


def _test(facts: Facts, tested: Tested) -> Html:
    """The only figures that nothing was chosen by."""
    told = tested.metrics
    if not told:
        return paragraph("There is no labelled test image: every figure on this page is of the validation split.")
    rows = [_test_row(told, "dense", ROOT)]
    text = f"Nothing was chosen on the {number(told['test/images'])} test images of {facts.source}; "
    if facts.winner:
        rows.append(_test_row(told, "winner", facts.winner))
        span = f"{signed(told['test/drop_low'])} to {signed(told['test/drop_high'])}"
        text += f"there {facts.winner} loses {signed(told['test/drop_points'])} points against dense ({span}). "
    else:
        text += "with no candidate proposed, only dense was looked at. "
    text += f"How often this version of them ({tested.version}) has been read is counted outside the page."
    heading = ["on the test split", "top-1", "95 % interval", "macro F1", "calibration error"]
    return join(table(heading, rows, caption=text))


def _test_row(told: dict[str, float], who: str, name: str) -> Row:
    interval = f"{percent(told[f'test/{who}_top1_low'])} to {percent(told[f'test/{who}_top1_high'])}"
    f1, error = percent(told[f"test/{who}_macro_f1"]), percent(told[f"test/{who}_ece"])
    return Row([name, percent(told[f"test/{who}_top1"]), interval, f1, error])


def _heed(facts: Facts) -> Html:
    found = [join(strong(step), f": {warning}") for step, warning in facts.warnings()]
    if not found:
        return paragraph("No step had a warning.", css="note")
    return tag("div", tag("h3", "Before you rely on this"), bullets(found), css="heed")


def data(facts: Facts) -> Html:
    """Counts, splits, whose labels were used for what, and what was set aside."""
    told, details = facts.data.metrics, facts.data.details
    labels, classes = facts.dense.details["labels"], details["classes"]
    used = {"train": labels["training"], "validation": labels["choosing"], "test": told["data/test"]}
    purpose = {"train": "learning", "validation": "choosing", "test": "the last look"}
    per_class = details["per_class"]
    rows = []
    for split in ("train", "validation", "test"):
        counts = [per_class[name][split] for name in classes]
        span = f"{number(min(counts))} to {number(max(counts))}" if counts else MISSING
        images, labelled = number(told[f"data/{split}"]), number(sum(counts))
        rows.append(Row([split, purpose[split], images, labelled, span, number(used[split])]))
    budget = details["labels_per_class"]
    hidden = f"The other training labels are hidden from everything: {budget} per class may be used. " if budget else ""
    by = "the source names the test set" if details["test_set"] == "named by the source" else "so is the test set"
    text = (
        f"{facts.source}: {number(told['data/images'])} images in {len(classes)} classes. An image's split follows "
        f"from its own pixels, and {by}. {hidden}Pretraining sees all training images and no label."
    )
    heading = ["split", "for", "images", "with a label", "per class", "labels used"]
    aside = [f"{number(told['data/left_out'])} training images equal a test image and are left out."]
    aside = aside if told["data/left_out"] else []
    rejected = details["rejected"]
    listed = [Row([row["file"], row["reason"]]) for row in rejected[:10]]
    files = [table(["file", "why it cannot be used"], listed, caption=_rejected(len(rejected)), left=2)]
    return join(
        paragraph(text),
        table(heading, rows, caption="Images and labels, by split", left=2),
        *[paragraph(line) for line in aside],
        *(files if rejected else [paragraph("No file was set aside.", css="note")]),
    )


def _rejected(count: int) -> str:
    shown = ", the first ten" if count > 10 else ""
    return f"{count} file{'s' if count != 1 else ''} set aside{shown}"


def pretraining(facts: Facts) -> Html:
    """Arms per label seed, the gain with its interval, the probe, the curve of kNN."""
    arms: dict[str, Any] = facts.dense.details["arms"]
    method = facts.pretrain.parameters["method"]
    names = {"pretrained": f"pretrained ({method})", "scratch": "from scratch", "weights": _weights(facts)}
    gain, probe = arms["gain"], arms["linear_probe"]
    by_arm = {names[arm]: sorted(arms[arm], key=lambda row: row["seed"]) for arm in names if arm in arms}
    seeds = sorted({row["seed"] for rows in by_arm.values() for row in rows})
    rows = []
    for label, trainings in by_arm.items():
        top1 = {row["seed"]: row["top1"] for row in trainings}
        rates = ", ".join(f"{rate:g}" for rate in sorted({row["learning_rate"] for row in trainings}))
        cells = [percent(top1.get(seed)) for seed in seeds]
        rows.append(Row([label, percent(fmean(top1.values())), *cells, rates]))
    probed = [percent(probe["top1"] if seed == probe["seed"] else None) for seed in seeds]
    rows.append(Row(["linear probe", percent(probe["top1"]), *probed, MISSING]))
    heading = ["arm", "mean", *[f"seed {seed}" for seed in seeds], "learning rate"]
    caption = f"Top-1 on validation; every arm had {number(facts.dense.details['labels']['training'])} labels, and "
    caption += "the same steps, augmentation and number of tried rates"
    lines = {label: [row["top1"] for row in trainings] for label, trainings in by_arm.items()}
    pictures = [figure(plots.arms(lines, probe["top1"]), caption, "One line per label seed.")]
    knn = [row for row in facts.pretrain.details["curves"] if "knn" in row]
    if knn:
        told = "kNN on the label budget's features, while the backbone learns without labels. It steers nothing."
        pictures.append(figure(plots.curves(knn, "knn", "kNN accuracy on validation, %", 100), told, told))
    return join(
        paragraph(_gain(names[gain["arm"]], gain)),
        table(heading, rows, caption=caption),
        side_by_side(*pictures),
    )


def _weights(facts: Facts) -> str:
    path = str(facts.dense.parameters.get("weights", NOTHING))
    return f"own weights ({path.rpartition('/')[2]})"


def _gain(arm: str, gain: dict[str, Any]) -> str:
    """What was gained over scratch, and how far that is shown."""
    points, pairs = signed(gain["mean"], plus=True), gain["pairs"]
    start = f"Starting {arm} instead of from scratch, with the same labels and steps, gives {points} points of top-1"
    if pairs == 1:
        return f"{start}. That is a single label seed: a hint, with no interval."
    span = f"95 % interval {signed(gain['low'], plus=True)} to {signed(gain['high'], plus=True)}, {pairs} label seeds"
    if pairs < ENOUGH_PAIRS:
        return f"{start} ({span}). Fewer than {ENOUGH_PAIRS} seeds: take the size of the gain as a hint."
    return f"{start} ({span})."


def candidates(facts: Facts) -> Html:
    """Three tables, one row per candidate: quality and size; speed; gates."""
    return join(_quality_table(facts), _speed_table(facts), _gate_table(facts), _trade_off(facts))


def _marked(facts: Facts, name: str) -> str:
    return "marked" if name == facts.winner else ""


def _quality_table(facts: Facts) -> Html:
    rows = []
    for name, record in facts.candidates.items():
        told, drop = record.metrics, facts.drop(name)
        top1: Content = percent(told.get("quality/top1"))
        if "quality/top1" in told:
            ends = (percent(told["quality/top1_low"]), percent(told["quality/top1_high"]))
            top1 = two_lines(top1, f"{ends[0]} to {ends[1]}")
        lost: Content = MISSING
        if drop is not None:
            lost = two_lines(signed(drop["points"]), f"{signed(drop['low'])} to {signed(drop['high'])}")
        lineage = " → ".join(record.details["lineage"])
        cells: list[Content] = [two_lines(name, f"{lineage}" if name != ROOT else "the fine-tuned network"), top1, lost]
        cells += [percent(told.get("quality/macro_f1")), percent(facts.selection.details["agreement"][name])]
        cells += [millions(told["size/parameters"]), millions(told["compute/macs"])]
        cells += [digits(told["size/mb"]), digits(told["size/zipped_mb"])]
        rows.append(Row(cells, _marked(facts, name)))
    reference = facts.selection.details["reference"]
    better = "" if reference == ROOT else ", the better of dense and its control"
    caption = f"Quality on the validation split of {facts.source}, and size. Drop: points of top-1 lost against "
    caption += f"{reference}{better}. Small: 95 % intervals"
    heading = ["candidate", "top-1", "drop", "macro F1", "agreement", "parameters", "MACs", "MB", "MB zipped"]
    return table(heading, rows, caption=caption)


def _speed_table(facts: Facts) -> Html:
    rows = []
    for name in facts.candidates:
        speed, one, many = facts.speed(name), facts.best(name, "latency"), facts.best(name, "throughput")
        if one is None or many is None:
            rows.append(Row([name, "not timed: its answers differ on every runtime", *[MISSING] * 6]))
            continue
        pairs = [
            f"{speed[f'speedup/{kind}_b1']:.2f} / {speed[f'speedup/{kind}_b{facts.large}']:.2f}" for kind in SPEEDUPS
        ]
        cells: list[Content] = [name, f"{_where(one)} / {_where(many)}", digits(one["p50_ms"]), digits(one["p95_ms"])]
        rows.append(Row([*cells, number(many["images_per_s"]), *pairs], _marked(facts, name)))
    machine = facts.benchmark.machine
    assert machine is not None
    caption = f"Speed of each file on its fastest runtime: latency of one image, throughput at batch {facts.large}, and "
    caption += f"the speed-up for both (batch 1 / {facts.large}). {machine.cpu}, {machine.threads} threads"
    heading = ["candidate", "fastest on", "p50, ms", "p95, ms", "images/s"]
    return table([*heading, *[f"× {base}" for base in SPEEDUPS.values()]], rows, caption=caption, left=2)


def _where(row: dict[str, Any]) -> str:
    """ort int8, 2 threads -> ONNX Runtime int8."""
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    return f"{appendix.RUNTIMES[row['runtime']]} {row['precision']}, {threads}"
