#!/usr/bin/env python3
"""Random tiny Qwen2.5-VL checkpoints and what Hugging Face transformers computes with them.

Usage: make_checkpoints.py OUT_DIR

Writes OUT_DIR/<shape>/model/ (config.json + safetensors, float32) and OUT_DIR/<shape>/cases/<case>.{safetensors,json}:
  input_ids [T] int32; image_grid_thw [n, 3] int32 and pixel_values [P, 1176] float32 (absent without images);
  image_embeds [N, D]; the same of videos (video_grid_thw, pixel_values_videos, video_embeds) and second_per_grid_ts [n];
  position_ids [3, T] int32; rope_deltas [1] int32; all_logits [T, V]; first_logits [V] (the last
  position's); generated_ids [32] int32, greedy with eos disabled; step_top2 [32, 2], the two highest logits of each step.
Everything is float32 on the CPU with fixed seeds. Inputs are redrawn until every greedy step's lead is clear.
"""
import json
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

STEPS = 32
MARGIN = 0.02  # least lead of the best logit over the second
VOCAB = 320
START, END, PAD, VIDEO = 316, 317, 318, 319
MERGE, PATCH = 2, 14


def shape(layers, heads, kv_heads, head_dim, mrope, vit, full, window, **more):
    """`vit` is (depth, heads, head_dim); `full` are its full-attention blocks; `window` is in pixels."""
    depth, vit_heads, vit_head_dim = vit
    hidden = heads * head_dim
    return {
        "config": {
            "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "intermediate_size": 2 * hidden + 16, "vocab_size": VOCAB,
            "rope_theta": 10000.0, "rope_scaling": {"type": "mrope", "mrope_section": mrope},
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
            "image_token_id": PAD, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END,
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "use_sliding_window": False,
            "vision_config": {
                "depth": depth, "hidden_size": vit_heads * vit_head_dim, "num_heads": vit_heads,
                "intermediate_size": 3 * vit_heads * vit_head_dim + 4, "out_hidden_size": hidden,
                "fullatt_block_indexes": full, "window_size": window, "patch_size": PATCH, "spatial_merge_size": MERGE,
                "temporal_patch_size": 2, "tokens_per_second": 2,
            },
            **more.pop("config", {}),
        },
        **more,
    }  # fmt: skip


def scaled(kind, positions, mrope, newer=False, parameters=False, **settings):
    """`parameters`: the settings are written as rope_parameters."""
    rope = {"type": kind, "mrope_section": mrope, **settings}
    return shape(2, 4, 2, 32, mrope, (2, 2, 16), [1], 56, newer=newer, parameters=parameters,
                 config={"rope_scaling": rope, "max_position_embeddings": positions})


SHAPES = {
    "gqa": shape(3, 4, 2, 16, [2, 3, 3], (4, 2, 16), [1, 3], 56),
    "one_kv_tied": shape(4, 4, 1, 32, [4, 6, 6], (3, 4, 8), [2], 112, config={"tie_word_embeddings": True}),
    "sharded": shape(2, 6, 6, 16, [4, 2, 2], (2, 3, 16), [0], 84, shard="200KB"),
    "newer_layout": shape(3, 6, 2, 32, [2, 6, 8], (5, 2, 32), [2, 4], 112, config={"rope_theta": 1e6}, newer=True),
    "all_windows": shape(2, 2, 1, 32, [6, 5, 5], (2, 1, 32), [], 28),
    # Scaled rotary embeddings; "trained" for so few positions that the cases go beyond.
    "yarn": scaled("yarn", 160, [4, 6, 6], factor=4.0, original_max_position_embeddings=40),
    "yarn_factors": scaled("yarn", 120, [6, 5, 5], factor=4.0, original_max_position_embeddings=30, beta_fast=2.0,
                           beta_slow=0.5, mscale=1.5, mscale_all_dim=0.5, parameters=True),
    "yarn_attention": scaled("yarn", 100, [4, 6, 6], factor=2.5, attention_factor=1.25, newer=True),
    "linear": scaled("linear", 60, [2, 8, 6], factor=3.0),
    "dynamic": scaled("dynamic", 20, [4, 6, 6], factor=6.0),
    "dynamic_newer": scaled("dynamic", 40, [4, 6, 6], factor=4.0, newer=True, parameters=True),
    "llama3": scaled("llama3", 160, [6, 4, 6], factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                     original_max_position_embeddings=64),
}
# Merged grids of the images (rows, columns) and videos (slices, rows, columns, seconds from one to the next), and how many
# text tokens go before each and after the last.
CASES = {
    "text": ([], [23]), "one_image": ([(5, 7)], [4, 9]), "three_images": ([(1, 1), (8, 3), (4, 6)], [3, 0, 2, 7]),
    "video": ([(5, 3, 4, 0.6)], [5, 8]), "video_image_video": ([(3, 2, 5, 2.5), (4, 3), (2, 6, 2, 1 / 3)], [2, 4, 0, 9]),
}  # fmt: skip
SLICES_APART = False  # whether each slice of a video has a run of tokens of its own


