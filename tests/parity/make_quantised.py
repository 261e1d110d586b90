#!/usr/bin/env python3
"""Random tiny checkpoints whose linear layers are packed by AWQ, GPTQ and as FP8, and what transformers computes with them.

Usage: make_quantised.py OUT_DIR

Writes OUT_DIR/<shape>/ as make_checkpoints.py does. The layers of the language model are packed as the formats' kernels read
them, unpacked again by the formulas below, which are the definitions of AutoAWQ's "gemm" version, of AutoGPTQ and of
transformers' fine-grained FP8, and transformers computes with what comes out, in float32. The encoder stays in float16, as
such checkpoints are published.
"""
import json
from functools import partial

import torch
from make_checkpoints import make_all, random_weights, run_cases, shape, to_newer_layout
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # the output in each four bits of a word, from the lowest


def pack(values, bits, dim):
    """Whole numbers in int32 words along `dim`, the first in the lowest bits."""
    per = 32 // bits
    words = values.movedim(dim, -1).reshape(*values.movedim(dim, -1).shape[:-1], -1, per).long()
    shifts = bits * torch.arange(per)
    joined = (words << shifts).sum(-1)
    return torch.where(joined >= 2**31, joined - 2**32, joined).int().movedim(-1, dim).contiguous()


def unpack(words, bits, dim):
    shifts = bits * torch.arange(32 // bits)
    spread = (words.movedim(dim, -1).long().unsqueeze(-1) >> shifts) & (2**bits - 1)
    return spread.flatten(-2).movedim(-1, dim)


def quantise(weight, bits, groups, symmetric):
    """Steps [in, out], zeros and float16 scales [groups, out] of weight [out, in]; `groups` [in]."""
    columns, most = weight.t(), 2**bits - 1
    count = int(groups.max()) + 1
    low = torch.stack([columns[groups == g].amin(0) for g in range(count)]).clamp(max=0)
    high = torch.stack([columns[groups == g].amax(0) for g in range(count)]).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / most).clamp(min=1e-5).half()
    zeros = torch.full_like(low, 2 ** (bits - 1)) if symmetric else (-low / scales.float()).round().clamp(0, most)
    steps = (columns / scales.float()[groups] + zeros[groups]).round().clamp(0, most)
    return steps.long(), zeros.long(), scales


