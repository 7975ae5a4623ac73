"""Images from a folder, an npz, Parquet or Python: found, and decoded safely."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from danlu.core.cache import sha256
from danlu.core.device import machine
from danlu.core.errors import UserError
from danlu.data.files import shown
from danlu.data.rows import FileRow
from danlu.data.source import SKIP, Rejected, Row, Source, column, plain, read


if TYPE_CHECKING:
    import PIL.Image

IMAGES = ("image", "images", "img", "x", "data", "pixels")
LABELS = ("label", "labels", "y", "target", "targets", "class", "category", "fine_label")
PARTS = ("train", "validation", "val", "valid", "test")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What is opened. Formats that are programs (EPS, PDF), and rare ones whose decoders few have attacked and mended, are not."""
GRAY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
MAX_PIXELS = 89_478_485
"""The largest image that is decoded (Pillow's own limit: a quarter of a GiB as RGB)."""


@dataclass
class _Found:
    """Rows not yet looked at.

    sha256: empty where it is that of the rows kept. refused: (place, reason) of what is no row. classes: what whole numbers stand
    for as labels.
    """

    name: str
    format: str
    rows: list[Row]
    sha256: str = ""
    refused: list[tuple[str, str]] = field(default_factory=list)
    hidden: list[Rejected] = field(default_factory=list)
    classes: Sequence[str] = ()


def read_images(
    data: Any,
    *,
    labelled: bool,
    bad_rows: str = "error",
    max_rows: int | None = None,
    image: str | None = None,
    label: str | None = None,
) -> Source:
    """Images from a folder (`folder/class/image.jpg`, or flat), an `.npz`, a Parquet file, or Python.

    Python data: `{"images": array, "labels": array}`, `(images, labels)`, an array, a list of dicts, a DataFrame. An image is a
    path, the bytes of a file, a PIL image, or an array as `as_pixels` takes it.
    labelled: every row needs a label. Without, labels are not even looked at.
    image, label: columns, or arrays of an npz; found by their usual names when not given.

    A row's values: `image`, and `label` (text or a whole number) when labelled. The files of a folder come in the order of their
    SHA-256, so that neither class nor name decides which of them `max_rows` keeps or where a seed puts them.
    Only headers are read: a file cut off in its pixels is found by `data.pictures.Pictures.read`.
    Raises UserError naming the file or row, what was found, what was expected, and the fix.
    """
    if isinstance(data, (str, os.PathLike)):
        path = Path(data).expanduser()
        with _blamed(str(path)):
            if path.is_dir():
                found = _folder(path, labelled)
            else:
                zipped = path.is_file() and _start(path, 4) == b"PK\x03\x04"
                found = (_npz if zipped else _parquet)(path, labelled, image, label)
    else:
        found = _python(data, labelled, image, label)
    return _kept(found, labelled, bad_rows == "skip", max_rows)


def _kept(found: _Found, labelled: bool, skip: bool, max_rows: int | None) -> Source:
    """The first `max_rows` rows with an image that opens (and a label), the others rejected or an error."""
    if found.refused and not skip:
        place, reason = found.refused[0]
        raise UserError(f"{place}: {reason}", "remove it, or set bad_rows=skip to leave such files out and count them")
    kept: list[Row] = []
    rejected = found.hidden + [Rejected(*each) for each in found.refused]
    digest = hashlib.sha256()
    for row in found.rows:
        if max_rows is not None and len(kept) >= max_rows:
            break
        try:
            if labelled:
                row.values["label"] = _label(row.values["label"], row.place, found.classes)
            with _opened(row.values["image"], row.place):
                pass
            if not found.sha256:
                content = _content(row.values["image"], row.place)
                digest.update(hashlib.sha256(content).digest() + repr(row.values.get("label")).encode())
            kept.append(row)
        except UserError as error:
            if not skip:
                raise
            rejected.append(Rejected(row.place, error.message.removeprefix(f"{row.place}: ")))
    total = len(found.rows) + len(found.refused)
    if not kept:
        first = f"; the first, {rejected[0].place}: {rejected[0].reason}" if rejected else ""
        raise UserError(f"{found.name}: {total} images, and none can be read{first}", f"expected {', '.join(FORMATS)}")
    return Source(found.name, found.sha256 or digest.hexdigest(), tuple(kept), tuple(rejected), total, found.format)


