"""Images: every way in gives the same pixels, every trouble is named, and nothing dangerous is decoded."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from sklearn.datasets import load_digits, load_sample_images

from danlu.core.errors import UserError
from danlu.data import images, pictures
from danlu.data.images import decode, read_images, survey
from danlu.data.loader import Loader
from danlu.data.pictures import Pictures
from danlu.data.processor import Processor


DIGITS = (load_digits().images * 255 / 16).round().astype(np.uint8)[:12]
LABELS = load_digits().target[:12]
PHOTO = load_sample_images().images[0]  # [427, 640, 3]
TINY = Processor(8, 1, (0.0,), (1.0,))


def encoded(image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def folder_of(root: Path, digits=DIGITS, labels=LABELS) -> Path:
    for number, (digit, label) in enumerate(zip(digits, labels, strict=True)):
        place = root / f"class {label}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(digit))
    return root


def found(source) -> dict[str, str]:
    """Pixels of each row by hash -> its label."""
    return {
        hashlib.sha256(decode(row.values["image"], row.place).tobytes()).hexdigest(): str(row.values["label"])[-1]
        for row in source.rows
    }


EXPECTED = {
    hashlib.sha256(digit.tobytes()).hexdigest(): str(label) for digit, label in zip(DIGITS, LABELS, strict=True)
}


def a_parquet(path: Path, cells, features=None, **columns) -> Path:
    table = pa.table({"image": cells, **columns})
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path)
    return path


def error_of(*arguments, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        read_images(*arguments, **{"labelled": True, **options})
    assert caught.value.fix
    return caught.value


# ----------------------------------------------------------------------------------------------------------- the ways in


def ways(tmp_path):
    files = [encoded(digit) for digit in DIGITS]
    structs = [{"bytes": each, "path": f"{n}.png"} for n, each in enumerate(files)]
    names = {"label": {"_type": "ClassLabel", "names": [f"class {n}" for n in range(10)]}, "image": {"_type": "Image"}}
    np.savez(tmp_path / "a.npz", images=DIGITS, labels=LABELS)
    np.savez_compressed(tmp_path / "b.npz", x=DIGITS[:, None], y=LABELS[:, None].astype(np.float64), other=np.zeros(3))
    np.savez(tmp_path / "c.npz", data=DIGITS[..., None] / 255, targets=np.array([f"class {each}" for each in LABELS]))
    frame = pd.DataFrame({"image": files, "label": LABELS})
    rows = [{"image": Image.fromarray(digit), "label": int(label)} for digit, label in zip(DIGITS, LABELS, strict=True)]
    return {
        "folder": folder_of(tmp_path / "digits"),
        "npz": tmp_path / "a.npz",
        "npz, channels first, labels [n, 1]": tmp_path / "b.npz",
        "npz, floats, channels last, labels in words": tmp_path / "c.npz",
        "Parquet of bytes": a_parquet(tmp_path / "a.parquet", files, label=[f"class {each}" for each in LABELS]),
        "Parquet of Hugging Face": a_parquet(tmp_path / "b.parquet", structs, names, label=LABELS),
        "dict of arrays": {"images": DIGITS, "labels": LABELS},
        "tuple": (DIGITS.astype(np.int64), list(LABELS)),
        "tuple of tensors": (torch.from_numpy(DIGITS)[:, None], torch.from_numpy(LABELS)),
        "uint16": (DIGITS.astype(np.uint16) * 257, LABELS),
        "list of PIL images": rows,
        "list of arrays": [{"image": digit, "label": label} for digit, label in zip(DIGITS, LABELS, strict=True)],
        "list of paths": [
            {"image": tmp_path / "digits" / f"class {label}" / f"{n}.png", "label": label}
            for n, label in enumerate(LABELS)
        ],
        "DataFrame": frame,
        "Arrow table": pa.Table.from_pandas(frame),
    }


def test_every_way_in_gives_the_same_images_and_labels(tmp_path):
    for name, data in ways(tmp_path).items():
        source = read_images(data, labelled=True)
        assert found(source) == EXPECTED, name
        assert (source.total, source.rejected) == (12, ()), name
        unlabelled = read_images(data, labelled=False, max_rows=5)
        assert (len(unlabelled.rows), unlabelled.total, unlabelled.columns) == (5, 12, ("image",)), name


def test_hashes_are_of_the_file_or_of_what_is_kept(tmp_path):
    for name, data in ways(tmp_path).items():
        sha256 = read_images(data, labelled=True).sha256
        assert sha256 == read_images(data, labelled=True).sha256, name
        if isinstance(data, Path) and data.is_file():
            assert sha256 == hashlib.sha256(data.read_bytes()).hexdigest(), name
    root = tmp_path / "digits"
    lines = sorted(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(root)}\n" for file in root.rglob("*.png")
    )
    assert read_images(root, labelled=True).sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
    changed = DIGITS.copy()
    changed[3, 0, 0] ^= 1
    hashes = {
        read_images(data, labelled=True).sha256
        for data in ((DIGITS, LABELS), (changed, LABELS), (DIGITS, LABELS[::-1]), (DIGITS[:11], LABELS[:11]))
    }
    assert len(hashes) == 4


def test_what_an_array_is_taken_for_is_said(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 3, 8, 8), np.float32), y=range(4))
    said = read_images(tmp_path / "a.npz", labelled=True).format
    assert said == "npz, x: float32 [4, 3, 8, 8] taken as images [8, 8, 3] of 0 to 255"


def test_columns_of_ones_own_choice(tmp_path):
    np.savez(tmp_path / "a.npz", first=DIGITS, second=255 - DIGITS, y=LABELS, z=LABELS[::-1])
    source = read_images(tmp_path / "a.npz", labelled=True, image="second", label="z")
    assert [row.values["label"] for row in source.rows] == LABELS[::-1].tolist()
    assert np.array_equal(source.rows[0].values["image"], 255 - DIGITS[0])
    assert "it has 'first', 'second', 'y', 'z'" in error_of(tmp_path / "a.npz").message


def test_without_labels_permuted_labels_change_nothing_but_the_hash(tmp_path):
    one = read_images(folder_of(tmp_path / "one"), labelled=False)
    order = np.random.default_rng(0).permutation(12)
    two = read_images(folder_of(tmp_path / "two", labels=LABELS[order]), labelled=False)
    assert one.sha256 != two.sha256
    pixels = [Pictures.read(each, TINY)[0] for each in (one, two)]
    assert np.array_equal(pixels[0].pixels, pixels[1].pixels)
    assert np.array_equal(pixels[0].numbers, pixels[1].numbers)


def test_a_few_rows_of_a_folder_are_of_several_classes(tmp_path):
    source = read_images(folder_of(tmp_path, labels=np.arange(12) // 6), labelled=True, max_rows=6)
    assert len(Counter(row.values["label"] for row in source.rows)) == 2


# ----------------------------------------------------------------------------------------------------------- bad folders


def test_an_empty_class_folder_is_named(tmp_path):
    (folder_of(tmp_path) / "class cat").mkdir()
    (tmp_path / "class cat" / ".DS_Store").write_bytes(b"x")
    assert "class cat: the class folder is empty" in error_of(tmp_path).message
    assert len(read_images(tmp_path, labelled=False).rows) == 12


def test_a_flat_folder_has_no_labels(tmp_path):
    for number, digit in enumerate(DIGITS):
        (tmp_path / f"{number}.png").write_bytes(encoded(digit))
    assert len(read_images(tmp_path, labelled=False).rows) == 12
    assert "no class folders, expected FOLDER/CLASS/IMAGE" in error_of(tmp_path).message
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(encoded(DIGITS[0] + 1))
    assert "/0.png: lies outside the class folders" in error_of(tmp_path).message
    source = read_images(tmp_path, labelled=True, bad_rows="skip")
    assert (len(source.rows), len(source.rejected)) == (1, 12)


@pytest.mark.parametrize("labelled", [True, False])
def test_parts_are_named_one_by_one(tmp_path, labelled):
    for part in ("train", "val", "test"):
        folder_of(tmp_path / part)
    error = error_of(tmp_path, labelled=labelled)
    assert "found the parts test, train, val" in error.message
    for said in (f"data={tmp_path}/train", f"validation={tmp_path}/val", f"test={tmp_path}/test"):
        assert said in error.fix


def test_a_class_may_be_called_train(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "steam.png").write_bytes(encoded(DIGITS[0] + 1))
    assert len(read_images(tmp_path, labelled=True).rows) == 13


def test_what_is_no_image_is_an_error_or_counted(tmp_path):
    root = folder_of(tmp_path / "digits")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "a.png").write_bytes(encoded(DIGITS[0]))
    (root / "class 1" / "page.jpg").write_bytes(b"<!DOCTYPE html><html>")
    (root / "class 1" / "empty.jpg").write_bytes(b"")
    error = error_of(root)
    assert "digits/class 1/" in error.message and "not an image: it starts with b'" in error.message
    source = read_images(root, labelled=True, bad_rows="skip")
    assert len(source.rows) == 12 and source.total == 14
    assert {each.place for each in source.rejected} == {
        "digits/.hidden", "digits/class 1/page.jpg", "digits/class 1/empty.jpg",
    }  # fmt: skip


def test_links_that_leave_the_folder_are_not_followed(tmp_path):
    root = folder_of(tmp_path / "digits")
    (tmp_path / "secret.png").write_bytes(encoded(PHOTO))
    (root / "class 1" / "link.png").symlink_to(tmp_path / "secret.png")
    assert f"digits/class 1/link.png: a link to {tmp_path}/secret.png" in error_of(root).message
    (root / "class 1" / "up").symlink_to("..")  # a loop
    (root / "class 2" / "inside.png").symlink_to("../class 1/1.png")
    os.mkfifo(root / "class 1" / "pipe.png")
    source = read_images(root, labelled=True, bad_rows="skip")
    assert len(source.rows) == 13
    assert sorted(each.place[15:] for each in source.rejected) == ["link.png", "pipe.png", "up"]


def test_a_folder_that_cannot_be_listed_is_not_left_out(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "digits")
    listed = Path.iterdir

    def refusing(path):
        if path.name == "class 3":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refusing)  # the tests may run as root, whom nothing is refused
    assert "Permission denied" in error_of(root, bad_rows="skip").message
    assert "class 3" in error_of(root, bad_rows="skip").message


def test_a_folder_without_any_image(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    assert "1 images, and none can be read" in error_of(tmp_path, labelled=False, bad_rows="skip").message


# ------------------------------------------------------------------------------------------------------------ bad arrays


def test_lengths_that_differ():
    assert "12 images and 11 labels" in error_of((DIGITS, LABELS[:11])).message


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((3, 4, 4), np.nan), "NaN"),
        (np.full((3, 4, 4), 16.0), "values from 16 to 16, expected 0..1"),
        (np.full((3, 4, 4), -1), "values from -1 to -1, expected 0..255"),
        (np.zeros((3, 784)), "[784], expected images [h, w]"),
        (np.zeros((3, 5, 5, 2), np.uint8), "[3, 5, 5, 2]"),
        (np.zeros((3, 0, 4), np.uint8), "[3, 0, 4]"),
        (np.zeros((3, 4, 4), np.complex64), "complex64"),
        (np.array([DIGITS[0], PHOTO, None], object), "there is no image"),
        ([["a"], ["b"], ["c"]], "found an array [1]"),
    ],
)
def test_pixels_that_are_none(array, said):
    assert said in error_of((array, [0, 1, 2])).message


@pytest.mark.parametrize("label", [None, float("nan"), "", " ", 1.5, [0, 1]])
def test_a_row_without_a_usable_label(label):
    data = [{"image": DIGITS[0], "label": 1}, {"image": DIGITS[1], "label": label}]
    assert error_of(data).message.startswith("row 2: found the label")
    assert [each.place for each in read_images(data, labelled=True, bad_rows="skip").rejected] == ["row 2"]
    assert len(read_images(data, labelled=False).rows) == 2


def test_python_data_that_is_none():
    assert "found int" in error_of(5).message
    assert "found a row that is a list" in error_of([[]]).message
    assert "image is str" in error_of({"image": "a.jpg", "label": [1]}).message
    assert "row 1 (nowhere.png): there is no such file" in error_of([{"image": "nowhere.png", "label": 1}]).message


def test_objects_in_an_npz_are_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "was here"),))

    np.savez(tmp_path / "a.npz", images=np.array([Evil()], object), labels=[1])
    assert "holds Python objects" in error_of(tmp_path / "a.npz").message
    assert not (tmp_path / "was here").exists()


def an_npz(path: Path, declared: tuple[int, ...], content: bytes) -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": declared})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + content)
        archive.writestr("labels.npy", b"damaged")
    return path


def test_an_npz_that_lies_bursts_or_is_damaged(tmp_path, monkeypatch):
    assert (
        "declares 1,000,000,000,000 bytes" in error_of(an_npz(tmp_path / "a.npz", (10**4, 10**4, 10**4), b"")).message
    )
    good = an_npz(tmp_path / "b.npz", (5, 100, 100), bytes(50_000))
    assert "cannot be read" in error_of(good).message  # the labels are damaged
    assert read_images(good, labelled=False).total == 5

    class Small:
        memory_available = 60_000

    monkeypatch.setattr(images, "machine", Small)
    assert "60,000 are free" in error_of(good, labelled=False).message
    (tmp_path / "c.npz").write_bytes(good.read_bytes()[:-40])
    assert "c.npz: cannot be read: File is not a zip file" in error_of(tmp_path / "c.npz").message
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("cat/1.png", encoded(PHOTO))
    assert "a zip without arrays" in error_of(tmp_path / "d.zip").message


def test_a_parquet_without_the_bytes(tmp_path):
    path = a_parquet(
        tmp_path / "a.parquet", [{"bytes": encoded(DIGITS[0]), "path": "1"}, {"bytes": None, "path": "2"}], label=[1, 2]
    )
    assert error_of(path).message.startswith("a.parquet record 2: there is no image")
    source = read_images(path, labelled=True, bad_rows="skip")
    assert [row.place for row in source.rows] == ["a.parquet record 1"]
    only_paths = a_parquet(tmp_path / "b.parquet", ["/etc/hostname"], label=[1])
    assert "there is no image" in error_of(only_paths).message


def test_a_class_of_minus_one_is_no_label(tmp_path):
    features = {"label": {"names": ["cat", "dog"]}}
    path = a_parquet(tmp_path / "a.parquet", [encoded(DIGITS[0])] * 3, features, label=[0, 1, -1])
    source = read_images(path, labelled=True, bad_rows="skip")
    assert [row.values["label"] for row in source.rows] == ["cat", "dog"]
    assert [each.place for each in source.rejected] == ["a.parquet record 3"]


def test_other_files(tmp_path):
    (tmp_path / "a.csv").write_text("image,label\na.png,1\n")
    assert "expected a folder of images, an .npz or a Parquet file" in error_of(tmp_path / "a.csv").message
    assert "no such file" in error_of(tmp_path / "none.npz").message


# -------------------------------------------------------------------------------------------------------------- decoding


def pixels_of(data) -> np.ndarray:
    return np.asarray(decode(data, "a"))


@pytest.mark.parametrize("kind", images.FORMATS)
def test_formats(kind):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    back = pixels_of(encoded(PHOTO, kind, **options)).astype(int)
    limit = {"JPEG": 3, "GIF": 15}.get(kind, 0)  # GIF has 256 colours
    assert back.shape == PHOTO.shape and np.abs(back - PHOTO).mean() <= limit


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "PPM", "TGA"])
def test_other_formats_are_not_opened(kind):
    with pytest.raises(UserError, match="a: not an image"):
        decode(encoded(Image.fromarray(PHOTO[:32, :32]), kind), "a")


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "JPEG"])
def test_every_orientation_is_turned_upright(kind):
    image = np.zeros((16, 24), np.uint8)
    image[:8, :8], image[:8, 8:] = 90, 180
    sideways = {5: image.T, 6: np.rot90(image), 7: np.rot90(image, 2).T, 8: np.rot90(image, -1)}
    flat = {1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1]}
    for orientation, stored in (sideways | flat).items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(
            np.ascontiguousarray(stored), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})
        )
        seen = np.asarray(decode(content, "a").convert("L")).astype(int)
        assert np.abs(seen - image).max() <= (3 if kind == "JPEG" else 0), orientation
        seen = survey(read_images([{"image": content}], labelled=False))
        assert list(seen.sizes) == [(24, 16)], orientation


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 4096).round().astype(np.uint16).reshape(64, 64)
    expected = np.rint(ramp / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(pixels_of(encoded(ramp, kind)), expected)
    assert np.array_equal(pixels_of(ramp), expected)
    big = Image.frombytes("I;16B", (64, 64), ramp.astype(">u2").tobytes())
    assert np.array_equal(pixels_of(big), expected)
    assert np.array_equal(pixels_of(encoded((ramp / 65535).astype(np.float32), "TIFF")), expected)
    with pytest.raises(UserError, match="a: found int32 pixels with values from 0 to 65535"):
        decode(encoded(ramp.astype(np.int32), "TIFF"), "a")


def sixteen_bit_colour(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads but does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, _ = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_sixteen_bits_in_colour():
    values = np.random.default_rng(0).integers(0, 65536, (9, 7, 3)).astype(np.uint16)
    assert np.abs(pixels_of(sixteen_bit_colour(values)).astype(int) - values / 257).max() <= 1


def test_cmyk_is_rgb():
    colours = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8)
    image = Image.frombytes("CMYK", (4, 1), colours.tobytes())
    expected = np.array([[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]])
    assert np.array_equal(pixels_of(encoded(image, "TIFF"))[0], expected)
    jpeg = pixels_of(encoded(image.resize((64, 16), 0), "JPEG", quality=95))
    assert np.abs(jpeg[8, 8::16].astype(int) - expected).max() <= 6


def test_palettes_black_and_white_and_alpha():
    bits = DIGITS[0] > 99
    assert np.array_equal(pixels_of(encoded(Image.fromarray(bits))), bits * 255)
    assert np.array_equal(pixels_of(bits), bits * 255)
    palette = Image.fromarray(PHOTO[:64, :64]).quantize(200)
    assert np.array_equal(pixels_of(encoded(palette)), np.asarray(palette.convert("RGB")))
    clear = np.dstack([PHOTO[:4, :4], np.array([0, 85, 170, 255] * 4, np.uint8).reshape(4, 4)])
    share = clear[..., 3:] / 255
    assert np.abs(pixels_of(encoded(clear)) - (PHOTO[:4, :4] * share + 255 * (1 - share))).max() <= 1
    assert np.array_equal(pixels_of(clear), pixels_of(encoded(clear)))
    gray = Image.merge("LA", [Image.new("L", (4, 4), 100), Image.new("L", (4, 4), 0)])
    assert (decode(encoded(gray), "a").mode, pixels_of(encoded(gray)).min()) == ("L", 255)
    see_through = Image.new("P", (4, 4), 1)
    see_through.putpalette([0, 0, 0, 9, 9, 9])
    assert pixels_of(encoded(see_through, transparency=1)).min() == 255
    assert pixels_of(encoded(see_through, transparency=b"\xff\x00")).min() == 255  # Pillow warns of these


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "red")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert pixels_of(content).min() > 250


def test_a_decoded_image_is_ones_own():
    mine = Image.fromarray(PHOTO)
    decode(mine, "a").putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(mine), PHOTO)


@pytest.mark.parametrize("kind", images.FORMATS)
def test_a_file_cut_off_is_named(kind, tmp_path):
    content = encoded(PHOTO, kind)
    path = tmp_path / "cat.img"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"pets/cat\.img: cannot be read"):
        decode(str(path), "pets/cat.img")
    rows = [{"image": content}, {"image": str(path)}]
    with pytest.raises(UserError, match=r"row 2 \(.*cat\.img\): "):
        Pictures.read(read_images(rows, labelled=False, bad_rows="error"), TINY)


@pytest.mark.parametrize("kind", images.FORMATS)
def test_damaged_bytes_are_an_image_or_a_clear_error(kind):
    content, random = bytearray(encoded(PHOTO[:40, :40], kind)), np.random.default_rng(0)
    outcomes = Counter()
    for _ in range(150):
        broken = bytearray(content)
        for place in random.integers(0, len(broken), 3):
            broken[place] = random.integers(256)
        with suppress(UserError):  # nothing else comes out
            outcomes[decode(bytes(broken), "a").mode] += 1
    assert outcomes.total() < 150 and set(outcomes) <= {"L", "RGB"}
    assert (outcomes.total() == 0) == (kind == "PNG")  # every part of it has a checksum


def bomb(width: int, height: int) -> bytes:
    """The head of a PNG of one bit a pixel; a few bytes that would become gigabytes."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )  # fmt: skip


