#!/usr/bin/env python3
"""Times Hugging Face transformers on one GPU at published shapes, the way glimpse_device_bench times glimpse.

Usage: gpu_peer.py [--shapes 7b 3b llava-7b] [--sizes 256 1024 4096 16384] [--limits] [--seconds S] [--json OUT]

Random bfloat16 weights are made on the device, so nothing is read or downloaded; SDPA attention, no pruning. One image of as
many visual tokens as --sizes says and --text text tokens. Vision encoding, prefill (language model on given embeddings, logits of
the last position only) and greedy decoding (model called step by step with a DynamicCache, each step ends with the tokens on
the host, --steps of them, a value per step) are timed apart; values are medians. Memory is the peak above the weights. What the
device has no memory for is null. --limits also times the device itself at the 7b shape. Written for transformers 5.17.
"""
import argparse
import gc
import json
import statistics
import time
from pathlib import Path

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import DynamicCache, LlavaConfig, LlavaForConditionalGeneration
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from make_checkpoint import shapes
from peer_transformers import grid_of

FIRST = [1024, 4096]  # the sizes worth most, should the time be short


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", default=["7b"], choices=["3b", "7b", "llava-7b", "tiny", "llava-tiny"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 1024, 4096, 16384], help="visual tokens")
    parser.add_argument("--text", type=int, default=30, help="text tokens, the two around the image included")
    parser.add_argument("--steps", type=int, default=32, help="decoding steps")
    parser.add_argument("--decode-up-to", type=int, default=4096, help="decode behind prompts from 1024 up to here")
    parser.add_argument("--batch", type=int, default=32, help="sequences decoded together, behind the smallest size")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limits", action="store_true", help="also products of matrices, copies and attention alone")
    parser.add_argument("--gemm", type=int, default=8192)
    parser.add_argument("--copy-mib", type=int, default=4096)
    parser.add_argument("--attention-sizes", nargs="+", type=int, default=[4096, 16384], help="visual tokens, for --limits")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no measurement after so many")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="write [{name, value, unit}] here, after every measurement")
    return parser.parse_args()


class Device:
    def __init__(self, name):
        self.name, self.cuda = name, torch.device(name).type == "cuda"

    def synchronise(self):
        if self.cuda:
            torch.cuda.synchronize()

    def clear(self):
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def held_mib(self):
        return torch.cuda.memory_allocated() / 2**20 if self.cuda else 0.0

    def reset_peak(self):
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak_mib(self):
        return torch.cuda.max_memory_allocated() / 2**20 if self.cuda else 0.0

    def ms(self, run, repeat=1):
        """Of one of `repeat` runs that are started one behind the other."""
        self.synchronise()
        start = time.perf_counter()
        for _ in range(repeat):
            run()
        self.synchronise()
        return 1e3 * (time.perf_counter() - start) / repeat


class Rows:
    def __init__(self, device, seconds, file):
        self.device, self.seconds, self.file, self.rows = device, seconds, file, []
        self.start = time.perf_counter()

    def elapsed(self):
        return time.perf_counter() - self.start

    def late(self):
        return self.elapsed() > self.seconds

    def measure(self, units, run):
        """Adds a row per entry of `units` (name -> unit), their values as `run` returns them."""
        if self.late():
            print(f"{next(iter(units))}: left out, the time is up", flush=True)
            return
        self.device.clear()
        try:
            values = run()
        except torch.OutOfMemoryError:
            values = [None] * len(units)
        for (name, unit), value in zip(units.items(), values, strict=True):
            shown = "no memory" if value is None else f"{value:.3f}"
            print(f"{name:40}{shown:>14} {unit:10}{self.elapsed():8.1f} s", flush=True)
            self.rows.append({"name": name, "value": value, "unit": unit})
        if self.file:
            self.file.write_text(json.dumps(self.rows, indent=1))