def random_weights(model, generator):
    """Weights that spread the logits; no norm weight is one and no bias zero."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1:
            p.data = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        elif name in ("lm_head.weight", "model.embed_tokens.weight"):
            p.data = 3 * noise / p.shape[1] ** 0.5
        else:
            p.data = 1.5 * noise / p[0].numel() ** 0.5


def make_inputs(grids, texts, generator):
    ids, pixels, thw, seconds = [], {PAD: [], VIDEO: []}, {PAD: [], VIDEO: []}, []

    def words(count):
        return torch.randint(0, START, (count,), generator=generator).tolist()

    for i, count in enumerate(texts):
        ids += words(count)
        if i == len(grids):
            break
        *slices, rows, columns = grids[i][:3]
        pad, times = (VIDEO, slices[0]) if slices else (PAD, 1)
        for j in range(times if SLICES_APART else 1):
            ids += words(2) if j else []
            ids += [START] + [pad] * (rows * columns * (1 if SLICES_APART else times)) + [END]
        thw[pad].append([times, rows * MERGE, columns * MERGE])
        pixels[pad].append(torch.randn(times * rows * columns * MERGE**2, 3 * 2 * PATCH**2, generator=generator))
        seconds += grids[i][3:]
    inputs = {"input_ids": torch.tensor([ids])}
    if pixels[PAD]:
        inputs |= {"pixel_values": torch.cat(pixels[PAD]), "image_grid_thw": torch.tensor(thw[PAD])}
    if pixels[VIDEO]:
        inputs |= {"pixel_values_videos": torch.cat(pixels[VIDEO]), "video_grid_thw": torch.tensor(thw[VIDEO])}
        if not SLICES_APART:
            inputs["second_per_grid_ts"] = torch.tensor(seconds)
    return inputs


def fresh_rope(rotary):
    """Forgets the longest sequence so far, by which dynamic scaling would turn the next one, too."""
    rotary.max_seq_len_cached = rotary.original_max_seq_len
    rotary.register_buffer("inv_freq", rotary.original_inv_freq, persistent=False)


def run(model, inputs):
    """The case's tensors."""
    fresh_rope(model.model.rotary_emb)
    places = {key: inputs[key] for key in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts") if key in inputs}
    positions, deltas = model.get_rope_index(inputs["input_ids"], **places)
    logits = model(**inputs, position_ids=positions).logits[0]
    out = model.generate(
        **inputs, attention_mask=torch.ones_like(inputs["input_ids"]), max_new_tokens=STEPS, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    steps = torch.cat(out.logits)
    assert torch.allclose(steps[0], logits[-1], atol=1e-4)
    tensors = {
        "input_ids": inputs["input_ids"][0],
        "position_ids": positions[:, 0],
        "rope_deltas": deltas.flatten(),
        "all_logits": logits,
        "first_logits": logits[-1],
        "generated_ids": out.sequences[0, -STEPS:],
        "step_top2": steps.topk(2).values,
    }
    for kind, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if key in inputs:
            tensors[f"{kind}_embeds"] = model.visual(inputs[key], grid_thw=inputs[f"{kind}_grid_thw"])
    tensors |= {key: value for key, value in inputs.items() if key != "input_ids"}
    return {k: (v if v.is_floating_point() else v.int()).contiguous().clone() for k, v in tensors.items()}


def lead(tensors):
    return (tensors["step_top2"][:, 0] - tensors["step_top2"][:, 1]).min().item()


def write_cases(name, case, what, out, draw):
    """Draws a case's tensors until every greedy step is clear, and writes them."""
    (out / "cases").mkdir(parents=True, exist_ok=True)
    for draws in range(1, 200):
        tensors = draw()
        if lead(tensors) > MARGIN:
            break
    else:
        raise SystemExit(f"{name}/{case}: no input with clear greedy steps")
    save_file(tensors, out / "cases" / f"{case}.safetensors")
    facts = {
        "what": what, "model": "model", "max_new_tokens": STEPS, "eos": "disabled",
        "stats": {
            "min_greedy_margin": lead(tensors), "first_logit_std": tensors["first_logits"].std().item(),
            "distinct_generated": tensors["generated_ids"].unique().numel(), "draws": draws,
        },
        "tensors": {k: {"shape": list(v.shape), "dtype": str(v.dtype).removeprefix("torch.")} for k, v in tensors.items()},
    }  # fmt: skip
    (out / "cases" / f"{case}.json").write_text(json.dumps(facts, indent=1))
    print(f"{name}/{case}: {facts['stats']}", flush=True)


def to_newer_layout(folder):
    """Renames the tensors and nests the config as later transformers releases save them."""

    def rename(name):
        if name.startswith("model."):
            return "model.language_model." + name.removeprefix("model.")
        return "model." + name if name.startswith("visual.") else name

    file = folder / "model.safetensors"
    save_file({rename(k): v for k, v in load_file(file).items()}, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    top = {"architectures", "model_type", "vision_config", "torch_dtype", "transformers_version", "tie_word_embeddings"}
    top |= {k for k in config if k.endswith("_token_id")}
    text = {k: config.pop(k) for k in list(config) if k not in top}
    config["text_config"] = {**text, "model_type": "qwen2_5_vl_text", "torch_dtype": "float32", "vocab_size": VOCAB}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def to_rope_parameters(folder):
    """What transformers 5 calls rope_scaling and rope_theta."""
    config = json.loads((folder / "config.json").read_text())
    part = config.get("text_config", config)
    rope = part.pop("rope_scaling")
    rope.pop("type")
    part["rope_parameters"] = {**rope, "rope_theta": part.pop("rope_theta")}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def run_cases(name, model, out, generator):
    for case, (grids, texts) in CASES.items():
        write_cases(name, case, f"{len(grids)} images and videos, {sum(texts)} text tokens", out,
                    lambda: run(model, make_inputs(grids, texts, generator)))


def save_random_model(model_class, config, out, generator, shard="1GB"):
    """A model of random weights whose answers never end, written to out/model."""
    model = model_class._from_config(config, attn_implementation="eager").eval()
    random_weights(model, generator)
    model.tie_weights()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.save_pretrained(out / "model", max_shard_size=shard)
    return model


def make(name, spec, out, seed):
    generator = torch.Generator().manual_seed(seed)
    config = Qwen2_5_VLConfig(**json.loads(json.dumps(spec["config"])), torch_dtype="float32")
    model = save_random_model(Qwen2_5_VLForConditionalGeneration, config, out, generator, spec.get("shard", "1GB"))
    if spec.get("newer"):
        to_newer_layout(out / "model")
    if spec.get("parameters"):
        to_rope_parameters(out / "model")

    run_cases(name, model, out, generator)


def make_all(usage, seed, makers):
    """Calls each maker (name -> function of folder and seed) with a folder of its name below the one that the command line names."""
    if len(sys.argv) != 2:
        raise SystemExit(usage)
    torch.set_num_threads(2)
    with torch.no_grad():
        for i, (name, make_one) in enumerate(makers.items()):
            make_one(Path(sys.argv[1]) / name, seed + i)


def main():
    make_all(__doc__, 1, {name: partial(make, name, spec) for name, spec in SHAPES.items()})


if __name__ == "__main__":
    main()
