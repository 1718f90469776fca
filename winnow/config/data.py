"""The section `data:`: the source of the images, their splits and the label budget."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from winnow.config.section import NO_FILE, Count, Integer, Number, Section
from winnow.printable import printable

SAMPLE_LABELS_PER_CLASS = 25
TRAINING_SIZE_RATIO, MAX_TRAINING_SIZE_RATIO = 1.14, 2
"""The ratio of data.training_size to data.image_size: with auto (256 / 224, as in torchvision's recipes), and at most,
since a crop is resized without averaging its pixels."""
SAMPLE_ARCHIVE, SAMPLE_TITLE = "cifar10-jpeg-sample.tar.xz", "CIFAR-10 (JPEG) sample"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
GROUP_PATTERN = r"([^/]+)_\d+\.\w+$"
"""An example for data.group_by: IMG_7 of cat/IMG_7_1.jpg and of dog/IMG_7_2.jpg, without the folder."""
TABLES = (".csv", ".tsv", ".parquet")


class Data(Section):
    """The source of the images, their preprocessing, splits and label budget."""

    source: Literal["sample", "folder", "archive", "cifar10"]
    """The kind of source: the embedded sample, a folder, an archive, or CIFAR-10 by download."""
    path: Annotated[str, Field(min_length=1)]
    """The folder or archive of the images; for source sample the sample's archive. cifar10 ignores it and downloads to
    .winnow/."""
    fetch: Annotated[str, Field(pattern=r"^(none|s3://[A-Za-z0-9][A-Za-z0-9._-]*(/.*)?)$")] = "none"
    """The s3://bucket/prefix that is synchronized into the folder `path` before each run; none: no S3."""
    unlabelled: Annotated[str, Field(min_length=1)] = "unlabelled"
    """The name of the optional folder inside `path` that holds images without labels."""
    labels: str = NO_FILE
    """A table (.csv, .tsv or .parquet) of path and label for the images in `path`, which then need no class folders;
    data/none: no table."""
    group_by: Annotated[str, Field(min_length=1)] = "none"
    """The rule that keeps related images in one split. none: no rule; folder: the images of one folder; table: column
    `group` of `labels`; or a regular expression on the path, whose first group in () names the group."""
    image_size: Annotated[Integer, Field(ge=8, le=1024)] = 32
    """The side in pixels of the square that every image is resized to."""
    training_size: Literal["auto", "none"] | Integer = "auto"
    """The side in pixels of a second, larger square of each image for the random crops of training, at most twice
    image_size. auto: 1.14 times image_size, where most images are that large; none: no second square."""
    resize: Literal["crop", "pad", "stretch"] = "crop"
    """The way to make an image square. crop: its centre; pad: black bars; stretch: the whole image, distorted."""
    bits: Literal["auto"] | Annotated[Integer, Field(ge=8, le=16)] = "auto"
    """The number of bits in use of gray images that are stored with 16; auto: estimated from a sample of the images."""
    mirrors: bool = True
    """True if a mirrored image has the same class; false for digits, text, left and right shoes."""
    colour: bool = True
    """True if an image in changed colours has the same class; false if colour distinguishes classes."""
    scale: bool = True
    """True if a larger, smaller or cropped image has the same class; false if size or small details distinguish
    classes."""
    up: bool = True
    """True if images have an upright orientation; false for microscopy, aerial views, coins on a table."""
    labels_per_class: Literal["auto", "all"] | Count
    """The label budget: the number of training labels per class that may be used; all others are hidden. auto: 25 for
    the sample, else all."""
    validation_fraction: Annotated[Number, Field(gt=0, le=0.5)] = 0.2
    """The share of the images in the validation split, by which everything is selected."""
    test_fraction: Annotated[Number, Field(gt=0, le=0.5)] = 0.15
    """The share of the labelled images in the test split, where the source defines no test set."""
    max_rejected: Annotated[Integer, Field(ge=0)] = 10
    """The largest number of unusable files; more of them stop the run."""

    @model_validator(mode="after")
    def _check_source(self) -> Data:
        is_archive = self.path.lower().endswith(ARCHIVES)
        if self.source == "folder" and is_archive:
            raise ValueError(f"data.path: {self.path!r} is an archive; set data.source: archive for it")
        if self.source == "archive" and not is_archive:
            raise ValueError(f"data.path: {self.path!r} is not an archive; it must end in {', '.join(ARCHIVES)}")
        if self.source == "sample" and not is_archive:
            raise ValueError(
                f"data.path: {self.path!r} is not an archive; to use your own images add data.source: folder "
                "(on the command line: -S data.source=folder)"
            )
        if self.fetch != "none" and self.source != "folder":
            raise ValueError("data.fetch: objects from S3 are fetched into a folder: set data.source: folder")
        if self.labels != NO_FILE and self.source not in ("folder", "archive"):
            raise ValueError("data.labels: a table of labels needs data.source: folder or archive")
        if self.labels != NO_FILE and not self.labels.lower().endswith(TABLES):
            raise ValueError(f"data.labels: {self.labels!r} must end in {', '.join(TABLES)}, or be {NO_FILE}")
        _check_grouping(self.group_by, self.labels)
        if "/" in self.unlabelled or self.unlabelled in (".", ".."):
            raise ValueError(
                f"data.unlabelled: {self.unlabelled!r} must be the plain name of a folder inside data.path"
            )
        return self

    @model_validator(mode="after")
    def _check_training_size(self) -> Data:
        limit = MAX_TRAINING_SIZE_RATIO * self.image_size
        if isinstance(self.training_size, int) and not self.image_size < self.training_size <= limit:
            raise ValueError(
                f"data.training_size: {self.training_size} must be above data.image_size ({self.image_size}) and at "
                f"most {limit}; or auto, or none"
            )
        return self

    @property
    def larger_size(self) -> int | None:
        """Return the side in pixels of the square that training crops from; None where it is image_size."""
        if self.training_size == "auto":
            return round(TRAINING_SIZE_RATIO * self.image_size)
        return None if self.training_size == "none" else self.training_size

    @property
    def title(self) -> str:
        """Return the data set's name in reports: CIFAR-10, the sample's title, or the folder's or archive's name."""
        if self.source == "cifar10":
            return "CIFAR-10"
        path = Path(self.path)
        if self.source in ("sample", "archive"):
            return archive_title(path)
        return printable(path.resolve().name)

    @property
    def label_budget(self) -> int | None:
        """Return the number of labels per class that may be used; None for all."""
        if self.labels_per_class == "auto":
            return SAMPLE_LABELS_PER_CLASS if self.source == "sample" else None
        return None if self.labels_per_class == "all" else self.labels_per_class


def _check_grouping(group_by: str, labels: str) -> None:
    if group_by in ("none", "folder"):
        return
    if group_by == "table":
        if labels == NO_FILE:
            raise ValueError("data.group_by: table needs the column group of data.labels, which names no table")
        return
    try:
        groups = re.compile(group_by).groups
    except re.error as error:
        raise ValueError(f"data.group_by: {group_by!r} is not a valid regular expression ({error})") from error
    if not groups:
        raise ValueError(
            f"data.group_by: {group_by!r} must be none, folder, table, or a regular expression with a group in (), "
            f"as in '{GROUP_PATTERN}'"
        )


def archive_title(path: Path) -> str:
    """Return the title of an archive's images: the sample's title, or the stem of the file name."""
    return SAMPLE_TITLE if path.name == SAMPLE_ARCHIVE else path.name.split(".")[0]
