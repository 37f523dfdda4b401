"""How an index of Objaverse's size does: PYTHONPATH=. python tests/benchmark/index_at_scale.py FOLDER [--assets N] [--isotropic]
[--killed] [--json FILE]

Vectors are seeded: clusters of sixteen captions whose cosines with a query are .75 to .95, with variances falling as 1/i (or
equal: --isotropic); images share a part of their caption's direction. uids, hashes and captions are as long as Objaverse's and
Cap3D's. The index is built as `index build` does, by `redream.retrieval.assemble`, with a CLIP that has each caption's vector
already; it is opened and asked by `redream.retrieval.index`, and compared with exact search over the same vectors in half
precision. --killed builds it once more, in a process that is killed with half of the parts made and again while it writes the
index, which reads the parts twice, and compares the files.
"""

import argparse
import functools
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from redream.files import sha256
from redream.retrieval import assemble
from redream.retrieval.clip import Clip
from redream.retrieval.index import Index
from redream.retrieval.parts import Job
from redream.retrieval.records import BuildProgress, Records

DIM, CLUSTER, PART, QUERIES = 768, 16, 8192, 500
EMBEDDING = {"name": "seeded", "sha256": "0" * 64}
LICENCES = ["by", "by", "by", "by", "by-nc", "by-sa", "cc0", "by-nc-sa"]
WORDS = [
    "a",
    "small",
    "red",
    "wooden",
    "white",
    "chair",
    "with",
    "metal",
    "legs",
    "house",
    "car",
    "3D",
    "model",
    "of",
    "blue",
]


REPOSITORY = {"source": "allenai/objaverse", "revision": "0" * 40, "kind": "dataset"}


class QueryClip(Clip):
    """The prompt "n" is the n-th query."""

    sha256 = EMBEDDING["sha256"]

    def __init__(self, queries: np.ndarray) -> None:
        self.queries = queries

    def embed_texts(self, prompts):
        return torch.from_numpy(self.queries[[int(prompt) for prompt in prompts]])


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def vectors(start: int, isotropic: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Captions (PART, d), images (PART, d), and a query for each cluster (PART / 16, d), of the part that starts there."""
    generator = np.random.default_rng(start)
    scale = np.ones(DIM) if isotropic else np.arange(1, DIM + 1) ** -0.5

    def random(*shape: int) -> np.ndarray:
        return unit(generator.standard_normal((*shape, DIM), np.float32) * scale.astype(np.float32))

    centres = random(PART // CLUSTER, 1)
    cosines = generator.uniform(0.75, 0.95, (PART // CLUSTER, CLUSTER + 1, 1)).astype(np.float32) ** 0.5
    noise = random(PART // CLUSTER, CLUSTER + 1)
    noise = unit(noise - (noise * centres).sum(-1, keepdims=True) * centres)
    members = cosines * centres + np.sqrt(1 - cosines**2) * noise
    texts = members[:, :CLUSTER].reshape(PART, DIM)
    images = unit(0.3 * texts + 0.95 * random(PART))  # cosines of caption and image about .3, as CLIP's
    return texts.astype(np.float16), images.astype(np.float16), members[:, CLUSTER]


class CaptionClip(Clip):
    """A caption that ends in "n" has the n-th vector; any other text has the first, as only their dimension is wanted."""

    device, size = torch.device("cpu"), 224

    def __init__(self, isotropic: bool) -> None:
        self.vectors = functools.lru_cache(2)(functools.partial(vectors, isotropic=isotropic))

    def embed_texts(self, prompts):
        places = [int(prompt.rpartition(" ")[2]) if prompt[-1].isdigit() else 0 for prompt in prompts]
        rows = [self.vectors(place - place % PART)[0][place % PART] for place in places]
        return torch.from_numpy(np.stack(rows).astype(np.float32))


@dataclass(frozen=True)
class Seeded:
    """Records with the entropy of Objaverse's: uids and hashes are random, captions are words."""

    assets: int

    def read(self):
        yield BuildProgress("reading", 0, 1)
        tables = [_records(start, min(PART, self.assets - start)) for start in range(0, self.assets, PART)]
        return Records(pa.concat_tables(tables), {}, REPOSITORY)


def _records(start: int, count: int) -> pa.Table:
    generator = np.random.default_rng(10**6 + start)
    places = range(start, start + count)
    tails, hashes = (generator.bytes(count * size) for size in (12, 32))
    words = generator.integers(0, len(WORDS), (count, 13))
    captions = [[" ".join(WORDS[w] for w in row) + f" {place}"] for place, row in zip(places, words, strict=True)]
    return pa.table(
        {
            "uid": [f"{place:08x}{tails[i * 12 : i * 12 + 12].hex()}" for i, place in enumerate(places)],
            "author": [f"author {n}" for n in generator.integers(0, 100_000, count)],
            "license": [LICENCES[n] for n in generator.integers(0, len(LICENCES), count)],
            "source": [""] * count,
            "file": [""] * count,
            "path": [f"glbs/000-{place % 160:03d}/" for place in places],
            "sha256": [hashes[i * 32 : i * 32 + 32].hex() for i in range(count)],
            "captions": pa.array(captions, pa.list_(pa.string())),
        }
    )


def write_images(path: Path, assets: int, pictured: int, isotropic: bool) -> None:
    """The file of image embeddings."""
    schema = pa.schema([("uid", pa.string()), ("image", pa.list_(pa.float16(), DIM))])
    with pq.ParquetWriter(path, schema) as file:
        for start in range(0, pictured, PART):
            count = min(PART, assets - start)
            images = vectors(start, isotropic)[1][:count][: pictured - start]
            uids = _records(start, count)["uid"].combine_chunks()[: len(images)]
            arrays = [uids, pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), DIM)]
            file.write_table(pa.table(arrays, schema=schema))


