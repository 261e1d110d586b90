"""Questions to a model, and what came of them."""
import asyncio
import base64
import io
import json
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from . import _engine
from .media import Video, media, messages as read_messages
from .pruning import Pruner, select_with


@dataclass(frozen=True)
class Image:
    """A token grid of a picture, or of what a video shows at one time, and what was kept of it."""
    rows: int
    cols: int
    keep: np.ndarray  #: [k] int64: row-major indices of the visual tokens that are left, ascending
    scores: np.ndarray | None  #: [rows * cols] float32: the predictor's probability per token, if the method has one
    area: tuple[float, float, float, float]  #: x1, y1, x2, y2 of the picture that the grid covers, from 0 to 1
    picture: int = 0  #: which picture's or video's it is: LLaVA-NeXT has two grids for a picture, the whole and its tiles; a video has one per two frames
    seconds: float | None = None  #: of a video: where in it


@dataclass(frozen=True)
class Answer:
    """An answer. str() of it is its text; in a notebook it shows the pictures with their kept tokens, too."""
    text: str
    ids: list[int]  #: tokens, the end token not included
    finish_reason: str  #: "stop", "length" or "cancelled"
    images: list[Image]
    prompt_tokens: int  #: before pruning
    visual_tokens: int
    kept_tokens: int
    cached_tokens: int  #: of the prompt: what a picture seen before saved
    kv_bytes: int  #: of the KV cache after prefill
    times_ms: dict[str, float]  #: vision, prefill, prune (part of prefill), decode
    pruning: list[dict[str, Any]]  #: methods and their settings
    tokens: list[tuple[int, float, list[tuple[int, float]]]]  #: id, log-probability and the likeliest, if asked for
    shortcut: bool | None = None  #: whether a scout ran before the language model, where it could have given way to what is known of the picture
    end_id: int | None = None  #: the end token, if one ended it
    logits: torch.Tensor | None = field(repr=False, default=None)  #: [tokens, V] float32 of each step, the end token's too, if asked for
    pictures: list[Any] = field(repr=False, default_factory=list)  #: and videos, as they were given

    def __str__(self) -> str:
        return self.text

    def overlay_png(self, image: int = 0) -> bytes:
        """PNG of a picture, its kept tokens tinted and the others dimmed; of a video, frames beside each other."""
        grids = [(of.rows, of.cols, of.keep.tolist(), list(of.area)) for of in self.images if of.picture == image]
        return _engine.overlay(_crossing(self.pictures[image]), grids)

    def overlay(self, image: int = 0):
        """The same as a PIL.Image."""
        from PIL import Image as pil
        return pil.open(io.BytesIO(self.overlay_png(image)))

    def _repr_html_(self) -> str:
        from html import escape
        shown = "".join(f'<img style="max-width: 20em; margin-right: 1em" src="data:image/png;base64,'
                        f'{base64.b64encode(self.overlay_png(i)).decode()}">' for i in range(len(self.pictures)))
        kept = f"<p><small>{self.kept_tokens} of {self.visual_tokens} visual tokens kept</small></p>" if self.visual_tokens else ""
        return f"<div>{shown}<p>{escape(self.text)}</p>{kept}</div>"


def _crossing(medium: Any) -> Any:
    return medium.crossing() if isinstance(medium, Video) else medium


def _answer(of: dict[str, Any], pictures: list[Any]) -> Answer:
    more = json.loads(of.pop("json"))
    images = [Image(i["rows"], i["cols"], i.get("keep", np.empty(0, np.int64)), i.get("scores"), i["area"], i["picture"],
                    i["seconds"] if i["picture"] < len(pictures) and isinstance(pictures[i["picture"]], Video) else None) for i in of.pop("images")]
    return Answer(images=images, pictures=pictures, **of, **more)


