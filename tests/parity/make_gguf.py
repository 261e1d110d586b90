#!/usr/bin/env python3
"""The built-in model as GGUF files, named and typed as llama.cpp's converter writes Qwen2.5-VL, with the gguf package.

Usage: make_gguf.py OUT_DIR

Writes OUT_DIR/llava/<kind>, a LLaVA-1.5 (make_gguf_llava.py); OUT_DIR/split, the model of "bf16" in parts of 30 tensors; OUT_DIR/<kind>/model.gguf and OUT_DIR/<kind>/mmproj-model.gguf for every kind below, and OUT_DIR/<kind>/expected, the
same model as a checkpoint in float32 with the values that the package reads out of those files; OUT_DIR/rope/<scaling>, the same in
float32 with a scaled rotary embedding. OUT_DIR/blocks.gguf has random
blocks of every type that is read, OUT_DIR/blocks.safetensors what the package reads out of them.
"""
import json
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import quants
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench"))
from gguf_sizes import add_text_sizes, add_vision_sizes  # noqa: E402
from gguf_tokenizer import add_tokenizer  # noqa: E402

MODEL = ROOT / "models/tiny/model"
CONFIG = json.loads((MODEL / "config.json").read_text())
# Of the language model's matrices and of the encoder's. "mixed" is what llama.cpp's Q4_K_M and Q5_K_M files hold.
KINDS = {
    "f32": (Type.F32, Type.F32), "f16": (Type.F16, Type.F16), "bf16": (Type.BF16, Type.BF16), "q8_0": (Type.Q8_0, Type.Q8_0),
    "q4_0": (Type.Q4_0, Type.F16), "iq4_nl": (Type.IQ4_NL, Type.F16), "mixed": (Type.Q4_K, Type.F16),
}  # fmt: skip
# Of the rotary embedding, by a config's names; "trained" for so few positions that questions go beyond.
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
ROPE = {
    "yarn": YARN, "linear": {"type": "linear", "factor": 2.5},
    "yarn_factors": {**YARN, "attention_factor": 1.125, "beta_fast": 4.0, "beta_slow": 0.25},
}  # fmt: skip
MIXED = {"attn_v": Type.Q6_K, "ffn_down": Type.Q6_K, "token_embd": Type.Q6_K, "ffn_gate": Type.Q5_K}


def as_bytes(values):
    return np.ascontiguousarray(values.astype(np.float16)).view(np.uint8)


def pack_scales(scales, offsets):
    """[n, 8] numbers below 64 each -> [n, 12] as Q4_K and Q5_K hold them."""
    low = np.concatenate([scales[:, :4] | scales[:, 4:] >> 4 << 6, offsets[:, :4] | offsets[:, 4:] >> 4 << 6], 1)
    return np.concatenate([low, scales[:, 4:] & 15 | (offsets[:, 4:] & 15) << 4], 1).astype(np.uint8)


def pack_q45(values, bits):
    """[n, 256] float32 -> blocks of Q4_K or Q5_K; the package itself only reads them."""
    groups, top = values.reshape(-1, 8, 32), 2**bits - 1
    offset = np.maximum(-groups.min(2), 0)
    scale = (groups.max(2) + offset) / top
    d, dmin = (np.maximum(x.max(1, keepdims=True) / 63, 1e-6).astype(np.float16).astype(np.float32) for x in (scale, offset))
    s, m = (np.clip(np.rint(a / b), 0, 63).astype(np.uint8) for a, b in ((scale, d), (offset, dmin)))
    step = np.maximum(d * s, 1e-12)[:, :, None]
    q = np.clip(np.rint((groups + (dmin * m)[:, :, None]) / step), 0, top).astype(np.uint8)
    fifth = np.sum((q >> 4) << np.arange(8, dtype=np.uint8)[None, :, None], 1).astype(np.uint8)
    nibbles = q & 15
    halves = (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).reshape(-1, 128)
    parts = [as_bytes(d), as_bytes(dmin), pack_scales(s, m)]
    return np.concatenate(parts + ([fifth] if bits == 5 else []) + [halves], 1)


