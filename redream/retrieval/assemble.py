"""Build a large index in steps that resume: read the sources, make the parts, write the index of them.

    OUT/parts/records.parquet  every asset, sorted by uid, a row group a part
    OUT/parts/plan.json        what was asked for, what was left out, and where all came from; written after the records
    OUT/parts/00000.parquet    a part that is made (`redream.retrieval.parts`)

A build that was interrupted goes on from what is there. Several machines make every Nth part each (`Shard`), and
`merge` writes the index of all of them. The folder of parts is removed once there is an index.
"""

import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from redream.files import read_json, remove_leftovers, replacing, require_writable, sha256, write_json, writing_to
from redream.retrieval import workers
from redream.retrieval.build import BuildError
from redream.retrieval.index_files import file_names
from redream.retrieval.objaverse import Objaverse
from redream.retrieval.own import Folder
from redream.retrieval.parts import Job, Part, unpack
from redream.retrieval.records import BuildProgress, Clock, Records
from redream.retrieval.sources import image_embeddings
from redream.retrieval.workers import PartUpdate, Task
from redream.retrieval.writer import write

PART_ASSETS = 4096
PARTS = "parts"
POLL_SECONDS = 0.5
ADVICE = "mend that, or choose another folder; a build goes on where it was"  # after why its folder takes no file


@dataclass(frozen=True)
class Shard:
    """The parts that one of several machines makes: number 1 of 3 the first, fourth, …"""

    number: int = 1
    count: int = 1


@dataclass(frozen=True)
class Report:
    """What a build came to."""

    assets: int
    captions: int
    pictured: int  # assets with an image embedding
    left_out: Mapping[str, int]  # assets by the first reason that applied
    missing: int = 0  # parts that other machines make: there is no index yet