def _content(value: Any, place: str) -> bytes:
    """What the hash of Python data is taken over: a file's bytes, or pixels with their shape."""
    if isinstance(value, (str, os.PathLike)):
        return Path(value).read_bytes()
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    image = decode(value, place)
    return f"{image.mode} {image.size} ".encode() + image.tobytes()


@contextmanager
def _blamed(place: str) -> Iterator[None]:
    """What goes wrong in here is the input's fault: on damaged or hostile bytes a decoder raises anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{place}: cannot be read: {reason}", "copy or export it again, or leave it out") from error


def _start(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


# --------------------------------------------------------------------------------------------------------------- folder


def _folder(root: Path, labelled: bool) -> _Found:
    classes = sorted(e.name for e in root.iterdir() if e.is_dir() and not e.is_symlink() and e.name[0] != ".")
    parts = [name for name in classes if name in PARTS]
    if "train" in parts and (parts == classes or any(entry.is_dir() for entry in (root / "train").iterdir())):
        keys = {"train": "data", "test": "test"}
        named = " ".join(f"{keys.get(part, 'validation')}={root / part}" for part in parts)
        raise UserError(f"{root}: found the parts {', '.join(parts)}, expected the images of one", f"set {named}")
    if labelled and not classes:
        raise UserError(f"{root}: no class folders, expected FOLDER/CLASS/IMAGE", "make a folder for each class")
    whole, files = root.resolve(), list[tuple[str, Path]]()
    found = _Found(whole.name, f"a folder of {len(classes)} classes" if labelled else "a folder of images", [])

    def walk(folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            relative = path.relative_to(root)
            place = shown(f"{found.name}/{relative}")
            if path.name[0] == ".":
                found.hidden.append(Rejected(place, "hidden"))
            elif any("\udc80" <= letter <= "\udcff" for letter in str(relative)):
                found.refused.append((ascii(place), "a name that is not UTF-8"))
            elif path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(whole)):
                found.refused.append((place, f"a link to {path.readlink()}, which is not followed"))
            elif path.is_dir():
                walk(path)
            elif not path.is_file():
                found.refused.append((place, "no regular file"))
            elif labelled and folder == root:
                found.refused.append((place, "lies outside the class folders"))
            else:
                files.append((sha256(path), relative))

    walk(root)
    if labelled and (empty := set(classes) - {relative.parts[0] for _, relative in files}):
        raise UserError(f"{root / min(empty)}: the class folder is empty", "put images into it, or remove it")
    lines = hashlib.sha256()
    for number, (digest, relative) in enumerate(sorted(files), 1):
        lines.update(os.fsencode(f"{digest}  {relative}\n"))
        taught = {"label": relative.parts[0]} if labelled else {}
        found.rows.append(FileRow(number, {"image": str(root / relative), **taught}, shown(f"{found.name}/{relative}")))
    found.sha256 = lines.hexdigest()
    return found


# ------------------------------------------------------------------------------------------------------------- columns


def _npz(path: Path, labelled: bool, image: str | None, label: str | None) -> _Found:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        with zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if not names:
            raise UserError(f"{path.name}: a zip without arrays, expected an .npz", "unpack it, and name the folder")
        chosen = _chosen(path.name, names, labelled, image, label)
        values = {key: read_array(file, name, path.name) for key, name in chosen.items()}
    if values["image"].dtype.kind not in "buif":  # text would be read as paths, to anywhere
        raise UserError(
            f"{path.name}: array {chosen['image']!r} holds {values['image'].dtype}, expected pixels",
            "save them as uint8",
        )
    rows = _rows(values, path.name, f"{path.name} row ")
    return _Found(path.name, f"npz, {chosen['image']}: {_taken(values['image'], rows)}", rows, digest)


def read_array(file: IO[bytes], name: str, place: str) -> np.ndarray:
    """One array of an open npz. Its header is judged first: objects would be unpickled, a size may be a lie or a bomb."""
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as stream:
            first = np.lib.format.read_magic(stream) == (1, 0)
            header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(stream)
        declared, free = math.prod(shape) * max(1, dtype.itemsize), machine().memory_available
        if dtype.hasobject:
            raise UserError(
                f"{place}: array {name!r} holds Python objects, expected numbers; they would have to be unpickled",
                "save images of one size as one uint8 array, or as files in a folder",
            )
        if declared > member.file_size or declared > free // 2:
            raise UserError(
                f"{place}: array {name!r} declares {declared:,} bytes; it has {member.file_size:,}, and {free:,} are free",
                "save fewer or smaller images, or save them as files in a folder",
            )
        with archive.open(member) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


def _parquet(path: Path, labelled: bool, image: str | None, label: str | None) -> _Found:
    from pyarrow import parquet

    if path.is_file() and (start := _start(path, 16))[:4] != b"PAR1":
        raise UserError(
            f"{path.name}: it starts with {start!r}, expected a folder of images, an .npz or a Parquet file",
            "put the images into FOLDER/CLASS/IMAGE and name the folder",
        )
    source = read(path)
    try:  # what Hugging Face datasets says of its columns
        about = json.loads((parquet.read_schema(path).metadata or {})[b"huggingface"])["info"]["features"]
        features = {name: each for name, each in about.items() if isinstance(each, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        features = {}
    declared = [name for name, each in features.items() if each.get("_type") == "Image"]
    chosen = _chosen(path.name, source.columns, labelled, image or next(iter(declared), None), label)
    values = {key: [row.values.get(name) for row in source.rows] for key, name in chosen.items()}
    # Only a path: the file did not come along.
    values["image"] = [None if isinstance(each, str) else each for each in values["image"]]
    rows = _rows(values, path.name, f"{path.name} record ")
    named = features.get(chosen.get("label", ""), {}).get("names")
    classes = named if isinstance(named, list) and all(isinstance(each, str) for each in named) else ()
    return _Found(path.name, f"Parquet, column {chosen['image']!r}", rows, source.sha256, classes=classes)


def _python(data: Any, labelled: bool, image: str | None, label: str | None) -> _Found:
    kind = "columns"
    if hasattr(data, "dtype"):
        data = {"image": data}
    elif isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], Mapping):
        data = dict(zip(("image", "label"), data, strict=True))
    names = list(data) if isinstance(data, Mapping) else getattr(data, "column_names", getattr(data, "columns", None))
    if names is None and isinstance(data, Iterable) and not isinstance(data, bytes):
        records, kind = list(data), "list of rows"
        if odd := [type(each).__name__ for each in records if not isinstance(each, Mapping)]:
            raise UserError(f"data: found a row that is a {odd[0]}", 'write each row as {"image": …, "label": …}')
        names = list(dict.fromkeys(itertools.chain.from_iterable(records)))
        data = {name: [each.get(name) for each in records] for name in names}
    if names is None:
        raise UserError(
            f"data: found {type(data).__name__}, expected a path, arrays, a list of dicts or a DataFrame",
            'such as data="pictures/" or data={"images": array, "labels": array}',
        )
    chosen = _chosen("Python", names, labelled, image, label)
    values = {key: data[name] for key, name in chosen.items()}
    rows = _rows(values, "data", "row ")
    return _Found("Python", f"{kind} {_taken(values['image'], rows)}".strip(), rows)


def _chosen(name: str, names: Iterable[Any], labelled: bool, image: str | None, label: str | None) -> dict[str, str]:
    """The columns by what they hold."""
    source = Source(name, "", (Row(0, {each: None for each in names if isinstance(each, str)}),), (), 0, "")
    chosen = {"image": column(source, image, IMAGES, "image")}
    return chosen | ({"label": column(source, label, LABELS, "label")} if labelled else {})


def _rows(values: Mapping[str, Any], name: str, where: str) -> list[Row]:
    """Rows of columns: lists of anything, or one array of images."""
    columns: dict[str, list[Any]] = {}
    for key, each in values.items():
        if isinstance(each, (str, bytes)) or not isinstance(each, Iterable):
            raise UserError(f"{name}: {key} is {type(each).__name__}, expected one value a row", "wrap it in a list")
        if key == "image" and getattr(each, "ndim", 0) >= 3:
            each = as_pixels(np.asarray(each), name, 1)
        columns[key] = each.to_pylist() if hasattr(each, "to_pylist") else list(each)
    if len(set(map(len, columns.values()))) > 1:
        counts = " and ".join(f"{len(each)} {key}s" for key, each in columns.items())
        raise UserError(f"{name}: found {counts}", "give one label for each image")
    rows: list[Row] = []
    for number, each in enumerate(zip(*columns.values(), strict=True), 1):
        row = dict(zip(columns, each, strict=True))
        if isinstance(row["image"], Mapping):  # {"bytes", "path"} of Hugging Face datasets
            row["image"] = row["image"].get("bytes")
        path = isinstance(row["image"], (str, os.PathLike))
        rows.append(FileRow(number, row, f"{where}{number} ({row['image']})") if path else Row(number, row, where))
    return rows


def _taken(array: Any, rows: Sequence[Row]) -> str:
    """What an array of images is taken for, to be said aloud."""
    if getattr(array, "ndim", 0) < 3 or not rows:
        return ""
    return f"{array.dtype} {list(array.shape)} taken as images {list(rows[0].values['image'].shape)} of 0 to 255"


def _label(value: Any, place: str, classes: Sequence[str]) -> str | int:
    """Text or a whole number. classes: what whole numbers stand for (-1: no label)."""
    value = plain(value)
    if isinstance(value, list) and len(value) == 1:  # of an array [n, 1]
        value = value[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if classes and isinstance(value, int):
        value = classes[value] if 0 <= value < len(classes) else None
    if isinstance(value, int) or (isinstance(value, str) and value.strip()):
        return value.strip() if isinstance(value, str) else value
    raise UserError(f"{place}: found the label {str(value)[:40]!r}, expected text or a whole number", SKIP)


# ------------------------------------------------------------------------------------------------------------- decoding


def as_pixels(array: np.ndarray, place: str, batch: int = 0) -> np.ndarray:
    """An array of one image, or of several (`batch=1`) -> uint8 [(n,) h, w] or [(n,) h, w, c] with c of 3 or 4.

    uint16 is scaled from 0..65535, floats from 0..1, bool is black and white; other whole numbers must be in 0..255.
    """
    shape = array.shape[batch:]
    if len(shape) == 3 and shape[-1] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        array = np.moveaxis(array, -3, -1)
    if len(shape) not in (2, 3) or 0 in array.shape or (len(shape) == 3 and array.shape[-1] not in (1, 3, 4)):
        raise UserError(
            f"{place}: found an array {list(array.shape)}, expected images [h, w], [h, w, c] or [c, h, w] with 1, 3 or 4 channels",
            "reshape it, such as images.reshape(-1, 28, 28)",
        )
    if len(shape) == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if (kind, array.dtype.itemsize) == ("u", 2):
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind not in "iuf":
        raise UserError(f"{place}: found {array.dtype} values, expected uint8", "convert the pixels to uint8 in 0..255")
    low, high, most = array.min(), array.max(), 1 if kind == "f" else 255
    if not (low >= 0 and high <= most):  # NaN fails too
        found = "NaN" if np.isnan(low) else f"values from {low:g} to {high:g}"
        raise UserError(
            f"{place}: found {array.dtype} pixels with {found}, expected 0..{most}",
            "scale them, such as ((x - x.min()) / (x.max() - x.min()) * 255).astype('uint8')",
        )
    return np.rint(array * 255).astype(np.uint8) if kind == "f" else array.astype(np.uint8)


@contextmanager
def _opened(value: Any, place: str) -> Iterator[PIL.Image.Image]:
    """An image whose header is read and judged, its pixels not yet. Any trouble in the body is the image's as well."""
    from PIL import Image, UnidentifiedImageError

    with _blamed(place), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a decoder's remarks on one file of thousands
        try:
            if value is None:
                raise UserError(f"{place}: there is no image, expected the bytes of an image file", SKIP)
            if isinstance(value, (bytes, bytearray)):
                value = io.BytesIO(value)
            if isinstance(value, Image.Image):
                image = value
            elif isinstance(value, (str, os.PathLike, io.BytesIO)):
                if not isinstance(value, io.BytesIO) and not Path(value).is_file():
                    there = "no regular file" if Path(value).exists() else "there is no such file"
                    raise UserError(f"{place}: {there}", "name an image file")
                image = Image.open(value, formats=FORMATS)
            else:
                image = Image.fromarray(as_pixels(np.asarray(value), place))
        except UnidentifiedImageError:
            start = value.getvalue()[:16] if isinstance(value, io.BytesIO) else _start(Path(value), 16)
            raise UserError(
                f"{place}: not an image: it starts with {start!r}, expected {', '.join(FORMATS)}",
                "convert or remove it, or set bad_rows=skip to leave such files out and count them",
            ) from None
        except Image.DecompressionBombError as error:  # so large that Pillow does not even open it
            raise _too_large(place, int((re.findall(r"\d+", str(error)) or [0])[0])) from None
        try:
            if not all(image.size):
                raise UserError(f"{place}: an image of {image.width} x {image.height} pixels", "remove it")
            if math.prod(image.size) > MAX_PIXELS:
                raise _too_large(place, math.prod(image.size))
            yield image
        finally:
            if image is not value:
                image.close()