def pack_q6(values):
    groups = values.reshape(-1, 16, 16)
    scale = np.abs(groups).max(2) / 31
    d = (scale.max(1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    s = np.clip(np.rint(scale / np.maximum(d, 1e-12)), -128, 127).astype(np.int8)
    q = np.clip(np.rint(groups / np.maximum(d * s, 1e-12)[:, :, None]), -32, 31) + 32
    q = q.astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.concatenate([q[:, :, :2] & 15 | (q[:, :, 2:] & 15) << 4], 2).reshape(-1, 128)
    high = np.bitwise_or.reduce((q >> 4) << np.array([0, 2, 4, 6], np.uint8)[None, None, :, None], 2).reshape(-1, 64)
    return np.concatenate([low, high, s.view(np.uint8), as_bytes(d)], 1)


def pack_iq4(values):
    groups, table = values.reshape(-1, 32), np.array(quants.IQ4_NL.kvalues, np.float32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(1, keepdims=True), 1)
    d = (largest / -127).astype(np.float16).astype(np.float32)
    q = np.abs((groups / np.where(d == 0, 1, d))[:, :, None] - table).argmin(2).astype(np.uint8)
    return np.concatenate([as_bytes(d), q[:, :16] | q[:, 16:] << 4], 1)


def quantize(values, kind):
    """[..., columns] float32 -> the bytes of its rows."""
    if kind == Type.IQ4_NL:
        return pack_iq4(values).reshape(*values.shape[:-1], -1)
    if kind not in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
        return quants.quantize(values, kind)
    blocks = values.reshape(-1, 256)
    packed = pack_q6(blocks) if kind == Type.Q6_K else pack_q45(blocks, 4 if kind == Type.Q4_K else 5)
    return packed.reshape(*values.shape[:-1], -1)


def stored(values, kind):
    """The bytes of a tensor and its type: of whole blocks only, else float16."""
    kind = Type.F32 if values.ndim == 1 else kind
    if values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = Type.F16
    return quantize(np.ascontiguousarray(values.float().numpy()), kind), kind


def read_back(data, kind, shape):
    return torch.from_numpy(np.array(quants.dequantize(data, kind)).reshape(shape))


class Writer(gguf.GGUFWriter):
    """Writes tensors and remembers what they read as."""

    def __init__(self, path, arch, blocks, kind, part=0):
        super().__init__(path, gguf.MODEL_ARCH_NAMES[arch], split_max_tensors=part)
        self.names, self.kind, self.read = gguf.get_tensor_name_map(arch, blocks), kind, {}

    def add(self, name, values, gguf_name=None, kind=None):
        to = gguf_name or self.names.get_name(name, try_suffixes=(".weight", ".bias"))
        kind = self.kind if kind is None else kind
        if kind == Type.Q4_K:
            kind = next((other for part, other in MIXED.items() if part in to), kind)
        data, kind = stored(values, kind)
        self.add_tensor(to, data, raw_dtype=kind)
        self.read[name] = read_back(data, kind, values.shape)

    def add_parts(self, name, parts, join):
        """One tensor of the model as several, (values, GGUF name or None, type or None) by their names; `join` makes it whole again."""
        for part, args in parts.items():
            self.add(part, *args)
        self.read[name] = join([self.read.pop(part) for part in parts])

    def finish(self):
        self.write_header_to_file()
        self.write_kv_data_to_file()
        self.write_tensors_to_file()
        self.close()


def add_patches(writer, name, tensor, kind):
    """The encoder's patch embedding, which is split by frame."""
    writer.add_parts(name, {name + end: (tensor[:, :, frame].contiguous(), "v.patch_embd.weight" + end, kind) for frame, end in enumerate(("", ".1"))},
                     lambda frames: torch.stack(frames, 2))


def add_scaling(writer, rope):
    """As llama.cpp's converter writes rope_scaling."""
    if rope:
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    for key, add in (("original_max_position_embeddings", writer.add_rope_scaling_orig_ctx_len),
                     ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
                     ("beta_fast", writer.add_rope_scaling_yarn_beta_fast), ("beta_slow", writer.add_rope_scaling_yarn_beta_slow)):  # fmt: skip
        if key in rope:
            add(rope[key])


def write_text(path, tensors, kind, part=0, rope={}):
    writer = Writer(path, gguf.MODEL_ARCH.QWEN2VL, CONFIG["num_hidden_layers"], kind, part)
    writer.add_type(gguf.GGUFType.MODEL)
    add_text_sizes(writer, CONFIG)
    writer.add_rope_dimension_sections(CONFIG["rope_scaling"]["mrope_section"] + [0])
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    add_scaling(writer, rope)
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    add_tokenizer(writer, MODEL, CONFIG)
    for name, tensor in tensors.items():
        if not name.startswith("visual."):
            writer.add(name, tensor)
    writer.finish()
    return writer.read


def write_vision(path, tensors, kind):
    vision, preprocessor = CONFIG["vision_config"], json.loads((MODEL / "preprocessor_config.json").read_text())
    writer = Writer(path, gguf.MODEL_ARCH.MMPROJ, vision["depth"], kind)
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.QWEN25VL)
    writer.add_vision_projection_dim(CONFIG["hidden_size"])
    writer.add_vision_image_size(560)
    add_vision_sizes(writer, vision)
    writer.add_vision_image_mean(preprocessor["image_mean"])
    writer.add_vision_image_std(preprocessor["image_std"])
    writer.add_vision_use_silu(True)
    writer.add_vision_n_wa_pattern(vision["fullatt_block_indexes"][0] + 1)
    writer.add_vision_attention_layernorm_eps(CONFIG["rms_norm_eps"])
    for name, tensor in tensors.items():
        if not name.startswith("visual."):
            continue
        if "patch_embed" in name:
            add_patches(writer, name, tensor, Type.F16 if kind == Type.F16 else Type.F32)
        elif ".qkv." in name:
            writer.add_parts(name, {name.replace("qkv", letter): (rows.contiguous(),) for letter, rows in zip("qkv", tensor.chunk(3))}, torch.cat)
        else:
            writer.add(name, tensor)
    writer.finish()
    return writer.read


def write_model(out, text_kind, vision_kind, rope={}):
    expected = out / "expected"
    expected.mkdir(parents=True)
    tensors = load_file(MODEL / "model.safetensors")
    read = write_text(out / "model.gguf", tensors, text_kind, rope=rope) | write_vision(out / "mmproj-model.gguf", tensors, vision_kind)
    assert read.keys() == tensors.keys(), read.keys() ^ tensors.keys()
    save_file(read, expected / "model.safetensors")
    for file in MODEL.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, expected)
    (expected / "config.json").write_text(json.dumps({**CONFIG, "torch_dtype": "float32", "rope_scaling": CONFIG["rope_scaling"] | rope}))


