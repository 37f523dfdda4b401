"""Image embeddings of assets that an index has none for, kept on the disk once they are made."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from redream.files import replacing


@dataclass(frozen=True)
class PictureMemory:
    """A folder with a file for each asset whose pictures one CLIP has embedded."""

    folder: Path
    dim: int

    @staticmethod
    def of_clip(folder: Path, sha256: str, dim: int) -> "PictureMemory":
        """What one CLIP, known by its SHA-256, has embedded, in a folder for all of them."""
        return PictureMemory(folder / sha256[:16], dim)

    def recall(self, row: Mapping) -> Float[np.ndarray, "d"] | None:
        """The unit mean image embedding of the asset in a row of an index; None if there is none, or a damaged one."""
        try:
            with self._path(row).open("rb") as file:
                content = file.read(self._size + 1)
        except OSError:
            return None
        vector = np.frombuffer(content, np.float32) if len(content) == self._size else np.zeros(0)
        return vector if len(vector) and abs(np.linalg.norm(vector) - 1) < 1e-3 else None

    def remember(self, row: Mapping, vector: Float[np.ndarray, "d"]) -> None:
        """Keep the unit mean image embedding of the asset in a row of an index. Raises `OSError`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._path(row)) as path:
            path.write_bytes(vector.astype(np.float32).tobytes())

    @property
    def _size(self) -> int:
        return 4 * self.dim  # bytes

    def _path(self, row: Mapping) -> Path:
        """The file of an asset: another one once its GLB is another."""
        key = f"{row['uid']} {row['sha256'] or ''}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.f32"
