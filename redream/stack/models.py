"""A stack's models on one device, each loaded when it is first used. Importing this is cheap."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from redream import hub
from redream.files import sha256, sha256_of_files
from redream.scoring.scores import MODELS
from redream.stack import environment
from redream.stack.stack import Entry, Stack, StackError, library_folder, picture_memory

HASHED = 64_000_000  # bytes; larger files are not hashed for a record, their revision names them


class Models:
    """The models that runs share, each loaded once, from any thread.

    Runs use them one after the other, retrieval beside them; it needs only its CLIP and the index, which load fast.
    """

    def __init__(self, stack: Stack, device: str, retrieval_device: str | None = None) -> None:
        self.stack, self.device = stack, device
        self._retrieval_device = retrieval_device or device  # of the CLIP that finds and orients assets
        self.origins: dict[str, dict] = {}  # where loaded models came from, by their name in stack.json
        self._loaded: dict = {}  # by its name in stack.json
        self._loading = threading.Lock()  # one model after the other

    @staticmethod
    def load(stack: Stack | str | Path = "mini", device: str | None = None) -> "Models":
        """The models of a stack, on CUDA if available. Raises `StackError`; each model raises its own errors when it
        is first used."""
        stack = stack if isinstance(stack, Stack) else Stack.load(stack)
        return Models(stack, device or environment.device())

    @cached_property
    def device_name(self) -> str:
        """The device as records and estimates name it."""
        return environment.device_name(self.device)

    @property
    def index(self):
        """The library: the stack's `redream.retrieval.index.Index`, joined with one's own where there is one."""
        from redream.retrieval.index import Index
        from redream.retrieval.joined import JoinedIndex, with_own

        def load() -> Index | JoinedIndex:
            index = with_own(Index.load(self._folder("index"), picture_memory()), library := library_folder())
            if isinstance(index, JoinedIndex):
                files = {"index.json": sha256(library / "index.json")}  # which names the hashes of the others
                self.origins["own library"] = {"source": library.name, "revision": None, "files": files}
            return index

        return self._once("index", load)

    @property
    def prior(self):
        """The text-to-image model: a `redream.distillation.prior.Prior`."""
        from redream.distillation.prior import Prior
        from redream.distillation.prior_files import check

        def load() -> Prior:
            folder = self._folder("prior", check)  # refused before its weights are downloaded
            with quietly():
                return Prior.load(folder, self.device)

        return self._once("prior", load)

    def clip(self, name: str):
        """A `redream.retrieval.clip.Clip`: "retrieval", or "a" and "b" for scores."""
        from redream.retrieval.clip import Clip

        device = self._retrieval_device if name == "retrieval" else self.device
        return self._once(f"clips.{name}", lambda: Clip.load(self._folder(f"clips.{name}"), device))

    @property
    def score_size(self) -> int:
        """Side in pixels of the images that are scored: the larger input of the scoring CLIPs, at least 64."""
        return max(64, *(self.clip(name).size for name in MODELS))

    def perceptual(self, name: str):
        """A perceptual distance for scores, "a" or "b"; None if its weights are missing."""
        from redream.scoring.perceptual import PerceptualError, PerceptualNet, load_lpips

        def load():
            entry = self.stack.perceptual[name]
            try:
                if entry.lpips is None:
                    return PerceptualNet.load(self._folder(f"perceptual.{name}"), self.device)
                net = load_lpips(entry.lpips, self.device)
            except (hub.HubError, PerceptualError, StackError):
                return None  # the score says that it is not available
            if net is not None:
                self.origins[f"perceptual.{name}"] = {"lpips": entry.lpips}
            return net

        return self._once(f"perceptual.{name}", load)

    def provenance(self) -> dict[str, dict]:
        """Where each model in use came from, for a run's record: source, commit, SHA-256 of its files as they were when it
        was loaded; of LPIPS its network."""
        return dict(sorted(self.origins.items()))

    def _entry(self, name: str) -> Entry:
        group, _, member = name.partition(".")
        return getattr(self.stack, group)[member] if member else getattr(self.stack, group)

    def _folder(self, name: str, check: Callable[[Path, Sequence[str]], None] = hub.no_check) -> Path:
        entry = self._entry(name)
        resolved = self.stack.resolve(entry, check)
        self.origins[name] = {
            "source": resolved.source or Path(entry.source).name,
            "revision": resolved.revision,
            "files": sha256_of_files(resolved.folder, (".json", ".safetensors"), HASHED),
        }
        return resolved.folder

    def _once(self, name: str, load: Callable[[], object]):
        if name not in self._loaded:  # a loaded model is returned without waiting
            with self._loading:
                if name not in self._loaded:
                    self._loaded[name] = load()
        return self._loaded[name]


def retrieval_clip(stack: Stack):
    """The CLIP that finds and orients assets, on a GPU if there is one: what a worker loads that builds an index."""
    return Models.load(stack).clip("retrieval")


@contextmanager
def quietly() -> Iterator[None]:
    """Without the progress bars and messages that diffusers and transformers print while they load."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    levels = [(library, library.get_verbosity()) for library in (diffusers, transformers)]
    try:
        for library, _ in levels:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
            library.enable_progress_bar()
