#!/usr/bin/env python3
"""A Qwen2.5-VL, Qwen3-VL, LLaVA-1.5 or LLaVA-NeXT checkpoint of a published size with random bfloat16 weights, for timing.

Usage: make_checkpoint.py --shapes 3b|7b|llava-7b|llava-next-7b|qwen3-vl-4b|tiny|llava-tiny --out DIR [--tokenizer MODEL]

Writes DIR/model/ (config.json, safetensors shards) and DIR/new_modules/ (config.json, new_modules_gp.pt, scouts of configs/train). About 7.5 GB
for 3b, 16.6 GB for 7b, 14.2 GB for llava-7b, 15.2 GB for llava-next-7b and 8.9 GB for qwen3-vl-4b, streamed: a block of normal(0, 0.02) numbers is repeated, so little memory is needed.
With --tokenizer the checkpoint can be asked about pictures of any size: it has the tokenizer, the chat template and the special ids of that
model's folder; the ids beyond its vocabulary are words of their own, so that every token of an answer shows.
"""
import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
SHARD = 4 << 30  # bytes
BLOCK = (1 << 23) + 4099  # numbers; no multiple of a row, so that rows differ
CONTEXT = 32768  # tokens at least with --tokenizer
PIXELS = 12845056  # of a picture at most with --tokenizer: what Qwen2.5-VL is published with


def shapes(name):
    """(config.json of the base model, that of its new modules)"""
    if name == "tiny":
        return tuple(json.loads((ROOT / "models/tiny" / part / "config.json").read_text()) for part in ("model", "new_modules"))
    shape = json.loads((ROOT / "bench/shapes" / f"{name}.json").read_text())
    modules = {**shape["model"], **shape["new_modules"]}
    for member in ("scout", "encoder_scout"):
        if (file := ROOT / "configs/train" / f"{shape.get('configs', name)}_{member}.yaml").exists():
            modules[member] = yaml.safe_load(file.read_text())["scout"]
    return shape["model"], modules


def base_tensors(config):
    """Name -> shape, as transformers names them."""
    name = {"llava": "Llava", "llava_next": "LlavaNext", "qwen3_vl": "Qwen3VL"}.get(config["model_type"], "Qwen2_5_VL")
    if name == "Qwen3VL":
        sys.path.insert(0, str(ROOT / ".venv/transformers"))  # a release that has it (tools/setup)
    import transformers

    kind, network = getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}ForConditionalGeneration")
    config = kind(**json.loads(json.dumps(config)))
    with torch.device("meta"):
        model = network(config)
    left_out = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in left_out}


def new_module_tensors(config):
    """Part -> (name -> shape); "" names a part that is one tensor."""
    text = config.get("text_config", config)
    hidden, size, cond = text["hidden_size"], config["attn_fuse_size"], config["visual_cond_size"]
    visual = config["vision_config"]["hidden_size"]
    attention = len(config["selected_layers"]) * text["num_attention_heads"]
    layers = len(config["selected_visual_layers"])
    fuser = {}

    def linear(name, outputs, inputs, bias=True):
        fuser[f"{name}.weight"] = (outputs, inputs)
        if bias:
            fuser[f"{name}.bias"] = (outputs,)

    linear("attn_in_proj", size, attention)
    for i in range(layers):
        linear(f"cond_in_projs.{i}", cond, visual)
        fuser |= {f"layers.{i}.norm1.weight": (size,), f"layers.{i}.norm2.weight": (size,)}
        for part, width in {"q": size + cond, "k": size + cond, "v": size, "o": size}.items():
            linear(f"layers.{i}.attn.{part}_proj", width, width, bias=False)
        for part, (outputs, inputs) in {"gate": (2 * size, size), "up": (2 * size, size), "down": (size, 2 * size)}.items():
            linear(f"layers.{i}.mlp.{part}_proj", outputs, inputs)
    linear(f"attn_out_projs.{layers - 1}", 1, size)
    return {
        "attn_fuser": fuser,
        "learnable_embeddings": {"": (len(config["le_layers"]), config["le_length"], hidden)},
        "le_proj": {"weight": (hidden, hidden), "bias": (hidden,)},
        "le_norm": {"weight": (hidden,)},
    }


