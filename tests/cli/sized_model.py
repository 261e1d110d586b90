"""A model of any size for measuring memory: the built-in one's files with other widths, its weights all 0."""
import json
import struct

from program import MODEL

TEXT = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4}
VISION = {"hidden_size": 640, "intermediate_size": 1728, "depth": 4, "num_heads": 8, "out_hidden_size": 1024, "fullatt_block_indexes": [3]}


def shapes(config):
    """Name -> shape of all tensors."""
    width, inner, vision = config["hidden_size"], config["intermediate_size"], config["vision_config"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    patches, patch_inner = vision["hidden_size"], vision["intermediate_size"]
    unit = patches * vision["spatial_merge_size"] ** 2
    out = {"model.embed_tokens.weight": [config["vocab_size"], width], "model.norm.weight": [width],
           "visual.patch_embed.proj.weight": [patches, 3, 2, 14, 14], "visual.merger.ln_q.weight": [patches],
           "visual.merger.mlp.0.weight": [unit, unit], "visual.merger.mlp.0.bias": [unit],
           "visual.merger.mlp.2.weight": [width, unit], "visual.merger.mlp.2.bias": [width]}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        for part, size in {"q": width, "k": keys, "v": keys}.items():
            out |= {f"{name}self_attn.{part}_proj.weight": [size, width], f"{name}self_attn.{part}_proj.bias": [size]}
        out |= {f"{name}self_attn.o_proj.weight": [width, width], f"{name}mlp.gate_proj.weight": [inner, width], f"{name}mlp.up_proj.weight": [inner, width],
                f"{name}mlp.down_proj.weight": [width, inner], f"{name}input_layernorm.weight": [width], f"{name}post_attention_layernorm.weight": [width]}
    for block in range(vision["depth"]):
        name = f"visual.blocks.{block}."
        for part, size in {"attn.qkv": [3 * patches, patches], "attn.proj": [patches, patches], "mlp.gate_proj": [patch_inner, patches],
                           "mlp.up_proj": [patch_inner, patches], "mlp.down_proj": [patches, patch_inner]}.items():
            out |= {f"{name}{part}.weight": size, f"{name}{part}.bias": size[:1]}
        out |= {f"{name}norm1.weight": [patches], f"{name}norm2.weight": [patches]}
    return out


def write_sized_model(folder, text=(), vision=(), max_pixels=28 * 28 * 16384):
    """Writes it to an empty folder; the weights' file takes no room on the disk."""
    for file in MODEL.iterdir():
        if file.name not in ("config.json", "model.safetensors", "preprocessor_config.json"):
            (folder / file.name).symlink_to(file)
    config = json.loads((MODEL / "config.json").read_text())
    config |= {**TEXT, **dict(text), "max_position_embeddings": 32768, "vision_config": {**config["vision_config"], **VISION, **dict(vision)}}
    config["rope_scaling"]["mrope_section"] = [16, 24, 24]
    (folder / "config.json").write_text(json.dumps(config))
    preprocessor = json.loads((MODEL / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**preprocessor, "max_pixels": max_pixels}))
    header, at = {}, 0
    for name, shape in shapes(config).items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return folder
