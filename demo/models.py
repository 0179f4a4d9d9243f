"""The models that may answer: which there are, which are loaded, and one at a time running."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import omni
from demo.model_card import limits, summary
from omni.adapters import PEFT_FILE, read_adapter
from omni.assistant import EMBEDDED_MODEL, EMBEDDED_PATH, Assistant
from omni.checkpoint import resolve_checkpoint
from omni.errors import CheckpointError
from omni.pace import Pace
from omni.stopping import Stop, stoppable

MAX_LOADED = 2  # the one that answers and one more; each is a whole set of weights in memory
NO_ADAPTER = "none"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which model answers.

    Attributes:
        model: A name that `Models.model_names` lists, or a hub id where the network is allowed.
        adapter: A name that `Models.adapter_names` lists, or `NO_ADAPTER`.
    """

    model: str
    adapter: str = NO_ADAPTER


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model that can answer.

    Attributes:
        assistant: Model and processor.
        directory: The checkpoint's folder.
        pace: How fast it has answered so far.
    """

    assistant: Assistant
    directory: Path
    pace: Pace = field(default_factory=Pace)

    @property
    def title(self) -> str:
        """One line: which model this is, and how large."""
        count = sum(parameter.numel() for parameter in self.assistant.model.parameters())
        device = self.assistant.model.device
        return f"{self.assistant.name} · {count / 1e6:,.1f} million parameters · on {device}"

    @property
    def summary(self) -> str:
        """What its model card says first."""
        return summary(self.directory)

    @property
    def limits(self) -> str:
        """What its model card says it can and cannot do, as Markdown."""
        return limits(self.directory)


class Models:
    """Models by name; loads them when they are first asked for, and keeps the last two.

    Only what was named when the program started can be loaded: the embedded model, ``model``,
    ``adapter``, checkpoints and adapters below ``folders``; with ``allow_network`` also hub ids.

    Args:
        model: Directory or hub id that answers unless a visitor chooses; None is the embedded one.
        adapter: Folder of an adapter for it; without ``model``, for the base that it names.
        folders: Folders whose subfolders visitors may choose from.
        allow_network: Whether visitors may name hub ids.
        options: What every model is loaded with, as `omni.load` takes it: ``device``, ``limits``,
            ``allowed_roots``.

    Attributes:
        on_unload: Called with a model that is to be let go of, and one that is loaded.
    """

    def __init__(
        self,
        model: str | None = None,
        adapter: str | None = None,
        *,
        folders: Sequence[Path] = (),
        allow_network: bool = False,
        **options: Any,
    ) -> None:
        self.allow_network = allow_network
        self.options = options
        self.on_unload: Callable[[Assistant, Assistant], None] = lambda old, new: None
        # Gradio calls from a pool of 40 threads, in each of which PyTorch would keep threads and
        # buffers of its own. One thread runs models, one makes plans and pictures meanwhile.
        self._runner = ThreadPoolExecutor(1, "model")
        self._drawer = ThreadPoolExecutor(1, "drawing")
        self._lock = threading.Lock()  # held while one is loaded, which takes long
        self._loaded: OrderedDict[Choice, Loaded] = OrderedDict()
        self._sources: dict[str, str | None] = {EMBEDDED_MODEL: None}
        self._adapters: dict[str, str] = {}
        for folder in folders:
            for sources, file in ((self._sources, "config.json"), (self._adapters, PEFT_FILE)):
                for path in _find(folder, file):
                    sources[_name_of(path.parent, sources)] = str(path.parent)
        if model is None and adapter is not None:
            model = read_adapter(adapter)["base"]
        first = EMBEDDED_MODEL
        if model is not None and model != EMBEDDED_MODEL:
            first = model
            if Path(model).is_dir():
                first = _name_of(Path(model), self._sources)
            self._sources[first] = model
        worn = NO_ADAPTER
        if adapter is not None:
            worn = _name_of(Path(adapter), self._adapters)
            self._adapters[worn] = adapter
        self.default = Choice(model=first, adapter=worn)

    @property
    def model_names(self) -> list[str]:
        """What may be chosen, the default first."""
        return sorted(self._sources, key=lambda name: (name != self.default.model, name))

    @property
    def adapter_names(self) -> list[str]:
        """Adapters that may be chosen; the first is none."""
        return [NO_ADAPTER, *sorted(self._adapters)]

    def get(self, choice: Choice | None = None) -> Loaded:
        """A model that can answer, loaded if it is not yet.

        Args:
            choice: Which; None is the default.

        Raises:
            CheckpointError: It may not be chosen, or is no checkpoint.
            NotEnoughMemoryError: It does not fit.
        """
        choice = choice or self.default
        with self._lock:
            if choice not in self._loaded:
                loaded = self._load(choice)
                while len(self._loaded) >= MAX_LOADED:
                    _, old = self._loaded.popitem(last=False)
                    self.on_unload(old.assistant, loaded.assistant)
                self._loaded[choice] = loaded
            self._loaded.move_to_end(choice)
            return self._loaded[choice]

    def _load(self, choice: Choice) -> Loaded:
        if choice.model not in self._sources and not self.allow_network:
            raise CheckpointError(
                f"{choice.model!r} is not among the models of this demo: "
                f"{', '.join(self.model_names)}. Choose one of them; other directories and hub ids "
                "are named when the demo is started (--models, --allow-network)."
            )
        if choice.adapter != NO_ADAPTER and choice.adapter not in self._adapters:
            raise CheckpointError(
                f"{choice.adapter!r} is not among the adapters of this demo: "
                f"{', '.join(self.adapter_names)}."
            )
        source = self._sources.get(choice.model, choice.model)
        if choice.model not in self._sources and Path(choice.model).exists():
            raise CheckpointError(
                f"{choice.model!r} is a path; only directories that were named when the demo was "
                "started can be chosen. Give a hub id of the form owner/name."
            )
        # A folder as a path: one of the name of the embedded model is not that.
        place = Path(source) if source and Path(source).is_dir() else source or EMBEDDED_MODEL
        assistant = omni.load(place, adapter=self._adapters.get(choice.adapter), **self.options)
        directory = EMBEDDED_PATH if source is None else resolve_checkpoint(source)
        return Loaded(assistant=assistant, directory=directory)

    def run(self, pieces: Iterator[T], stop: Stop | None = None) -> Iterator[T]:
        """Take the pieces of an answer on the thread of models, one at a time for all visitors.

        Args:
            pieces: A stream of `omni`, which runs the model as pieces are taken.
            stop: Ends it wherever it is, with a `StoppedError`.
        """
        stop = stop or Stop()

        def take() -> T | None:
            with stoppable(stop):
                return next(pieces, None)

        while (piece := self._runner.submit(take).result()) is not None:
            yield piece

    def work(self, make: Callable[..., T], *values: Any, stop: Stop, **options: Any) -> T:
        """Do something that is no stream on the thread of models; see `run`.

        Args:
            make: What is done.
            values: What it takes.
            stop: Ends it.
            options: What it takes by name.
        """
        [made] = self.run((make(*values, **options) for _ in range(1)), stop)
        return made

    def draw(self, make: Callable[..., T], *values: Any, **options: Any) -> T:
        """Make a plan or a picture on a thread of its own, which waits for no model.

        Args:
            make: What makes it.
            values: What it takes.
            options: What it takes by name.
        """
        return self._drawer.submit(make, *values, **options).result()

    def close(self) -> None:
        """End the threads; what waits for them is not done."""
        self._runner.shutdown(wait=False, cancel_futures=True)
        self._drawer.shutdown(wait=False, cancel_futures=True)


def _name_of(folder: Path, known: Mapping[str, str | None]) -> str:
    """The name that a folder has already, or a free one."""
    for name, path in known.items():
        if path is not None and Path(path).absolute() == folder.absolute():
            return name
    return _free_name(folder, known)


def _free_name(folder: Path, taken: Container[str]) -> str:
    """A name for a folder: its own, with as many of those above as it takes to be the only one."""
    parts = folder.absolute().parts
    for count in range(1, len(parts)):
        if (name := "/".join(parts[-count:])) not in taken:
            return name
    return str(folder)


def _find(folder: Path, name: str) -> list[Path]:
    """Files of a name in a folder and its subfolders."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a directory; name one that holds checkpoints.")
    return sorted([*folder.glob(name), *folder.glob(f"*/{name}")])
