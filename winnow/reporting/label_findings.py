"""Show the suspicious labels that a check found: as rows of a CSV, and as a contact sheet in the same order."""

from __future__ import annotations

from PIL import Image

from winnow.data.dataset import ImageSet
from winnow.labels.label_csv import LABEL, PATH
from winnow.labels.label_errors import CheckedImages, LabelCheck, LabelFinding, Reason
from winnow.reporting.contact_sheet import MAX_SHOWN, draw_sheet

SHOWN_FINDINGS = 16
"""Suspicious labels that the page shows."""
REASONS: dict[Reason, str] = {
    "near-duplicate": "are near-duplicates of images of another class",
    "label error": "are predicted as another class by a linear classifier that did not see them",
    "outlier": "resemble no other image",
}
"""Reason -> predicate of the labels that have it."""
CHECK_COLUMNS = (PATH, LABEL, "suggested", "reason", "score")


def finding_rows(images: ImageSet, checked: CheckedImages, result: LabelCheck) -> list[tuple[str, ...]]:
    """Return one row for each suspicious label, with the columns CHECK_COLUMNS."""
    files = [images.files[index] for index in checked.indices_L.tolist()]

    def reason_of(finding: LabelFinding) -> str:
        twin = f"near-duplicate of {files[finding.twin]}"
        return "; ".join(twin if reason == "near-duplicate" else reason for reason in finding.reasons)

    return [
        (files[row.position], *_labels(images, checked, row), reason_of(row), f"{row.score:.3f}")
        for row in result.findings
    ]


def draw_findings(images: ImageSet, checked: CheckedImages, result: LabelCheck, shown: int = MAX_SHOWN) -> Image.Image:
    """Return the contact sheet of the first `shown` findings: number and reason, label, suggested label."""
    findings = result.findings[:shown]
    labels = [_labels(images, checked, finding) for finding in findings]
    captions = [
        [finding.reasons[0], label, f"→ {suggested}" if suggested else ""]
        for finding, (label, suggested) in zip(findings, labels, strict=True)
    ]
    indices = [int(checked.indices_L[finding.position]) for finding in findings]
    return draw_sheet(images.images_NHWC, indices, captions)


def _labels(images: ImageSet, checked: CheckedImages, finding: LabelFinding) -> tuple[str, str]:
    """Return the names of the label and of the suggested one; "" where none is suggested."""
    suggested = images.classes[finding.suggested] if finding.suggested >= 0 else ""
    return images.classes[int(checked.labels_L[finding.position])], suggested