def _too_large(place: str, pixels: int) -> UserError:
    return UserError(
        f"{place}: {pixels:,} pixels, expected at most {MAX_PIXELS:,}; decoding it could exhaust the memory",
        "shrink it first, such as: magick FILE -resize 2000x2000 FILE",
    )


def decode(value: Any, place: str) -> PIL.Image.Image:
    """A path, bytes, PIL image or array -> an upright image in mode L or RGB; of several frames the first.

    Transparent parts are put on white, 16 bits scaled to 8, and palettes and CMYK converted to RGB.
    Raises UserError naming `place` for what is no image, is damaged, or has more than MAX_PIXELS.
    """
    from PIL import Image, ImageOps

    with _opened(value, place) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode[0] in "IF":  # more than 8 bits; Pillow's own conversion clips
            return Image.fromarray(as_pixels(np.asarray(image), place))
        gray = image.mode in GRAY
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        return image.convert("L" if gray else "RGB")


# --------------------------------------------------------------------------------------------------------------- survey


@dataclass(frozen=True)
class Survey:
    """What the headers of all images say. sizes: (width, height) as they stand upright -> images; modes: Pillow's -> images."""

    images: int
    gray: int
    transparent: int
    modes: Counter[str]
    sizes: Counter[tuple[int, int]]

    @property
    def notes(self) -> tuple[str, ...]:
        """What decoding changes in how many images, to be said aloud."""
        counted = {
            "gray among colour": self.gray if self.gray < self.images else 0,
            "transparent: put on white": self.transparent,
            "of more than 8 bits: scaled to 8": sum(n for mode, n in self.modes.items() if mode[0] in "IF"),
            "CMYK: converted to RGB": self.modes["CMYK"],
        }
        return tuple(f"{count:,} of {self.images:,} images are {what}" for what, count in counted.items() if count)


def survey(source: Source) -> Survey:
    """Look at the header of every image; no pixel is decoded."""
    modes, sizes = Counter[str](), Counter[tuple[int, int]]()
    transparent = 0
    for row in source.rows:
        with _opened(row.values["image"], row.place) as image:
            width, height = image.size
            # Pillow gives a TIFF's size upright. A PNG may say behind its pixels how it is turned; they are not read for that.
            told = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
            if told and image.getexif().get(0x0112, 1) >= 5:
                width, height = height, width
            modes[image.mode] += 1
            sizes[width, height] += 1
            transparent += image.has_transparency_data
    gray = sum(count for mode, count in modes.items() if mode in GRAY)
    return Survey(len(source.rows), gray, transparent, modes, sizes)
