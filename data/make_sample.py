"""Picks the sample from the whole of CIFAR-10 (JPEG) and packs it: the same source gives the same archive.

    python data/make_sample.py cifar10-jpeg.tar.xz data/cifar10-jpeg-sample.tar.xz

Of each class the files with the lowest SHA-256 of their bytes are taken, so that nobody chose them and anybody can
check the pick. Files whose decoded pixels were already taken are passed over, and so are training images that equal
any test image of the source. The archive is sorted, with times and owners set to zero. Standard library and Pillow
only.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import lzma
import tarfile
from pathlib import Path, PurePosixPath

from PIL import Image

log = logging.getLogger(__name__)

PER_CLASS = {"test": 200, "train": 1000}
Files = dict[str, dict[str, list[tuple[str, bytes]]]]
"""Part (train, test) -> class -> (name in the archive, bytes), lowest digest first."""


def read_source(archive: Path) -> Files:
    """All files of the source, ranked inside each class by the digest of their bytes."""
    files: Files = {}
    with tarfile.open(archive) as source:
        for member in source:
            if not member.isfile():
                continue
            part, label, _ = PurePosixPath(member.name).parts
            opened = source.extractfile(member)
            assert opened is not None
            files.setdefault(part, {}).setdefault(label, []).append((member.name, opened.read()))
    for classes in files.values():
        for ranked in classes.values():
            ranked.sort(key=lambda file: hashlib.sha256(file[1]).digest())
    return files


def pixels_of(data: bytes) -> bytes:
    """Digest of the decoded pixels."""
    with Image.open(io.BytesIO(data)) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).digest()


def pick(files: Files) -> dict[str, bytes]:
    """Name -> bytes of the picked files. Raises ValueError when a class has too few."""
    picked: dict[str, bytes] = {}
    tested = {pixels_of(data) for ranked in files["test"].values() for _, data in ranked}
    for part, wanted in PER_CLASS.items():
        seen = set(tested) if part == "train" else set()
        for label, ranked in sorted(files[part].items()):
            taken = 0
            for name, data in ranked:
                if taken == wanted:
                    break
                if (key := pixels_of(data)) not in seen:
                    seen.add(key)
                    picked[name] = data
                    taken += 1
            if taken < wanted:
                raise ValueError(f"{part}/{label}: {taken} different images, {wanted} are needed")
    return picked


def pack(picked: dict[str, bytes], target: Path) -> None:
    """A tar with sorted names and no trace of when or by whom it was made, packed with xz."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in sorted(picked.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    target.write_bytes(lzma.compress(packed.getvalue(), preset=9 | lzma.PRESET_EXTREME))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Pick the CIFAR-10 (JPEG) sample from the whole data set.")
    parser.add_argument("source", type=Path, help="archive with train/<class>/NNNN.jpg and test/<class>/NNNN.jpg")
    parser.add_argument("target", type=Path, help="the archive to write (.tar.xz)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    picked = pick(read_source(arguments.source))
    pack(picked, arguments.target)
    digest = hashlib.sha256(arguments.target.read_bytes()).hexdigest()
    log.info("%d images, %d bytes, sha256 %s", len(picked), arguments.target.stat().st_size, digest)


if __name__ == "__main__":
    main()
