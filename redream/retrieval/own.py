"""One's own GLBs: a folder of them as records, and a library that grows file by file."""

import re
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from redream.files import read_json, replacing, sha256, writing_to
from redream.retrieval import sources
from redream.retrieval.build import BuildError
from redream.retrieval.parts import Job, PartMaker, pack, unpack
from redream.retrieval.records import BuildProgress, Clock, Records
from redream.retrieval.writer import Part, write
from redream.scene.assets import AssetError
from redream.scene.glb import GlbError
from redream.scene.glb_reader import GlbReader

COLUMNS = ("uid", "author", "license", "source", "file", "path", "sha256")
SCHEMA = pa.schema([*((name, pa.string()) for name in COLUMNS), ("captions", pa.list_(pa.string()))])
ADVICE = "mend that, or choose another folder for the library"  # after why it takes no file
UID_DIGITS = 32  # of the SHA-256: the same file has the same uid everywhere


@dataclass(frozen=True)
class Folder:
    """The GLBs in a folder and below."""

    folder: Path
    captions: Path | None = None  # CSV without a header: a file's name in the folder, then its captions
    author: str = ""
    license: str = ""

    def read(self) -> Generator[BuildProgress, None, Records]:
        """Hash the files; returns their records. A file without captions takes its name. Raises `BuildError`, `SourceError`."""
        if not self.folder.is_dir():
            raise BuildError(f"There is no folder {self.folder.name}; check the path.")
        captions = {line[0]: line[1:] for line in sources.csv_lines(self.captions) if line} if self.captions else {}
        files = sorted(path for path in self.folder.rglob("*.glb") if path.is_file())
        if unknown := set(captions) - {path.relative_to(self.folder).as_posix() for path in files}:
            raise BuildError(
                f"{len(unknown)} captions are of files that are not there, like {min(unknown)}; mend the list."
            )
        rows, clock = {}, Clock()
        for number, path in enumerate(files):
            yield clock.progress("reading", float(number), len(files))
            name = path.relative_to(self.folder).as_posix()
            row = _record(path, name, captions.get(name, []), self.author, self.license)
            rows.setdefault(row["uid"], row)
        twice = len(files) - len(rows)
        table = pa.Table.from_pylist([rows[uid] for uid in sorted(rows)], SCHEMA)
        return Records(table, {"the same file twice": twice} if twice else {})


def add(
    files: Sequence[Path],
    captions: Sequence[str],
    library: Path,
    job: Job,
    *,
    embedding: Mapping[str, str],
    author: str = "",
    license: str = "",
) -> int:
    """Copy GLBs into a library, embed them by captions and renders, and write its index anew; returns how many it then has.

    The captions count for each of the files; without any a file takes its name. A file that is in the library already takes
    the new caption, author and licence. Raises `BuildError` and `FolderError`; if a file cannot be used, nothing is changed.
    """
    with GlbReader() as reader:
        for path in files:
            if not path.is_file():
                raise BuildError(f"There is no file {path.name}; check the path.")
            try:
                reader.load(path)
            except (GlbError, AssetError) as error:
                raise BuildError(f"{path.name} cannot be used: {error}") from error
    with writing_to(library, ADVICE):
        (library / "assets").mkdir(parents=True, exist_ok=True)
    with writing_to(library, ADVICE), FileLock(library / ".lock"):
        kept = library / "own.parquet"  # what is embedded: an index may keep it in fewer bits
        _check_library(library, kept, embedding)
        rows = {}
        for path in files:
            row = _record(path, "", captions, author, license)
            rows[row["uid"]] = row | {"file": f"{row['uid']}.glb"}
            with replacing(library / "assets" / rows[row["uid"]]["file"]) as copy:
                shutil.copyfile(path, copy)
        with closing(PartMaker(replace(job, pictures="renders", root=library / "assets"))) as maker:
            content = maker.made(pa.Table.from_pylist([rows[uid] for uid in sorted(rows)], SCHEMA))
        with replacing(kept) as path:
            path.write_bytes(content)
            part = _merged(unpack(kept)[0], unpack(path)[0]) if kept.exists() else unpack(path)[0]
            path.write_bytes(pack(part, {}))
        write(lambda: [part], library, embedding=embedding, root="assets")
    return len(part.table)


def _check_library(library: Path, kept: Path, embedding: Mapping[str, str]) -> None:
    """Raises `BuildError` if files cannot be added to what is in the folder."""
    there = read_json(library / "index.json")
    if there is None:
        return
    if not kept.exists():
        raise BuildError(f"The index in {library.name} was not made file by file; choose another folder to add to.")
    if there["embedding"]["sha256"] != embedding["sha256"]:
        name = there["embedding"]["name"]
        raise BuildError(f"This library was made with another CLIP ({name}); choose another folder for this one.")


def _record(path: Path, name: str, captions: Sequence[str], author: str, license: str) -> dict:
    texts = [text for text in map(sources.clean, captions) if text] or [_name_in_words(path)]
    checksum = sha256(path)
    known = {"author": sources.clean(author), "license": sources.clean(license), "source": path.name, "path": ""}
    return known | {"uid": checksum[:UID_DIGITS], "file": name, "sha256": checksum, "captions": texts}


def _name_in_words(path: Path) -> str:
    """red_owl-2.glb as "red owl 2"."""
    return sources.clean(re.sub(r"[_\W]+", " ", path.stem)) or "object"


def _merged(old: Part, new: Part) -> Part:
    """Both parts' assets, sorted by uid; of those in both the new ones."""
    table = pa.concat_tables([old.table, new.table])
    is_old = np.arange(len(table)) < len(old.table)
    replaced = pc.is_in(table["uid"], value_set=new.table["uid"].combine_chunks()).to_numpy() & is_old
    order = pc.sort_indices(table["uid"]).to_numpy()
    order = order[~replaced[order]]  # (n,)
    rows = np.concatenate([old.rows, new.rows + len(old.table)])
    texts = np.concatenate([old.texts, new.texts])
    captions = [np.flatnonzero(rows == place) for place in order]
    return Part(
        table.take(order).combine_chunks(),
        texts[np.concatenate(captions)],
        np.repeat(np.arange(len(order)), [len(found) for found in captions]),
        np.concatenate([old.images, new.images])[order],
    )
