"""Identify this machine's image decoder by a digest of the pixels that it gives for three tiny files.

Splits depend on decoded pixels (winnow/data/splits.py). Decoders round a JPEG with subsampled chroma or a lossy WebP
differently, which moves images between splits. Version numbers do not identify decoders: one version of Pillow is
built with several codecs, and most versions decode in the same way. So their output is compared.
"""

from __future__ import annotations

import base64
import hashlib

from winnow.data.dataset import decode

SAMPLE_FILES = {
    "JPEG": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxO"
        "UlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
        "T09PT09PT0//wAARCAARABcDASIAAhEBAxEB/8QAGAABAQEBAQAAAAAAAAAAAAAAAAUEBgP/xAAoEAABAgUCBAcAAAAAAAAAAAAB"
        "AAIDBAURIRJRIjE0sTNBYXFygqH/xAAZAQACAwEAAAAAAAAAAAAAAAAEBgIDBQf/xAAkEQABAwEHBQAAAAAAAAAAAAABAAIDBAUR"
        "ITFxobEiMkFy4v/aAAwDAQACEQMRAD8A42WppNiG+eyqy9Lbp4sYAyrUnTw2HrLeQvsqUvT7gPczJ5Df0UGSRhgc4Xk7aoeitHHN"
        "RJemNBuIZd+ZRdXDpzizSQSSMNGAiofPecG7fJ5TRFaHQLyvCF0p+I7rfD8X6hEQ3hmjeSub0K1Qekd7DuiIsKryj9RyU1w9q//Z"
    ),
    "PNG": (
        "iVBORw0KGgoAAAANSUhEUgAAAAkAAAAHCAIAAABV+fA3AAAAwUlEQVR42gXBwU7CQBAA0NmdmS1tYwInoBWJgBDg1guBhG8h4df4"
        "Eo9cuJIgRo0e9IrJQnfbWd5TadLIdJ0RP0OagWkj9krs+Wb3ISU9UhDaXlqOhpo7Ch/F9p0YE/1TGFCIMx8mcCu0L0x8UXSI/Yfj"
        "DslLdG3kT/Wcq7WVXeATqKXwitwf4SAxUS5Q1LCL6b22W6V+A+/RDSmMkU1XvCurT8sbhC+vf1gvpDqTmqWOcri9Jn5i+LukI1aF"
        "029WpnfenkrP3YxTwAAAAABJRU5ErkJggg=="
    ),
    "WebP": (
        "UklGRuwAAABXRUJQVlA4IOAAAACwBwCdASoXABEAPtFWpU0oJKOiMBgIAQAaCWwAnTKEcDegcZy4X4DBdP6rlAH6AelJ7I4DUlEV"
        "lSjJ4+H75NddZW67GBQAAP70UX3v5E3pkq+WAGPOP+zNc+gbKKwMFo3H8FrRd/qorISzCmYDhlJUS/n9ktyYWw2MJbI50uJgAn9I"
        "5RTJNBjKUslnzVvNhK+ZQ/xF5M2ru4EoAOA0RezYEz5tIjYAMSCZ9LoMuL52hCR3OAdrvs7QTJIQ/Ret9i0BLOJjqL9x624z6vI8"
        "XJuwh/JgTyFyv99KTWIoAgAAAA=="
    ),
}
"""A file in base64 by format: 23x17 pixels in JPEG (4:2:0) and in lossy WebP, 9x7 in PNG."""
HEIC_FILE = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJp"
    "bG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAAJsAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAAB"
    "AAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEA"
    "AQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAA"
    "FGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhp"
    "cG1hAAAAAAAAAAEAAQWBAgMFhAAAAKNtZGF0AAAAlygBrwngPg6bnk4QdLDGLT7BfogyMbOJzpfPvUO93vUUpf+9w82erIhQKb5i66ab"
    "GyClUioW7/eElJYO/qLoxvjSDsN77IYTuoMx322rs+CAKWA5NFlgjlYmUYtrVFz1JhUsfm98l4JdLY+ybNkcW+dcSKmsxOPfGptcruPG"
    "w7A8K4C7UE8SDvw8tbfLTVWNKApvTkpww+A="
)
"""A file of 64x48 pixels, used only where HEIC images are read: their decoder is an extra package."""
SIDE = 8
"""The size to decode to, in pixels; it does not matter, since the digest covers the full-size pixels."""


def decoder_digest(*, reads_heic: bool = False) -> str:
    """Return 16 hex digits that are equal for decoders which give equal pixels, or fail on the same formats."""
    combined = hashlib.blake2b(digest_size=8)
    files = SAMPLE_FILES | {"HEIC": HEIC_FILE} if reads_heic else SAMPLE_FILES
    for name, base64_text in files.items():
        try:
            digest = decode(base64.b64decode(base64_text), SIDE)[1]
        except ValueError:
            digest = b"cannot be decoded"
        combined.update(name.encode() + b":" + digest + b";")
    return combined.hexdigest()
