"""One model on one device: texts in, unit vectors out. No Ray.

Identical texts are embedded once; tokenisation runs in a thread beside the forward pass; batches are built
by token length. The data type is checked against fp32 on a sample of the texts before it is used, and with it
the unpadded form of a BERT encoder that takes the model's place on a CPU in bf16.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tunemill.embed.batches import Batch, Buckets
from tunemill.embed.config import EmbedConfig
from tunemill.embed.fast_bert import PackedBert, packed_bert
from tunemill.embed.models import find, load
from tunemill.embed.precision import LEAST_COSINE, candidates, cosines
from tunemill.embed.reading import Tokens, reader_for
from tunemill.errors import ConfigError, RunFailed

__all__ = ["Embedded", "Embedder", "pick_device"]

_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
_CHUNK_TEXTS = 512
_SAMPLE_TEXTS = 64
_SAMPLE_CHARS = 8192
_READ_AHEAD = 8
_UNDER_WAY = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of some texts."""

    vectors: np.ndarray
    """float32 [n, d], unit length; a row of NaN where the model gave nothing finite."""
    n_tokens: np.ndarray
    """Tokens of each text as the model saw it, int64 [n]."""
    cut: np.ndarray
    """True where the text was longer than the model takes, bool [n]."""


class Embedder:
    """A loaded model. ``sample`` holds texts for the precision check; by default the first texts to embed."""

    def __init__(self, config: EmbedConfig, *, sample: Sequence[str] = ()) -> None:
        import torch

        if config.provider != "local":
            raise ConfigError(f"embed.provider is {config.provider!r}: only the embed stage calls APIs; use local here")
        self._config = config
        self._torch = torch
        self.device = pick_device(config)
        self._found = find(config)
        self._load()
        self._batch_tokens = config.batch_tokens or _BATCH_TOKENS[self.device.split(":")[0]]
        self._check: dict[str, Any] | None = None
        self.dimension = int(self._model.get_embedding_dimension())
        if sample:
            self._choose_precision(sample)

    @property
    def precision(self) -> str:
        """The data type in use; fp32 until the check on the first texts has run."""
        return str(self._check["precision"]) if self._check else "fp32"

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of the model: revision, dimension, data type and its check, device, limits."""
        limit = self._reader.limit
        return {
            "model": self._config.model,
            "revision": self._found.revision,
            "dimension": self.dimension,
            "prefix": self._prompt,
            "max_length": limit,
            "device": self.device,
            "precision": self.precision,
            "precision_check": self._check,
        }

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [n, d]. An empty text gets the model's vector of no words.

        Raises RunFailed when the model gives something that is not finite.
        """
        vectors = self.embed(texts).vectors
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            shown = str(texts[int(bad[0])])[:60]
            raise RunFailed(f"embed: {self._config.model} gave no finite vector for {len(bad)} texts, such as {shown!r}")
        return vectors

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Unit vectors with token counts; identical texts are embedded once."""
        places: dict[str, int] = {}
        row_of = np.fromiter((places.setdefault(text, len(places)) for text in texts), np.int64, len(texts))
        unique = list(places)
        if not unique:
            return Embedded(np.empty((0, self.dimension), np.float32), np.empty(0, np.int64), np.empty(0, bool))
        if self._check is None:
            self._choose_precision(unique)
        found = self._run(unique)
        if len(unique) == len(texts):
            return found
        return Embedded(found.vectors[row_of], found.n_tokens[row_of], found.cut[row_of])

    def _load(self) -> None:
        loaded = load(self._config, self._found, self.device)
        self._model, self._prompt = loaded.model, loaded.prompt
        self._reader = reader_for(self._model, self._prompt)
        self._packed: Any = None

    def _run(self, texts: Sequence[str]) -> Embedded:
        vectors = np.empty((len(texts), self.dimension), np.float32)
        n_tokens = np.empty(len(texts), np.int64)
        cut = np.empty(len(texts), bool)
        items: dict[int, Any] = {}
        buckets = Buckets(self._batch_tokens, self._reader.limit, padded=self._packed is None)
        done = 0
        under_way: collections.deque[tuple[list[int], Any]] = collections.deque()

        def take() -> None:
            rows, found = under_way.popleft()
            vectors[rows] = found().cpu().numpy()

        with self._lanes() as start:

            def run(batch: Batch) -> None:
                under_way.append((batch.rows, start(batch, items)))
                # Other batches are worked on while this one's vectors come back.
                if len(under_way) > _UNDER_WAY * self._threads:
                    take()

            for tokens in _read_ahead(self._reader, texts):
                end = done + len(tokens.lengths)
                n_tokens[done:end], cut[done:end] = tokens.lengths, tokens.cut
                items.update(zip(range(done, end), tokens.items, strict=True))
                for batch in buckets.add(done, tokens.lengths):
                    run(batch)
                done = end
            for batch in buckets.flush():
                run(batch)
            while under_way:
                take()
        return Embedded(vectors, n_tokens, cut)

    @contextlib.contextmanager
    def _lanes(self) -> Iterator[Callable[[Batch, dict[int, Any]], Callable[[], Any]]]:
        """A function that starts a forward pass and returns one that waits for it.

        On a CPU as many passes run side by side as torch may use threads, each on one: two threads inside one small
        pass mostly wait for each other, and on one thread a vector does not depend on its batch.
        """
        if self._threads == 1:
            yield self._forward_now
            return
        with ThreadPoolExecutor(self._threads, initializer=self._torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda batch, items: pool.submit(self._forward, batch, items).result

    @property
    def _threads(self) -> int:
        return int(self._torch.get_num_threads()) if self.device == "cpu" else 1

    def _forward_now(self, batch: Batch, items: dict[int, Any]) -> Callable[[], Any]:
        found = self._forward(batch, items)
        return lambda: found

    def _forward(self, batch: Batch, items: dict[int, Any]) -> Any:
        """Unit vectors of a batch as a tensor [rows, d] on the device, perhaps still being computed."""
        taken = [items.pop(row) for row in batch.rows]
        with self._torch.inference_mode():
            if self._packed is not None:
                return _unit(self._packed(taken))
            features = self._reader.pad(taken, batch.width)
            if self.device != "cpu":
                features = {k: v.to(self.device, non_blocking=True) if hasattr(v, "to") else v for k, v in features.items()}
            return _unit(self._model(features)["sentence_embedding"].float())

    def _choose_precision(self, texts: Sequence[str]) -> None:
        """Take the first data type whose vectors stay within the cosine bound of fp32 on a sample."""
        wanted = candidates(self._config, self.device)
        sample = _sample(texts)
        self._check = {"precision": "fp32", "texts": len(sample), "least_cosine": 1.0, "tried": {}}
        if wanted == ["fp32"]:
            return
        reference = self._run(sample).vectors
        dtypes = {"bf16": self._torch.bfloat16, "fp16": self._torch.float16}
        for name in wanted:
            # Always from the fp32 weights: a second rounding would not undo the first.
            if self._check["tried"]:
                self._load()
            if name == "fp32":
                return
            ways = self._ways(name, dtypes[name])
            self._model.to(dtypes[name])
            for way, self._packed in ways.items():
                least = float(cosines(self._run(sample).vectors, reference).min())
                self._check["tried"][way] = round(least, 6)
                if least >= LEAST_COSINE or (way == name and self._config.precision != "auto"):
                    self._check |= {"precision": name, "least_cosine": round(least, 6)}
                    return

    def _ways(self, name: str, dtype: Any) -> dict[str, PackedBert | None]:
        """How vectors can be computed in a data type, fastest first; None is the model itself."""
        fits = name == "bf16" and self.device == "cpu" and self._reader.gives_ids
        packed = packed_bert(self._model, dtype) if fits else None
        return {name: None} if packed is None else {f"{name} unpadded": packed, name: None}


def _unit(vectors: Any) -> Any:
    """Rows of unit length. A zero vector has no direction: it becomes NaN here and a named reason in the stage."""
    return vectors / vectors.norm(dim=1, keepdim=True)


def pick_device(config: EmbedConfig) -> str:
    """cpu or cuda, as configured and as there is; ConfigError when a GPU is asked for and there is none."""
    import torch

    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError("embed.device is cuda: torch sees no GPU here; use auto or cpu")
    return "cuda" if available and config.device != "cpu" else "cpu"


def _sample(texts: Sequence[str]) -> list[str]:
    """Evenly spaced texts, at most 64 and about 8,000 characters together, at least one."""
    places = np.unique(np.linspace(0, len(texts) - 1, min(len(texts), _SAMPLE_TEXTS)).astype(int))
    chosen: list[str] = []
    chars = 0
    for place in places.tolist():
        if chosen and chars + len(texts[place]) > _SAMPLE_CHARS:
            continue
        chosen.append(texts[place])
        chars += len(texts[place])
    return chosen


def _read_ahead(reader: Any, texts: Sequence[str]) -> Iterator[Tokens]:
    """Tokenise in chunks, a few chunks ahead of the forward pass, in a thread of its own."""
    chunks = [texts[start : start + _CHUNK_TEXTS] for start in range(0, len(texts), _CHUNK_TEXTS)]
    if len(chunks) == 1:
        yield reader.read(chunks[0])
        return
    ready: queue.Queue[Tokens | BaseException] = queue.Queue(maxsize=_READ_AHEAD)
    stopped = threading.Event()

    def work() -> None:
        try:
            for chunk in chunks:
                _put(ready, reader.read(chunk), stopped)
        except BaseException as error:  # noqa: BLE001 (carried to the consuming thread, which raises it)
            _put(ready, error, stopped)

    thread = threading.Thread(target=work, name="tokenise", daemon=True)
    thread.start()
    try:
        for _ in chunks:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


def _put(ready: queue.Queue[Any], item: Any, stopped: threading.Event) -> None:
    while not stopped.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return
