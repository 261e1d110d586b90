#!/usr/bin/env python3
"""Times OpenVINO on a Qwen2 decoder of random weights with a checkpoint's shapes, the way glimpse_bench times glimpse.

Usage: peer_openvino.py --config CONFIG.json --bits bf16|int8|int4 --dir DIR [--threads 2] [--prompt 1054] [--decode 64]
           [--rounds 1] [--json OUT]

The network is written in OpenVINO's own operations: KV cache as state, weights of 8 bits with a scale per output or of 4
bits with a scale per 128 inputs (embeddings and head: 8 bits), which its CPU plugin fuses and decompresses itself.
Precision hint bf16 and dynamic quantisation in groups of 128 are asked for; the plugin uses what the CPU can do. DIR keeps the
network from run to run.
"""
import argparse
import collections
import json
import statistics
import time
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset6, opset13 as op

GROUP = 128


class Weights:
    """Constants of random numbers; no two share their bytes, as the plugin would share what it makes of them."""

    def __init__(self, bits):
        self.bits, self.random = bits, np.random.default_rng(0)
        self.block = self.random.integers(0, 256, (1 << 24) + 4099, dtype=np.uint8)
        # bfloat16 numbers of size 0.02: random signs and mantissas, an exponent of 2^-6.
        words = self.random.integers(0, 1 << 16, (1 << 23) + 4099, dtype=np.uint16)
        self.words = (words & np.uint16(0x807F)) | np.uint16(0x3C80)

    def some(self, source, count):
        begin = int(self.random.integers(len(source)))
        return np.resize(np.roll(source, -begin), count)

    def f32(self, values):
        return op.constant(np.asarray(values, np.float32))

    def matrix(self, rows, columns, bits=None):
        """[rows, columns] as float32."""
        bits = bits or self.bits
        if bits == "bf16":
            tensor = ov.Tensor(self.some(self.words, rows * columns), ov.Shape([rows, columns]), ov.Type.bf16)
            return op.convert(ov.op.Constant(tensor, shared_memory=False), "f32")
        if bits == "int8":
            values = self.some(self.block, rows * columns).view(np.int8).reshape(rows, columns)
            whole = op.multiply(op.convert(op.constant(values), "f16"), self.scales((rows, 1), 127))
            return op.convert(whole, "f32")
        group = GROUP if columns % GROUP == 0 else columns
        shape = [rows, columns // group, group]
        tensor = ov.Tensor(self.some(self.block, rows * columns // 2), ov.Shape(shape), ov.Type.i4)
        whole = op.multiply(op.convert(ov.op.Constant(tensor, shared_memory=False), "f16"), self.scales((*shape[:2], 1), 7))
        return op.convert(op.reshape(whole, op.constant(np.array([rows, columns])), False), "f32")

    def scales(self, shape, top):
        return op.constant((self.random.uniform(0.9, 1.1, shape) * 0.05 / top).astype(np.float16))


class Decoder:
    """Builds the network: (input_ids, position_ids, mask, beam_idx) -> logits of the last position."""

    def __init__(self, config, bits):
        self.c, self.w = config, Weights(bits)
        self.width, self.heads = config["hidden_size"], config["num_attention_heads"]
        self.kv_heads, self.head = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
        self.sinks = []

    def shape(self, *sizes):
        return op.constant(np.array(sizes, np.int64))

    def linear(self, x, outputs, inputs, bias=False):
        y = op.matmul(x, self.w.matrix(outputs, inputs), False, True)
        return op.add(y, self.w.f32(np.full((1, 1, outputs), 0.01))) if bias else y

    def norm(self, x):
        mean = op.reduce_mean(op.power(x, self.w.f32(2)), op.constant(np.array([-1])), True)
        inverse = op.divide(self.w.f32(1), op.sqrt(op.add(mean, self.w.f32(self.c["rms_norm_eps"]))))
        return op.multiply(self.w.f32(np.ones((1, 1, self.width))), op.multiply(x, inverse))

    def split_heads(self, x, heads):
        return op.transpose(op.reshape(x, self.shape(0, 0, heads, self.head), True), self.shape(0, 2, 1, 3))

    def rotate(self, x):
        first, second = op.variadic_split(x, op.constant(3), self.shape(self.head // 2, self.head // 2)).outputs()
        turned = op.concat([op.multiply(second, self.w.f32(-1)), first], -1)
        return op.add(op.multiply(x, self.cos), op.multiply(turned, self.sin))

    def past_and(self, new, name):
        """The state with the new rows at its end, for all query heads."""
        batch = op.gather(op.shape_of(self.ids), self.shape(0), op.constant(0))
        empty = op.broadcast(self.w.f32(0), op.concat([batch, self.shape(self.kv_heads, 0, self.head)], 0))
        past = opset6.read_value(empty, name, ov.Type.f32, ov.PartialShape([-1, self.kv_heads, -1, self.head]))
        whole = op.concat([op.gather(past, self.beam, op.constant(0)), new], 2)
        self.sinks.append(opset6.assign(whole, name))
        if self.heads == self.kv_heads:
            return whole
        each = self.heads // self.kv_heads
        apart = op.reshape(whole, self.shape(0, self.kv_heads, 1, -1, self.head), True)
        wide = op.multiply(apart, self.w.f32(np.ones((1, 1, each, 1, 1))))
        return op.reshape(wide, self.shape(0, self.heads, -1, self.head), True)

    def layer(self, x, index):
        d, kv, wide = self.width, self.kv_heads * self.head, self.c["intermediate_size"]
        n = self.norm(x)
        q = self.rotate(self.split_heads(self.linear(n, d, d, True), self.heads))
        k = self.rotate(self.split_heads(self.linear(n, kv, d, True), self.kv_heads))
        v = self.split_heads(self.linear(n, kv, d, True), self.kv_heads)
        k, v = self.past_and(k, f"key.{index}"), self.past_and(v, f"value.{index}")
        mixed = op.scaled_dot_product_attention(q, k, v, self.mask, causal=False)
        mixed = op.reshape(op.transpose(mixed, self.shape(0, 2, 1, 3)), self.shape(0, 0, d), True)
        x = op.add(x, self.linear(mixed, d, d))
        n = self.norm(x)
        inner = op.multiply(op.swish(self.linear(n, wide, d)), self.linear(n, wide, d))
        return op.add(x, self.linear(inner, d, wide))

    def build(self):
        self.ids = op.parameter([-1, -1], np.int64)
        positions = op.parameter([-1, -1], np.int64)
        self.mask = op.parameter([-1, 1, -1, -1], np.float32)
        self.beam = op.parameter([-1], np.int32)
        theta, half = self.c.get("rope_theta", 1e6), self.head // 2
        frequencies = theta ** (-np.arange(half, dtype=np.float64) / half)
        angles = op.multiply(op.unsqueeze(op.convert(positions, "f32"), op.constant(2)), self.w.f32(frequencies[None, None]))
        angles = op.unsqueeze(op.concat([angles, angles], 2), op.constant(1))
        self.cos, self.sin = op.cos(angles), op.sin(angles)
        table = self.w.matrix(self.c["vocab_size"], self.width, "int8" if self.w.bits == "int4" else None)
        x = op.gather(table, self.ids, op.constant(0))
        for index in range(self.c["num_hidden_layers"]):
            x = self.layer(x, index)
        last = op.gather(x, op.constant(np.array([-1])), op.constant(1))
        logits = op.matmul(self.norm(last), table, False, True)
        inputs = {"input_ids": self.ids, "position_ids": positions, "mask": self.mask, "beam_idx": self.beam}
        for name, parameter in inputs.items():
            parameter.output(0).set_names({name})
        return ov.Model([op.result(logits)], self.sinks, list(inputs.values()), "decoder")


def fused(compiled):
    """How many of the operations that the plugin fuses there are, to see that it took the network for what it is."""
    kinds = collections.Counter(node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops())
    return {kind: count for kind, count in kinds.items() if kind in ("ScaledDotProductAttention", "RoPE", "RMS", "FullyConnected", "MatMul", "LLMMLP", "QKVProjection")
            or "WithKVCache" in kind}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--bits", choices=["bf16", "int8", "int4"], required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=1054)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = json.loads(options.config.read_text())

    file = options.dir / f"{options.bits}.xml"
    if not file.exists():
        options.dir.mkdir(parents=True, exist_ok=True)
        partial = options.dir / f"partial_{options.bits}.xml"
        ov.save_model(Decoder(config, options.bits).build(), partial, compress_to_fp16=False)
        partial.with_suffix(".bin").rename(file.with_suffix(".bin"))
        partial.rename(file)
    compiled = ov.Core().compile_model(file, "CPU", {
        "INFERENCE_NUM_THREADS": options.threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128,
    })  # fmt: skip
    print(f"OpenVINO {ov.__version__}, {options.bits}, runs in {compiled.get_property('INFERENCE_PRECISION_HINT')}: {fused(compiled)}")
    request = compiled.create_infer_request()
    tokens = np.random.default_rng(1).integers(0, 500, (1, options.prompt))
    causal = np.triu(np.full((options.prompt, options.prompt), np.finfo(np.float32).min, np.float32), 1)[None, None]
    beam = np.zeros(1, np.int32)

    def step(ids, first, mask):
        positions = np.arange(first, first + ids.shape[1])[None]
        out = request.infer({"input_ids": ids, "position_ids": positions, "mask": mask, "beam_idx": beam}, share_inputs=True, share_outputs=True)
        return int(np.argmax(out[0][0, -1]))

    prefill, decode = [], []
    for _ in range(options.rounds):
        request.reset_state()
        start = time.perf_counter()
        token = step(tokens, 0, causal)
        prefill.append(time.perf_counter() - start)
        start = time.perf_counter()
        for i in range(options.prompt, options.prompt + options.decode):
            token = step(np.array([[token]]), i, np.zeros((1, 1, 1, i + 1), np.float32))
        decode.append(time.perf_counter() - start)
    rows = [{"name": "prefill_ms", "value": 1e3 * min(prefill), "unit": "ms"},
            {"name": "decode_tokens_per_s", "value": options.decode / min(decode), "unit": "tokens/s"}]
    medians = [1e3 * statistics.median(prefill), options.decode / statistics.median(decode)]
    for row, median in zip(rows, medians):
        print(f"{row['name']:22}{row['value']:12.2f}{median:12.2f} {row['unit']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