def random_model(config, device):
    kinds = {"llava": (LlavaConfig, LlavaForConditionalGeneration)}
    kind, network = kinds.get(config["model_type"], (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration))
    config = kind(**json.loads(json.dumps(config)))
    # made on the device and filled there by transformers itself: weights normal(0, 0.02), norms 1, biases 0, and the
    # tables that no checkpoint has (rotary frequencies, positions) as they should be
    with torch.device(device):
        model = network._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    at, tables = torch.empty(0, device=device).device, dict(model.named_buffers())
    assert all(p.dtype == torch.bfloat16 and p.device == at for p in model.parameters())
    assert all(t.device == at for t in tables.values())
    for name, table in tables.items():
        assert not name.endswith("inv_freq") or (table.dtype == torch.float32 and table[0] == 1), name
    assert all(part.config._attn_implementation == "sdpa" for part in model.modules() if hasattr(part, "config"))
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == config.tie_word_embeddings
    return model


class Qwen:
    def __init__(self, model):
        self.model = model

    def sizes(self, asked):
        return asked

    def image(self, visual):
        """Arguments of get_image_features."""
        vision, device = self.model.config.vision_config, self.model.device
        grid = grid_of(visual, vision.spatial_merge_size)
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(int(grid.prod()), values, device=device, dtype=torch.bfloat16)
        return {"pixel_values": pixels, "image_grid_thw": grid.to(device)}

    def positions(self, visual, text, steps):
        """Of the prompt, and of the tokens after it."""
        c = self.model.config
        image = [c.vision_start_token_id] + [c.image_token_id] * visual + [c.vision_end_token_id]
        ids = torch.tensor([list(range(10)) + image + list(range(text - 12))], device=self.model.device)
        kinds = (ids == c.image_token_id).int()
        grid = grid_of(visual, c.vision_config.spatial_merge_size).to(ids.device)
        prompt, delta = self.model.model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)
        after = ids.shape[1] + delta + torch.arange(steps, device=ids.device)
        return prompt, after.expand(3, 1, steps)


class Llava:
    def __init__(self, model):
        self.model = model

    def sizes(self, asked):
        return [self.model.config.image_seq_length]

    def image(self, visual):
        size = self.model.config.vision_config.image_size
        return {"pixel_values": torch.randn(1, 3, size, size, device=self.model.device, dtype=torch.bfloat16)}

    def positions(self, visual, text, steps):
        return torch.arange(visual + text + steps, device=self.model.device)[None].split([visual + text, steps], 1)


