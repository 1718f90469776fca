from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.closure import ROOT
from winnow.config import Data
from winnow.data.chunk_decoding import DecodeSettings, decode_chunk
from winnow.data.dataset import decode
from winnow.data.file_tree import Archive, Folder
from winnow.data.image_items import MAX_FILE_BYTES, Item
from winnow.data.sources import Source, array_source, open_sample, open_source, open_tree
from winnow.errors import DataError


def create_files(root: Path, *names: str) -> Path:
    """Create empty files; a source does not read them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def open_folder(root: Path) -> Source:
    return open_tree(Folder(root), root.name)


def list_items(source: Source) -> dict[str, tuple[int, bool]]:
    items = list(source.items())
    assert len(items) == source.count == len({item.name for item in items})
    assert items == list(source.items())  # a second iteration gives the same order
    return {item.name: (item.label, item.is_test) for item in items}


CLASS_FOLDERS = ("cat/b.jpg", "cat/2024/a.png", "dog/c.jpg")
SPLIT_FOLDERS = ("train/cat/a.jpg", "train/dog/b.jpg", "test/cat/c.jpg")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (CLASS_FOLDERS, {"cat/b.jpg": (0, False), "cat/2024/a.png": (0, False), "dog/c.jpg": (1, False)}),
        (SPLIT_FOLDERS, {SPLIT_FOLDERS[0]: (0, False), SPLIT_FOLDERS[1]: (1, False), SPLIT_FOLDERS[2]: (0, True)}),
        (
            (*SPLIT_FOLDERS[:2], "val/dog/d.jpg"),
            {SPLIT_FOLDERS[0]: (0, False), SPLIT_FOLDERS[1]: (1, False), "val/dog/d.jpg": (1, False)},
        ),
        (("Train/a/1.png", "TEST/b/2.png", "Train/b/3.png"), {"TEST/b/2.png": (1, True)}),
        ((*CLASS_FOLDERS, "unlabelled/x/d.jpg"), {"unlabelled/x/d.jpg": (-1, False)}),
        ((*SPLIT_FOLDERS, "unlabelled/d.jpg"), {"unlabelled/d.jpg": (-1, False), SPLIT_FOLDERS[2]: (0, True)}),
        ((*CLASS_FOLDERS, "test/e.jpg"), {"test/e.jpg": (2, False)}),  # a class of that name
        ((*CLASS_FOLDERS, "train/e.jpg"), {"train/e.jpg": (2, False)}),
        (("größe 1/ä b.jpg", "猫/c.jpg"), {"größe 1/ä b.jpg": (0, False), "猫/c.jpg": (1, False)}),
    ],
)
def test_folder_layouts(tmp_path: Path, names: tuple[str, ...], expected: dict[str, tuple[int, bool]]) -> None:
    items = list_items(open_folder(create_files(tmp_path, *names)))
    assert set(items) == set(names)
    assert items.items() >= expected.items()


def test_order_and_classes_depend_on_names_only(tmp_path: Path) -> None:
    first, second = (
        create_files(tmp_path / "1" / "p", *CLASS_FOLDERS),
        create_files(tmp_path / "2" / "p", *CLASS_FOLDERS[::-1]),
    )
    sources = [open_folder(first), open_folder(second)]
    assert [list(list_items(source)) for source in sources] == [["cat/b.jpg", "cat/2024/a.png", "dog/c.jpg"]] * 2
    assert sources[0].classes == ("cat", "dog")
    assert sources[0].title == "p"


def test_companions_and_hidden_files_are_counted_not_used(tmp_path: Path) -> None:
    root = create_files(
        tmp_path, *CLASS_FOLDERS, "cat/Thumbs.db", "cat/notes.TXT", "dog/.hidden.jpg", ".git/x.jpg", "cat/.git/x.jpg"
    )
    source = open_folder(create_files(root, "cat/odd.pdf"))  # not known as a companion: expected to be an image
    assert set(list_items(source)) == {*CLASS_FOLDERS, "cat/odd.pdf"}
    assert (source.ignored, source.warnings) == (3, ("2 files in hidden and system folders are skipped: .git (2)",))


def test_files_beside_the_classes_are_warned_of(tmp_path: Path) -> None:
    names = (*SPLIT_FOLDERS, "valid/cat/d.jpg", "stray.jpg", "train/stray.jpg", "README.md", "train/bird/.keep")
    source = open_folder(create_files(tmp_path, *names))
    assert source.classes == ("cat", "dog")
    assert [warning.partition(" ")[0] for warning in source.warnings] == ["valid/", "2", "class"]
    assert source.warnings[2].endswith("ignored: bird")


def test_links_to_files_are_used_and_links_to_folders_are_not(tmp_path: Path) -> None:
    create_files(tmp_path / "elsewhere", "d.jpg", "deep/e.jpg")
    root = create_files(tmp_path / "photos", *CLASS_FOLDERS)
    (root / "cat" / "loop").symlink_to(root)
    (root / "dog" / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "d.jpg")
    assert set(list_items(open_folder(root))) == {*CLASS_FOLDERS, "dog/linked.jpg"}


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    root = create_files(tmp_path, *CLASS_FOLDERS)
    Path(os.fsdecode(os.fsencode(root / "cat") + b"/\xff.jpg")).touch()
    source = open_folder(root)
    assert "cat/\\udcff.jpg" in list_items(source)
    content = next(item.content for item in source.items() if "udcff" in item.name)
    assert Path(str(content)).exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), r"no images in class folders; expected at least two class folders"),
        (("a.jpg", "b.jpg"), r"no images in class folders"),
        (("cat/notes.txt", "dog/notes.txt"), r"no images in class folders"),
        (("unlabelled/a.jpg",), r"no images in class folders"),
        (("cat/a.jpg",), r"only one class \(cat\), a classifier needs two; expected"),
        (
            ("photos/cat/a.jpg", "photos/dog/b.jpg"),
            r"only one class \(photos\).*if .*photos holds the class folders, set",
        ),
        (("train/cat/a.jpg", "test/cat/b.jpg"), r"only one class \(cat\), a classifier needs two; expected"),
        ((*SPLIT_FOLDERS, "test/bird/d.jpg"), r"test/ has classes that train/ lacks: bird"),
        (("test/cat/a.jpg", "test/dog/b.jpg", "bird/c.jpg"), r"no train/ beside it does"),
        ((*SPLIT_FOLDERS, "bird/d.jpg"), r"there is also bird; move class folders into train/"),
        ((*CLASS_FOLDERS, "unlabeled/d.jpg"), r"unlabeled/ would be a class; .*set data\.unlabelled to this name"),
        ((*SPLIT_FOLDERS, "train/unlabelled/d.jpg"), r"train/unlabelled/ would be a class; .*move it beside train/"),
    ],
)
def test_invalid_folders_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_folder(create_files(tmp_path, *names))


def test_the_unlabelled_folder_may_have_another_name(tmp_path: Path) -> None:
    data = Data(
        source="folder",
        labels_per_class="auto",
        path=str(create_files(tmp_path, *CLASS_FOLDERS, "raw/d.jpg")),
        unlabelled="raw",
    )
    assert list_items(open_source(data, tmp_path))["raw/d.jpg"] == (-1, False)


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        ("none", ["", "", ""]),
        ("folder", ["cat", "cat/2024", "dog"]),
        (r"(\w+)\.jpg$", ["b", "", "c"]),
    ],
)
def test_group_keys(tmp_path: Path, group_by: str, expected: list[str]) -> None:
    data = Data(
        source="folder", labels_per_class="auto", path=str(create_files(tmp_path, *CLASS_FOLDERS)), group_by=group_by
    )
    assert [item.group for item in open_source(data, tmp_path).items()] == expected


def test_a_table_without_groups_is_an_error(tmp_path: Path) -> None:
    (create_files(tmp_path, "a.jpg", "b.jpg") / "labels.csv").write_text("path,label\na.jpg,cat\nb.jpg,dog\n")
    settings = {"path": str(tmp_path), "labels": str(tmp_path / "labels.csv"), "group_by": "table"}
    with pytest.raises(DataError, match=r"labels\.csv names no groups"):
        open_source(Data(source="folder", labels_per_class="auto", **settings), tmp_path)


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path: .*gone does not exist \(looked for in "):
        open_source(Data(source="folder", labels_per_class="auto", path=str(tmp_path / "gone")), tmp_path)
    with pytest.raises(DataError, match="is not a folder; expected"):
        open_source(
            Data(source="folder", labels_per_class="auto", path=str(create_files(tmp_path, "a.jpg") / "a.jpg")),
            tmp_path,
        )


MEMBERS = {"train/b/1.png": 900, "train/a/2.png": 1500, "test/a/3.png": 512, "train/a/4.png": 10}


def write_random_tar(path: Path, members: dict[str, int], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for index, (name, size) in enumerate(members.items()):
            info = tarfile.TarInfo(name)
            info.size = size
            file.addfile(info, io.BytesIO(np.random.default_rng(index).bytes(size)))
    return path


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:xz"])
def test_an_archive_is_read_in_its_order(tmp_path: Path, kind: str) -> None:
    path = write_random_tar(tmp_path / "my.tar.xz", {f"./{name}": size for name, size in MEMBERS.items()}, kind)
    source = open_source(Data(source="sample", labels_per_class="auto", path=str(path)), tmp_path)
    assert list_items(source) == {
        "train/b/1.png": (1, False),
        "train/a/2.png": (0, False),
        "test/a/3.png": (0, True),
        "train/a/4.png": (0, False),
    }
    assert list(list_items(source)) == list(MEMBERS)
    assert [len(item.content) for item in source.items()] == list(MEMBERS.values())
    assert (source.classes, source.title) == (("a", "b"), "my")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_truncated_archive_is_never_read_as_a_smaller_one(tmp_path: Path, mode: str) -> None:
    path = write_random_tar(tmp_path / "a.tar", MEMBERS, mode)
    content, items = path.read_bytes(), list(open_sample(path).items())
    readable_lengths = [len(content)]
    for length in [*range(0, len(content), 61), *range(0, len(content), 512)]:
        path.write_bytes(content[:length])
        try:
            assert list(open_sample(path).items()) == items  # only the padding or a checksum is gone
            readable_lengths.append(length)
        except DataError as error:
            assert str(error).endswith("download it again")  # noqa: PT017
    assert min(readable_lengths) > 0.6 * len(content)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"train/a/1.png": 5}, "images of 1 classes in train/"),
        ({}, "images of 0 classes"),
        ({"train/a/1.png": 5, "train/b/1.png": 5, "test/c/1.png": 5}, "test/ has classes that train/ lacks: c"),
        ({"train/a/../1.png": 5}, "is not a file"),
        ({"train/../1.png": 5}, "is not a file"),
        ({"/train/a/1.png": 5}, "is not a file"),
        ({"val/a/1.png": 5}, r"'val/a/1\.png' is not a file train/<class>/<file>"),
    ],
)
def test_invalid_archives_are_refused(tmp_path: Path, members: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_sample(write_random_tar(tmp_path / "a.tar", members))


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("train/a/1.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(info)
    with pytest.raises(DataError, match="is not a file"):
        open_sample(tmp_path / "a.tar")


@pytest.mark.thorough
def test_the_shipped_sample() -> None:
    source = open_sample(ROOT / "data" / "cifar10-jpeg-sample.tar.xz")
    assert (source.title, source.count, len(source.classes)) == ("CIFAR-10 (JPEG) sample", 12_000, 10)
    counts = Counter((item.is_test, item.label) for item in source.items())
    assert counts == {(is_test, label): 200 if is_test else 1000 for is_test in (True, False) for label in range(10)}


def test_arrays_give_their_exact_pixels() -> None:
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8) for count in (3, 2))
    source = array_source("CIFAR-10", ("a", "b"), [(train, [1, 0, 1]), (test, [0, 1])])
    assert list_items(source) == {
        "train/b/00000": (1, False),
        "train/a/00001": (0, False),
        "train/b/00002": (1, False),
        "test/a/00000": (0, True),
        "test/b/00001": (1, True),
    }
    items: list[Item] = list(source.items())
    for item, pixels_HWC in zip(items, [*train, *test], strict=True):
        np.testing.assert_array_equal(decode(bytes(item.content), 8)[0], pixels_HWC)  # type: ignore[arg-type]
    assert Image.open(io.BytesIO(bytes(items[0].content))).size == (8, 8)  # type: ignore[arg-type]


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    kind = path.suffix.removeprefix(".").replace("tar", "")
    with tarfile.open(path, f"w:{kind}") as file:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


PACKERS = [(write_zip, "my.photos.zip"), (write_tar, "my.photos.tar.gz")]
NESTED_SPLIT_FOLDERS = ("train/cat/a.jpg", "train/dog/2024/b.jpg", "test/cat/c.jpg", "unlabelled/x/d.jpg")


@pytest.mark.parametrize(("pack", "name"), PACKERS)
@pytest.mark.parametrize("top_folder", ["", "photos/", "./photos/"])
@pytest.mark.parametrize("names", [(*CLASS_FOLDERS, "unlabelled/d.jpg"), NESTED_SPLIT_FOLDERS])
def test_an_archive_is_read_like_a_folder(
    tmp_path: Path, pack: Any, name: str, top_folder: str, names: tuple[str, ...]
) -> None:
    skipped = (f"{top_folder}cat/.git/x.jpg", f"{top_folder}.DS_Store", "__MACOSX/cat/._a.jpg")
    path = pack(
        tmp_path / name, {f"{top_folder}{member}": member.encode() for member in names} | dict.fromkeys(skipped, b"")
    )
    source = open_source(Data(source="archive", labels_per_class="auto", path=str(path)), tmp_path)
    expected = list_items(open_folder(create_files(tmp_path / "photos", *names)))
    prefix = top_folder.removeprefix("./")
    assert list_items(source) == {f"{prefix}{member}": row for member, row in expected.items()}
    assert {item.name.removeprefix(prefix): item.content for item in source.items()} == {
        member: member.encode() for member in names
    }
    assert (source.classes, source.title, source.missing) == (("cat", "dog"), "my", ())
    assert source.warnings == ("2 files in hidden and system folders are skipped: .git (1), __MACOSX (1)",)


@pytest.mark.parametrize(("pack", "name"), PACKERS)
def test_members_outside_the_archive_are_rejected(tmp_path: Path, pack: Any, name: str) -> None:
    outside = {"cat/../../etc/x.jpg": b"x", "/cat/y.jpg": b"y", "../z.jpg": b"z", "../../deep/z.jpg": b"z"}
    path = pack(tmp_path / name, {member: b"." for member in CLASS_FOLDERS} | outside | {"/.": b"no name"})
    source = open_tree(Archive(path), "my")
    assert set(list_items(source)) == set(CLASS_FOLDERS)
    assert (source.classes, source.count) == (("cat", "dog"), len(CLASS_FOLDERS))
    assert source.missing == tuple((member.lstrip("/"), "its path points outside the archive") for member in outside)
    assert sorted(file.name for file in tmp_path.iterdir()) == [name]


def test_links_encrypted_and_too_large_members_are_rejected(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {member: b"." for member in CLASS_FOLDERS})
    with zipfile.ZipFile(path, "a") as file:
        link = zipfile.ZipInfo("cat/link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # flags of the first member in the central directory
    path.write_bytes(content)
    source = open_tree(Archive(path), "a")
    assert source.missing == ((CLASS_FOLDERS[0], "encrypted"), ("cat/link.jpg", "a link, not a file"))
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for member in CLASS_FOLDERS:
            tar.addfile(tarfile.TarInfo(member))
        link = tarfile.TarInfo("cat/link.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "cat/b.jpg"
        tar.addfile(link)
        too_large = tarfile.TarInfo("cat/huge.jpg")
        too_large.size = MAX_FILE_BYTES + 1
        tar.addfile(too_large, io.BytesIO(bytes(too_large.size)))
    assert [reason for _, reason in open_tree(Archive(tmp_path / "b.tar"), "b").missing] == [
        "a link or device, not a file",
        "200,000,001 bytes are more than 200,000,000",
    ]


def test_a_damaged_member_is_one_rejected_file(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        for member in CLASS_FOLDERS:
            file.writestr(member, b"1234567890" * 9)
    path.write_bytes(path.read_bytes().replace(b"1234567890", b"123456789x", 1))
    contents = [item.content for item in open_tree(Archive(path), "a").items()]
    assert decode_chunk(contents[:1], DecodeSettings(8)).reasons[0].startswith("damaged in its archive (Bad CRC-32")
    assert contents[1:] == [b"1234567890" * 9] * 2


@pytest.mark.parametrize("kept_share", [0.3, 0.99])
@pytest.mark.parametrize(("pack", "name"), PACKERS)
def test_a_truncated_archive_is_an_error(tmp_path: Path, pack: Any, name: str, kept_share: float) -> None:
    rng = np.random.default_rng(0)
    path = pack(tmp_path / name, {member: rng.bytes(3000) for member in CLASS_FOLDERS})
    content = path.read_bytes()
    path.write_bytes(content[: int(kept_share * len(content))])
    with pytest.raises(DataError, match=r"damaged or not an archive|cut off"):
        list(open_tree(Archive(path), "a").items())


def random_members(count: int = 40) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {f"{('cat', 'dog')[index % 2]}/{index:03d}.jpg": rng.bytes(700) for index in range(count)}


@pytest.mark.parametrize("member_index", [3, 20, 39])
def test_a_damaged_tar_header_is_an_error(tmp_path: Path, member_index: int) -> None:
    """tarfile takes such a header for the end, and would silently omit the images after it."""
    path = write_tar(tmp_path / "a.tar", random_members())
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[member_index].offset
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged or not an archive"):
        list(open_tree(Archive(path), "a").items())


def test_the_checksum_of_a_compressed_tar_is_verified(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", random_members())
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the CRC-32
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged or not an archive \(CRC check failed"):
        list(open_tree(Archive(path), "a").items())


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_concatenated_archives_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    """pbzip2 writes such archives, and cat concatenates them."""
    members = random_members()
    parts = [dict(list(members.items())[:20]), dict(list(members.items())[20:])]
    files = [write_tar(tmp_path / f"{index}.{suffix}", part) for index, part in enumerate(parts)]
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(file.read_bytes() for file in files))
    assert sorted(list_items(open_tree(Archive(joined), "a"))) == sorted(members)


def test_an_enormous_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("cat/a.jpg")
        info.pax_headers = {"comment": "x" * 2_000_000}
        archive.addfile(info)
    with pytest.raises(DataError, match=r"a header of 2,000,\d+ bytes"):
        list(open_tree(Archive(path), "a").items())


def test_only_the_damaged_member_of_a_bzip2_zip_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as file:
        for member in CLASS_FOLDERS:
            file.writestr(member, rng.bytes(900))
    with zipfile.ZipFile(path) as file:
        offset = file.infolist()[0].header_offset
    content = bytearray(path.read_bytes())
    content[offset + 30 + len(CLASS_FOLDERS[0]) + 4] ^= 0xFF
    path.write_bytes(content)
    contents = [item.content for item in open_tree(Archive(path), "a").items()]
    assert [isinstance(item_content, ValueError) for item_content in contents] == [True, False, False]


def test_a_member_without_a_name_is_skipped(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {member: b"." for member in CLASS_FOLDERS})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(zipfile.ZipInfo("x"), b".")
    content = bytearray(path.read_bytes())
    offset = content.rindex(b"PK\x01\x02")
    content[offset + 28 : offset + 32] = b"\0\0\1\0"  # no name, and its byte counts as an extra field
    path.write_bytes(content)
    assert sorted(list_items(open_tree(Archive(path), "a"))) == sorted(CLASS_FOLDERS)


def test_companion_files_of_macos_are_skipped(tmp_path: Path) -> None:
    for name in (*CLASS_FOLDERS, "__MACOSX/cat/._a.jpg", "cat/__MACOSX/._a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b".")
    assert sorted(list_items(open_tree(Folder(tmp_path), "a"))) == sorted(CLASS_FOLDERS)


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.data.archives.BOMB_BYTES", 1_000_000)
    path = write_zip(tmp_path / "a.zip", {member: bytes(2_000_000) for member in CLASS_FOLDERS})
    with pytest.raises(DataError, match="200 times its size, as no images do"):
        Archive(path)


@pytest.mark.parametrize(("pack", "name"), PACKERS)
def test_a_table_labels_the_members_of_an_archive(tmp_path: Path, pack: Any, name: str) -> None:
    path = pack(tmp_path / name, {"img/a.jpg": b"a", "img/b.jpg": b"b", "img/c.jpg": b"c", "labels.csv": b""})
    (tmp_path / "labels.csv").write_text("path,label\nimg/a.jpg,cat\nimg/b.jpg,dog\nimg/gone.jpg,dog\n")
    data = Data(source="archive", labels_per_class="auto", path=str(path), labels=str(tmp_path / "labels.csv"))
    source = open_source(data, tmp_path)
    assert list_items(source) == {"img/a.jpg": (0, False), "img/b.jpg": (1, False), "img/c.jpg": (-1, False)}
    assert source.missing == (("img/gone.jpg", "listed in labels.csv, but missing"),)
