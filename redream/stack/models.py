"""A stack's models on one device, each loaded when it is first used. Importing this is cheap."""

import shlex
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from redream import hub
from redream.files import sha256, sha256_of_files
from redream.scoring.scores import MODELS
from redream.stack import environment
from redream.stack.fetching import SetupProgress, SetupStopped, fetching, followed
from redream.stack.inventory import MISSING, POINTER, files_in
from redream.stack.stack import CLIPS, Stack, StackError, library_folder, picture_memory
from redream.stack.truncation import truncated
from redream.stack.vocabulary import ParsedPrompt, parse_prompt

HASHED = 64_000_000  # bytes; larger files are not hashed for a record, their revision names them


class Models:
    """The models that runs share, each loaded once, from any thread.

    Runs use them one after the other, retrieval beside them; it needs only its CLIP and the index, which load fast.
    """

    def __init__(self, stack: Stack, device: str, retrieval_device: str | None = None) -> None:
        self.stack, self.device = stack, device
        self._retrieval_device = retrieval_device or device  # of the CLIP that finds and orients assets
        self.origins: dict[str, dict] = {}  # where loaded models came from, by their name in stack.json
        self.unavailable: dict[str, str] = {}  # why a perceptual distance is None, by its name in stack.json
        self._loaded: dict = {}  # by its name in stack.json
        self._resolved: dict[str, hub.Resolved] = {}  # what `fetching` brought, until it is loaded
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

        def load(folder: Path) -> Index | JoinedIndex:
            index = with_own(Index.load(folder, picture_memory()), library := library_folder())
            if isinstance(index, JoinedIndex):
                files = {"index.json": sha256(library / "index.json")}  # which names the hashes of the others
                self.origins["own library"] = {"source": library.name, "revision": None, "files": files}
            return index

        return self._once("index", load)

    @property
    def prior(self):
        """The text-to-image model: a `redream.distillation.prior.Prior`."""
        from redream.distillation.prior import Prior

        def load(folder: Path) -> Prior:
            with quietly():
                prior = Prior.load(folder, self.device)
            if environment.compiles(self.device):
                prior.compile()
            return prior

        return self._once("prior", load)

    def clip(self, name: str):
        """A `redream.retrieval.clip.Clip`: "retrieval", or "a" and "b" for scores."""
        from redream.retrieval.clip import Clip

        device = self._retrieval_device if name == "retrieval" else self.device
        return self._once(f"clips.{name}", lambda folder: Clip.load(folder, device))

    @property
    def score_size(self) -> int:
        """Side in pixels of the images that are scored: the larger input of the scoring CLIPs, at least 64."""
        return max(64, *(self.clip(name).size for name in MODELS))

    def perceptual(self, name: str):
        """A perceptual distance for scores, "a" or "b"; None if its weights are missing or damaged (`unavailable`)."""
        from redream.scoring.perceptual import PerceptualError, PerceptualNet, load_lpips

        key, network = f"perceptual.{name}", self.stack.perceptual[name].lpips

        def load(folder: Path | None):
            if folder is not None:
                return PerceptualNet.load(folder, self.device)
            if (net := load_lpips(network, self.device)) is not None:
                self.origins[key] = {"lpips": network}
            return net

        try:
            return self._once(key, load)
        except (hub.HubError, PerceptualError, StackError) as error:
            self.unavailable[key] = str(error)
            self._loaded[key] = None  # the score says that it is not available
            return None

    def are_loaded(self, *names: str) -> bool:
        """Whether models are loaded, by their names in stack.json."""
        return all(name in self._loaded for name in names)

    def fetching(self, name: str, stop: Callable[[], bool]) -> Generator[SetupProgress, None, None]:
        """Bring a model's files here, by its name in stack.json: loading it then waits for no network. Raises as
        `redream.stack.fetching.fetching`."""
        if name not in self._loaded and self.stack.entry(name).source:
            self._resolved[name] = yield from fetching(self.stack, name, stop)

    def parse(self, prompt: str) -> ParsedPrompt:
        """A prompt from outside as the models get it, with warnings of what they do not get. Raises `PromptError`."""
        return self.truncated(parse_prompt(prompt, self.stack.vocabulary))

    def truncated(self, parsed: ParsedPrompt, stop: Callable[[], bool] = lambda: False) -> ParsedPrompt:
        """The prompt within the context of every text encoder, with room for the name of a view. Once `stop` is True
        nothing more is fetched for it: encoders whose small files are not here are left out of account."""
        from redream.scene.cameras import VIEWS, view_prompt

        names = ("prior", *(f"clips.{name}" for name in CLIPS))
        checks = [check for name in names if (check := self._text_check(name, stop))]
        return truncated(parsed, lambda text: all(fits(view_prompt(text, view)) for fits in checks for view in VIEWS))

    def _text_check(self, name: str, stop: Callable[[], bool]) -> Callable[[str], bool] | None:
        """What says whether a text encoder takes all of a text, made of its small files; None if it cannot be had, or not
        before a stop: the error is raised when the model itself is loaded."""
        from redream.distillation import prior_files
        from redream.retrieval import clip
        from redream.retrieval.fetch import finished

        key, load = f"tokenizer of {name}", (prior_files if name == "prior" else clip).text_check
        if key not in self._loaded:
            entry = self.stack.entry(name)
            small, local = replace(entry, files=("*.json", "*.txt"), sha256={}), self.stack.local_folder(entry)
            progress = SetupProgress(f"fetching {key}", 0, 1, "files")
            with suppress(hub.HubError, StackError, SetupStopped, clip.ClipError, prior_files.PriorError):
                steps = followed(lambda check: self.stack.resolve(small), key, lambda: progress, stop)
                self._loaded[key] = load(local or finished(steps).folder)
        return self._loaded.get(key)

    def provenance(self) -> dict[str, dict]:
        """Where each model in use came from, for a run's record: source, commit, SHA-256 of its files as they were when it
        was loaded; of LPIPS its network."""
        return dict(sorted(self.origins.items()))

    def _folder(self, name: str) -> Path | None:
        """The folder of an entry, fetched if necessary; None for LPIPS. Raises `StackError` for a damaged file."""
        from redream.retrieval.fetch import finished

        entry = self.stack.entry(name)
        if entry.source is None:
            return None
        if (local := self.stack.local_folder(entry)) is not None:
            self._require_whole(name, local, None)
        resolved = self._resolved.pop(name, None) or finished(fetching(self.stack, name))
        if local is None:
            self._require_whole(name, resolved.folder, resolved.source)
        self.origins[name] = {
            "source": resolved.source or Path(entry.source).name,
            "revision": resolved.revision,
            "files": sha256_of_files(resolved.folder, (".json", ".safetensors"), HASHED),
        }
        return resolved.folder

    def _require_whole(self, name: str, folder: Path, source: str | None) -> None:
        """Raise `StackError` for a damaged file of an entry; one that is missing is said where it is read."""
        for file in files_in(folder, name, self.stack.entry(name)):
            if file.fault not in (None, MISSING):
                do = "Run: git lfs pull" if file.fault == POINTER else "Restore it"
                do = f"Run: python -m redream setup {shlex.quote(self.stack.address)}" if source else do
                raise StackError(f"The file {source or folder.name}/{file.name} cannot be used: {file.fault}. {do}.")

    def _once(self, name: str, load: Callable[[Path | None], object]):
        if name not in self._loaded:  # a loaded model is returned without waiting
            folder = self._folder(name)  # nobody waits for the network who wants another model
            with self._loading:
                if name not in self._loaded:
                    self._loaded[name] = load(folder)
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
