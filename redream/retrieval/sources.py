"""Readers of published files about 3D assets, each into a table by uid.

They are strangers' files: their size is looked at before they are parsed, fields of a wrong type are taken as absent, and
lines that name no asset of Objaverse 1.0 are skipped. Only as much of a file is in memory at once as the reader says.
"""

import csv
import gzip
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from redream.errors import RedreamError

UID = re.compile(r"[0-9a-f]{32}")  # of Objaverse 1.0; Objaverse-XL has SHA-256
SHA256 = re.compile(r"[0-9a-f]{64}")
SIZE_LIMIT = 2_000_000_000  # bytes of a file that is read bit by bit
JSON_LIMIT = 500_000_000  # bytes of JSON that is parsed at once, unpacked
CAPTION_LIMIT = 500  # characters: more than CLIP reads
THUMBNAIL_WIDTH = 256  # pixels: of the smallest thumbnail that is large enough for CLIP
BLOCK = 2**20  # characters of a JSON list that are read at once
ITEM_LIMIT = 2**20  # characters of one of its items
ROWS = 50_000  # that are Python objects at once

METADATA = pa.schema(
    [
        ("uid", pa.string()),
        ("name", pa.string()),
        ("author", pa.string()),
        ("license", pa.string()),  # as Sketchfab names it: by, by-sa, …
        ("source", pa.string()),
        ("restricted", pa.bool_()),  # to adults
        ("faces", pa.int64()),
        ("size", pa.int64()),  # bytes of the GLB
        ("thumbnail", pa.string()),
    ]
)
QUALITY = pa.schema(
    [
        ("uid", pa.string()),
        ("score", pa.int8()),
        *((flag, pa.bool_()) for flag in ("scene", "multi_object", "transparent")),
    ]
)
CAPTIONS = pa.schema([("uid", pa.string()), ("caption", pa.string())])


class SourceError(RedreamError):
    """A file that is not what it should be; the message names it."""


def texts_by_uid(path: Path, column: str) -> pa.Table:
    """A gzipped JSON object {uid: text}: Objaverse's object-paths.json.gz, Cap3D's cap3d_captions.json.gz. All of it is in
    memory once: 0.4 GB for 800,000 assets. Raises `SourceError`."""
    values = _object(path)
    rows = ((uid, clean(text)) for uid, text in values.items() if UID.fullmatch(uid) and isinstance(text, str))
    return _table(rows, pa.schema([("uid", pa.string()), (column, pa.string())]))


def metadata(path: Path) -> pa.Table:
    """One of Objaverse's metadata/000-NNN.json.gz, {uid: record}, as `METADATA`. All of it is in memory once: it describes
    5,000 assets. Raises `SourceError`."""
    return _table((_metadata_row(uid, r) for uid, r in _object(path).items() if UID.fullmatch(uid)), METADATA)


def captions(path: Path) -> pa.Table:
    """Captions by uid, from Cap3D's CSV without a header or its gzipped JSON. Raises `SourceError`."""
    if path.name.endswith(".json.gz"):
        return texts_by_uid(path, "caption")
    lines = ((line[0], clean(line[1])) for line in csv_lines(path) if len(line) > 1 and UID.fullmatch(line[0]))
    return _table((line for line in lines if line[1]), CAPTIONS)


def csv_lines(path: Path) -> Iterator[list[str]]:
    """The lines of a CSV file, one by one. Raises `SourceError`."""
    _check_size(path, SIZE_LIMIT)
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            yield from csv.reader(file)
    except csv.Error as error:
        raise SourceError(f"The file {path.name} is not CSV: {error}.") from error


def quality(path: Path) -> pa.Table:
    """Objaverse++'s annotated_800k.json, a list of objects whose flags are texts, as `QUALITY`. It is read bit by bit.

    Raises `SourceError`.
    """
    return _table((_quality_row(item) for item in json_items(path) if UID.fullmatch(str(item.get("UID")))), QUALITY)


def hashes(path: Path) -> pa.Table:
    """uid and SHA-256 of every GLB, from Objaverse-XL's objaverse_v1/object-metadata.parquet, where the uid ends the
    `fileIdentifier`. Raises `SourceError`."""
    _check_size(path, SIZE_LIMIT)
    try:
        table = pq.read_table(path, columns=["fileIdentifier", "sha256"])
        uid = pc.struct_field(pc.extract_regex(table["fileIdentifier"], r"(?P<uid>[0-9a-f]{32})/?$"), "uid")
        table = pa.table({"uid": uid, "sha256": table["sha256"]})
        return table.filter(pc.and_(pc.is_valid(uid), pc.match_substring_regex(table["sha256"], f"^{SHA256.pattern}$")))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise SourceError(f"The file {path.name} is not a Parquet table of fileIdentifier and sha256.") from error


