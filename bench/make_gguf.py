#!/usr/bin/env python3
"""The language model of a Qwen2.5-VL checkpoint's shapes as a GGUF file with random weights, for timing llama.cpp.

Usage: make_gguf.py --config CONFIG.json --bits bf16|int8|int4 --out FILE

int8 is Q8_0 throughout, int4 is Q4_0 with embeddings and head in Q6_K, as llama.cpp's own quantisation leaves them. Streamed:
a block of random numbers is repeated, so little memory is needed. The vocabulary is empty words, the file answers nothing.
"""
import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

POOL = (1 << 24) + 4099  # bytes at least; no multiple of a row, so that rows differ
MATRICES = {"bf16": (Type.BF16, Type.BF16), "int8": (Type.Q8_0, Type.Q8_0), "int4": (Type.Q4_0, Type.Q6_K)}
SCALE_AT = {Type.Q8_0: 0, Type.Q4_0: 0, Type.Q6_K: 208}


def pool(kind):
    """Whole blocks of random numbers of about 0.02, as bytes."""
    random, (_, size) = np.random.default_rng(int(kind)), gguf.GGML_QUANT_SIZES[kind]
    if kind == Type.BF16:
        words = random.integers(0, 1 << 16, POOL // 2, dtype=np.uint16)
        return ((words & np.uint16(0x807F)) | np.uint16(0x3C80)).view(np.uint8)
    blocks = random.integers(0, 256, (POOL // size, size), dtype=np.uint8)
    scale = {Type.Q8_0: 0.0003, Type.Q4_0: 0.005, Type.Q6_K: 0.00001}[kind]
    at = SCALE_AT[kind]
    blocks[:, at : at + 2] = np.full((len(blocks), 1), scale, np.float16).view(np.uint8)
    return blocks.reshape(-1)


def tensors(config, matrix, table):
    """name -> (shape, type), outermost size first."""
    d, wide, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    out = {"token_embd.weight": ((vocabulary, d), table), "output_norm.weight": ((d,), Type.F32)}
    if not config["tie_word_embeddings"]:
        out["output.weight"] = ((vocabulary, d), table)
    for i in range(config["num_hidden_layers"]):
        for name, rows, columns in [("attn_q", d, d), ("attn_k", kv, d), ("attn_v", kv, d), ("attn_output", d, d),
                                    ("ffn_gate", wide, d), ("ffn_up", wide, d), ("ffn_down", d, wide)]:  # fmt: skip
            out[f"blk.{i}.{name}.weight"] = ((rows, columns), matrix)
        for name, rows in [("attn_norm.weight", d), ("ffn_norm.weight", d), ("attn_q.bias", d), ("attn_k.bias", kv), ("attn_v.bias", kv)]:
            out[f"blk.{i}.{name}"] = ((rows,), Type.F32)
    return out


def add_vocabulary(writer, size):
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list((letters + [f"<{i}>" for i in range(size)])[:size])
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_merges(["! !"])
    writer.add_eos_token_id(size - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--bits", choices=MATRICES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    config = json.loads(options.config.read_text())

    writer = gguf.GGUFWriter(options.out, "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    add_vocabulary(writer, config["vocab_size"])
    listed = tensors(config, *MATRICES[options.bits])
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


if __name__ == "__main__":
    main()
