#!/usr/bin/env python3
"""Random tiny LLaVA checkpoints and what Hugging Face transformers computes with them.

Usage: make_llava.py OUT_DIR

Writes OUT_DIR/<shape>/model/ and OUT_DIR/<shape>/cases/ as make_checkpoints.py does, in the layouts in which such models
are published: Hugging Face's conversion with its older and newer names, and the original one with sharded torch files
and the encoder in a CLIP checkpoint of its own. Differences: pixel_values are [n, 3, H, W]; position_ids [T];
the original layout has -200 where an image token stands.
"""
import json
from functools import partial

import torch
from make_checkpoints import STEPS, fresh_rope, make_all, save_random_model, write_cases
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, LlavaConfig, LlavaForConditionalGeneration

IMAGE, VOCAB, PATCH = 317, 320, 14


def shape(layers, heads, kv_heads, head_dim, vision, side, layout, **more):
    """`vision` is (layers, heads, head_dim); `side` is in patches."""
    hidden, (depth, vision_heads, vision_head_dim) = heads * head_dim, vision
    width = vision_heads * vision_head_dim
    return {
        "layout": layout,
        "side": side,
        "config": {
            "image_token_index": IMAGE, "image_seq_length": side * side, "tie_word_embeddings": False, **more.pop("config", {}),
            "text_config": {
                "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
                "num_key_value_heads": kv_heads, "intermediate_size": 2 * hidden + 16, "vocab_size": VOCAB,
                "rms_norm_eps": 1e-5, "bos_token_id": None, "eos_token_id": None, **more.pop("text", {}),
            },
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": width, "num_hidden_layers": depth, "patch_size": PATCH,
                "num_attention_heads": vision_heads, "intermediate_size": 3 * width + 4, "image_size": side * PATCH,
                **more.pop("tower", {}),
            },
        },
    }  # fmt: skip


