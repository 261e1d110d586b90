"""Pruning methods as objects: one's own for the engine, and the library's on tensors."""
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from . import _engine


@dataclass(frozen=True)
class Cut:
    """Where a method drops visual tokens."""
    place: str = "after"  #: "after" or "before" a layer of the language model, at the "encoder"'s output, or "within" it after a block
    layer: int = 0  #: of the language model; within the encoder its block
    trims_cache: bool = True  #: dropped tokens also leave the KV caches of the layers already run
    renumbers: bool = False  #: plain RoPE: positions from here on count what is left
    ahead: str = "none"  #: before a layer: View.ahead is that layer's attention by the last text row, "with_rope" or "without_rope"
    reads_text: bool = True  #: False: what stays depends on the pictures alone and is reused for other questions about them


@dataclass(frozen=True)
class Taps:
    """What the model records for a method."""
    vision_layers: list[int] = field(default_factory=list)  #: encoder blocks whose output View.vision_states has
    attention_layers: list[int] = field(default_factory=list)  #: layers whose attention by the last row View.attention has
    log_softmax: bool = False  #: of those logits, over all keys
    vision_attention: list[int] = field(default_factory=list)  #: encoder blocks (-1: the last) whose attention View.vision_attention has
    shared_space: bool = False  #: embeddings of image and question in CLIP's space
    boxes: bool = False  #: reference boxes


@dataclass(frozen=True)
class ModelInfo:
    """What a method is made for."""
    layers: int  #: of the language model
    cut_layer: int  #: after which methods cut unless told otherwise
    shallow_block: int  #: of the encoder: shows local detail
    class_token: bool  #: whether the encoder has one
    text_tower: bool  #: whether the encoder shares a space with a text encoder


@dataclass(frozen=True)
class Segment:
    """A token grid of a picture, or of what a video shows at one time: rows * cols tokens, row-major, from `first` of the prompt's on."""
    rows: int
    cols: int
    first: int
    medium: int  #: number of the picture or video in the prompt
    area: tuple[float, float, float, float]  #: x1, y1, x2, y2 of the picture that the grid covers, from 0 to 1
    seconds: float = 0.0  #: of a video: where in it


@dataclass(frozen=True)
class View:
    """What a method may look at: n living of N visual tokens. The tensors are the engine's own: read them, do not change them."""
    segments: list[Segment]
    living: torch.Tensor  #: [n] int64: number of each living token among the N
    hidden: torch.Tensor | None  #: [n, D] hidden states; [n, Dv] at the encoder's output; none within the encoder
    text_hidden: torch.Tensor | None  #: [T, D]: of the other rows
    question: torch.Tensor | None  #: [Q] int64: which of these hold the question
    vision_states: list[torch.Tensor]  #: [N, Dv] each, in the order of Taps.vision_layers
    windows: torch.Tensor  #: [N] int64: encoder window of each token
    attention: torch.Tensor | None  #: [n, layers * heads] float32
    vision_attention: list[tuple[torch.Tensor, torch.Tensor]]  #: ([N] attention received, [N, d] keys), in the order of Taps.vision_attention
    shared_image: torch.Tensor | None  #: [N, P]
    shared_question: torch.Tensor | None  #: [M, P]: of the M pieces of the question
    ahead: torch.Tensor | None  #: [n] float32, see Cut.ahead
    boxes: list[list[tuple[float, float, float, float]]]  #: reference boxes per picture, from 0 to 1

    @property
    def total(self) -> int:
        """N."""
        return sum(each.rows * each.cols for each in self.segments)

    def __len__(self) -> int:
        return len(self.living)


@dataclass(frozen=True)
class Budget:
    """An equal budget for every method: what its last cut leaves of a prompt's N visual tokens; all empty: its own rule."""
    keep: float | None = None  #: fraction of all
    count: int | None = None
    counts: list[int] = field(default_factory=list)  #: for each picture

    def of(self, total: int) -> int | None:
        """Tokens to keep of `total`, or None without a budget."""
        return _engine.tokens_of(self.keep, self.count, self.counts, total)


@dataclass(frozen=True)
class Selection:
    """What stays."""
    keep: Any  #: [k] indices into the living tokens, or a mask [n]
    features: torch.Tensor | None = None  #: [k, D]: new hidden states (merging)
    scores: torch.Tensor | None = None  #: [n] float32: probability per living token, for pictures of what was kept