@pytest.mark.parametrize(("side", "pixels"), [(10_000, "100,000,000"), (60_000, "3,600,000,000")])
def test_a_decompression_bomb_is_refused_from_its_header(side, pixels):
    data = [{"image": bomb(side, side)}, {"image": encoded(DIGITS[0])}]
    error = error_of(data, labelled=False)
    assert error.message.startswith(f"row 1: {pixels} pixels, expected at most 89,478,485")
    assert "shrink" in error.fix
    assert len(read_images(data, labelled=False, bad_rows="skip").rows) == 1
    with pytest.raises(UserError, match=f"up: {pixels} pixels"):
        decode(data[0]["image"], "up")


def test_an_array_of_too_many_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    with pytest.raises(UserError, match="64 pixels"):
        decode(DIGITS[0], "a")
    with pytest.raises(UserError, match="64 pixels"):
        decode(Image.fromarray(DIGITS[0]), "a")


# ---------------------------------------------------------------------------------------------------------------- survey


def test_mixed_sizes_and_channels_are_counted():
    mixed = [
        DIGITS[0], PHOTO, PHOTO, encoded(Image.new("CMYK", (20, 30)), "TIFF"), encoded(np.zeros((5, 6), np.uint16)),
        encoded(Image.new("RGBA", (20, 30))), encoded(Image.new("1", (20, 30))), encoded(Image.new("P", (20, 30))),
    ]  # fmt: skip
    seen = survey(read_images([{"image": each} for each in mixed], labelled=False))
    assert (seen.images, seen.gray, seen.transparent) == (8, 3, 1)
    assert seen.sizes == {(8, 8): 1, (640, 427): 2, (20, 30): 4, (6, 5): 1}
    assert seen.modes == {"L": 1, "RGB": 2, "CMYK": 1, "I;16": 1, "RGBA": 1, "1": 1, "P": 1}
    assert seen.notes == (
        "3 of 8 images are gray among colour",
        "1 of 8 images are transparent: put on white",
        "1 of 8 images are of more than 8 bits: scaled to 8",
        "1 of 8 images are CMYK: converted to RGB",
    )


