"""What users of transformers pass to generate()."""
from collections.abc import Sequence
from typing import Any

import torch

#: What generate() takes of a GenerationConfig, with transformers' own defaults.
SETTINGS: dict[str, Any] = {
    "max_new_tokens": None, "max_length": None, "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0,
    "repetition_penalty": 1.0, "eos_token_id": None, "pad_token_id": None, "return_dict_in_generate": False, "output_scores": False,
    "output_logits": False}
WHOLE, NUMBERS = ("max_new_tokens", "max_length", "top_k", "pad_token_id"), ("temperature", "top_p", "min_p", "repetition_penalty")
#: What may be given if it asks for nothing else than what is done anyway.
NEUTRAL: dict[str, Any] = {
    "num_beams": (1,), "num_return_sequences": (1,), "num_beam_groups": (1,), "use_cache": "any", "min_length": (0,), "min_new_tokens": (0,),
    "output_attentions": (False,), "output_hidden_states": (False,), "typical_p": (1.0,), "length_penalty": (1.0,), "no_repeat_ngram_size": (0,),
    "early_stopping": (False,), "max_time": (), "penalty_alpha": (0.0,), "diversity_penalty": (0.0,), "synced_gpus": (False,),
    "delay_selection": (False,), "trust_remote_code": "any", "bos_token_id": "any", "decoder_start_token_id": (), "_from_model_config": "any",
    "transformers_version": "any", "cache_implementation": (), "logits_processor": ([],), "position_ids": (), "past_key_values": (),
    "pixel_values_videos": (), "video_grid_thw": (), "second_per_grid_ts": (), "attn_implementation": "any"}


def explicit(config: Any) -> dict[str, Any]:
    """What a GenerationConfig, a Config or a dict sets."""
    if config is None:
        return {}
    if isinstance(config, dict):
        return config
    if not hasattr(config, "to_dict"):
        raise TypeError(f"generation_config is a GenerationConfig or a dict, not {config!r}")
    return config.to_diff_dict() if hasattr(config, "to_diff_dict") else config.to_dict()


def shown(of: Any) -> str:
    return f"{of.dtype} {list(of.shape)}" if isinstance(of, torch.Tensor) else type(of).__name__


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """SETTINGS with what these set, the later over the earlier; None is off. Raises TypeError naming what cannot be honoured, ValueError."""
    out = dict(SETTINGS)
    for layer in layers:
        for name, value in layer.items():
            if name in SETTINGS:
                out[name] = value
            elif name not in NEUTRAL:
                raise TypeError(f"generate() got an unexpected argument {name!r}")
            elif value is not None and NEUTRAL[name] != "any" and value not in NEUTRAL[name]:
                raise TypeError(f"generate(): {name}={repr(value) if isinstance(value, (int, float, str)) else shown(value)} is not supported")
    for name in (*WHOLE, *NUMBERS):
        out[name] = 0 if name == "top_k" and out[name] is None else SETTINGS[name] if out[name] is None else number(name, out[name])
    out["eos_token_id"] = [number("eos_token_id", each) for each in listed(out["eos_token_id"])]
    return out


def number(name: str, value: Any) -> Any:
    """A number as Python's own, from whatever library. Raises TypeError, ValueError naming what it is for."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"generate(): {name} is a number, not {value!r}")
    if not abs(value) < 2**63 or (name not in NUMBERS and value != int(value)):  # nor is nan
        raise ValueError(f"generate(): {name}={value} is not a {'finite' if name in NUMBERS else 'whole'} number")
    return value if name in NUMBERS else int(value)


def listed(of: Any) -> list[Any]:
    """What may be None, one or several as a list."""
    of = of.tolist() if hasattr(of, "tolist") else of
    return [] if of is None else list(of) if isinstance(of, Sequence) else [of]


def sampling_of(wanted: dict[str, Any]) -> dict[str, Any]:
    """The engine's names for it. What is drawn follows torch.manual_seed()."""
    out = {"repetition_penalty": wanted["repetition_penalty"], "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    if wanted["do_sample"]:
        if wanted["temperature"] <= 0:
            raise ValueError("temperature must be above 0; for greedy decoding leave do_sample out")
        out.update({name: wanted[name] for name in ("temperature", "top_k", "min_p")}, top_p=wanted["top_p"] or 1e-9,
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
        cut = ordered.softmax(0).cumsum(0) <= 1 - wanted["top_p"]
        scores[index[:-1][cut[:-1]]] = -torch.inf  # the likeliest stays
    if wanted["min_p"]:
        chance = scores.softmax(0)
        scores[chance < wanted["min_p"] * chance.max()] = -torch.inf
    return scores
