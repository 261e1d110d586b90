"""Loading, as the LLaVA repository does it."""
import os
from typing import Any

from transformers_gp.checkpoint import Tokenizer, model_dir

from ..mm_utils import ImageProcessor
from .language_model.llava_llama import LlavaLlamaForCausalLM_GP

#: Of LLaMA's tokenizers, where tokenizer_config.json leaves them out.
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


def load_pretrained_model(model_path: str | os.PathLike, model_base: str | os.PathLike | None, model_name: str, load_8bit: bool = False,
                          load_4bit: bool = False, device_map: Any = "auto", device: str = "cuda", use_flash_attn: bool = False, *,
                          multimodal: bool = True, **more: Any) -> tuple[Tokenizer, LlavaLlamaForCausalLM_GP, ImageProcessor, int]:
    """Tokenizer, model, image processor and context length of the model in a folder, or of a hub id in the local cache.

    model_base: None, or the LLaVA that model_path is a PEFT adapter of. load_8bit, load_4bit: the linear layers' weights. device: other
    than "cuda" it goes before device_map. more: see PrunedModel.from_pretrained. model_name, use_flash_attn and multimodal change nothing.
    Raises Error, or TypeError naming an argument.
    """
    folder = model_dir(model_path)
    if model_base is not None:
        if not (folder / "adapter_config.json").exists() or (folder / "non_lora_trainables.bin").exists():
            raise TypeError(f"model_base={str(model_base)!r} is not supported with {folder}: that is no PEFT adapter, or more; merge it first")
        more["adapters"] = [*more.get("adapters", ()), str(folder)]
        folder = model_dir(model_base)
    if load_8bit or load_4bit:
        more["weights"] = "int8" if load_8bit else "int4"
    model = LlavaLlamaForCausalLM_GP.from_pretrained(folder, device_map=device_map if device == "cuda" else device, **more)
    tokenizer = Tokenizer(folder)
    tokenizer.special_tokens_map = {**SPECIAL_TOKENS, **tokenizer.special_tokens_map}
    text = getattr(model.config, "text_config", model.config)
    length = getattr(model.config, "max_sequence_length", getattr(text, "max_position_embeddings", 2048))
    return tokenizer, model, model.get_vision_tower().image_processor, length


__all__ = ["load_pretrained_model"]
