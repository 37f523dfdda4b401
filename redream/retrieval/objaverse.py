"""Objaverse 1.0 as records: what its publishers and those of captions and quality say, filtered.

allenai/objaverse         object-paths.json.gz, metadata/000-NNN.json.gz: the GLBs, licences, authors, sizes
allenai/objaverse-xl      objaverse_v1/object-metadata.parquet: the SHA-256 of every GLB
tiange/Cap3D              captions: Cap3D_automated_Objaverse_full.csv, Objaverse_files/cap3d_captions.json.gz
cindyxl/ObjaversePlusPlus annotated_800k.json: a quality score and flags; only fetched where a filter asks for them
"""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from redream.hub import HubFile
from redream.retrieval import sources
from redream.retrieval.build import BuildError
from redream.retrieval.records import BuildProgress, Clock, Mask, Records, attach, leave_out, with_captions
from redream.scene.glb_validation import LIMITS

PATHS = HubFile("allenai/objaverse", "object-paths.json.gz", "main", "dataset")
HASHES = HubFile("allenai/objaverse-xl", "objaverse_v1/object-metadata.parquet", "main", "dataset")
QUALITY = HubFile("cindyxl/ObjaversePlusPlus", "annotated_800k.json", "main", "dataset")
CAPTIONS = {
    "cap3d": HubFile("tiange/Cap3D", "Cap3D_automated_Objaverse_full.csv", "main", "dataset"),
    "cap3d-json": HubFile("tiange/Cap3D", "Objaverse_files/cap3d_captions.json.gz", "main", "dataset"),
}
GLB_PATH = r"^glbs/[0-9]{3}-[0-9]{3}/[0-9a-f]{32}\.glb$"
# Sketchfab's names of its licences, and how an index names them.
LICENSES = {
    "by": "CC-BY-4.0",
    "by-sa": "CC-BY-SA-4.0",
    "by-nc": "CC-BY-NC-4.0",
    "by-nc-sa": "CC-BY-NC-SA-4.0",
    "cc0": "CC0",
}
FLAGS = ("scene", "multi_object", "transparent")
DOWNLOADS = 8  # small files at once
COLUMNS = ["uid", "author", "license", "source", "file", "path", "sha256", "faces", "thumbnail", "captions"]


