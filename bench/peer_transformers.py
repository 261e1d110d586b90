#!/usr/bin/env python3
"""Times Hugging Face transformers on a Qwen2.5-VL checkpoint, the way glimpse_bench times glimpse.

Usage: peer_transformers.py --model DIR [--threads 2] [--visual 1024] [--text 30] [--decode 64] [--rounds 2]
           [--dtype bfloat16|float32] [--json OUT]

One image of --visual tokens (as square as can be) and --text text tokens, SDPA attention, no pruning. Vision encoding, prefill
(language model on given embeddings, logits of the last position only) and --decode greedy steps are timed apart.
"""
import argparse
import json
import resource
import statistics
import time

import torch
from transformers import Qwen2_5_VLForConditionalGeneration


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--visual", type=int, default=1024, help="visual tokens")
    parser.add_argument("--text", type=int, default=30, help="text tokens, the two around the image included")
    parser.add_argument("--decode", type=int, default=64, help="decoding steps")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="write [{name, value, unit}] here")
    return parser.parse_args()


def grid_of(visual, merge):
    """[1, rows, columns] in patches, as near to a square as `visual` tokens allow."""
    rows = next(r for r in range(int(visual**0.5), 0, -1) if visual % r == 0)
    return torch.tensor([[1, rows * merge, visual // rows * merge]])


class Clock:
    """Collects seconds per stage."""

    def __init__(self, device):
        self.device = device
        self.seconds = {}

    def time(self, stage, function):
        start = time.perf_counter()
        result = function()
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.seconds.setdefault(stage, []).append(time.perf_counter() - start)
        return result


def one_round(model, clock, input_ids, pixels, grid, decode):
    positions, deltas = model.get_rope_index(input_ids, image_grid_thw=grid)
    images = clock.time("vision", lambda: model.visual(pixels, grid_thw=grid))

    def step(embeds, positions, cache):
        out = model.model(inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True)
        return model.lm_head(out.last_hidden_state[:, -1:]).argmax(-1), out.past_key_values

    def prefill():
        embeds = model.model.embed_tokens(input_ids)
        mask = (input_ids == model.config.image_token_id).unsqueeze(-1)
        return step(embeds.masked_scatter(mask, images.to(embeds.dtype)), positions, None)

    token, cache = clock.time("prefill", prefill)

    def generate():
        current, past = token, cache
        for i in range(decode):
            at = (input_ids.shape[1] + i + deltas).expand(3, 1, 1)
            current, past = step(model.model.embed_tokens(current), at, past)
        return current

    clock.time("decode", generate)


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    dtype = getattr(torch, options.dtype)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        options.model, torch_dtype=dtype, attn_implementation="sdpa", low_cpu_mem_usage=True
    ).eval().to(options.device)  # fmt: skip
    load = 1e3 * (time.perf_counter() - start)
    vision = model.config.vision_config
    grid = grid_of(options.visual, vision.spatial_merge_size)
    generator = torch.Generator().manual_seed(0)
    patch = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(int(grid.prod()), patch, generator=generator).to(dtype)
    text = torch.randint(0, 500, (options.text - 2,), generator=generator).tolist()
    special = [model.config.vision_start_token_id, model.config.vision_end_token_id]
    ids = text[:10] + special[:1] + [model.config.image_token_id] * options.visual + special[1:] + text[10:]
    inputs = [t.to(options.device) for t in (torch.tensor([ids]), pixels, grid)]

    clock = Clock(options.device)
    with torch.inference_mode():
        for _ in range(options.rounds):
            one_round(model, clock, *inputs, options.decode)

    rows = []
    print(f"{'':22}{'best':>12}{'median':>12}")
    for name, stage, unit, value in [
        ("vision_ms", "vision", "ms", lambda s: 1e3 * s),
        ("prefill_ms", "prefill", "ms", lambda s: 1e3 * s),
        ("decode_tokens_per_s", "decode", "tokens/s", lambda s: options.decode / s),
    ]:
        best, median = value(min(clock.seconds[stage])), value(statistics.median(clock.seconds[stage]))
        print(f"{name:22}{best:12.2f}{median:12.2f} {unit}")
        rows += [{"name": name, "value": best, "unit": unit}, {"name": f"{name}_median", "value": median, "unit": unit}]
    first = load + 1e3 * (clock.seconds["vision"][0] + clock.seconds["prefill"][0])
    for name, ms in [("load_ms", load), ("load_to_first_token_ms", first)]:
        print(f"{name:22}{ms:12.0f}{'':12} ms")
        rows.append({"name": name, "value": ms, "unit": "ms"})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'peak_rss_mib':22}{peak:12.0f}{'':12} MiB")
    rows.append({"name": "peak_rss_mib", "value": peak, "unit": "MiB"})
    if options.json:
        with open(options.json, "w") as out:
            json.dump(rows, out, indent=1)


if __name__ == "__main__":
    main()