class Stream(Iterator[str]):
    """An answer as it comes: iterate over its pieces of text, also with `async for`. `kept` is there from the first piece on, `answer`
    at the end."""

    def __init__(self, running: Any, pictures: list[Any]):
        self._running, self._pictures = running, pictures
        self.kept: Answer | None = None  #: what is known after prefill: kept tokens, scores
        self.answer: Answer | None = None

    def _piece(self) -> tuple[str, int | None] | None:
        """The next piece of text and the token that came with it (with what comes last, none), or None behind the end."""
        try:
            while self.answer is None:
                event = self._running.next(0.2)  # Ctrl-C is noticed in between
                if event is None:
                    continue
                if event[0] == "token":
                    return event[1], event[2]
                if event[0] == "end":
                    self.answer = _answer(event[1], self._pictures)
                    return event[2], None
                self.kept = _answer(event[1], self._pictures)
        except BaseException:
            self.cancel()
            raise
        return None

    def __next__(self) -> str:
        while (piece := self._piece()) is not None:
            if piece[0]:
                return piece[0]
        raise StopIteration

    def tokens(self) -> Iterator[int]:
        """The same as token ids."""
        while (piece := self._piece()) is not None:
            if piece[1] is not None:
                yield piece[1]

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> str:
        try:
            text = await asyncio.get_running_loop().run_in_executor(None, next, self, None)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if text is None:
            raise StopAsyncIteration
        return text

    def cancel(self) -> None:
        """Ends the request; its memory is freed within a step."""
        self._running.cancel()

    def result(self) -> Answer:
        """The whole answer; waits for it."""
        for _ in self:
            pass
        assert self.answer is not None
        return self.answer


