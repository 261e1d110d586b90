#!/usr/bin/env python3
"""Random tiny Qwen3-VL checkpoints and what Hugging Face transformers computes with them.

Usage: make_qwen3.py OUT_DIR

Writes OUT_DIR/<shape>/model/ and OUT_DIR/<shape>/cases/ as make_checkpoints.py does, in the published layout and with the
config of transformers 5. Needs a release that has the family: the one beside the others in .venv (tools/setup). A patch has 1536 numbers here.
"""
import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / ".venv/transformers"))
from make_checkpoints import END, MERGE, PAD, START, STEPS, VIDEO, VOCAB, make_all, run_cases, save_random_model  # noqa: E402
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration  # noqa: E402
import make_checkpoints  # noqa: E402
import torch  # noqa: E402

make_checkpoints.PATCH = 16
make_checkpoints.SLICES_APART = True


def shape(layers, hidden, heads, kv_heads, head_dim, mrope, vit, taps, side, tied=False, variant=None, **text):
    """`vit` is (depth, heads, head_dim), `taps` its blocks whose outputs go to the first layers, `side` that of its table of positions."""
    depth, vit_heads, vit_head_dim = vit
    return {
        "variant": variant,
        "config": {
            "image_token_id": PAD, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END,
            "tie_word_embeddings": tied,
            "text_config": {
                "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
                "head_dim": head_dim, "intermediate_size": 2 * hidden + 16, "vocab_size": VOCAB, "rope_theta": 5e6,
                "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": mrope},
                "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": tied, **text,
            },
            "vision_config": {
                "depth": depth, "hidden_size": vit_heads * vit_head_dim, "num_heads": vit_heads,
                "intermediate_size": 3 * vit_heads * vit_head_dim + 4, "out_hidden_size": hidden, "patch_size": 16,
                "spatial_merge_size": MERGE, "temporal_patch_size": 2, "num_position_embeddings": side * side,
                "deepstack_visual_indexes": taps,
            },
        },
    }  # fmt: skip


SHAPES = {
    "qwen3": shape(4, 48, 4, 2, 24, [6, 3, 3], (5, 2, 16), [0, 2, 3], 7),
    "qwen3_tied": shape(5, 40, 4, 1, 16, [4, 2, 2], (4, 4, 8), [1, 2, 3], 12, tied=True),
    # As transformers 5 writes its config; one tap; heads that do not divide the width.
    "qwen3_parameters": shape(3, 50, 6, 3, 32, [6, 5, 5], (3, 1, 32), [1], 5, variant="parameters"),
    "qwen3_sharded": shape(3, 64, 4, 4, 16, [3, 3, 2], (3, 2, 8), [0, 1], 48, variant="sharded", rope_theta=1e4),
}


def as_transformers_5(folder):
    """rope_parameters for rope_scaling and rope_theta, dtype, the later name of the encoder's config."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    text = config["text_config"]
    text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
    text["dtype"] = config["dtype"] = "float32"
    config["vision_config"]["model_type"] = "qwen3_vl_vision"
    file.write_text(json.dumps(config, indent=1))


class Parts:
    """A model with the members where make_checkpoints.run looks for them."""

    def __init__(self, model):
        self.inner, self.generate = model, model.generate
        self.get_rope_index = model.model.get_rope_index

    def __call__(self, **inputs):
        return self.inner(**inputs)

    def visual(self, pixels, grid_thw):
        return self.inner.visual(pixels, grid_thw=grid_thw)[0]

    @property
    def model(self):
        return self.inner.model.language_model


def make(name, spec, out, seed):
    generator = torch.Generator().manual_seed(seed)
    config = Qwen3VLConfig(**json.loads(json.dumps(spec["config"])), dtype="float32")
    shard = "200KB" if spec["variant"] == "sharded" else "1GB"
    model = save_random_model(Qwen3VLForConditionalGeneration, config, out, generator, shard)
    if spec["variant"] == "parameters":
        as_transformers_5(out / "model")
    run_cases(name, Parts(model), out, generator)


def main():
    make_all(__doc__, 301, {name: partial(make, name, spec) for name, spec in SHAPES.items()})


if __name__ == "__main__":
    main()
