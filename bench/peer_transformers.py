#!/usr/bin/env python3
"""Times Hugging Face transformers on a Qwen2.5-VL or LLaVA-1.5 checkpoint, the way glimpse_bench times glimpse.

Usage: peer_transformers.py --model DIR [--threads 2] [--visual 1024] [--frames 0] [--text 30] [--decode 64] [--rounds 2]
           [--dtype bfloat16|float32] [--json OUT]

One image of --visual tokens (as square as can be), or a video of --frames frames that has them, and --text text tokens, SDPA attention, no pruning. Vision encoding, prefill
(language model on given embeddings, logits of the last position only) and --decode greedy steps are timed apart.
"""
import argparse
import json
import resource
import statistics
import time

import torch
from transformers import AutoConfig, LlavaForConditionalGeneration, Qwen2_5_VLForConditionalGeneration


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--visual", type=int, default=1024, help="visual tokens")
    parser.add_argument("--frames", type=int, default=0, help="frames of a video, two in a slice; 0: an image")
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


class Qwen:
    network = Qwen2_5_VLForConditionalGeneration

    def __init__(self, model, visual, generator, frames=0):
        self.model, self.text, vision = model, model.model, model.config.vision_config
        self.head, self.is_video, slices = model.lm_head, frames > 0, max(1, frames // 2)
        self.grid = grid_of(visual // slices, vision.spatial_merge_size).to(model.device)
        self.grid[0, 0] = slices
        self.pixels = torch.randn(int(self.grid.prod()), 3 * vision.temporal_patch_size * vision.patch_size**2, generator=generator)
        self.before, self.after = [model.config.vision_start_token_id], [model.config.vision_end_token_id]
        self.image_token = model.config.video_token_id if self.is_video else model.config.image_token_id

    def encode(self):
        return self.model.visual(self.pixels, grid_thw=self.grid)

    def place(self, input_ids):
        """Positions of the prompt, and of the i-th token after it."""
        grids = {"video_grid_thw": self.grid, "second_per_grid_ts": [1.0]} if self.is_video else {"image_grid_thw": self.grid}
        positions, deltas = self.model.get_rope_index(input_ids, **grids)
        return positions, lambda i: (input_ids.shape[1] + i + deltas).expand(3, 1, 1)


class Llava:
    network = LlavaForConditionalGeneration

    def __init__(self, model, visual, generator, frames=0):
        assert frames == 0, "the family knows no videos"
        self.model, self.text, vision = model, model.language_model.model, model.config.vision_config
        self.head = model.language_model.lm_head
        assert visual == (vision.image_size // vision.patch_size) ** 2, "every image has the same number of visual tokens"
        self.pixels = torch.randn(1, 3, vision.image_size, vision.image_size, generator=generator)
        self.before = self.after = []
        self.image_token = model.config.image_token_index

    def encode(self):
        c = self.model.config
        return self.model.get_image_features(self.pixels, c.vision_feature_layer, c.vision_feature_select_strategy)

    def place(self, input_ids):
        count = input_ids.shape[1]
        return (torch.arange(count, device=input_ids.device).unsqueeze(0),
                lambda i: torch.full((1, 1), count + i, device=input_ids.device))


def one_round(family, clock, input_ids, decode):
    positions, position_after = family.place(input_ids)
    images = clock.time("vision", family.encode)

    def step(embeds, positions, cache):
        out = family.text(inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True)
        return family.head(out.last_hidden_state[:, -1:]).argmax(-1), out.past_key_values

    def prefill():
        embeds = family.text.embed_tokens(input_ids)
        mask = (input_ids == family.image_token).unsqueeze(-1)
        return step(embeds.masked_scatter(mask, images.to(embeds.dtype)), positions, None)

    token, cache = clock.time("prefill", prefill)

    def generate():
        current, past = token, cache
        for i in range(decode):
            current, past = step(family.text.embed_tokens(current), position_after(i), past)
        return current

    clock.time("decode", generate)


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    dtype = getattr(torch, options.dtype)
    kind = Llava if AutoConfig.from_pretrained(options.model).model_type == "llava" else Qwen
    model = kind.network.from_pretrained(
        options.model, torch_dtype=dtype, attn_implementation="sdpa", low_cpu_mem_usage=True
    ).eval().to(options.device)  # fmt: skip
    load = 1e3 * (time.perf_counter() - start)
    generator = torch.Generator().manual_seed(0)
    family = kind(model, options.visual, generator, options.frames)
    family.pixels = family.pixels.to(options.device, dtype)
    around = len(family.before) + len(family.after)
    text = torch.randint(0, 500, (options.text - around,), generator=generator).tolist()
    ids = text[:10] + family.before + [family.image_token] * options.visual + family.after + text[10:]
    input_ids = torch.tensor([ids]).to(options.device)

    clock = Clock(options.device)
    with torch.inference_mode():
        for _ in range(options.rounds):
            one_round(family, clock, input_ids, options.decode)

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