def build(folder: Path, images: Path, assets: int, isotropic: bool) -> None:
    """Build, or go on; prints what is done, and at last seconds and peak."""
    began = time.perf_counter()
    job = Job(functools.partial(CaptionClip, isotropic))
    steps = assemble.build(Seeded(assets), folder, job, embedding=EMBEDDING, images=images)
    for step in steps:
        print(json.dumps({"stage": step.stage, "fraction": step.done / step.total}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": time.perf_counter() - began, "peak_gb": peak}), flush=True)


def built(folder: Path, assets: int, isotropic: bool, kill_at: tuple[str, float] | None = None) -> dict:
    """Seconds and peak of a build in a process of its own, which is killed at a fraction of a stage."""
    command = [sys.executable, __file__, str(folder), "--assets", str(assets), "--build-only"]
    command += ["--isotropic"] * isotropic
    began, stages = time.perf_counter(), {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "seconds" in (said := json.loads(line)):
                if kill_at:
                    raise SystemExit("The build ended before it could be killed; ask for more assets.")
                return said | {"stages": stages}
            stages[said["stage"]] = round(time.perf_counter() - began, 1)
            if kill_at and said["stage"] == kill_at[0] and said["fraction"] >= kill_at[1]:
                process.kill()
                return {"killed_after": time.perf_counter() - began, "stages": stages}
    raise SystemExit("The build ended without an index.")


def exact(queries: np.ndarray, assets: int, isotropic: bool, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best captions of each query (q, count), and the images of these (q, count, d)."""
    best, pictures = faiss.ResultHeap(len(queries), count, keep_max=True), {}
    for start in range(0, assets, PART):
        texts, images, _ = vectors(start, isotropic)
        cosines = queries @ texts[: assets - start].astype(np.float32).T
        places = np.argpartition(-cosines, count, axis=1)[:, :count]
        best.add_result(np.take_along_axis(cosines, places, 1), places.astype(np.int64) + start)
        pictures |= {start + p: images[p].astype(np.float32) for p in np.unique(places[:, : count * 2])}
    best.finalize()
    return best.I, np.stack([[pictures[p] for p in row] for row in best.I])


def megabytes(folder: Path) -> dict[str, float]:
    return {path.name: path.stat().st_size / 1e6 for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir() if not path.name.startswith(".")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--assets", type=int, default=800_000)
    parser.add_argument("--pictured", type=int, help="assets that have a picture; all by default")
    parser.add_argument("--isotropic", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--killed", action="store_true", help="build once more, killed twice")
    parser.add_argument("--build-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    pictured = options.assets if options.pictured is None else options.pictured
    images = options.folder.with_name(f"{options.folder.name.removesuffix('-killed')}-images.parquet")
    if options.build_only:
        build(options.folder, images, options.assets, options.isotropic)
        return
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    write_images(images, options.assets, pictured, options.isotropic)
    result = {"assets": options.assets, "pictured": pictured, "isotropic": options.isotropic}
    result["build"] = built(options.folder, options.assets, options.isotropic)
    if options.killed:
        other = options.folder.with_name(f"{options.folder.name}-killed")
        kills = (("embedding", 0.5), ("writing", 0.75), None)
        sessions = [built(other, options.assets, options.isotropic, kill_at) for kill_at in kills]
        result["killed"] = {"sessions": sessions, "equal": hashes(other) == hashes(options.folder)}
    result["megabytes"] = (sizes := megabytes(options.folder)) | {"all": sum(sizes.values())}

    for which in ("first", "later"):  # the first opening hashes the files
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        index = Index.load(options.folder)
        result[f"opened_{which}_s"] = time.perf_counter() - began
        result.setdefault("memory_gb", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6)

    spread = np.linspace(0, options.assets // PART - 1, QUERIES // 50 * 5).astype(int) * PART
    queries = np.concatenate([vectors(int(start), options.isotropic)[2][:10] for start in spread])[:QUERIES]
    clip, times, found = QueryClip(queries), [], []
    for number in range(len(queries)):
        began = time.perf_counter()
        hits = index.search(str(number), clip, 12, 12)
        times.append(time.perf_counter() - began)
        found.append([int(hit.uid[:8], 16) for hit in hits])
    result["query_ms"] = {str(q): 1e3 * float(np.quantile(times, q)) for q in (0.5, 0.95, 1.0)}
    result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    truth, pictures = exact(queries, options.assets, options.isotropic, 12)
    order = np.argsort(-np.einsum("qkd,qd->qk", pictures, queries), axis=1)
    best = np.take_along_axis(truth, order, 1)[:, :3]
    result["recall_at_12"] = float(np.mean([len(set(a) & set(b)) / 12 for a, b in zip(found, truth.tolist())]))
    result["top_3_equal"] = float(np.mean([a[:3] == b for a, b in zip(found, best.tolist())]))
    result["queries"] = len(queries)
    print(text := json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
