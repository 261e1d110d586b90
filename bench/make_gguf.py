#!/usr/bin/env python3
"""The language model or the encoder of a Qwen2.5-VL checkpoint's shapes as a GGUF file with random weights, for timing llama.cpp.

Usage: make_gguf.py --model DIR --bits bf16|int8|int4|q4_k_m --out FILE
       make_gguf.py --model DIR --mmproj --out FILE

DIR is a checkpoint's, of which config.json, tokenizer and chat template are read (make_checkpoint.py --tokenizer writes one).

int8 is Q8_0 throughout, int4 is Q4_0 with embeddings and head in Q6_K, as llama.cpp's own quantisation leaves them;
q4_k_m is Q4_K with Q6_K for the head and, in about half of the layers, for attn_v and ffn_down, as in its Q4_K_M; the encoder has F16.
Streamed: a block of random numbers is repeated, so little memory is needed.
"""
import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf_sizes import add_text_sizes, add_vision_sizes
from gguf_tokenizer import add_tokenizer

POOL = (1 << 24) + 4099  # bytes at least; no multiple of a row, so that rows differ
MATRICES = {"bf16": (Type.BF16, Type.BF16), "int8": (Type.Q8_0, Type.Q8_0), "int4": (Type.Q4_0, Type.Q6_K), "q4_k_m": (Type.Q4_K, Type.Q4_K)}
HALVES = {Type.BF16: (0x807F, 0x3C80), Type.F16: (0x83FF, 0x2400)}  # bits of sign and mantissa, an exponent of 2^-6
# Where a block's scale and offset, if it has one, lie, and numbers for them.
SCALES = {Type.Q8_0: {0: 0.0003}, Type.Q4_0: {0: 0.005}, Type.Q6_K: {208: 0.00001}, Type.Q4_K: {0: 0.0001, 2: 0.0008}}


def pool(kind):
    """Whole blocks of random numbers of about 0.02, as bytes."""
    random, (_, size) = np.random.default_rng(int(kind)), gguf.GGML_QUANT_SIZES[kind]
    if kind in HALVES:
        loose, exponent = HALVES[kind]
        words = random.integers(0, 1 << 16, POOL // 2, dtype=np.uint16)
        return ((words & np.uint16(loose)) | np.uint16(exponent)).view(np.uint8)
    blocks = random.integers(0, 256, (POOL // size, size), dtype=np.uint8)
    for at, scale in SCALES[kind].items():
        blocks[:, at : at + 2] = np.full((len(blocks), 1), scale, np.float16).view(np.uint8)
    return blocks.reshape(-1)


def has_more_bits(layer, layers):
    """Of which layers a Q4_K_M file has attn_v and ffn_down in Q6_K."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def text_tensors(config, matrix, table):
    """name -> (shape, type), outermost size first."""
    d, wide, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    head = Type.Q6_K if table == Type.Q4_K else table
    out = {"token_embd.weight": ((vocabulary, d), head if config["tie_word_embeddings"] else table), "output_norm.weight": ((d,), Type.F32)}
    if not config["tie_word_embeddings"]:
        out["output.weight"] = ((vocabulary, d), head)
    for i in range(config["num_hidden_layers"]):
        for name, rows, columns in [("attn_q", d, d), ("attn_k", kv, d), ("attn_v", kv, d), ("attn_output", d, d),
                                    ("ffn_gate", wide, d), ("ffn_up", wide, d), ("ffn_down", d, wide)]:  # fmt: skip
            more = matrix == Type.Q4_K and name in ("attn_v", "ffn_down") and has_more_bits(i, config["num_hidden_layers"])
            out[f"blk.{i}.{name}.weight"] = ((rows, columns), Type.Q6_K if more else matrix)
        for name, rows in [("attn_norm.weight", d), ("ffn_norm.weight", d), ("attn_q.bias", d), ("attn_k.bias", kv), ("attn_v.bias", kv)]:
            out[f"blk.{i}.{name}"] = ((rows,), Type.F32)
    return out


def vision_tensors(config):
    vision, kind = config["vision_config"], Type.F16
    d, wide, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    merged = d * vision["spatial_merge_size"] ** 2
    out = {f"v.patch_embd.weight{frame}": ((d, vision["in_chans"], patch, patch), kind) for frame in ("", ".1")}
    matrices = {"mm.0": (merged, merged), "mm.2": (vision["out_hidden_size"], merged)}
    for i in range(vision["depth"]):
        matrices |= {f"v.blk.{i}.{name}": (d, d) for name in ("attn_q", "attn_k", "attn_v", "attn_out")}
        matrices |= {f"v.blk.{i}.ffn_gate": (wide, d), f"v.blk.{i}.ffn_up": (wide, d), f"v.blk.{i}.ffn_down": (d, wide)}
        out |= {f"v.blk.{i}.{name}.weight": ((d,), Type.F32) for name in ("ln1", "ln2")}
    for name, (rows, columns) in matrices.items():
        out |= {f"{name}.weight": ((rows, columns), kind), f"{name}.bias": ((rows,), Type.F32)}
    return out | {"v.post_ln.weight": ((d,), Type.F32)}


def text_writer(out, config, model):
    writer = gguf.GGUFWriter(out, "qwen2vl")
    add_text_sizes(writer, config)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_sections(config["rope_scaling"]["mrope_section"] + [0])
    add_tokenizer(writer, model, config)
    return writer


def vision_writer(out, config):
    vision, writer = config["vision_config"], gguf.GGUFWriter(out, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.QWEN25VL)
    writer.add_vision_use_silu(True)
    add_vision_sizes(writer, vision)
    writer.add_vision_projection_dim(vision["out_hidden_size"])
    writer.add_vision_image_size(560)
    writer.add_vision_image_mean([0.48, 0.46, 0.41])
    writer.add_vision_image_std([0.27, 0.26, 0.28])
    writer.add_vision_n_wa_pattern(vision["fullatt_block_indexes"][0] + 1)
    writer.add_vision_attention_layernorm_eps(config["rms_norm_eps"])
    return writer


def write_tensors(writer, listed):
    sizes = {}
    for name, (shape, kind) in listed.items():
        values, size = gguf.GGML_QUANT_SIZES[kind]
        row = shape[-1] // values * size
        sizes[name] = int(np.prod(shape[:-1], dtype=np.int64)) * row
        writer.add_tensor_info(name, (*shape[:-1], row), np.dtype(np.uint8), sizes[name], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    pools, at = {}, {}
    for name, (shape, kind) in listed.items():
        if kind == Type.F32:
            writer.write_tensor_data(np.full(shape, 0.01 if name.endswith("bias") else 1, np.float32))
            continue
        if kind not in pools:
            pools[kind], at[kind] = pool(kind), 0
        writer.write_tensor_data(np.resize(np.roll(pools[kind], -at[kind]), sizes[name]))
        at[kind] = (at[kind] + sizes[name]) % len(pools[kind])
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    part = parser.add_mutually_exclusive_group(required=True)
    part.add_argument("--bits", choices=MATRICES, help="write the language model")
    part.add_argument("--mmproj", action="store_true", help="write the encoder")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    config = json.loads((options.model / "config.json").read_text())
    if options.mmproj:
        write_tensors(vision_writer(options.out, config), vision_tensors(config))
    else:
        write_tensors(text_writer(options.out, config, options.model), text_tensors(config, *MATRICES[options.bits]))


if __name__ == "__main__":
    main()