def awq(weight, group, generator):
    steps, zeros, scales = quantise(weight, 4, torch.arange(weight.shape[1]) // group, False)
    place = torch.arange(weight.shape[0]).view(-1, 8)[:, AWQ_ORDER].flatten()
    tensors = {"qweight": pack(steps[:, place], 4, 1), "qzeros": pack(zeros[:, place], 4, 1), "scales": scales}
    # AutoAWQ: unpacked in the order of the bits, then each eight put back into their order.
    back = torch.arange(weight.shape[0]).view(-1, 8)[:, [0, 4, 1, 5, 2, 6, 3, 7]].flatten()
    whole, zero = unpack(tensors["qweight"], 4, 1)[:, back], unpack(tensors["qzeros"], 4, 1)[:, back]
    assert torch.equal(whole, steps) and torch.equal(zero, zeros)
    wide = scales.float().repeat_interleave(group, 0)
    return tensors, ((whole - zero.repeat_interleave(group, 0)) * wide).t()


def gptq(weight, group, generator, bits=4, symmetric=False, shuffled=False, version=1):
    groups = torch.arange(weight.shape[1]) // group
    if shuffled:
        groups = groups[torch.randperm(len(groups), generator=generator)]
    steps, zeros, scales = quantise(weight, bits, groups, symmetric)
    qzeros = pack(zeros, bits, 1).long()
    if version == 1:  # whole words less one in each place, as GPTQModel writes this format
        qzeros = qzeros - sum(1 << shift for shift in range(0, 32, bits))
    qzeros = ((qzeros + 2**31) % 2**32 - 2**31).int()
    tensors = {"qweight": pack(steps, bits, 0), "qzeros": qzeros, "scales": scales, "g_idx": groups.int()}
    stored = qzeros.long() + (sum(1 << shift for shift in range(0, 32, bits)) if version == 1 else 0)
    whole, zero = unpack(tensors["qweight"], bits, 0), unpack(stored, bits, 1)
    assert torch.equal(whole, steps) and torch.equal(zero, zeros)
    return tensors, (scales.float()[groups] * (whole - zero[groups])).t()


def fp8(weight, block, generator):
    rows, columns = [(size + b - 1) // b for size, b in zip(weight.shape, block)] if block else (1, 1)
    spread = torch.arange(weight.shape[0]) // block[0] if block else torch.zeros(weight.shape[0], dtype=torch.long)
    across = torch.arange(weight.shape[1]) // block[1] if block else torch.zeros(weight.shape[1], dtype=torch.long)
    scales = torch.zeros(rows, columns)
    for r in range(rows):
        for c in range(columns):
            scales[r, c] = weight[spread == r][:, across == c].abs().amax() / 448
    packed = (weight / scales[spread][:, across]).to(torch.float8_e4m3fn)
    names = ("weight", "weight_scale_inv") if block else ("weight", "weight_scale")
    tensors = {names[0]: packed, names[1]: scales if block else scales.reshape(())}
    if not block:
        tensors["input_scale"] = torch.tensor(0.5)
    return tensors, packed.float() * scales[spread][:, across]


def awq_config(group):
    return {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True,
            "modules_to_not_convert": ["visual"]}


def gptq_config(group, symmetric, **more):
    return {"quant_method": "gptq", "bits": 4, "group_size": group, "sym": symmetric, "desc_act": False, **more}


# Packing, and quantization_config.
FORMATS = {
    "awq": (lambda w, g: awq(w, 128, g), awq_config(128)),
    "awq_newer": (lambda w, g: awq(w, 64, g), awq_config(64)),
    "gptq_symmetric": (lambda w, g: gptq(w, 128, g, symmetric=True), gptq_config(128, True)),
    "gptq": (lambda w, g: gptq(w, 128, g), gptq_config(128, False, checkpoint_format="gptq", damp_percent=0.01)),
    "gptq_shuffled": (lambda w, g: gptq(w, 32, g, shuffled=True, version=2),
                      gptq_config(32, False, desc_act=True, checkpoint_format="gptq_v2")),
    "gptq_whole": (lambda w, g: gptq(w, w.shape[1], g), gptq_config(-1, False)),
    "gptq_8_bits": (lambda w, g: gptq(w, 128, g, bits=8), gptq_config(128, False, bits=8)),
    "fp8": (lambda w, g: fp8(w, (128, 128), g),
            {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}),
    "fp8_tensor": (lambda w, g: fp8(w, None, g), {"quant_method": "fp8", "activation_scheme": "static"}),
    "half": (None, None),
}  # fmt: skip


def make(name, packing, settings, out, seed):
    generator = torch.Generator().manual_seed(seed)
    spec = shape(2, 4, 2, 64, [8, 12, 12], (2, 2, 16), [1], 56,
                 config={"intermediate_size": 528 if name.startswith("fp8") else 512})
    config = Qwen2_5_VLConfig(**json.loads(json.dumps(spec["config"])), torch_dtype="float16")
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="eager", torch_dtype=torch.float32).eval()
    random_weights(model, generator)
    tensors = {key: value.half() for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.float() for key, value in tensors.items()})
    for key in list(tensors):
        if packing and key.startswith("model.layers.") and key.endswith("proj.weight"):
            packed, weight = packing(tensors.pop(key).float(), generator)
            module = key.removesuffix(".weight")
            tensors |= {f"{module}.{part}": value for part, value in packed.items()}
            model.get_submodule(module).weight.data = weight.contiguous()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    folder = out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    written = model.config.to_dict() | {"torch_dtype": "float16", "architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(written, indent=1))
    if name.endswith("newer"):
        to_newer_layout(folder)
    written = json.loads((folder / "config.json").read_text())
    if settings:
        written["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(written, indent=1))
    run_cases(name, model, out, generator)


def main():
    make_all(__doc__, 201, {name: partial(make, name, packing, settings) for name, (packing, settings) in FORMATS.items()})


if __name__ == "__main__":
    main()