def write_blocks(out):
    """Random bytes, with float16 scales that are finite."""
    random, expected = np.random.default_rng(5), {}
    writer = gguf.GGUFWriter(out / "blocks.gguf", "qwen2vl")
    scales_at = {Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q2_K: [80, 82], Type.Q3_K: [108],
                 Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208], Type.IQ4_NL: [0], Type.IQ4_XS: [0]}  # fmt: skip
    for kind in [Type.F32, Type.F16, Type.BF16, *scales_at]:
        values, size = gguf.GGML_QUANT_SIZES[kind]
        if kind in scales_at:
            data = random.integers(0, 256, (3, 700, size), dtype=np.uint8)
            for at in scales_at[kind]:
                data[..., at : at + 2] = as_bytes(random.normal(size=(3, 700, 1)))
            data = data.reshape(3, -1)
        else:
            data = quants.quantize(random.normal(size=(3, 700 * values)).astype(np.float32), kind)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        expected[kind.name] = torch.from_numpy(np.array(quants.dequantize(data, kind)).reshape(3, -1))
    Writer.finish(writer)
    save_file(expected, out / "blocks.safetensors")


def main():
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    write_blocks(out)
    for name, kinds in KINDS.items():
        write_model(out / name, *kinds)
    for name, rope in ROPE.items():
        write_model(out / "rope" / name, Type.F32, Type.F32, rope)
    from make_gguf_llava import write_llava

    for name, kind in (("f32", Type.F32), ("q8_0", Type.Q8_0), ("q4_0", Type.Q4_0)):
        write_llava(out / "llava" / name, kind)
    for name in ("yarn", "linear"):
        write_llava(out / "llava" / name, Type.F32, ROPE[name])
    from make_gguf_qwen3 import write_qwen3

    for base in ("base", "base_tied"):
        for name, kind in (("f32", Type.F32), ("f16", Type.F16), ("q8_0", Type.Q8_0)):
            write_qwen3(out / "qwen3" / base / name, base, kind)
    for name in ("yarn", "linear"):
        write_qwen3(out / "qwen3/base" / name, "base", Type.F32, ROPE[name])
    (out / "split").mkdir()
    tensors = load_file(MODEL / "model.safetensors")
    write_text(out / "split/model.gguf", tensors, Type.BF16, part=30)
    write_vision(out / "split/mmproj-model.gguf", tensors, Type.BF16)


if __name__ == "__main__":
    main()
