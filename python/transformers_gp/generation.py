"""generate() as users of transformers know it, on the engine."""
import inspect
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from glimpse import Answer, Engine, Error, Image
from glimpse.engine import Stream

from .arguments import NEUTRAL, SETTINGS, explicit, listed, merged, sampling_of, scores_of, shown
from .checkpoint import Config, device_name, dtype_name, model_dir, settings


class Output(dict):
    """Results by name and as attributes; out[0] is the first of them, None those that were not asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what copy, pickle and numpy ask every object for
            raise AttributeError(name)
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return tuple(self.values())[key] if isinstance(key, (int, slice)) else super().__getitem__(key)


@dataclass
class Prompt:
    """A row of a batch without its padding, and its pictures and videos: pixel values and grid (t, h, w) of each, in patches."""
    ids: list[int]
    patches: list[tuple[torch.Tensor, tuple[int, int, int]]]
    seconds: dict[int, float] = field(default_factory=dict)  #: between the temporal slices of those of them that are videos


def point_boxes(mask: torch.Tensor) -> list[tuple[float, float, float, float]]:
    """Boxes that touch one token each: a mask [rows, cols] bool as the method `reference` takes it."""
    rows, cols = mask.shape
    return [(x, y, x, y) for x, y in (((col + 0.5) / cols, (row + 0.5) / rows) for row, col in mask.nonzero().tolist())]


def by_medium(prompt: Prompt, answer: Answer) -> list[list[Image]]:
    """The grids of an answer: each by itself, those of a video together."""
    videos = {i: [grid for grid in answer.images if grid.picture == i] for i in prompt.seconds}
    out: list[list[Image]] = []
    for grid in answer.images:
        if grid.picture not in videos:
            out.append([grid])
        elif grid is videos[grid.picture][0]:
            out.append(videos[grid.picture])
    return out


class PrunedModel:
    """A model that generates with pruned visual tokens. Weights are read when load_new_modules() or the first answer needs them."""

    def __init__(self, folder: os.PathLike, engine: dict[str, Any]):
        self._folder, self._settings = folder, engine
        self._engine: Engine | None = None
        self._loading = threading.Lock()
        self._modules: dict[str, Any] | None = None
        self.config = Config(**settings(model_dir(folder), "config.json", needed=True))
        ends = [getattr(each, "eos_token_id", None) for each in (self.config, getattr(self.config, "text_config", None))]
        self.generation_config = Config(**(settings(model_dir(folder), "generation_config.json") or
                                           {"eos_token_id": next((each for each in ends if each is not None), None)}))

    @classmethod
    def from_pretrained(cls, name: Any, *, torch_dtype: Any = None, dtype: Any = None, device_map: Any = None, attn_implementation: str | None = None,
                        low_cpu_mem_usage: bool | None = None, trust_remote_code: bool | None = None, use_safetensors: bool | None = None,
                        **engine: Any) -> Self:
        """name: a model's folder, or its hub id in the local cache. torch_dtype (dtype): torch.bfloat16, torch.float32 or "auto".
        device_map: one device. engine: more of glimpse.Engine's settings, such as weights="int8" or threads=4. attn_implementation and the
        other arguments of transformers change nothing: attention is the engine's own. Raises Error, or TypeError naming an argument."""
        known = inspect.signature(Engine).parameters.keys() - {"model", "new_modules", "device"}
        for unknown in engine.keys() - known:
            raise TypeError(f"from_pretrained() got an unexpected argument {unknown!r}")
        engine.update(dtype=dtype_name(torch_dtype if dtype is None else dtype), device=device_name(device_map))
        return cls(model_dir(name), engine)

    def load_new_modules(self, name: Any) -> None:
        """Trained pruning modules: a folder with config.json and new_modules_gp.pt, or its hub id in the local cache. Their settings
        become part of `config`. Raises Error."""
        folder = model_dir(name)
        modules = settings(folder, "config.json", needed=True)
        self._forget_engine()
        changed = {**self._settings, "new_modules": str(folder)}
        self._engine = Engine(str(self._folder), **changed)  # what is wrong with them is said now, and nothing has changed then
        self._settings, self._modules = changed, modules
        self.config.__dict__.update(Config(**modules).__dict__)

    @property
    def engine(self) -> Engine:
        """The glimpse.Engine that answers."""
        with self._loading:
            if self._engine is None:
                self._engine = Engine(str(self._folder), **self._settings)
            return self._engine

    def _forget_engine(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = None

    @property
    def device(self) -> torch.device:
        return torch.device(self._settings["device"])

    @property
    def dtype(self) -> torch.dtype:
        saved = {"auto": getattr(self.config, "torch_dtype", None) or getattr(self.config, "dtype", None), "bf16": "bfloat16", "fp32": "float32"}
        return torch.float32 if saved[self._settings["dtype"]] == "float32" else torch.bfloat16

    def to(self, *where: Any, **how: Any) -> Self:
        """The same model on another device or in another dtype; it is read again if that changes."""
        before = dict(self._settings)
        for each in (*where, how.get("device"), how.get("dtype")):
            if isinstance(each, torch.dtype):
                self._settings["dtype"] = dtype_name(each)
            elif each is not None:
                self._settings["device"] = device_name(each)
        if self._settings != before:
            self._forget_engine()
        return self

    def cuda(self, device: int | None = None) -> Self:
        return self.to("cuda" if device is None else f"cuda:{device}")

    def cpu(self) -> Self:
        return self.to("cpu")

    def eval(self) -> Self:
        """Nothing to do: it only answers. Training is glimpse.train()."""
        return self

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise TypeError("this model only answers; train with glimpse.train()")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        return self.train(requires_grad)

    def reset_image_tokens_cache(self) -> None:
        """Nothing to do: an answer leaves nothing behind."""

    # Of a family: rows of a batch, from what its processor gives; takes what it uses off `inputs`.
    def _prompts(self, inputs: dict[str, Any]) -> list[Prompt]:
        raise NotImplementedError

    # Of a family: visual tokens of a picture as rows and columns.
    def _token_grid(self, grid: tuple[int, int, int]) -> tuple[int, int]:
        raise NotImplementedError

    def _rule(self) -> list[str]:
        """The settings of the keep rule as they stand in `config` now, as in compositions."""
        out = []
        for name, own in (("threshold", "reduce_threshold"), ("max_keep", "max_remain_ratio"), ("min_keep", "min_remain_num"),
                          ("anchors", "anchor_positions")):
            value = getattr(self.config, own, "")
            if value is None:
                value = "none" if name.endswith("keep") else ""
            elif isinstance(value, (list, tuple)):
                value = "+".join(map(str, value))
            if value != "":
                out.append(f"{name}={value}")
        return out

    def _pruning(self, prompts: list[Prompt], do_selection: bool | None, use_ref_masks: bool | None, masks: Any) -> tuple[str, list[list]]:
        """The composition, and for each prompt the boxes that say what stays if masks do."""
        no_boxes: list[list] = [[] for _ in prompts]
        do_selection = self._modules is not None if do_selection is None else do_selection
        if not do_selection or not any(prompt.patches for prompt in prompts):
            return "none", no_boxes
        use_ref_masks = getattr(self.config, "use_ref_masks", False) if use_ref_masks is None else use_ref_masks
        if not use_ref_masks and not getattr(self.config, "use_zero_masks", False):
            if self._modules is None:
                raise Error("do_selection: no pruning modules; call load_new_modules() first")
            for name in ("reduce_layer", "selected_layers"):
                if (value := getattr(self.config, name, None)) != (own := self._modules.get(name, value)):
                    raise TypeError(f"config.{name}={value}: it is {own} with these modules; only masks that are given may be applied elsewhere")
            return f"glimpse({','.join(self._rule())})", no_boxes
        total = sum(len(prompt.patches) for prompt in prompts)
        masks = listed(masks) if use_ref_masks else [None] * total
        if len(masks) != total:
            raise ValueError(f"use_ref_masks needs ref_masks, one for each of the {total} images and videos; got {len(masks)}")
        left = iter(masks)
        boxes = [[self._boxes(next(left), grid, prompt.seconds.get(i)) for i, (_, grid) in enumerate(prompt.patches)] for prompt in prompts]
        layer = getattr(self.config, "reduce_layer", None)
        return f"reference({','.join(self._rule() + ([] if layer is None else [f'layer={layer}']))})", boxes

    def _boxes(self, mask: Any, patches: tuple[int, int, int], seconds: float | None) -> list:
        if mask is None:  # what the minimum says
            return []
        grid = self._token_grid(patches)
        mask, tokens = torch.as_tensor(mask).cpu(), grid[0] * grid[1]
        if mask.shape not in ((tokens,), (1, tokens), grid):
            raise ValueError(f"a mask of the shape {tuple(mask.shape)} for an image of {grid[0]} x {grid[1]} visual tokens")
        flat = mask.flatten()
        if flat.is_floating_point():  # probabilities: the rule ranks by them
            most, least = getattr(self.config, "max_remain_ratio", None), getattr(self.config, "min_remain_num", None) or 0
            kept = flat > getattr(self.config, "reduce_threshold", 0.5)
            if most is not None and int(kept.sum()) / tokens > most:
                kept = torch.zeros_like(kept).index_fill(0, flat.topk(int(most * tokens)).indices, True)
            if kept.sum() < least:
                kept = kept.index_fill(0, flat.topk(min(least, tokens)).indices, True)
            flat = kept
        if seconds is None:
            return point_boxes(flat.reshape(grid) > 0)
        slices = flat.reshape(patches[0], grid[0] // patches[0], grid[1]) > 0
        return [(*box, i * seconds, i * seconds) for i, kept in enumerate(slices) for box in point_boxes(kept)]

    def _submit(self, prompt: Prompt, pruning: str, boxes: list, wanted: dict[str, Any], most: int) -> Stream:
        request = {"messages": [], "bounds": {}, "keep": None, "max_new_tokens": most, "ignore_eos": False, "stop": [], "logprobs": None,
                   "logits": bool(wanted["output_scores"] or wanted["output_logits"]), "boxes": boxes, "stop_ids": wanted["eos_token_id"],
                   "sampling": sampling_of(wanted)}
        patches = [(pixels, grid, prompt.seconds.get(i)) for i, (pixels, grid) in enumerate(prompt.patches)]
        return self.engine._submit(request, [pruning], ids=prompt.ids, patches=patches)

    def generate(self, inputs: Any = None, *, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None,
                 generation_config: Any = None, streamer: Any = None, stopping_criteria: Any = None, do_selection: bool | None = None,
                 use_ref_masks: bool | None = None, ref_masks: list | None = None, ref_token_masks: list | None = None, **more: Any) -> Any:
        """Continues prompts. With what the processor gives and do_selection=True visual tokens are pruned as `config` says: reduce_threshold,
        max_remain_ratio, min_remain_num, anchor_positions. Returns [B, T + new] int64: prompts as they are, then answers, padded behind.

        do_selection: None: if there are modules. use_ref_masks: ref_masks (ref_token_masks) say what stays, for each image [rows, cols] bool
        or probabilities, for a video [slices * rows, cols]. Of a GenerationConfig, or by name: max_new_tokens, max_length, do_sample, temperature, top_k, top_p, min_p,
        repetition_penalty, eos_token_id, pad_token_id; return_dict_in_generate with output_scores, output_logits ([B, V] per step; zeros
        behind the end of an answer) and image_token_bool_masks, image_token_mask_logits ([tokens] per image or video, in the order of the prompt). streamer and
        stopping_criteria as in transformers, called in this thread; the latter row by row. Raises TypeError naming an argument that cannot be
        honoured, ValueError, Error.
        """
        with ExitStack() as ending:
            if streamer is not None:
                ending.callback(streamer.end)  # also after an error: who reads it would wait for ever
            ids = inputs if input_ids is None else input_ids
            if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.ndim != 2:
                raise TypeError(f"generate() needs input_ids, a tensor [B, T] of whole numbers, not {shown(ids)}")
            mask = torch.ones_like(ids) if attention_mask is None else torch.as_tensor(attention_mask)
            if mask.shape != ids.shape:
                raise ValueError(f"attention_mask is {shown(mask)}, but input_ids {shown(ids)}")
            family = {**more, "input_ids": ids.cpu(), "attention_mask": mask.cpu()}
            prompts = self._prompts(family)
            if not prompts or not all(prompt.ids for prompt in prompts):
                raise ValueError(f"input_ids {shown(ids)}: a prompt without tokens" if prompts else "input_ids: no prompts")
            wanted = merged(self._defaults(generation_config), explicit(generation_config), family)
            if streamer is not None and len(prompts) > 1:
                raise ValueError("a streamer is for one prompt")
            pruning, boxes = self._pruning(prompts, do_selection, use_ref_masks, ref_token_masks if ref_masks is None else ref_masks)
            most = wanted["max_new_tokens"]
            if most is None:  # of prompts in a batch the longest counts, as in transformers
                length = max(ids.shape[1], *(len(prompt.ids) for prompt in prompts))
                most = 20 if wanted["max_length"] is None else wanted["max_length"] - length
            if most <= 0:
                raise ValueError("max_new_tokens (else max_length, which counts the prompt) leaves no room for an answer")
            asked = [self._submit(prompt, pruning, of_prompt, wanted, most) for prompt, of_prompt in zip(prompts, boxes)]
            for stream in asked:
                ending.callback(stream.cancel)
            if streamer is not None:
                streamer.put(ids.cpu())
            answers = [self._follow(stream, row, streamer, listed(stopping_criteria)) for stream, row in zip(asked, ids.cpu())]
            return self._result(ids, prompts, answers, wanted)

    def _defaults(self, given: Any) -> dict[str, Any]:
        """What the checkpoint sets, unknown names left out. transformers lets a GenerationConfig that is given replace all of it but the
        tokens, for checkpoints made before 4.50."""
        own = {name: value for name, value in explicit(self.generation_config).items() if name in SETTINGS or name in NEUTRAL}
        made_with = [int(part) for part in str(own.get("transformers_version", "")).split(".")[:2] if part.isdigit()]
        old = given is not None and len(made_with) == 2 and made_with < [4, 50]
        return {name: value for name, value in own.items() if name.endswith("_token_id")} if old else own

    @staticmethod
    def _follow(stream: Stream, prompt: torch.Tensor, streamer: Any, criteria: list[Callable[..., Any]]) -> tuple[list[int], Answer]:
        """The answer's ids with its end token, up to where a criterion ends it."""
        so_far = prompt.tolist()

        def ends(token: int) -> bool:
            so_far.append(token)
            if streamer is not None:
                streamer.put(torch.tensor([token]))
            return any(bool(torch.as_tensor(rule(torch.tensor([so_far]), None)).all()) for rule in criteria)

        for token in stream.tokens():
            if ends(token):
                stream.cancel()
                break
        else:
            if stream.answer is not None and stream.answer.end_id is not None:
                ends(stream.answer.end_id)
        return so_far[len(prompt):], stream.result()

    def _result(self, ids: torch.Tensor, prompts: list[Prompt], answers: list[tuple[list[int], Answer]], wanted: dict[str, Any]) -> Any:
        longest = max(len(new) for new, _ in answers)
        pad = wanted["pad_token_id"] if wanted["pad_token_id"] is not None else [*wanted["eos_token_id"], 0][0]
        new = torch.tensor([own + [pad] * (longest - len(own)) for own, _ in answers], dtype=torch.long).reshape(len(answers), longest)
        sequences = torch.cat([ids, new.to(ids.device)], 1)
        if not wanted["return_dict_in_generate"]:
            return sequences
        out = Output(sequences=sequences)
        if wanted["output_scores"] or wanted["output_logits"]:
            logits = [torch.nn.functional.pad(answer.logits[:len(own)], (0, 0, 0, longest - len(own)))
                      for own, answer in answers if answer.logits is not None]
            if wanted["output_scores"]:
                out["scores"] = tuple(torch.stack([scores_of(rows[step], prompt.ids + own[:step], wanted) if step < len(own) else rows[step]
                                                   for rows, prompt, (own, _) in zip(logits, prompts, answers)]).to(ids.device)
                                      for step in range(longest))
            if wanted["output_logits"]:
                out["logits"] = tuple(torch.stack(logits, 1).to(ids.device))
        media = [grids for prompt, (_, answer) in zip(prompts, answers) for grids in by_medium(prompt, answer)]
        kept = [[torch.zeros(grid.rows * grid.cols, dtype=torch.bool).index_fill(0, torch.from_numpy(grid.keep), True) for grid in grids]
                for grids in media]
        out["image_token_bool_masks"] = [torch.cat(masks).to(ids.device) for masks in kept]
        scores = [[torch.from_numpy(grid.scores) for grid in grids if grid.scores is not None] for grids in media]
        scored = all(len(some) == len(grids) for some, grids in zip(scores, media))
        out["image_token_mask_logits"] = [torch.cat(some).logit()[None].to(ids.device) for some in scores] if scored else None
        return out

    def __call__(self, *, do_selection: bool = True, return_dict: bool = True, use_cache: bool | None = None, **inputs: Any) -> Output:
        """One forward pass. Gives `logits` [B, 1, V] float32 of the last row of each prompt, and for each image image_token_bool_masks
        [tokens] bool and image_token_mask_logits [1, tokens]."""
        first = {"max_new_tokens": 1, "do_sample": False, "repetition_penalty": 1.0}
        out = self.generate(**inputs, do_selection=do_selection, generation_config=first, return_dict_in_generate=True, output_logits=True)
        masks = {name: out[name] for name in ("image_token_bool_masks", "image_token_mask_logits")}
        return Output(logits=torch.stack(out["logits"], 1), **masks)

    forward = __call__
