"""Which pixels this machine's decoder makes of a file: three tiny images, decoded, as one digest.

A split hangs on decoded pixels (winnow/data/splits.py), and those of a JPEG with subsampled chroma or of a lossy WebP
differ between decoders by rounding, which moves images between splits. Versions do not tell: one version of Pillow is
built with several codecs, and most versions decode alike. So what they decode is compared.
"""

from __future__ import annotations

import base64
import hashlib

from winnow.data.dataset import decode

IMAGES = {
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
"""Format -> a file in base64: 23x17 pixels in JPEG (4:2:0) and in lossy WebP, 9x7 in PNG."""
HEIC = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJp"
    "bG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAAJsAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAAB"
    "AAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEA"
    "AQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAA"
    "FGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhp"
    "cG1hAAAAAAAAAAEAAQWBAgMFhAAAAKNtZGF0AAAAlygBrwngPg6bnk4QdLDGLT7BfogyMbOJzpfPvUO93vUUpf+9w82erIhQKb5i66ab"
    "GyClUioW7/eElJYO/qLoxvjSDsN77IYTuoMx322rs+CAKWA5NFlgjlYmUYtrVFz1JhUsfm98l4JdLY+ybNkcW+dcSKmsxOPfGptcruPG"
    "w7A8K4C7UE8SDvw8tbfLTVWNKApvTkpww+A="
)
"""64x48 pixels, which count only where images of this kind are read: their decoder is an extra package."""
SIDE = 8
"""Any will do: the digest is of the pixels at full size."""


def decoder_digest(*, reads_heic: bool = False) -> str:
    """Return 16 hex digits that are equal where the same files give the same pixels. A format that fails counts too."""
    found = hashlib.blake2b(digest_size=8)
    images = IMAGES | {"HEIC": HEIC} if reads_heic else IMAGES
    for name, text in images.items():
        try:
            digest = decode(base64.b64decode(text), SIDE)[1]
        except ValueError:
            digest = b"cannot be decoded"
        found.update(name.encode() + b":" + digest + b";")
    return found.hexdigest()
