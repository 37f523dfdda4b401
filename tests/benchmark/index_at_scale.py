"""How an index of Objaverse's size does: PYTHONPATH=. python tests/benchmark/index_at_scale.py FOLDER [--assets N] [--isotropic] [--json FILE]

Vectors are seeded: clusters of sixteen captions whose cosines with a query are .75 to .95, with variances falling as 1/i (or
equal: --isotropic); images share a part of their caption's direction. uids, hashes and captions are as long as Objaverse's and
Cap3D's. The index is written by `redream.retrieval.writer`, opened and asked by `redream.retrieval.index`, and compared with
exact search over the same vectors in half precision.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import torch

from redream.retrieval.clip import Clip
from redream.retrieval.index import Index
from redream.retrieval.writer import Part, write

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


def table(start: int, count: int) -> pa.Table:
    """Rows with the entropy of Objaverse's: uids and hashes are random, captions are words."""
    generator = np.random.default_rng(10**6 + start)
    prefixes = range(start, start + count)
    tails, hashes = (generator.bytes(count * size) for size in (12, 32))
    words = generator.integers(0, len(WORDS), (count, 14))
    return pa.table(
        {
            "uid": [f"{place:08x}{tails[i * 12 : i * 12 + 12].hex()}" for i, place in enumerate(prefixes)],
            "caption": [" ".join(WORDS[w] for w in row) for row in words],
            "author": [f"author {n}" for n in generator.integers(0, 100_000, count)],
            "license": [LICENCES[n] for n in generator.integers(0, len(LICENCES), count)],
            "source": [""] * count,
            "file": [""] * count,
            "path": [f"glbs/000-{place % 160:03d}/" for place in prefixes],
            "sha256": [hashes[i * 32 : i * 32 + 32].hex() for i in range(count)],
        }
    )


def parts(assets: int, pictured: int, isotropic: bool):
    for start in range(0, assets, PART):
        count = min(PART, assets - start)
        texts, images, _ = vectors(start, isotropic)
        images[max(0, pictured - start) :] = 0
        yield Part(table(start, count), texts[:count], np.arange(count), images[:count])


def build(folder: Path, assets: int, pictured: int, isotropic: bool) -> None:
    began = time.perf_counter()
    write(lambda: parts(assets, pictured, isotropic), folder, embedding=EMBEDDING)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": time.perf_counter() - began, "peak_gb": peak}))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--assets", type=int, default=800_000)
    parser.add_argument("--pictured", type=int, help="assets that have a picture; all by default")
    parser.add_argument("--isotropic", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--build-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    pictured = options.assets if options.pictured is None else options.pictured
    if options.build_only:
        build(options.folder, options.assets, pictured, options.isotropic)
        return
    result = {"assets": options.assets, "pictured": pictured, "isotropic": options.isotropic}
    command = [sys.executable, __file__, *sys.argv[1:], "--build-only"]
    result["build"] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
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