@dataclass(frozen=True)
class Work:
    """A folder of parts."""

    folder: Path
    plan: Mapping

    @staticmethod
    def open(folder: Path) -> "Work | None":
        """The parts in a folder, None if there are none yet."""
        plan = read_json(folder / "plan.json")
        return None if plan is None else Work(folder, plan)

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"{number:05d}.parquet"

    def has(self, number: int) -> bool:
        """Whether a part is made, and its file whole: after a power failure it may be empty."""
        try:
            return pq.read_metadata(self.part(number)).num_rows >= 0
        except (OSError, pa.ArrowException):
            return False

    def has_records(self) -> bool:
        """Whether the records are those of the plan: after a power failure their file may be damaged."""
        try:
            return sha256(self.folder / "records.parquet") == self.plan["records"]
        except OSError:
            return False

    def records(self, number: int) -> pa.Table:
        """The records of a part."""
        with pq.ParquetFile(self.folder / "records.parquet") as file:
            return file.read_row_group(number)

    @property
    def parts(self) -> range:
        return range(-(-self.plan["assets"] // self.plan["request"]["part_assets"]))


def build(
    source: Objaverse | Folder,
    out: Path,
    job: Job,
    *,
    embedding: Mapping[str, str],
    images: Path | None = None,
    processes: int = 1,
    address: str | None = None,
    shard: Shard = Shard(),
    part_assets: int = PART_ASSETS,
) -> Generator[BuildProgress, None, Report]:
    """Build an index of a source in the folder `out`, or go on with it; yields its progress, and may be closed in between.

    `images` is a file of image embeddings that there are already (`image_embeddings`). `embedding` is name and SHA-256 of the
    CLIP that `job` loads. Parts are made in so many `processes`, or on the Ray cluster at an `address`. Of several shards,
    each makes its parts only; `merge` does the rest.

    Raises `BuildError`, `FolderError`, `SourceError`, `HubError` and `ClipError`.
    """
    folder = out / PARTS
    work = Work.open(folder)
    if work is None:
        _require_no_index(out)
    if images and not images.is_file():
        raise BuildError(f"There is no file {images.name}; check the path.")
    request = {
        "source": {"kind": type(source).__name__, **asdict(source)},
        "pictures": job.pictures,
        "images": sha256(images) if images else None,
        "embedding": dict(embedding),
        "part_assets": part_assets,
    }
    request = json.loads(json.dumps(request, default=str))
    if work is not None and work.plan["request"] != request:
        raise BuildError(
            f"The folder {PARTS} in {out.name} is of a build with other options. Remove it, or choose another folder."
        )
    _require_writable(out)  # before what takes long
    if work is None or not work.has_records():
        work = yield from _prepare(source, folder, request)
    job = replace(job, repository=work.plan["repository"])
    yield from _make_parts(work, job, images, shard, processes, address)
    try:
        with FileLock(folder / ".lock", timeout=0):  # two shards in one folder may end together
            if not (folder / "plan.json").exists():
                raise Timeout(folder)
            report = _report([work])
            if missing := sum(not work.has(number) for number in work.parts):
                return replace(report, missing=missing)
            yield from _write([work], report, out)
            (folder / "plan.json").unlink()  # first: without it what is left of the folder counts for nothing
    except Timeout as error:
        raise BuildError(
            f"Another program writes the index in {out.name}; there is nothing left to do here."
        ) from error
    shutil.rmtree(folder)
    return report


def merge(folders: Sequence[Path], out: Path) -> Generator[BuildProgress, None, Report]:
    """Write the index of the parts in several builds' folders, whose sources must have been the same.

    Raises `BuildError` and `FolderError`.
    """
    _require_no_index(out)
    found = [Work.open(folder / PARTS) for folder in folders]
    if None in found:
        raise BuildError(f"There are no parts in {folders[found.index(None)].name}; build them first.")
    for work in found[1:]:
        if work.plan != found[0].plan:
            raise BuildError(f"The parts in {work.folder.parent.name} are of another build; build them again.")
    lacking = [n for n in found[0].parts if not any(work.has(n) for work in found)]
    if lacking:
        raise BuildError(f"{len(lacking)} of {len(found[0].parts)} parts are not made yet, the first is {lacking[0]}.")
    _require_writable(out)
    report = _report(found)
    yield from _write(found, report, out)
    return report


def relative_root(assets: Path, out: Path) -> str:
    """The folder of assets as seen from the index. Raises `BuildError` if it is neither in the index's folder nor beside."""
    root = os.path.relpath(assets.resolve(), out.resolve()).replace(os.sep, "/")
    if root.removeprefix("../").startswith(".."):
        raise BuildError("The assets must be in the index's folder or beside it; choose another folder for the index.")
    return root


def _require_no_index(out: Path) -> None:
    """Raises `BuildError` if there is an index in the folder."""
    if (out / "index.json").exists():
        raise BuildError(
            f"There is an index in {out.name} already. Remove its index.json to build it anew, or choose another folder."
        )


def _require_writable(out: Path) -> None:
    """Raises `FolderError` if the folder, or the one that it will be made in, takes no file."""
    place = next(folder for folder in (out, *out.parents) if os.path.exists(folder))
    require_writable(place, ADVICE)


def _prepare(source: Objaverse | Folder, folder: Path, request: dict) -> Generator[BuildProgress, None, Work]:
    """Read the sources; write the records, and then the plan. Parts that are there stay if they were made by the same plan."""
    records: Records = yield from source.read()
    if not len(records.table):
        reasons = ", ".join(f"{count} {name}" for name, count in records.left_out.items())
        if not reasons:
            raise BuildError("There is no asset for the index, such as a .glb in the folder; check the path.")
        raise BuildError(f"No asset is left for the index ({reasons}); relax some of the filters.")
    with writing_to(folder, ADVICE):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "records.parquet") as path:
            pq.write_table(records.table, path, row_group_size=request["part_assets"])
        plan = {
            "request": request,
            "assets": len(records.table),
            "left_out": dict(records.left_out),
            "repository": records.repository,
            "commits": dict(records.commits),
            "records": sha256(folder / "records.parquet"),
        }
        if read_json(folder / "plan.json") != plan:
            for part in folder.glob("[0-9]*.parquet"):
                part.unlink()
        write_json(folder / "plan.json", plan)
    del records
    pa.default_memory_pool().release_unused()  # before a CLIP takes its place
    return Work(folder, plan)


def _make_parts(
    work: Work, job: Job, images: Path | None, shard: Shard, processes: int, address: str | None
) -> Generator[BuildProgress, None, None]:
    """Make the shard's parts that are not there yet."""
    numbers = [n for n in work.parts if n % shard.count == shard.number - 1]
    lacking = [n for n in numbers if not work.has(n)]
    if not lacking:
        return
    per_part, assets = work.plan["request"]["part_assets"], work.plan["assets"]
    sizes = {n: min(per_part, assets - n * per_part) for n in numbers}
    total, before = sum(sizes.values()), float(sum(sizes[n] for n in numbers if n not in lacking))
    done, clock = before, Clock()
    yield clock.progress("embedding", done, total, before)
    with closing(_made(job, _tasks(work, lacking, images), processes, address)) as updates:
        for update in updates:
            partly = 0.0
            if update.content is not None:
                with writing_to(work.folder, ADVICE), replacing(work.part(update.number)) as path:
                    path.write_bytes(update.content)
                done += sizes[update.number]
            elif update.number is not None:
                partly = update.fraction * sizes[update.number]
            yield clock.progress("embedding", done + partly, total, before)


def _made(job: Job, tasks: Iterator[Task], processes: int, address: str | None) -> Iterator[PartUpdate]:
    if address is not None:
        return workers.make_on_ray(job, tasks, address)
    return workers.make_here(job, tasks) if processes == 1 else workers.make_in_processes(job, tasks, processes)


def _tasks(work: Work, numbers: Sequence[int], images: Path | None) -> Iterator[Task]:
    """The parts' records, each with the image embeddings that there are of its assets."""
    embedded = image_embeddings(images) if images else None
    for number in numbers:
        records, known = work.records(number), None
        if embedded is not None:
            known = embedded.filter(pc.is_in(embedded["uid"], value_set=records["uid"].combine_chunks()))
        yield number, records, known


def _write(works: Sequence[Work], report: Report, out: Path) -> Generator[BuildProgress, None, None]:
    """Write the index of parts, each of which is in one of the folders. The writer runs in a thread of its own."""
    plan, read, stopped = works[0].plan, Counter(), threading.Event()
    if not report.assets:
        raise BuildError(
            f"No asset of {out.name} can be used ({', '.join(report.left_out)}); there is no index to write."
        )

    def parts() -> Iterator[Part]:
        for path in _files(works):
            if stopped.is_set():
                raise BuildError("The index was not written to its end; the same command goes on from there.")
            part, _ = unpack(path)
            read["parts"] += 1
            if len(part.table):
                yield part

    source = plan["request"]["source"]
    root = relative_root(Path(source["folder"]), out) if "folder" in source else "."
    for name in {"index.json"} | file_names("codes") | file_names("exact"):
        remove_leftovers(out / name)  # of a write that was killed
    total, clock = 2 * len(works[0].parts), Clock()  # they are read twice
    origin = {"repository": plan["repository"], "sources": plan["commits"]}
    with writing_to(out, ADVICE), ThreadPoolExecutor(1) as thread:
        future = thread.submit(write, parts, out, embedding=plan["request"]["embedding"], root=root, **origin)
        try:
            while not wait([future], POLL_SECONDS).done:
                yield clock.progress("writing", float(read["parts"]), total)
        finally:
            stopped.set()
        future.result()


def _files(works: Sequence[Work]) -> Iterator[Path]:
    """The parts' files that are there, in their order."""
    for number in works[0].parts:
        yield from [work.part(number) for work in works if work.has(number)][:1]


def _report(works: Sequence[Work]) -> Report:
    left_out, assets, captions, pictured = Counter(works[0].plan["left_out"]), 0, 0, 0
    for path in _files(works):
        part, reasons = unpack(path)
        left_out.update(reasons)
        assets, captions = assets + len(part.table), captions + len(part.rows)
        pictured += int(part.images.any(axis=1).sum())
    return Report(assets, captions, pictured, dict(left_out))
