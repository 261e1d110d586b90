"""generate() as users of transformers know it, on the engine."""
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glimpse import Answer, Engine, Error
from glimpse.engine import Stream

from .checkpoint import Config, device_name, dtype_name, model_dir, settings


class Output(dict):
    """Results by name and as attributes; out[0] is the first of them, None those that were not asked for."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


@dataclass
class Prompt:
    """A row of a batch without its padding, and its pictures: pixel values and grid (t, h, w) of each, in patches."""
    ids: list[int]
    patches: list[tuple[torch.Tensor, tuple[int, int, int]]]


#: What generate() takes of a GenerationConfig, with transformers' own defaults.
SETTINGS: dict[str, Any] = {
    "max_new_tokens": None, "max_length": None, "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None,
    "repetition_penalty": 1.0, "eos_token_id": None, "pad_token_id": None, "return_dict_in_generate": False, "output_scores": False,
    "output_logits": False}
#: What may be given if it asks for nothing else than what is done anyway.
NEUTRAL: dict[str, tuple] = {
    "num_beams": (1,), "num_return_sequences": (1,), "num_beam_groups": (1,), "use_cache": (True,), "min_length": (0,), "min_new_tokens": (0,),
    "output_attentions": (False,), "output_hidden_states": (False,), "typical_p": (1.0,), "length_penalty": (1.0,), "no_repeat_ngram_size": (0,),
    "early_stopping": (False,), "max_time": (), "penalty_alpha": (0.0,), "diversity_penalty": (0.0,), "synced_gpus": (False,),
    "delay_selection": (False,), "trust_remote_code": (False, True), "bos_token_id": "any", "decoder_start_token_id": (), "_from_model_config": "any",
    "transformers_version": "any", "cache_implementation": (), "logits_processor": ([],), "position_ids": (), "past_key_values": (),
    "pixel_values_videos": (), "video_grid_thw": (), "second_per_grid_ts": (), "attn_implementation": "any"}


def explicit(config: Any) -> dict[str, Any]:
    """What a GenerationConfig, a Config or a dict sets."""
    if config is None:
        return {}
    if isinstance(config, dict):
        return config
    return config.to_diff_dict() if hasattr(config, "to_diff_dict") else config.to_dict()


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """SETTINGS with what these set, the later over the earlier. Raises TypeError naming what cannot be honoured."""
    out = dict(SETTINGS)
    for layer in layers:
        for name, value in layer.items():
            if name in SETTINGS:
                out[name] = value if value is not None else out[name]
            elif name not in NEUTRAL:
                raise TypeError(f"generate() got an unexpected argument {name!r}")
            elif value is not None and NEUTRAL[name] != "any" and value not in NEUTRAL[name]:
                raise TypeError(f"generate(): {name}={value!r} is not supported")
    return out


def sampling_of(wanted: dict[str, Any]) -> dict[str, Any]:
    """The engine's names for it. What is drawn follows torch.manual_seed()."""
    out = {"repetition_penalty": wanted["repetition_penalty"], "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    if wanted["do_sample"]:
        if wanted["temperature"] <= 0:
            raise ValueError("temperature must be above 0; for greedy decoding leave do_sample out")
        out.update(temperature=wanted["temperature"], top_k=wanted["top_k"] or 0, top_p=wanted["top_p"], min_p=wanted["min_p"] or 0.0,
                   seed=int(torch.randint(2**31, ())))
    return out


def scores_of(logits: torch.Tensor, seen: list[int], wanted: dict[str, Any]) -> torch.Tensor:
    """What transformers calls scores: logits [V] of a step after penalty, temperature and the cuts of sampling (-inf: cut)."""
    scores = logits.clone()
    if wanted["repetition_penalty"] != 1.0:
        index = torch.tensor(sorted(set(seen)))
        own = scores[index]
        scores[index] = torch.where(own < 0, own * wanted["repetition_penalty"], own / wanted["repetition_penalty"])
    if not wanted["do_sample"]:
        return scores
    scores /= wanted["temperature"]
    if wanted["top_k"]:
        scores[scores < scores.topk(min(wanted["top_k"], len(scores))).values[-1]] = -torch.inf
    if wanted["top_p"] < 1.0:
        ordered, index = scores.sort()
        scores[index[ordered.softmax(0).cumsum(0)[:-1] <= 1 - wanted["top_p"]]] = -torch.inf if len(index) > 1 else scores
    if wanted["min_p"]:
        chance = scores.softmax(0)
        scores[chance < wanted["min_p"] * chance.max()] = -torch.inf
    return scores


def flattened(criteria: Any) -> list[Callable[..., Any]]:
    if criteria is None:
        return []
    return list(criteria) if isinstance(criteria, Sequence) else [criteria]


def point_boxes(mask: torch.Tensor) -> list[tuple[float, float, float, float]]:
    """Boxes that touch one token each: a mask [rows, cols] bool as the method `reference` takes it."""
    rows, cols = mask.shape
    return [(x, y, x, y) for x, y in (((col + 0.5) / cols, (row + 0.5) / rows) for row, col in mask.nonzero().tolist())]


class PrunedModel:
    """A model that generates with pruned visual tokens. Weights are read when load_new_modules() or the first answer needs them."""

    def __init__(self, folder: os.PathLike, engine: dict[str, Any]):
        self._folder, self._settings = folder, engine
        self._engine: Engine | None = None
        self._modules: dict[str, Any] | None = None
        self.config = Config(**settings(model_dir(folder), "config.json", needed=True))
        self.generation_config = Config(**settings(model_dir(folder), "generation_config.json"))

    @classmethod
    def from_pretrained(cls, name: Any, *, torch_dtype: Any = None, dtype: Any = None, device_map: Any = None, attn_implementation: str | None = None,
                        low_cpu_mem_usage: bool | None = None, trust_remote_code: bool | None = None, use_safetensors: bool | None = None,
                        **engine: Any) -> "PrunedModel":
        """name: a model's folder, or its hub id in the local cache. torch_dtype (dtype): torch.bfloat16, torch.float32 or "auto".
        device_map: one device. engine: more of glimpse.Engine's settings, such as weights="int8" or threads=4. attn_implementation and the
        other arguments of transformers change nothing: attention is the engine's own. Raises Error, or TypeError naming an argument."""
        folder = model_dir(name)
        engine.update(dtype=dtype_name(torch_dtype if dtype is None else dtype), device=device_name(device_map))
        return cls(folder, engine)

    def load_new_modules(self, name: Any) -> None:
        """Trained pruning modules: a folder with config.json and new_modules_gp.pt, or its hub id in the local cache. Their settings
        become part of `config`. Raises Error."""
        folder = model_dir(name)
        self._modules = settings(folder, "config.json", needed=True)
        for key, value in self._modules.items():
            setattr(self.config, key, Config(**value) if isinstance(value, dict) else value)
        self._settings["new_modules"] = str(folder)
        self._forget_engine()
        self.engine  # noqa: B018  what is wrong with them is said now

    @property
    def engine(self) -> Engine:
        """The glimpse.Engine that answers."""
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

    def to(self, *where: Any, **how: Any) -> "PrunedModel":
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

    def cuda(self, device: int | None = None) -> "PrunedModel":
        return self.to("cuda" if device is None else f"cuda:{device}")

    def cpu(self) -> "PrunedModel":
        return self.to("cpu")

    def eval(self) -> "PrunedModel":
        """Nothing to do: it only answers. Training is glimpse.train()."""
        return self

    def train(self, mode: bool = True) -> "PrunedModel":
        if mode:
            raise TypeError("this model only answers; train with glimpse.train()")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "PrunedModel":
        return self.train(requires_grad)

    def reset_image_tokens_cache(self) -> None:
        """Nothing to do: an answer leaves nothing behind."""

    # Of a family: rows of a batch, from what its processor gives; takes what it uses off `inputs`.
    def _prompts(self, inputs: dict[str, Any]) -> list[Prompt]:
        raise NotImplementedError

    # Of a family: visual tokens of a picture as rows and columns.
    def _token_grid(self, grid: tuple[int, int, int]) -> tuple[int, int]:
        raise NotImplementedError

    def _rule(self) -> str:
        """The settings of the keep rule as they stand in `config` now, in the names of compositions."""
        anchors = getattr(self.config, "anchor_positions", None)
        rule = {"threshold": getattr(self.config, "reduce_threshold", None), "max_keep": getattr(self.config, "max_remain_ratio", None),
                "min_keep": getattr(self.config, "min_remain_num", None),
                "anchors": "+".join([anchors] if isinstance(anchors, str) else anchors) if anchors else None}
        names = {"threshold": "reduce_threshold", "max_keep": "max_remain_ratio", "min_keep": "min_remain_num", "anchors": "anchor_positions"}
        return ",".join(f"{name}={'none' if value is None else value}" for name, value in rule.items()
                        if value is not None or (name in ("max_keep", "min_keep") and hasattr(self.config, names[name])))

    def _pruning(self, prompts: list[Prompt], do_selection: bool | None, use_ref_masks: bool | None, masks: list | None) -> tuple[str, list[list]]:
        """The composition, and for each prompt the boxes that say what stays if masks do."""
        no_boxes: list[list] = [[] for _ in prompts]
        if do_selection is None:
            do_selection = self._modules is not None
        if not do_selection:
            return "none", no_boxes
        if use_ref_masks is None:
            use_ref_masks = getattr(self.config, "use_ref_masks", False)
        zero = getattr(self.config, "use_zero_masks", False)
        layer = getattr(self.config, "reduce_layer", None)
        if not use_ref_masks and not zero:
            if self._modules is None:
                raise Error("do_selection: no pruning modules; call load_new_modules() first")
            if layer != self._modules.get("reduce_layer", layer):
                raise TypeError(f"config.reduce_layer={layer}: these modules choose after layer {self._modules['reduce_layer']}; "
                                "only reference masks may be applied elsewhere")
            return f"glimpse({self._rule()})", no_boxes
        grids = [[self._token_grid(grid) for _, grid in prompt.patches] for prompt in prompts]
        total = sum(map(len, grids))
        if zero:
            masks = [None] * total
        elif masks is None or len(masks) != total:
            raise ValueError(f"use_ref_masks needs ref_masks, one for each of the {total} images; got {0 if masks is None else len(masks)}")
        left = iter(masks)
        boxes = [[self._boxes(next(left), grid) for grid in of_prompt] for of_prompt in grids]
        return f"reference({','.join(filter(None, [f'layer={layer}' if layer is not None else '', self._rule()]))})", boxes

    def _boxes(self, mask: torch.Tensor | None, grid: tuple[int, int]) -> list:
        if mask is None:  # what the minimum says
            return []
        mask = torch.as_tensor(mask).cpu()
        if mask.numel() != grid[0] * grid[1]:
            raise ValueError(f"a mask of the shape {tuple(mask.shape)} for an image of {grid[0]} x {grid[1]} visual tokens")
        flat = mask.flatten()
        if flat.is_floating_point():  # probabilities: the rule ranks by them
            most, least = getattr(self.config, "max_remain_ratio", None), getattr(self.config, "min_remain_num", None) or 0
            kept = flat > getattr(self.config, "reduce_threshold", 0.5)
            if most is not None and kept.sum() > most * flat.numel():
                kept = torch.zeros_like(kept).index_fill(0, flat.topk(int(most * flat.numel())).indices, True)
            if kept.sum() < least:
                kept = kept.index_fill(0, flat.topk(min(least, flat.numel())).indices, True)
            flat = kept
        return point_boxes(flat.reshape(grid) > 0)

    def _submit(self, prompt: Prompt, pruning: str, boxes: list, wanted: dict[str, Any], most: int) -> Stream:
        ends = wanted["eos_token_id"]
        request = {"messages": [], "bounds": {}, "keep": None, "max_new_tokens": most, "ignore_eos": False, "stop": [], "logprobs": None,
                   "logits": wanted["output_scores"] or wanted["output_logits"], "boxes": boxes,
                   "stop_ids": None if ends is None else [ends] if isinstance(ends, int) else list(map(int, ends)), "sampling": sampling_of(wanted)}
        return self.engine._submit(request, [pruning], ids=prompt.ids, patches=prompt.patches)

    def generate(self, inputs: Any = None, *, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None,
                 generation_config: Any = None, streamer: Any = None, stopping_criteria: Any = None, do_selection: bool | None = None,
                 use_ref_masks: bool | None = None, ref_masks: list | None = None, ref_token_masks: list | None = None, **more: Any) -> Any:
        """Continues prompts. With what the processor gives and do_selection=True visual tokens are pruned as `config` says: reduce_threshold,
        max_remain_ratio, min_remain_num, anchor_positions. Returns [B, T + new] int64: prompts as they are, then answers, padded behind.

        do_selection: None: if there are modules. use_ref_masks: ref_masks (ref_token_masks) say what stays, for each image [rows, cols] bool
        or probabilities. Of a GenerationConfig, or by name: max_new_tokens, max_length, do_sample, temperature, top_k, top_p, min_p,
        repetition_penalty, eos_token_id, pad_token_id; return_dict_in_generate with output_scores, output_logits ([B, V] per step; zeros
        behind the end of an answer) and image_token_bool_masks, image_token_mask_logits ([tokens] per image). streamer and
        stopping_criteria as in transformers, called in this thread; the latter row by row. Raises TypeError naming an argument that cannot be
        honoured, ValueError, Error.
        """
        ids = inputs if input_ids is None else input_ids
        if ids is None:
            raise TypeError("generate() needs input_ids")
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        family = {**more, "input_ids": ids.cpu(), "attention_mask": mask.cpu()}
        prompts = self._prompts(family)
        wanted = merged(explicit(self.generation_config), explicit(generation_config), family)
        if streamer is not None and len(prompts) > 1:
            raise ValueError("a streamer is for one prompt")
        pruning, boxes = self._pruning(prompts, do_selection, use_ref_masks, ref_token_masks if ref_masks is None else ref_masks)

        def most(prompt: Prompt) -> int:
            if wanted["max_new_tokens"] is not None:
                return wanted["max_new_tokens"]
            length = 20 + len(prompt.ids) if wanted["max_length"] is None else wanted["max_length"]  # as transformers, which warns about 20
            if length <= len(prompt.ids):
                raise ValueError(f"max_length={length} leaves no room behind a prompt of {len(prompt.ids)} tokens; set max_new_tokens")
            return length - len(prompt.ids)

        asked = [self._submit(prompt, pruning, of_prompt, wanted, most(prompt)) for prompt, of_prompt in zip(prompts, boxes)]
        try:
            if streamer is not None:
                streamer.put(ids.cpu())
            answers = [self._follow(stream, row, streamer, flattened(stopping_criteria)) for stream, row in zip(asked, ids.cpu())]
            if streamer is not None:
                streamer.end()
        finally:
            for stream in asked:
                stream.cancel()
        return self._result(ids, prompts, answers, wanted)

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
        end = wanted["eos_token_id"]
        pad = wanted["pad_token_id"] if wanted["pad_token_id"] is not None else end if isinstance(end, int) else end[0] if end else 0
        new = torch.tensor([own + [pad] * (longest - len(own)) for own, _ in answers], dtype=torch.long).reshape(len(answers), longest)
        sequences = torch.cat([ids, new.to(ids.device)], 1)
        if not wanted["return_dict_in_generate"]:
            return sequences
        out = Output(sequences=sequences)
        if wanted["output_scores"] or wanted["output_logits"]:
            logits = []
            for _, answer in answers:
                own = answer.logits[:longest] if answer.logits is not None else torch.zeros(0, 1)
                logits.append(torch.cat([own, own.new_zeros(longest - len(own), own.shape[1])]))
            if wanted["output_scores"]:
                out["scores"] = tuple(torch.stack([scores_of(rows[step], prompt.ids + own[:step], wanted) if step < len(own) else rows[step]
                                                   for rows, prompt, (own, _) in zip(logits, prompts, answers)]) for step in range(longest))
            if wanted["output_logits"]:
                out["logits"] = tuple(torch.stack([rows[step] for rows in logits]) for step in range(longest))
        out.update(self._masks_of([answer for _, answer in answers]))
        return out

    @staticmethod
    def _masks_of(answers: list[Answer]) -> dict[str, Any]:
        kept, logits = [], []
        for image in (image for answer in answers for image in answer.images):
            mask = torch.zeros(image.rows * image.cols, dtype=torch.bool)
            mask[torch.from_numpy(image.keep)] = True
            kept.append(mask)
            logits.append(None if image.scores is None else torch.from_numpy(image.scores).logit()[None])
        return {"image_token_bool_masks": kept, "image_token_mask_logits": None if any(each is None for each in logits) else logits}

    def __call__(self, *, do_selection: bool = True, return_dict: bool = True, use_cache: bool | None = None, **inputs: Any) -> Output:
        """One forward pass. Gives `logits` [B, 1, V] float32 of the last row of each prompt, and for each image image_token_bool_masks
        [tokens] bool and image_token_mask_logits [1, tokens]."""
        out = self.generate(**inputs, do_selection=do_selection, generation_config={"max_new_tokens": 1, "do_sample": False, "repetition_penalty": 1.0},
                            return_dict_in_generate=True, output_logits=True)
        masks = {name: out[name] for name in ("image_token_bool_masks", "image_token_mask_logits")}
        return Output(logits=torch.stack(out["logits"], 1), **masks)

    forward = __call__