@dataclass(frozen=True)
class Objaverse:
    """Which assets of Objaverse are taken, and where their captions come from."""

    captions: tuple[str, ...] = ("cap3d",)  # keys of `CAPTIONS`, or files like those; the first has the shown caption
    names: bool = False  # an asset without a caption takes its name
    licenses: tuple[str, ...] = tuple(LICENSES)
    age_restricted: bool = False  # keep what is for adults only
    min_score: int | None = None  # of 0 to 3, Objaverse++'s quality
    without: tuple[str, ...] = ()  # of `FLAGS`
    max_faces: int = LIMITS.faces  # more are refused when an asset is used
    max_size: int = LIMITS.size  # bytes
    limit: int | None = None  # the first so many assets by uid

    def read(self) -> Generator[BuildProgress, None, Records]:
        """Fetch and read the sources and filter; returns the records.

        Raises `BuildError`, `SourceError` and `HubError`.
        """
        commits: dict[str, str] = {}

        def fetched(file: HubFile) -> Path:
            file = file.at_commit()
            commits[file.repository] = file.revision
            return file.cached()

        self._check()
        yield BuildProgress("reading", 0.0, 1)
        paths = sources.texts_by_uid(fetched(PATHS), "path")
        paths = paths.filter(pc.match_substring_regex(paths["path"], GLB_PATH))
        folders = sorted(pc.utf8_slice_codeunits(paths["path"], 5, 12).unique().to_pylist())  # 000-NNN
        filtered = self.min_score is not None or bool(self.without)
        files = len(folders) + 1 + filtered + len(self.captions)
        table = attach((yield from _metadata(folders, commits[PATHS.repository], files)), paths, "path")

        yield BuildProgress("reading", float(len(folders)), files)
        table = attach(table, sources.hashes(fetched(HASHES)), "sha256")
        if filtered:
            yield BuildProgress("reading", float(len(folders) + 1), files)
            table = attach(table, sources.quality(fetched(QUALITY)), *sources.QUALITY.names[1:])
        columns = [f"caption {name}" for name in self.captions]
        for number, (name, column) in enumerate(zip(self.captions, columns, strict=True), files - len(columns)):
            yield BuildProgress("reading", float(number), files)
            captions = sources.captions(fetched(CAPTIONS[name]) if name in CAPTIONS else Path(name))
            table = attach(table, captions.rename_columns(["uid", column]), column)

        table, left_out = leave_out(table, self._reasons(table, columns))
        table = table.sort_by("uid")[: self.limit]
        table = with_captions(table, columns, "name" if self.names else None)
        table = table.append_column("file", pa.repeat("", len(table)))
        licenses = pa.array(map(LICENSES.get, table["license"].to_pylist()), pa.string())
        table = table.set_column(table.schema.get_field_index("license"), "license", licenses)
        repository = {"source": PATHS.repository, "revision": commits[PATHS.repository], "kind": PATHS.kind}
        return Records(table.select(COLUMNS), left_out, repository, commits)

    def _reasons(self, table: pa.Table, captions: list[str]) -> list[tuple[str, Mask]]:
        """Why an asset is left out, in the order that they are counted in."""
        wanted = pa.array([*captions, *(["name"] if self.names else [])])
        uids = table["uid"].combine_chunks()
        reasons = [
            ("no GLB in the data set", pc.is_null(table["path"])),
            ("described twice", pc.not_equal(pc.index_in(uids, value_set=uids), pa.array(range(len(uids))))),
            ("another licence", pc.invert(pc.is_in(table["license"], value_set=pa.array(self.licenses, pa.string())))),
            ("for adults only", pa.repeat(False, len(table)) if self.age_restricted else table["restricted"]),
            (f"more than {self.max_faces:,} faces", pc.greater(table["faces"], self.max_faces)),
            (f"larger than {self.max_size / 1e6:,.0f} MB", pc.greater(table["size"], self.max_size)),
        ]
        if self.min_score is not None:
            reasons.append(("no quality score", pc.is_null(table["score"])))
            reasons.append((f"a quality score below {self.min_score}", pc.less(table["score"], self.min_score)))
        reasons += [(flag.replace("_", " "), table[flag]) for flag in self.without]
        texts = [pc.fill_null(table[name.as_py()], "") for name in wanted]
        return [*reasons, ("no caption", pc.equal(pc.binary_join_element_wise(*texts, ""), ""))]

    def _check(self) -> None:
        """Raises `BuildError` for names that mean nothing."""
        for names, known in ((self.licenses, LICENSES), (self.without, FLAGS)):
            if unknown := set(names) - set(known):
                raise BuildError(f"There is no {', '.join(sorted(unknown))}; choose among {', '.join(known)}.")
        for name in self.captions:
            if name not in CAPTIONS and not Path(name).is_file():
                raise BuildError(f"There are no captions {name}; give a file, or one of {', '.join(CAPTIONS)}.")


def _metadata(folders: list[str], commit: str, total: int) -> Generator[BuildProgress, None, pa.Table]:
    """The records of all folders of GLBs, of whose files some are fetched ahead; they are the first of `total` files."""
    files = [HubFile(PATHS.repository, f"metadata/{folder}.json.gz", commit, PATHS.kind) for folder in folders]
    tables, clock = [], Clock()
    fetch = partial(HubFile.fetch, count=lambda *_: None)  # without huggingface_hub's bars, one a file
    pool = ThreadPoolExecutor(DOWNLOADS)
    try:
        for number, path in enumerate(pool.map(fetch, files)):
            yield clock.progress("reading", float(number), total)
            tables.append(sources.metadata(path))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C waits for no thread that waits for the network
    return pa.concat_tables(tables).combine_chunks()
