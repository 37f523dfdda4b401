"""Build an index: embed captions and pictures of assets and write what `Index.load` reads."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from redream import hub
from redream.errors import RedreamError
from redream.files import sha256
from redream.retrieval.clip import Clip
from redream.retrieval.orientation import pictures
from redream.retrieval.table import COLUMNS
from redream.retrieval.writer import Part, write
from redream.scene.assets import Asset
from redream.scene.cameras import ring

VIEWS_PER_ASSET = 8
ELEVATION_DEG, DISTANCE, FOVY_DEG = 15.0, 1.6, 40.0


class BuildError(RedreamError):
    """Assets that make no index; the message says which and why."""


@dataclass(frozen=True)
class AssetRow:
    """One asset for an index. Its first caption is the one that is shown and adapted to; all of them are searched."""

    uid: str
    captions: list[str]
    author: str
    license: str
    source: str  # a link, or a file name
    file: str = ""  # relative to the index's root; empty: fetched from `repository` of `build`
    sha256: str = ""  # of the file; found out by `build` where the file is here
    extra: dict = field(
        default_factory=dict
    )  # further columns, the same ones for every asset; `path` in the repository


def build(
    rows: Iterable[AssetRow],
    views: Callable[[AssetRow], Float[Tensor, "b 3 h w"]],
    clip: Clip,
    folder: Path,
    *,
    root: str = ".",
    repository: Mapping[str, str] | None = None,
    progress: Callable[[AssetRow], None] = lambda row: None,
) -> None:
    """Write an index of `rows` into `folder`, where `views` gives the pictures of an asset (see `ring_pictures`).

    An asset's image embedding is the normalised mean of its pictures' embeddings. `root` is the assets' folder relative
    to `folder`; `repository` names the one on the Hub that has the GLBs of assets without a file: {source: owner/name,
    revision, kind: "dataset" or "model"}. `progress` is called after each asset. The manifest comes last: until then there is no index.
    Raises `BuildError`.
    """
    kept, images = [], []
    for row in rows:
        if not row.captions:
            raise BuildError(f"The asset {row.uid} has no caption; give it one or leave it out.")
        kept.append(row)
        mean = clip.embed_images(views(row)).mean(dim=0)  # (d,)
        images.append(torch.nn.functional.normalize(mean, dim=0).cpu())
        progress(row)
    if len({row.uid for row in kept}) < max(len(kept), 1):
        raise BuildError("An index needs at least one asset, and every uid only once.")

    captions = [(place, caption) for place, row in enumerate(kept) for caption in row.captions]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)
    part = Part(
        pa.Table.from_pylist([_columns(row, folder / root) for row in kept]),
        clip.embed_texts([caption for _, caption in captions]).cpu().numpy(),
        np.array([place for place, _ in captions], np.int64),
        torch.stack(images).numpy(),
    )
    embedding = {"name": clip.name, "sha256": clip.sha256}
    write(lambda: [part], folder, embedding=embedding, root=root, repository=repository)


def ring_pictures(asset: Asset, size: int) -> Float[Tensor, "k 3 size size"]:
    """The pictures an asset is indexed by: 8 azimuths at 15° elevation, before light gray."""
    return pictures(asset, ring(VIEWS_PER_ASSET, ELEVATION_DEG, DISTANCE, FOVY_DEG), size)


def _columns(row: AssetRow, root: Path) -> dict:
    if clash := set(row.extra) & set(COLUMNS):
        raise BuildError(
            f"The further columns of asset {row.uid} clash with the table's own: {', '.join(sorted(clash))}."
        )
    checksum = row.sha256
    if row.file:
        if not hub.is_inside(row.file) or not (root / row.file).is_file():
            raise BuildError(f"The file of asset {row.uid} is not in the library's folder; put it there.")
        checksum = sha256(root / row.file)
    known = {key: getattr(row, key) for key in ("uid", "author", "license", "source", "file")}
    return known | {"caption": row.captions[0], "sha256": checksum} | row.extra