def scout_tensors(config, scout):
    """Name -> shape of a scout (docs/early_cut.md)."""
    hidden, visual = config.get("text_config", config)["hidden_size"], config["vision_config"]["hidden_size"]
    width, heads, rank, taps = scout["width"], scout["match_heads"], scout["match_heads"] * scout["match_rank"], len(scout["visual_layers"])
    tensors = {"visual_norm.weight": (hidden,), "text_norm.weight": (hidden,), "norm.weight": (width,), "kinds": (2, width),
               **{f"tap_norms.{i}.weight": (visual,) for i in range(taps)}}

    def linear(name, outputs, inputs, bias=True):
        tensors[f"{name}.weight"] = (outputs, inputs)
        if bias:
            tensors[f"{name}.bias"] = (outputs,)

    if "encoder" in scout:
        linear("guess_0", scout["guess"], taps * visual)
        linear("guess_2", hidden, scout["guess"])
    for name, outputs, inputs in (("visual_proj", width, hidden), ("tap_proj", width, taps * visual), ("text_proj", width, hidden), ("match_q", rank, hidden),
                                  ("match_k", rank, hidden + taps * visual), ("match_gate", heads, hidden), ("match_proj", width, 2 * heads),
                                  ("match_out", 1, 2 * heads), ("out_proj", 1, width)):
        linear(name, outputs, inputs)
    for i in range(scout["layers"]):
        tensors |= {f"layers.{i}.norm1.weight": (width,), f"layers.{i}.norm2.weight": (width,)}
        linear(f"layers.{i}.qkv_proj", 3 * width, width, bias=False)
        for name, outputs, inputs in (("o_proj", width, width), ("gate_proj", 2 * width, width), ("up_proj", 2 * width, width), ("down_proj", width, 2 * width)):
            linear(f"layers.{i}.{name}", outputs, inputs)
    return tensors


def special_ids(model):
    """The ids of a model's special tokens, as its config.json names them."""
    return {name: id for name, id in json.loads((model / "config.json").read_text()).items() if name.endswith("_token_id")}


def write_tokenizer(model, config, folder):
    for name in ("chat_template.json", "generation_config.json"):
        shutil.copy(model / name, folder)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    known = set(words.values())
    # Every id has a word: over a hole, `tokenizers` gives the special tokens other ids.
    tokenizer["model"]["vocab"] = words | {f"<{id}>": id for id in range(config["vocab_size"]) if id not in known}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    for name, changed in {"tokenizer_config.json": {"model_max_length": config["max_position_embeddings"]},
                          "preprocessor_config.json": {"max_pixels": PIXELS}}.items():
        (folder / name).write_text(json.dumps({**json.loads((model / name).read_text()), **changed}, indent=2))


class Numbers:
    """An endless stream of bfloat16 bytes from one block of random numbers."""

    def __init__(self):
        block = (0.02 * torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))).bfloat16()
        self.bytes = memoryview(block.view(torch.uint8).numpy())
        self.at = 0

    def take(self, size):
        while size:
            part = self.bytes[self.at : self.at + size]
            yield part
            size -= len(part)
            self.at = (self.at + len(part)) % len(self.bytes)


def is_norm(name):
    return name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "ln_q.weight"))


def write_shards(tensors, folder, numbers):
    sizes = {name: 2 * torch.Size(shape).numel() for name, shape in tensors.items()}
    shards, used = [[]], 0
    for name, size in sizes.items():
        if used + size > SHARD and shards[-1]:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    files = {}
    for i, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name in names:
            header[name] = {"dtype": "BF16", "shape": tensors[name], "data_offsets": [at, at + sizes[name]]}
            at += sizes[name]
            files[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                ones = b"\x80\x3f" * (sizes[name] // 2)  # bfloat16 1.0
                out.writelines([ones] if is_norm(name) else numbers.take(sizes[name]))
        print(f"{folder / file}: {at / 1e9:.2f} GB", flush=True)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def write_new_modules(config, folder, numbers):
    def tensor(name, shape):
        if is_norm(name):
            return torch.ones(shape, dtype=torch.bfloat16)
        data = bytearray().join(numbers.take(2 * torch.Size(shape).numel()))
        return torch.frombuffer(data, dtype=torch.bfloat16).reshape(shape)

    parts = {}
    for part, tensors in new_module_tensors(config).items():
        loaded = {name: tensor(f"{part}.{name}", shape) for name, shape in tensors.items()}
        parts[part] = loaded[""] if "" in loaded else loaded
    torch.save(parts, folder / "new_modules_gp.pt")
    for member in ("scout", "encoder_scout"):
        if member in config:
            save_file({name: tensor(name, shape) for name, shape in scout_tensors(config, config[member]).items()}, folder / f"{member}.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=["3b", "7b", "llava-7b", "llava-next-7b", "qwen3-vl-4b", "tiny", "llava-tiny"], required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="folder of a model whose tokenizer, chat template and special ids it gets")
    options = parser.parse_args()
    base, modules = shapes(options.shapes)
    numbers = Numbers()
    if options.tokenizer:
        for config in (base, modules):
            config |= special_ids(options.tokenizer) | {"max_position_embeddings": max(CONTEXT, config["max_position_embeddings"])}
    for name, config in {"model": base, "new_modules": modules}.items():
        (options.out / name).mkdir(parents=True, exist_ok=True)
        (options.out / name / "config.json").write_text(json.dumps(config, indent=2))
    if options.tokenizer:
        write_tokenizer(options.tokenizer, base, options.out / "model")
    write_shards(base_tensors(base), options.out / "model", numbers)
    write_new_modules(modules, options.out / "new_modules", numbers)


if __name__ == "__main__":
    main()