class Engine:
    """A model with its pruning modules. Any number of threads may ask it; what is asked at the same time is answered together.

    model: directory, hub id in the local Hugging Face cache (`glimpse pull` fetches it) or .gguf file; the built-in model if it is empty. new_modules: directory of
    glimpse token and predictor, or several as "name=dir". weights: "auto", "bf16", "int8" or "int4"; kv: the KV cache, "bf16", "int8" or "int4". threads: that it answers
    with; None: as many as torch.get_num_threads() says. cache_mb: memory for pictures seen before; cache_dir: a folder that keeps them on disk,
    too. Raises Error.
    """

    def __init__(self, model: str | os.PathLike = "", *, new_modules: str | os.PathLike | Sequence[str] = (), mmproj: str | os.PathLike = "",
                 clip: str | os.PathLike = "", adapters: Sequence[str] = (), dtype: str = "auto", weights: str = "auto", kv: str = "bf16",
                 device: str = "cpu", threads: int | None = None, max_sequences: int = 8, cache_mb: int = 256, cache_dir: str | os.PathLike = ""):
        modules = [new_modules] if isinstance(new_modules, (str, os.PathLike)) else list(new_modules)
        settings = {"model": os.fspath(model), "mmproj": os.fspath(mmproj), "new_modules": [os.fspath(each) for each in modules],
                    "clip": os.fspath(clip), "adapter": [os.fspath(each) for each in adapters], "dtype": dtype, "weights": weights,
                    "kv": kv, "device": device, **({} if threads is None else {"threads": threads})}
        self._server = _engine.Server(json.dumps(settings), max_sequences, cache_mb, os.fspath(cache_dir))
        self._max_sequences = max_sequences
        self._close = weakref.finalize(self, self._server.close)  # at the latest when the interpreter ends
        about = self._server.about()
        self.default_prune: str = about["default_prune"]  #: what prune="auto" means
        self.context_length: int = about["context_length"]
        self.layers: int = about["layers"]  #: of the language model
        self.methods: dict[str, str] = about["methods"]  #: pruning methods and what they do
        self._video: dict[str, Any] = json.loads(about["video"])  # how the model wants videos shown

    def stream(self, images: Any = None, question: str | None = None, *, video: Any = None,
               messages: Sequence[dict[str, Any]] | None = None, prune: str | Pruner | Sequence[str | Pruner] = "auto", keep: float | int | None = None, boxes: Sequence[Sequence[Sequence[float]]] = (),
               reuse: str = "auto", max_new_tokens: int = 512, stop: str | Sequence[str] = (), ignore_eos: bool = False, logprobs: int | None = None,
               logits: bool = False, min_pixels: int | None = None, max_pixels: int | None = None, **sampling: Any) -> Stream:
        """Asks, and gives the answer piece by piece.

        images: one or several of path, bytes of a file, PIL.Image, array [height, width, 3] uint8, data:, http: or https: URL, Video. video:
        one or several of what Video takes, or Videos; shown behind the images. messages: OpenAI's, in place of these and question. prune: a composition such as "glimpse(threshold=0.3)" or "divprune(keep=0.1)", a Pruner,
        or several that run one after the other. keep: fraction of the visual tokens, or their number if above 1. boxes: for prune="reference",
        of each image or video its boxes (x1, y1, x2, y2 from 0 to 1; in a video also from and to which second). reuse: whether a scout before other methods gives way to what cache_mb keeps of a
        picture: "never", "always" or, "auto", from the fifth question about it on. logprobs: report log-probabilities and as many of the likeliest; logits: report
        all of them. sampling: temperature, top_p, top_k, min_p, seed, repetition_penalty and so on; by default those of the checkpoint's
        generation_config.json. Raises Error.
        """
        if (messages is None) == (question is None):
            raise TypeError("give either a question or messages")
        if messages is None:
            pictures = media(images, video)
            asked = [{"role": "user", "parts": [*[None] * len(pictures), question]}]
        else:
            if images is not None or video is not None:
                raise TypeError("messages name their pictures and videos themselves")
            asked, pictures = read_messages(messages)
        bounds = {name: value for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)) if value is not None}
        request = {"messages": asked, "bounds": bounds, "keep": keep, "reuse": reuse, "boxes": boxes, "max_new_tokens": max_new_tokens,
                   "ignore_eos": ignore_eos, "stop": [stop] if isinstance(stop, str) else list(stop), "logprobs": logprobs, "logits": logits,
                   "sampling": sampling}
        pictures = [each.or_else({**self._video, **bounds}) if isinstance(each, Video) else each for each in pictures]
        return self._submit(request, [prune] if isinstance(prune, (str, Pruner)) else list(prune), pictures=pictures)

    def _submit(self, request: dict[str, Any], stages: list[str | Pruner], *, pictures: Sequence[Any] = (), ids: Sequence[int] = (),
                patches: Sequence[tuple[torch.Tensor, tuple[int, int, int], float | None]] = ()) -> Stream:
        """A request as the library reads it: about pictures and videos, or a prompt of ids with the pixel values and grids of these, and of a
        video the seconds between two grids."""
        chain = None if stages == ["auto"] else stages
        running = self._server.submit(json.dumps({"stop_ids": None, "reuse": "auto", **request}), [_crossing(each) for each in pictures], chain, list(ids),
                                      list(patches))
        return Stream(running, list(pictures))

    def ask(self, images: Any = None, question: str | None = None, **more: Any) -> Answer:
        """The answer; takes what stream() takes."""
        return self.stream(images, question, **more).result()

    def ask_many(self, requests: Iterable[dict[str, Any]], *, progress: bool | None = None, errors: str = "raise") -> list[Answer | Exception]:
        """Answers of many requests (keyword arguments of ask(), each a dict), in their order, as many at the same time as the engine has
        room for. progress: shows a bar; None: at a terminal, if tqdm is there. errors: "raise" the first, or "return" them in place."""
        requests = list(requests)
        out: list[Answer | Exception] = []
        bar = _progress(len(requests), progress)
        asked: deque[Stream | Exception] = deque()  # the oldest first, as answers begin in order

        def attempt(run: Callable[[], Any]) -> Any:
            try:
                return run()
            except Exception as error:
                if errors == "raise":
                    raise
                return error

        def finish() -> None:
            of = asked[0]
            out.append(attempt(of.result) if isinstance(of, Stream) else of)
            asked.popleft()
            bar.update(1)

        try:
            for request in requests:
                if len(asked) == 2 * self._max_sequences:
                    finish()
                asked.append(attempt(lambda: self.stream(**request)))
            while asked:
                finish()
        finally:
            for of in asked:
                if isinstance(of, Stream):
                    of.cancel()
            bar.close()
        return out

    def prune(self, method: str, hidden: torch.Tensor, grids: list[tuple[int, int]], *, keep: float | int | None = None,
              **tensors: Any) -> np.ndarray:
        """glimpse.prune() with this model's modules and layers."""
        return select_with(self._server.select, method, hidden, grids, keep, tensors)

    @property
    def running(self) -> int:
        """Requests that are answered or wait."""
        return self._server.running()

    def close(self) -> None:
        """Ends what still runs; nothing can be asked any more. A `with` block does it at its end."""
        self._close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<glimpse.Engine, prunes by {self.default_prune}>"


class _NoBar:
    def update(self, count: int) -> None:
        pass

    def close(self) -> None:
        pass


def _progress(total: int, wanted: bool | None) -> Any:
    import sys
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        return _NoBar()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _NoBar()
    return tqdm(total=total, unit="answer")


_default: Engine | None = None
_lock = threading.Lock()


def ask(images: Any = None, question: str | None = None, **more: Any) -> Answer:
    """Asks the built-in model, which is loaded once; takes what Engine.ask takes."""
    global _default
    with _lock:
        if _default is None:
            _default = Engine()
    return _default.ask(images, question, **more)
