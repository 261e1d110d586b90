#!/usr/bin/env python3
"""Random tiny Qwen2.5-VL checkpoints whose layers slide, and what Hugging Face transformers computes with them.

Usage: make_sliding.py OUT_DIR

As make_checkpoints.py, by the later release beside the others in .venv (tools/setup): the older one lets all layers slide or none.
"""
import json
from functools import partial

from make_qwen3 import Parts, make_all, run_cases, save_random_model  # first: it takes the later release
from make_checkpoints import shape
import make_checkpoints
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

make_checkpoints.PATCH = 14
make_checkpoints.SLICES_APART = False
# This release rounds the seconds between slices.
make_checkpoints.CASES |= {"video": ([(5, 3, 4, 1.0)], [5, 8]), "video_image_video": ([(3, 2, 5, 3.0), (4, 3), (2, 6, 2, 2.0)], [2, 4, 0, 9])}

SHAPES = {
    "sliding": shape(4, 4, 2, 16, [2, 3, 3], (3, 2, 16), [1], 56, config={
        "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2}),
    "sliding_all": shape(3, 6, 2, 32, [4, 6, 6], (2, 2, 16), [1], 56, config={
        "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}),
    "sliding_types": shape(3, 4, 4, 16, [2, 3, 3], (2, 2, 16), [1], 56, config={
        "use_sliding_window": True, "sliding_window": 33, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
}


class Qwen25(Parts):
    def visual(self, pixels, grid_thw):
        return self.inner.visual(pixels, grid_thw=grid_thw)


def make(name, spec, out, seed):
    generator = torch.Generator().manual_seed(seed)
    config = Qwen2_5_VLConfig(**json.loads(json.dumps(spec["config"])), dtype="float32")
    model = save_random_model(Qwen2_5_VLForConditionalGeneration, config, out, generator)
    run_cases(name, Qwen25(model), out, generator)


def main():
    make_all(__doc__, 501, {name: partial(make, name, spec) for name, spec in SHAPES.items()})


if __name__ == "__main__":
    main()