def test_a_survey_decodes_no_pixel():
    cut = encoded(PHOTO, "JPEG")[:2000]
    assert survey(read_images([{"image": cut}], labelled=False)).sizes == {(640, 427): 1}


# ------------------------------------------------------------------------------------------------------------------ rows


def rows_of(count=12) -> Pictures:
    return Pictures.read(read_images({"images": DIGITS[:count]}, labelled=False), TINY)[0]


def test_rows_are_normalised_and_in_order():
    pictures = Pictures.of(DIGITS[:, None], range(10, 22), LABELS, Processor(8, 1, (0.25,), (0.5,)))
    batches = pictures.batches([3, 1, 2, 7, 5], 2)
    assert [batch.rows for batch in batches] == [(13, 11), (12, 17), (15,)]
    assert [batch.targets.tolist() for batch in batches] == [
        LABELS[[3, 1]].tolist(),
        LABELS[[2, 7]].tolist(),
        [LABELS[5]],
    ]
    assert batches[0].targets.dtype == torch.int64
    assert batches[0].inputs.dtype == torch.float32
    expected = (DIGITS[[3, 1], None] / 255 - 0.25) / 0.5
    assert np.allclose(batches[0].inputs.numpy(), expected, atol=1e-6)


def test_a_part_shares_the_pixels():
    pictures = rows_of()
    part = pictures.take([5, 2]).take([1])
    assert part.pixels is pictures.pixels
    assert (len(part), part.size, part.numbers.tolist(), part.targets.tolist()) == (1, 1, [3], [-1])
    assert np.array_equal(part.batch([0]).inputs, pictures.batch([2]).inputs)
    assert np.array_equal(part.chosen[0, 0], DIGITS[2])


