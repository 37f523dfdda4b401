"""A small Objaverse in the formats of its publishers: four data sets of the Hub, and objathor's pickle."""

import csv
import gzip
import hashlib
import io
import json
import pickle
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiny_stack import COLOURS, KINDS, tiny_glb

LICENSES = ("by", "by", "by", "by-nc", "by-nc-sa", "by-sa", "cc0", "editorial")
GROUP = 50  # assets in a folder of GLBs, which has its own file of metadata
DIM = 16  # of a tiny CLIP's embeddings


@dataclass
class ObjaverseFiles:
    """The files of every data set, and what was put into them, by uid."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    records: dict[str, dict] = field(default_factory=dict)  # of metadata/000-NNN.json.gz
    paths: dict[str, str] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)  # of Cap3D's CSV
    other_captions: dict[str, str] = field(default_factory=dict)  # of its JSON
    quality: dict[str, dict] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)  # (3, d)
    clip_features: bytes = b""  # the pickle

    def publish(self, hub) -> None:
        """Add the data sets to a `hub_server.HubServer`."""
        for name, files in self.repositories.items():
            hub.add(name, files, kind="datasets")


def make_objaverse(count: int, seed: int = 0) -> ObjaverseFiles:
    """So many assets, with everything that a builder meets: licences that are not free, adult content, assets that are too
    large or have no caption, quality flags, hashes of Objaverse-XL among the uids, one GLB that is broken, one that is gone."""
    rng, made = np.random.default_rng(seed), ObjaverseFiles()
    glbs = [tiny_glb(colour, round_one) for colour in COLOURS.values() for round_one in (True, False)]
    glb_of: dict[str, bytes] = {}
    for number in range(count):
        uid = rng.bytes(16).hex()
        colour, kind = [*COLOURS][number % len(COLOURS)], KINDS[rng.integers(len(KINDS))]
        glb_of[uid] = glbs[2 * (number % len(COLOURS)) + int(rng.integers(2))]
        made.paths[uid] = f"glbs/000-{number // GROUP:03d}/{uid}.glb"
        made.records[uid] = _record(uid, f"{colour} {kind}", len(glb_of[uid]), rng)
        if rng.random() < 0.95:
            made.captions[uid] = f"a {colour} {kind}, number {number}"
        if rng.random() < 0.8:
            made.other_captions[uid] = f'a "{kind}", {colour}'
        if rng.random() < 0.9:
            made.quality[uid] = _quality(uid, rng)
        if rng.random() < 0.1:
            made.features[uid] = rng.standard_normal((3, DIM)).astype(np.float16)
    uids = list(made.records)
    glb_of[uids[1]] = b"not a GLB"
    hashes = {uid: hashlib.sha256(glb).hexdigest() for uid, glb in glb_of.items()}
    del glb_of[uids[2]]
    made.repositories = {
        "allenai/objaverse": {
            "object-paths.json.gz": gzipped(made.paths),
            **{f"metadata/{group}.json.gz": gzipped(records) for group, records in _groups(made).items()},
            **{made.paths[uid]: glb for uid, glb in glb_of.items()},
        },
        "allenai/objaverse-xl": {"objaverse_v1/object-metadata.parquet": _hashes(hashes)},
        "tiange/Cap3D": {
            "Cap3D_automated_Objaverse_full.csv": _csv(made.captions, rng),
            "Objaverse_files/cap3d_captions.json.gz": gzipped(made.other_captions),
        },
        "cindyxl/ObjaversePlusPlus": {"annotated_800k.json": json.dumps([*made.quality.values()], indent=4).encode()},
    }
    made.clip_features = pickle.dumps(
        {
            "uids": list(made.features),
            "img_features": np.array([*made.features.values()]),
            "text_features": np.zeros((len(made.features), DIM), np.float16),
        }
    )
    return made


def _record(uid: str, name: str, size: int, rng: np.random.Generator) -> dict:
    """What Sketchfab says about an asset; only a part of it is of use."""
    faces = int(rng.choice([300, 14_000, 600_000], p=[0.5, 0.45, 0.05]))
    images = [
        {"uid": uid[::-1], "size": 550, "width": width, "height": width * 9 // 16, "url": _thumbnail(uid, width)}
        for width in (1920, 1024, 720, 256, 64)
    ]
    return {
        "uri": f"https://api.sketchfab.com/v3/models/{uid}",
        "uid": uid,
        "name": name,
        "viewCount": int(rng.integers(1000)),
        "viewerUrl": f"https://sketchfab.com/3d-models/{uid}",
        "isDownloadable": True,
        "tags": [{"name": "stair", "slug": "stair", "uri": "https://api.sketchfab.com/v3/tags/stair"}],
        "categories": [],
        "thumbnails": {"images": images},
        "user": {"uid": uid, "username": "agrice", "displayName": "A. Grice", "profileUrl": "https://sketchfab.com/a"},
        "description": "<b>drawn</b> by hand",
        "faceCount": faces + 5,
        "vertexCount": faces // 2,
        "isAgeRestricted": bool(rng.random() < 0.03),
        "archives": {"glb": {"size": size, "faceCount": faces, "type": "glb"}, "usdz": {"size": 2 * size}},
        "license": str(rng.choice(LICENSES)),
    }


def _thumbnail(uid: str, width: int) -> str:
    return f"https://media.sketchfab.com/models/{uid}/thumbnails/{width}.jpeg"


def _quality(uid: str, rng: np.random.Generator) -> dict:
    flags = ("is_multi_object", "is_scene", "is_figure", "is_transparent", "is_single_color")
    known = {"UID": uid, "style": "cartoon", "score": int(rng.integers(4))}
    return known | {flag: "true" if rng.random() < 0.1 else "false" for flag in flags} | {"density": "mid"}


def _groups(made: ObjaverseFiles) -> dict[str, dict]:
    groups: dict[str, dict] = {}
    for uid, record in made.records.items():
        groups.setdefault(made.paths[uid].split("/")[1], {})[uid] = record
    return groups


def _csv(captions: dict[str, str], rng: np.random.Generator) -> bytes:
    """Half of the lines are of Objaverse-XL, by SHA-256."""
    text = io.StringIO()
    writer = csv.writer(text)
    for uid, caption in captions.items():
        writer.writerow([uid, caption])
        writer.writerow([rng.bytes(32).hex(), "something else"])
    return text.getvalue().encode()


def _hashes(hashes: dict[str, str]) -> bytes:
    file = io.BytesIO()
    table = {
        "fileIdentifier": [f"https://sketchfab.com/3d-models/{uid}" for uid in hashes],
        "source": ["sketchfab"] * len(hashes),
        "license": ["by"] * len(hashes),
        "fileType": ["glb"] * len(hashes),
        "sha256": list(hashes.values()),
    }
    pq.write_table(pa.table(table), file)
    return file.getvalue()


def gzipped(values: dict) -> bytes:
    return gzip.compress(json.dumps(values).encode(), mtime=0)