class Pruner:
    """A pruning method of one's own: say where it cuts and what it reads, then which tokens stay.

        class Brightest(glimpse.Pruner):
            def __init__(self, keep: float = 0.1):
                self.keep = keep
            def cuts(self, model):
                return [glimpse.Cut("before", 0)]
            def select(self, view, cut, budget):
                count = budget.of(view.total) or round(self.keep * view.total)
                return view.hidden.float().norm(dim=1).topk(count).indices

        engine.ask("photo.jpg", "What is it?", prune=Brightest(0.05))
        glimpse.register(Brightest)      # then by name, everywhere: prune="brightest(keep=0.05)+glimpse", glimpse.evaluate(...)

    Its code runs in the engine's thread, which waits for it. An exception in it ends that request alone and is raised to who asked."""

    @property
    def name(self) -> str:
        """As compositions and results call it: the class's name in lower case."""
        return type(self).__name__.lower()

    def settings(self) -> dict[str, Any]:
        """As recorded in results: public attributes."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def cuts(self, model: ModelInfo) -> list[Cut]:
        """Where it cuts; select() is called for each, in their order."""
        raise NotImplementedError(f"{type(self).__name__}.cuts")

    def taps(self, model: ModelInfo) -> Taps:
        """What it reads beside hidden states."""
        return Taps()

    def select(self, view: View, cut: Cut, budget: Budget) -> Any:
        """Which of the living tokens stay: indices (tensor, array or list), a mask, or a Selection."""
        raise NotImplementedError(f"{type(self).__name__}.select")


def register(method: Callable[..., Pruner], name: str | None = None) -> Callable[..., Pruner]:
    """Makes a method known by name (the class's own in lower case) wherever compositions are read; also a decorator. Settings in a
    composition become keyword arguments: numbers, true, false and none, else text."""
    called = name or method.__name__.lower()

    def make(settings: dict[str, str]) -> Pruner:
        try:
            return method(**{key: _value(text) for key, text in settings.items()})
        except TypeError as error:
            raise _engine.Error(f"{called}: {error}") from error

    _engine.register(called, (method.__doc__ or called).strip().splitlines()[0], make)
    return method


def _value(text: str) -> Any:
    try:
        return json.loads({"none": "null"}.get(text.lower(), text))
    except ValueError:
        return text


def methods() -> dict[str, str]:
    """The pruning methods and what they do."""
    return {name: summary for name, summary, _ in _engine.methods()}


def prune(method: str, hidden: torch.Tensor, grids: list[tuple[int, int]], *, keep: float | int | None = None, layers: int = 1 << 20,
          **tensors: Any) -> np.ndarray:
    """Which visual tokens a method of the library keeps, as a function on tensors; nothing is copied.

    method: with its settings, "divprune(keep=0.1)". hidden: [n, D] at its cut. grids: rows and columns of each picture. keep: a budget.
    layers: of the language model, for methods whose cuts depend on it. Beside these what the method reads (see View): attention,
    vision_states, vision_attention and vision_keys (a list each), text_hidden, question, ahead, shared_image, shared_question, windows,
    boxes; living where some of the tokens have gone; cut: the number of the cut for methods with several (the last). Gives indices [k]
    int64, ascending. For methods with trained modules there is Engine.prune. Raises TypeError naming what the method needs, Error.
    """
    return select_with(lambda name, given: _engine.select(name, given, layers), method, hidden, grids, keep, tensors)


def select_with(run: Callable[..., Selection], method: str, hidden: torch.Tensor, grids: list[tuple[int, int]], keep: Any,
                tensors: dict[str, Any]) -> np.ndarray:
    known = {"attention", "vision_states", "vision_attention", "vision_keys", "text_hidden", "question", "ahead", "shared_image",
             "shared_question", "windows", "boxes", "living", "cut"}
    for name in tensors.keys() - known:
        raise TypeError(f"prune() got an unexpected argument {name!r} (known: {', '.join(sorted(known))})")
    given = {"keep": keep, **tensors}
    return run(method, {"hidden": hidden, "grids": grids, **{name: value for name, value in given.items() if value is not None}}).keep