def test_the_loader_shows_every_row_once_an_epoch():
    loader = Loader(rows_of(11), 5, 2, seed=0)
    windows = [window for window, _ in zip(loader(), range(2), strict=False)]
    assert [[len(batch.rows) for batch in window] for window, _ in windows] == [[2, 2, 1], [2, 2, 2]]  # none of one row
    assert sorted(row for window, _ in windows for batch in window for row in batch.rows) == list(range(1, 12))


def test_keys_are_equal_for_equal_pixels():
    twice = np.concatenate([DIGITS, DIGITS[3:4]])
    keys = Pictures.of(twice[:, None], range(13), [-1] * 13, TINY).keys()
    assert len(set(keys)) == 12 and keys[3] == keys[12]
    assert keys[0] == hashlib.sha256(DIGITS[0].tobytes()).hexdigest()


def test_rows_that_cannot_be_decoded_are_left_out():
    cut = encoded(PHOTO)[:5000]
    source = read_images([{"image": each} for each in (cut, DIGITS[0], cut, DIGITS[1])], labelled=False)
    pictures, rejected = Pictures.read(source, TINY, "skip")
    assert np.array_equal(pictures.pixels[:, 0], DIGITS[:2])
    assert pictures.numbers.tolist() == [2, 4]
    assert [each.place for each in rejected] == ["row 1", "row 3"]
    assert rejected[0].reason.startswith("cannot be read")
    with pytest.raises(UserError, match="row 1: cannot be read"):
        Pictures.read(source, TINY)
    with pytest.raises(UserError, match="no image can be decoded; the first, row 1: "):
        Pictures.read(read_images([{"image": cut}], labelled=False), TINY, "skip")