SHAPES = {
    "llava": shape(3, 4, 4, 16, (4, 2, 16), 4, "older"),
    "llava_newer": shape(2, 4, 2, 32, (5, 3, 8), 3, "newer", config={"vision_feature_layer": -3},
                         tower={"hidden_act": "gelu"}, text={"rope_theta": 5e4, "max_position_embeddings": 300}),
    "llava_original": shape(4, 2, 2, 32, (3, 4, 8), 5, "original"),
    "llava_linear": shape(2, 4, 2, 32, (2, 2, 16), 4, "older", text={
        "max_position_embeddings": 40, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llava_dynamic": shape(2, 4, 2, 32, (2, 2, 16), 4, "newer", text={
        "max_position_embeddings": 40, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    "llava_yarn": shape(2, 4, 2, 32, (2, 2, 16), 4, "original", text={
        "max_position_embeddings": 128,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
}
# Images, and how many text tokens go before each and after the last.
CASES = {"text": (0, [23]), "one_image": (1, [4, 9]), "three_images": (3, [3, 0, 2, 7])}


def make_inputs(spec, images, texts, generator):
    ids, side = [], spec["side"]
    for i, count in enumerate(texts):
        ids += torch.randint(0, IMAGE, (count,), generator=generator).tolist()
        ids += [IMAGE] * (side * side if i < images else 0)
    inputs = {"input_ids": torch.tensor([ids])}
    if images:
        inputs["pixel_values"] = torch.randn(images, 3, side * PATCH, side * PATCH, generator=generator)
    return inputs


def text_tensors(model, spec, inputs):
    """What the language model gives for the inputs, as tensors of a case."""
    fresh_rope(model.language_model.model.rotary_emb)
    logits = model(**inputs).logits[0]
    out = model.generate(
        **inputs, attention_mask=torch.ones_like(inputs["input_ids"]), max_new_tokens=STEPS, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    steps = torch.cat(out.logits)
    assert torch.allclose(steps[0], logits[-1], atol=1e-4)
    ids = inputs["input_ids"][0]
    return {
        "input_ids": torch.where(ids == IMAGE, -200, ids) if spec["layout"] == "original" else ids,
        "position_ids": torch.arange(len(ids)), "rope_deltas": torch.zeros(1, dtype=torch.long), "all_logits": logits,
        "first_logits": logits[-1], "generated_ids": out.sequences[0, -STEPS:], "step_top2": steps.topk(2).values,
    }  # fmt: skip


def stored(tensors):
    """As a case's file has them: numbers of 32 bits, in memory of their own."""
    return {k: (v if v.is_floating_point() else v.int()).contiguous().clone() for k, v in tensors.items()}


def run(model, spec, inputs):
    """The case's tensors."""
    tensors = text_tensors(model, spec, inputs)
    if "pixel_values" in inputs:
        features = model.get_image_features(pixel_values=inputs["pixel_values"],
                                            vision_feature_layer=model.config.vision_feature_layer,
                                            vision_feature_select_strategy="default")
        tensors |= {"pixel_values": inputs["pixel_values"], "image_embeds": features.flatten(0, 1)}
    return stored(tensors)


def renamed(tensors, *pairs):
    """With the first fitting beginning of a name replaced."""
    out = {}
    for name, tensor in tensors.items():
        begin, end = next(((a, b) for a, b in pairs if name.startswith(a)), ("", ""))
        out[end + name.removeprefix(begin)] = tensor
    return out


def to_newer_layout(folder):
    file = folder / "model.safetensors"
    pairs = [("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head."), ("", "model.")]
    save_file(renamed(load_file(file), *pairs), file, {"format": "pt"})


def original_config(model):
    """The original code's config of it, the encoder in a folder called clip-vit-tiny."""
    text = model.config.text_config.to_dict()
    keys = ("hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size vocab_size rms_norm_eps "
            "rope_theta max_position_embeddings hidden_act").split()
    return {key: text[key] for key in keys} | {"rope_scaling": text.get("rope_scaling")} | {
        "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": "openai/clip-vit-tiny",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": model.config.vision_config.hidden_size, "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False, "image_aspect_ratio": "pad", "tie_word_embeddings": False, "torch_dtype": "float16",
    }  # fmt: skip


def to_original_layout(folder, model):
    """The original code's names and config, two torch shards, and beside the model CLIP's checkpoint, text half included."""
    file = folder / "model.safetensors"
    tensors = renamed(load_file(file), ("language_model.", ""), ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
                      ("multi_modal_projector.linear_2.", "model.mm_projector.2."))
    file.unlink()
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("vision_tower.")}
    index = {}
    for i, names in enumerate([list(own)[::2], list(own)[1::2]], 1):
        shard = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save({name: own[name] for name in names}, folder / shard)
        index |= dict.fromkeys(names, shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))

    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=model.config.vision_config.to_dict(), projection_dim=8))
    clip.vision_model.load_state_dict(model.vision_tower.vision_model.state_dict())
    clip.save_pretrained(folder.parent / "clip-vit-tiny", safe_serialization=False)

    (folder / "config.json").write_text(json.dumps(original_config(model), indent=1))


def make(name, spec, out, seed):
    generator = torch.Generator().manual_seed(seed)
    config = LlavaConfig(**json.loads(json.dumps(spec["config"])), torch_dtype="float32")
    model = save_random_model(LlavaForConditionalGeneration, config, out, generator)
    if spec["layout"] == "newer":
        to_newer_layout(out / "model")
    if spec["layout"] == "original":
        to_original_layout(out / "model", model)
    for case, (images, texts) in CASES.items():
        write_cases(name, case, f"{images} images, {sum(texts)} text tokens", out,
                    lambda: run(model, spec, make_inputs(spec, images, texts, generator)))


def main():
    make_all(__doc__, 101, {name: partial(make, name, spec) for name, spec in SHAPES.items()})


if __name__ == "__main__":
    main()
