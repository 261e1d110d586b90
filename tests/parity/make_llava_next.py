#!/usr/bin/env python3
"""Random tiny LLaVA-NeXT checkpoints and what Hugging Face transformers computes with them.

Usage: make_llava_next.py OUT_DIR

As make_llava.py, with Vicuna's and Mistral's language model, in llava-hf's layout with its older and newer names and in the
original one, whose encoder lies in the checkpoint while the folder beside it has other weights. Differences: pixel_values are
[tiles, 3, H, W] of all pictures, one after the other; image_sizes [n, 2] (height, width); image_embeds leave out newlines.
"""
import json
from functools import partial

import torch
from make_checkpoints import make_all, random_weights, save_random_model, write_cases
from make_llava import IMAGE, PATCH, original_config, renamed, shape, stored, text_tensors, to_newer_layout
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches


def next_shape(*of, side, text=None, **more):
    made = shape(*of, side, **more, text={"max_position_embeddings": 2048, **(text or {})})
    del made["config"]["image_seq_length"]
    pixels = side * PATCH
    made["config"]["image_grid_pinpoints"] = [[pixels * h, pixels * w] for h, w in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    return made


MISTRAL = {"model_type": "mistral", "rope_theta": 1e6, "sliding_window": None}
SHAPES = {
    "llava_next_mistral": next_shape(3, 4, 2, 16, (4, 2, 16), side=4, layout="older", text=MISTRAL),
    "llava_next_sliding": next_shape(3, 4, 2, 16, (3, 2, 16), side=3, layout="newer", text={**MISTRAL, "sliding_window": 19}),
    "llava_next_vicuna": next_shape(2, 4, 4, 32, (5, 3, 8), side=3, layout="newer", config={"vision_feature_layer": -3}),
    "llava_next_original": next_shape(3, 2, 2, 32, (3, 4, 8), side=4, layout="original"),
    "llava_next_original_mistral": next_shape(2, 4, 1, 16, (3, 4, 8), side=3, layout="original", text=MISTRAL),
}
# Sizes of pictures (height, width), as parts of a tile, and how many text tokens go before each and after the last. With these
# both readings of the resolutions give the same tiles.
CASES = {
    "text": ([], [23]), "wide": ([(0.9, 1.7)], [4, 9]), "tall": ([(3.1, 0.8)], [0, 8]), "extreme": ([(0.4, 3.6)], [3, 5]),
    "three": ([(1.3, 1.3), (2.2, 1.2), (0.9, 1.9)], [3, 0, 2, 7]),
}  # fmt: skip


def make_inputs(model, spec, sizes, texts, generator):
    side = spec["side"] * PATCH
    inputs, counts = {}, []
    if sizes:
        image_sizes = torch.tensor([[round(h * side), round(w * side)] for h, w in sizes])
        tiles = [image_size_to_num_patches(size, spec["config"]["image_grid_pinpoints"], side) for size in image_sizes]
        pixels = torch.zeros(len(sizes), max(tiles), 3, side, side)
        for picture, count in zip(pixels, tiles, strict=True):
            picture[:count] = torch.randn(count, 3, side, side, generator=generator)
        inputs = {"pixel_values": pixels, "image_sizes": image_sizes}
        features = model.get_image_features(**inputs, vision_feature_layer=model.config.vision_feature_layer,
                                            vision_feature_select_strategy="default")
        packed, counts = model.pack_image_features(features, image_sizes, "default", image_newline=model.image_newline)
        embeds = packed[~(packed == model.image_newline).all(1)]
        inputs |= {"tiles": tiles, "image_embeds": embeds}
    ids = []
    for i, count in enumerate(texts):
        ids += torch.randint(0, IMAGE, (count,), generator=generator).tolist()
        ids += [IMAGE] * (int(counts[i]) if i < len(sizes) else 0)
    return inputs | {"input_ids": torch.tensor([ids])}


def run(model, spec, inputs):
    """The case's tensors."""
    given = {key: inputs[key] for key in ("input_ids", "pixel_values", "image_sizes") if key in inputs}
    tensors = text_tensors(model, spec, given)
    if "tiles" in inputs:
        pixels = [picture[:count] for picture, count in zip(inputs["pixel_values"], inputs["tiles"], strict=True)]
        tensors |= {"pixel_values": torch.cat(pixels), "image_sizes": inputs["image_sizes"], "image_embeds": inputs["image_embeds"],
                    "tiles": torch.tensor(inputs["tiles"])}
    return stored(tensors)


def to_original_layout(folder, model, generator):
    file = folder / "model.safetensors"
    save_file(renamed(load_file(file), ("language_model.", ""), ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
                      ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
                      ("vision_tower.", "model.vision_tower.vision_tower."), ("image_newline", "model.image_newline")),
              file, {"format": "pt"})  # fmt: skip
    other = CLIPVisionModel(model.config.vision_config)
    random_weights(other, generator)
    other.save_pretrained(folder.parent / "clip-vit-tiny")
    mistral = model.config.text_config.model_type == "mistral"
    config = original_config(model) | {
        "model_type": "llava_mistral" if mistral else "llava", "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad", "image_grid_pinpoints": model.config.image_grid_pinpoints, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | ({"sliding_window": None} if mistral else {}), indent=1))


def make(name, spec, out, seed):
    generator = torch.Generator().manual_seed(seed)
    config = LlavaNextConfig(**json.loads(json.dumps(spec["config"])), torch_dtype="float32")
    model = save_random_model(LlavaNextForConditionalGeneration, config, out, generator)
    if spec["layout"] == "newer":
        to_newer_layout(out / "model")
    if spec["layout"] == "original":
        to_original_layout(out / "model", model, generator)
    for case, (sizes, texts) in CASES.items():
        write_cases(name, case, f"{len(sizes)} pictures, {sum(texts)} text tokens", out,
                    lambda: run(model, spec, make_inputs(model, spec, sizes, texts, generator)))


def main():
    make_all(__doc__, 301, {name: partial(make, name, spec) for name, spec in SHAPES.items()})


if __name__ == "__main__":
    main()