def test_pixels_beyond_half_of_the_memory_lie_in_a_file(monkeypatch, tmp_path):
    class Small:
        memory_available = 2 * DIGITS.size - 1

    plain = rows_of()
    monkeypatch.setattr(pictures, "machine", Small)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mapped = rows_of()
    assert (plain.where, mapped.where) == ("memory", f"a temporary file in {tmp_path}")
    assert list(tmp_path.iterdir()) == []
    assert np.array_equal(plain.pixels, mapped.pixels)
    assert mapped.keys() == plain.keys()
    assert torch.equal(mapped.batch([1, 2]).inputs, plain.batch([1, 2]).inputs)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left on device"):
        rows_of()


@pytest.mark.parametrize("channels", [1, 3])
def test_kept_rows_are_a_data_set_of_their_own(tmp_path, channels):
    processor = Processor(8, channels, (0.5,) * channels, (0.5,) * channels)
    data = (np.stack([PHOTO[:8, 8 * n : 8 * n + 8] for n in range(12)]), LABELS)
    pictures = Pictures.read(read_images(data, labelled=True), processor)[0].take([4, 2, 9])
    names = [f"class {n}" for n in range(10)]
    for labels, targets in (([], [-1, -1, -1]), (names, LABELS[[4, 2, 9]])):
        Pictures.of(pictures.chosen, pictures.numbers, targets, processor).save(tmp_path / "a.npz", labels)
        source = read_images(tmp_path / "a.npz", labelled=bool(labels))
        assert np.array_equal(Pictures.read(source, processor)[0].pixels, pictures.chosen)
        with np.load(tmp_path / "a.npz", allow_pickle=False) as kept:
            assert kept["numbers"].tolist() == [5, 3, 10]
            assert ("labels" in kept) == bool(labels)
    assert [row.values["label"] for row in source.rows] == [names[LABELS[n]] for n in (4, 2, 9)]


def test_nothing_heavy_is_imported_before_it_is_needed():
    heavy = {"torch", "PIL", "pyarrow", "kornia", "transformers", "safetensors"}
    code = f"import sys, danlu.data.images, danlu.data.pictures, danlu.data.processor; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
