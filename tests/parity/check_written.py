"""Reads what test_parity wrote with this library (writers_parity_test.cpp), using PyTorch, PEFT and transformers.

GLIMPSE_PARITY_DIR: the checkpoints of make_checkpoints.py; GLIMPSE_WRITTEN_DIR: what was written; GLIMPSE: the program.
"""
import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

GOLDEN = Path(__file__).resolve().parents[1] / "data/golden"
CHECKPOINTS, WRITTEN = Path(os.environ["GLIMPSE_PARITY_DIR"]), Path(os.environ["GLIMPSE_WRITTEN_DIR"])
SHAPES = ["gqa", "one_kv_tied", "sharded"]


def load(folder):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager")


def forward(model, shape):
    """(logits [T, V], next-token loss) of the case with one image."""
    case = load_file(CHECKPOINTS / shape / "cases/one_image.safetensors")
    ids = case["input_ids"].long()
    logits = model(
        input_ids=ids[None], pixel_values=case["pixel_values"], image_grid_thw=case["image_grid_thw"].long(),
        position_ids=case["position_ids"].long()[:, None],
    ).logits[0]  # fmt: skip
    return logits, torch.nn.functional.cross_entropy(logits[:-1], ids[1:])


class NewModules(unittest.TestCase):
    def test_the_same_dictionaries_as_published(self):
        files = sorted(GOLDEN.glob("*/*/new_modules_gp.pt"))
        self.assertGreaterEqual(len(files), 8)
        for file in files:
            with self.subTest(file.relative_to(GOLDEN)):
                published = torch.load(file, weights_only=True)
                for mmap in (False, True):
                    ours = torch.load(WRITTEN / file.relative_to(GOLDEN), weights_only=True, mmap=mmap)
                    self.assertEqual((type(ours), sorted(ours)), (dict, sorted(published)))
                    for key, expected in published.items():
                        if file.parents[1].name not in ("llava_next_tiny", "qwen3_vl_tiny", "qwen_tiny_video"):  # which the reference did not write
                            self.assertIs(type(ours[key]), type(expected), key)
                        if isinstance(expected, torch.Tensor):
                            ours[key], expected = {key: ours[key]}, {key: expected}
                        self.assertEqual(sorted(ours[key]), sorted(expected))
                        for name, tensor in expected.items():
                            self.assertEqual(ours[key][name].dtype, tensor.dtype)
                            self.assertTrue(torch.equal(ours[key][name], tensor), name)

    def test_modules_take_them_as_state(self):
        ours = torch.load(WRITTEN / "qwen_tiny/nm_main/new_modules_gp.pt", weights_only=True)
        width = ours["learnable_embeddings"].shape[-1]
        torch.nn.Linear(width, width).load_state_dict(ours["le_proj"])
        torch.nn.RMSNorm(width).load_state_dict(ours["le_norm"])


class Adapters(unittest.TestCase):
    def near(self, got, expected, what, scale=None):
        limit = 1e-3 * (expected.abs().max() if scale is None else scale).item() + 1e-6
        self.assertLess((got - expected).abs().max().item(), limit, what)

    def test_logits_and_gradients_are_those_of_peft(self):
        for shape in SHAPES:
            with self.subTest(shape):
                ours = load_file(WRITTEN / shape / "expected.safetensors")
                model = PeftModel.from_pretrained(load(CHECKPOINTS / shape / "model"), WRITTEN / shape / "adapter", is_trainable=True)
                logits, loss = forward(model, shape)
                self.near(ours["logits"], logits.detach(), "logits")
                self.near(ours["loss"], loss.detach(), "loss")
                loss.backward()
                gradients = {
                    name.removeprefix("base_model.model.").replace(".default.", "."): parameter.grad
                    for name, parameter in model.named_parameters() if parameter.requires_grad
                }  # fmt: skip
                names = {name.removeprefix("gradient.") for name in ours if name.startswith("gradient.")}
                self.assertEqual(set(gradients), names)  # PEFT finds the language model's layers and no others
                largest = max(gradient.abs().max() for gradient in gradients.values())
                for name, gradient in gradients.items():
                    self.assertGreater(gradient.abs().max().item(), 0)
                    self.near(ours["gradient." + name], gradient, name, 0.1 * largest)

    def test_merged_checkpoints_are_those_of_peft(self):
        for shape in SHAPES:
            with self.subTest(shape), tempfile.TemporaryDirectory() as folder:
                out, base, adapter = Path(folder) / "merged", CHECKPOINTS / shape / "model", WRITTEN / shape / "adapter"
                command = [os.environ["GLIMPSE"], "merge", "--model", base, "--adapter", adapter, "--out", out, "--max-shard-size", "100KB"]
                subprocess.run(command, check=True, capture_output=True)
                index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
                self.assertGreater(len(set(index.values())), 2)
                merged = load(out)
                expected = PeftModel.from_pretrained(load(base), adapter).merge_and_unload()
                for (name, tensor), (other, reference) in zip(merged.state_dict().items(), expected.state_dict().items(), strict=True):
                    self.assertEqual(name, other)
                    self.assertTrue(torch.allclose(tensor, reference, rtol=0, atol=1e-6), name)
                with torch.no_grad():
                    self.near(load_file(WRITTEN / shape / "expected.safetensors")["logits"], forward(merged, shape)[0], "logits")


if __name__ == "__main__":
    unittest.main()