def image_embeddings(path: Path) -> pa.Table:
    """uid and image (half-precision unit vectors of one length), as `python -m assets_index.convert_objathor` writes them.

    Raises `SourceError`.
    """
    _check_size(path, SIZE_LIMIT)
    try:
        with pq.ParquetFile(path) as file:
            groups, columns = [[n] for n in range(file.num_row_groups)] or [[]], ["uid", "image"]
            table = pa.concat_tables([file.read_row_groups(group, columns).select(columns) for group in groups])
        pa.default_memory_pool().release_unused()  # as much again as the vectors, by the reader
    except (pa.ArrowException, OSError, KeyError) as error:
        raise SourceError(f"The file {path.name} is not a Parquet table of uid and image; convert it again.") from error
    kind = table.schema.field("image").type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float16():
        raise SourceError(f"The images of {path.name} are not half-precision vectors; convert it again.")
    if table.schema.field("uid").type != pa.string() or any(column.null_count for column in table.columns):
        raise SourceError(f"An asset of {path.name} has no uid or no image; convert it again.")
    return table


def json_items(path: Path) -> Iterator[dict]:
    """The objects of a JSON list, one by one; in memory is a block of 1 MiB. Raises `SourceError`."""
    _check_size(path, SIZE_LIMIT)
    decoder, space = json.JSONDecoder(), re.compile(r"[\s,]*")
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(BLOCK).lstrip()
        place = 1
        if not text.startswith("["):
            raise SourceError(f"The file {path.name} is not a JSON list; fetch it again.")
        while not text.startswith("]", place := space.match(text, place).end()):
            try:
                item, place = decoder.raw_decode(text, place)
            except (ValueError, RecursionError) as error:  # it may go on in the next block
                block = file.read(BLOCK)
                if not block or len(text) - place > ITEM_LIMIT:
                    raise SourceError(f"The file {path.name} is cut or is not JSON; fetch it again.") from error
                text, place = text[place:] + block, 0
            else:
                if isinstance(item, dict):
                    yield item


def clean(text: str) -> str:
    """A text in one line, without control characters and not too long."""
    text = text[: 2 * CAPTION_LIMIT]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())[:CAPTION_LIMIT]


def _object(path: Path) -> dict:
    """A gzipped JSON object, whose size is looked at while it is unpacked."""
    _check_size(path, JSON_LIMIT)
    try:
        with gzip.open(path) as file:
            content = file.read(JSON_LIMIT + 1)
        values = json.loads(content) if len(content) <= JSON_LIMIT else None
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise SourceError(f"The file {path.name} is not gzipped JSON; fetch it again.") from error
    if values is None:
        raise SourceError(
            f"The file {path.name} is empty, or larger than {JSON_LIMIT / 1e6:,.0f} MB unpacked; it is not read."
        )
    if not isinstance(values, dict):
        raise SourceError(f"The file {path.name} is not a JSON object; fetch it again.")
    return values


def _metadata_row(uid: str, record: object) -> tuple:
    images = _field(record, list, "thumbnails", "images") or []
    sized = sorted((_field(image, int, "width") or 0, _field(image, str, "url") or "") for image in images)
    large = [url for width, url in sized if width >= THUMBNAIL_WIDTH] or [url for _, url in sized[-1:]]
    user = _field(record, str, "user", "displayName") or _field(record, str, "user", "username") or ""
    link = _field(record, str, "viewerUrl") or ""
    return (
        uid,
        _field(record, str, "name") or "",
        user,
        _field(record, str, "license"),
        link if link.startswith("https://") else f"https://sketchfab.com/3d-models/{uid}",
        _field(record, bool, "isAgeRestricted"),
        _field(record, int, "archives", "glb", "faceCount") or _field(record, int, "faceCount"),
        _field(record, int, "archives", "glb", "size"),
        large[0] if large else None,
    )


def _quality_row(item: dict) -> tuple:
    score = item.get("score")
    flags = ({"true": True, "false": False}.get(str(item.get(f"is_{flag}")).lower()) for flag in QUALITY.names[2:])
    return item["UID"], score if type(score) is int and 0 <= score < 128 else None, *flags


def _field(value: object, kind: type, *path: str):
    """What stands at a path of keys, texts cleaned; None if it is not there, not of this kind or a number below 0."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if type(value) is not kind or (kind is int and not 0 <= value < 2**63):
        return None
    return clean(value) if kind is str else value


def _table(rows: Iterable[tuple], schema: pa.Schema) -> pa.Table:
    """A table of rows, of which few are Python objects at once."""
    rows, batches = iter(rows), []
    while chunk := list(itertools.islice(rows, ROWS)):
        columns = (pa.array(column, kind) for column, kind in zip(zip(*chunk), schema.types, strict=True))
        batches.append(pa.record_batch(list(columns), schema))
    return pa.Table.from_batches(batches, schema).combine_chunks()


def _check_size(path: Path, limit: int) -> None:
    if not path.is_file():
        raise SourceError(f"There is no file {path.name}; check the path.")
    if path.stat().st_size > limit:
        raise SourceError(f"The file {path.name} is larger than {limit / 1e6:,.0f} MB; it is not read.")
