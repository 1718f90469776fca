"""`data:`: where the images come from, how they are split, how many labels may be used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from winnow.config.section import NOTHING, Count, Integer, Number, Section
from winnow.printable import printable

SAMPLE_LABELS_PER_CLASS = 25
TRAINING_SHARE, MOST_LARGER = 1.14, 2
"""data.training_size over data.image_size: of auto (256 / 224, as in torchvision's recipes), and at most: pixels of a
crop are not averaged when it is resized."""
SAMPLE_ARCHIVE, SAMPLE_TITLE = "cifar10-jpeg-sample.tar.xz", "CIFAR-10 (JPEG) sample"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
GROUP_PATTERN = r"([^/]+)_\d+\.\w+$"
"""An example for data.group_by: IMG_7 of cat/IMG_7_1.jpg and of dog/IMG_7_2.jpg, without the folder."""
TABLES = (".csv", ".tsv", ".parquet")


class Data(Section):
    """The source of the images and what may be seen of it."""

    source: Literal["sample", "folder", "archive", "cifar10"]
    path: Annotated[str, Field(min_length=1)]
    """The sample's archive or the user's folder or archive; cifar10 downloads to .winnow/ and does not look at it."""
    fetch: Annotated[str, Field(pattern=r"^(none|s3://[A-Za-z0-9][A-Za-z0-9._-]*(/.*)?)$")] = "none"
    """s3://bucket/prefix that `path`, a folder then, is brought up to before a run."""
    unlabelled: Annotated[str, Field(min_length=1)] = "unlabelled"
    """Name of the folder inside `path` that holds images without labels, where there is one."""
    labels: str = NOTHING
    """A CSV or Parquet table of path and label for the images in `path`, which then need no class folders."""
    group_by: Annotated[str, Field(min_length=1)] = "none"
    """What keeps images in one split: none, folder (theirs), table (column `group` of `labels`), or a regular
    expression whose first group, found in the path, names the group."""
    image_size: Annotated[Integer, Field(ge=8, le=1024)] = 32
    """Side of the square, in pixels, that every image is resized to."""
    training_size: Literal["auto", "none"] | Integer = "auto"
    """Side, in pixels, of a second square that is kept of each image, for the random crops of training: above
    image_size, at most twice as much. auto: TRAINING_SHARE of image_size, where most images are that large."""
    resize: Literal["crop", "pad", "stretch"] = "crop"
    """How an image that is no square becomes one (winnow.data.preprocessing)."""
    bits: Literal["auto"] | Annotated[Integer, Field(ge=8, le=16)] = "auto"
    """How many bits of gray images that are stored with 16 count; auto: those that a sample of the images uses."""
    mirrors: bool = True
    """Whether a mirrored image is of the same class; false for digits, text, left and right shoes."""
    colour: bool = True
    """Whether it is of the same class in changed colours; false where colour tells classes apart."""
    scale: bool = True
    """Whether it is of the same class larger, smaller and in part; false where size or small details tell."""
    up: bool = True
    """Whether images have an upright orientation; false for microscopy, aerial views, coins on a table."""
    labels_per_class: Literal["auto", "all"] | Count
    """Label budget: the other training labels are hidden from everything. auto: 25 for the sample, else all."""
    validation_fraction: Annotated[Number, Field(gt=0, le=0.5)] = 0.2
    test_fraction: Annotated[Number, Field(gt=0, le=0.5)] = 0.15
    """Used where the source names no test set of its own."""
    max_rejected: Annotated[Integer, Field(ge=0)] = 10
    """More unusable files than this stop the run."""

    @model_validator(mode="after")
    def _path_fits_source(self) -> Data:
        archive = self.path.lower().endswith(ARCHIVES)
        if self.source == "folder" and archive:
            raise ValueError(f"data.path: {self.path!r} is an archive; set data.source: archive for it")
        if self.source == "archive" and not archive:
            raise ValueError(f"data.path: {self.path!r} is no archive, which would end in {', '.join(ARCHIVES)}")
        if self.source == "sample" and not archive:
            raise ValueError(
                f"data.path: {self.path!r} is no archive; to use your own images add data.source: folder "
                "(on the command line: -S data.source=folder)"
            )
        if self.fetch != "none" and self.source != "folder":
            raise ValueError("data.fetch: what lies in S3 is fetched into a folder: set data.source: folder for it")
        if self.labels != NOTHING and self.source not in ("folder", "archive"):
            raise ValueError("data.labels: a table of labels goes with data.source: folder or archive")
        if self.labels != NOTHING and not self.labels.lower().endswith(TABLES):
            raise ValueError(f"data.labels: {self.labels!r} must end in {', '.join(TABLES)}, or be {NOTHING}")
        _check_grouping(self.group_by, self.labels)
        if "/" in self.unlabelled or self.unlabelled in (".", ".."):
            raise ValueError(
                f"data.unlabelled: {self.unlabelled!r} must be the plain name of a folder inside data.path"
            )
        return self

    @model_validator(mode="after")
    def _training_size_fits(self) -> Data:
        most = MOST_LARGER * self.image_size
        if isinstance(self.training_size, int) and not self.image_size < self.training_size <= most:
            raise ValueError(
                f"data.training_size: {self.training_size} must be above data.image_size ({self.image_size}) and at "
                f"most {most}; or auto, or none"
            )
        return self

    @property
    def larger_size(self) -> int | None:
        """Side in pixels of the square that training crops are taken from; None: of the one that networks see."""
        if self.training_size == "auto":
            return round(TRAINING_SHARE * self.image_size)
        return None if self.training_size == "none" else self.training_size

    @property
    def title(self) -> str:
        """How the data are called beside every number: the folder's or the archive's name, or that of a known one."""
        if self.source == "cifar10":
            return "CIFAR-10"
        path = Path(self.path)
        if self.source in ("sample", "archive"):
            return archive_title(path)
        return printable(path.resolve().name)

    @property
    def label_budget(self) -> int | None:
        """Labels per class that may be used; None: all of them."""
        if self.labels_per_class == "auto":
            return SAMPLE_LABELS_PER_CLASS if self.source == "sample" else None
        return None if self.labels_per_class == "all" else self.labels_per_class


def _check_grouping(group_by: str, labels: str) -> None:
    if group_by in ("none", "folder"):
        return
    if group_by == "table":
        if labels == NOTHING:
            raise ValueError("data.group_by: table takes the column group of data.labels, which names no table")
        return
    try:
        groups = re.compile(group_by).groups
    except re.error as error:
        raise ValueError(f"data.group_by: {group_by!r} is no regular expression ({error})") from error
    if not groups:
        raise ValueError(
            f"data.group_by: {group_by!r} is none, folder or table, nor a regular expression with a group in (), "
            f"as in '{GROUP_PATTERN}'"
        )


def archive_title(path: Path) -> str:
    """What the images of an archive are called: the sample by its name, others by their file's."""
    return SAMPLE_TITLE if path.name == SAMPLE_ARCHIVE else path.name.split(".")[0]