class Bench:
    def __init__(self, shape, device, rows, options):
        self.shape, self.device, self.rows, self.options = shape, device, rows, options
        self.model = random_model(shapes(shape)[0], device.name)
        self.family = (Llava if self.model.config.model_type == "llava" else Qwen)(self.model)
        device.synchronise()
        device.clear()
        self.weights = device.held_mib()

    def run(self):
        self.measure({"weights_mib": "MiB"}, lambda: [self.weights])
        all_sizes = self.family.sizes(self.options.sizes)
        small = min(all_sizes)
        first = [s for s in FIRST if s in all_sizes] or [small]
        decoded = [s for s in first if s <= self.options.decode_up_to]
        self.decode(*decoded[:1])
        for visual in first:
            self.prefill(visual)
        for visual in first:
            self.vision(visual)
        self.decode(*decoded[1:])
        self.decode(small, count=self.options.batch)
        for visual in sorted(set(all_sizes) - set(first)):
            self.prefill(visual)
            self.vision(visual)

    def measure(self, units, run):
        self.rows.measure({f"{self.shape}_{name}": unit for name, unit in units.items()}, run)

    def rounds(self, what, visual, prepare):
        """`prepare` returns what to time, of which the first run does not count."""

        def timed():
            self.device.reset_peak()
            run = prepare()
            run()
            ms = statistics.median(self.device.ms(run) for _ in range(self.options.rounds))
            return ms, self.device.peak_mib() - self.weights

        self.measure({f"{what}_ms_{visual}": "ms", f"{what}_memory_mib_{visual}": "MiB"}, timed)

    def vision(self, visual):
        def prepare():
            image = self.family.image(visual)
            return lambda: self.model.get_image_features(**image)

        self.rounds("vision", visual, prepare)

    def step(self, cache, positions, **inputs):
        out = self.model(position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def prompt(self, visual):
        """A function that prefills, its DynamicCache and the positions of what follows."""
        config, text = self.model.config.get_text_config(), self.options.text
        shape = (1, visual + text, config.hidden_size)
        embeds = 0.02 * torch.randn(shape, device=self.device.name, dtype=torch.bfloat16)
        positions, after = self.family.positions(visual, text, self.options.steps)
        assert positions.shape[-1] == shape[1]

        def prefill():
            cache = DynamicCache(config=config)
            return self.step(cache, positions, inputs_embeds=embeds), cache

        return prefill, after

    def prefill(self, visual):
        self.rounds("prefill", visual, lambda: self.prompt(visual)[0])

    def decode(self, *sizes, count=1):
        steps = self.options.steps

        def timed(visual):
            self.device.reset_peak()
            prefill, after = self.prompt(visual)
            first, cache = prefill()
            first = first.expand(count, 1)
            after = after.repeat_interleave(count, dim=-2)
            cache.batch_repeat_interleave(count)

            def run(steps):
                token = first
                for i in range(steps):
                    token = self.step(cache, after[..., i : i + 1], input_ids=token)
                    if count == 1:
                        token.item()
                    else:
                        token.tolist()

            def once(steps):
                ms = self.device.ms(lambda: run(steps)) / steps
                assert cache.get_seq_length() == visual + self.options.text + steps
                cache.crop(-steps)
                return ms

            once(min(steps, 4))
            ms = statistics.median(once(steps) for _ in range(self.options.rounds))
            return ms, self.device.peak_mib() - self.weights

        what = "decode" if count == 1 else f"decode_batch{count}"
        for visual in sizes:
            self.measure(
                {f"{what}_ms_{visual}": "ms", f"{what}_memory_mib_{visual}": "MiB"},
                lambda visual=visual: timed(visual),
            )


def limits(device, rows, options):
    """What the device does at best: bfloat16 products, copies and reads of device memory, causal attention."""
    text = shapes("7b")[0]
    hidden, wide, heads, kv_heads = (
        text[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )  # fmt: skip

    def normal(*shape):
        return torch.empty(shape, device=device.name, dtype=torch.bfloat16).normal_()

    def median_ms(run, repeat=10):
        device.ms(run)
        return statistics.median(device.ms(run, repeat) for _ in range(max(options.rounds, 3)))

    def product(m, k, n):
        x, w = normal(m, k), normal(n, k)
        return [2e-9 * m * k * n / median_ms(lambda: linear(x, w))]

    def memory():
        source = normal(options.copy_mib << 19)
        gb = source.numel() * source.element_size() / 1e9
        target, whole = torch.empty_like(source), source.view(torch.int32)
        copied = 2e3 * gb / median_ms(lambda: target.copy_(source))
        return copied, 1e3 * gb / median_ms(source.sum), 1e3 * gb / median_ms(lambda: whole.sum(dtype=torch.int32))

    def attention(visual):
        tokens, width = visual + options.text, hidden // heads
        q, k, v = (normal(1, h, tokens, width) for h in (heads, kv_heads, kv_heads))
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            ms = median_ms(lambda: scaled_dot_product_attention(q, k, v, is_causal=True), repeat=5)
        return ms, 2e-9 * heads * width * tokens * (tokens + 1) / ms

    products = [(options.gemm,) * 3]
    for visual in [v for v in FIRST if v in options.sizes]:
        m = visual + options.text
        products += [(m, hidden, wide), (m, wide, hidden), (m, hidden, hidden)]
    for m, k, n in products:
        rows.measure({f"7b_gemm_{m}x{k}x{n}": "TFLOP/s"}, lambda m=m, k=k, n=n: product(m, k, n))
    rows.measure({"7b_copy": "GB/s", "7b_read": "GB/s", "7b_read_int32": "GB/s"}, memory)
    for visual in options.attention_sizes:
        units = {f"7b_attention_ms_{visual}": "ms", f"7b_attention_rate_{visual}": "TFLOP/s"}
        rows.measure(units, lambda visual=visual: attention(visual))


def main():
    options = parse()
    device = Device(options.device)
    card = torch.cuda.get_device_name() if device.cuda else "CPU"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {card}", flush=True)
    torch.manual_seed(0)
    rows = Rows(device, options.seconds, options.json)
    with torch.inference_mode():
        if options.limits:
            limits(device, rows, options)
        for shape in options.shapes:
            if rows.late():
                break
            device.clear()
            Bench(shape, device, rows, options).run()


if __name__ == "__main__":
    main()
