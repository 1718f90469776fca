"""Details of the record of embed, and what is known of weights that winnow did not train."""

from __future__ import annotations

from winnow.records.model import RecordModel
from winnow.records.step_record import StepRecord


class KnownWeightsDetails(RecordModel):
    """The origin of known weights and the images that they expect."""

    name: str
    """As params.yaml names them."""
    backbone: str
    """The network that they belong to."""
    sha256: str
    """Digest of the file."""
    licence: str
    """As their publisher states it."""
    native_size: int
    """The side in pixels of the images that the network was trained on."""
    input_size: int
    """The side in pixels at which the network takes images here."""
    mean: tuple[float, float, float]
    """Mean of pixels in [0, 1] that the network expects, by channel."""
    std: tuple[float, float, float]
    """Their standard deviation."""
    interpolation: str
    """The method by which the images of its training were resized."""


class EmbedDetails(RecordModel):
    """The teacher and its embeddings."""

    weights: KnownWeightsDetails | None
    """None: there is no teacher."""
    images: int
    """Images that were embedded: those of training and validation."""
    dimension: int
    """Width of an embedding."""
    code: str = ""
    """Digest of the files of winnow that determine an embedding; other code does not reuse it."""
    image_size: int = 0
    """Side of the images in pixels; images of another size, `resize` or `bits` do not get these embeddings."""
    resize: str = ""
    """The way in which images were made square."""
    bits: int = 0
    """Bits in use of 16-bit gray."""


EmbedRecord = StepRecord[EmbedDetails]
