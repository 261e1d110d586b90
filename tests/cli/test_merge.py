"""`glimpse merge`: checkpoints with adapters merged in, in one file or several, and what it refuses."""
import json
import struct
import unittest

from program import ANSWER, KEEP, MODEL, MODULES, CliTest
from tensor_files import converted, read_safetensors, write_safetensors

TENSORS = read_safetensors(MODEL / "model.safetensors")
MODULE = "model.layers.2.self_attn.q_proj"


class Merge(CliTest):
    def adapter(self, value, name="adapter", module=MODULE):
        """An adapter of rank 1 that adds `value` to every weight of one layer."""
        folder = self.dir / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
        out, into = TENSORS[MODULE + ".weight"][1]
        key = f"base_model.model.{module}"
        write_safetensors(folder / "adapter_model.safetensors", {
            f"{key}.lora_A.weight": ("F32", [1, into], struct.pack("<f", value) * into),
            f"{key}.lora_B.weight": ("F32", [out, 1], struct.pack("<f", 1) * out),
        })
        return folder

    def merge(self, *flags, model=MODEL, out="merged"):
        self.ok("merge", "--model", model, "--out", self.dir / out, *flags)
        self.assertEqual([file.name for file in self.dir.iterdir() if ".tmp" in file.name], [])
        return self.dir / out

    def answers(self, model):
        got = self.ask("-m", model, "--new-modules", MODULES)
        return got["answer"], got["images"][0]["keep"]

    def test_one_file(self):
        out = self.merge("--adapter", self.adapter(0.0))
        self.assertEqual(self.answers(out), (ANSWER, KEEP))
        self.assertEqual(read_safetensors(out / "model.safetensors"), TENSORS)
        kept = {file.name for file in MODEL.iterdir()}
        self.assertEqual({file.name for file in out.iterdir()}, kept)
        self.assertFalse(any(file.is_symlink() for file in out.iterdir()))

    def test_only_the_adapted_layer_changes(self):
        out = self.merge("--adapter", self.adapter(0.5), "--adapter", self.adapter(0.25, "more"))
        merged = read_safetensors(out / "model.safetensors")
        self.assertEqual({name for name in TENSORS if merged[name] != TENSORS[name]}, {MODULE + ".weight"})
        values = [memoryview(converted({"w": tensors[MODULE + ".weight"]}, "F32")["w"][2]).cast("f") for tensors in (merged, TENSORS)]
        self.assertTrue(all(abs(new - old - 0.75) < 0.02 for new, old in zip(*values)))
        # The same as merging while loading.
        both = ["--adapter", self.dir / "adapter", "--adapter", self.dir / "more"]
        loaded = self.ask("-n", "9", "-m", MODEL, "--new-modules", MODULES, *both)
        self.assertEqual(self.ask("-n", "9", "-m", out, "--new-modules", MODULES)["token_ids"], loaded["token_ids"])

    def test_shards(self):
        out = self.merge("--adapter", self.adapter(0.0), "--max-shard-size", "2MB")
        index = json.loads((out / "model.safetensors.index.json").read_text())
        self.assertEqual(index["metadata"]["total_size"], sum(len(data) for _, _, data in TENSORS.values()))
        self.assertEqual(set(index["weight_map"]), set(TENSORS))
        files = sorted(set(index["weight_map"].values()))
        self.assertEqual(files, [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))])
        self.assertEqual(sorted(file.name for file in out.glob("*.safetensors")), files)
        for file in files:
            tensors = read_safetensors(out / file)
            size = sum(len(data) for _, _, data in tensors.values())
            self.assertTrue(size <= 2_000_000 or len(tensors) == 1)
            for name, tensor in tensors.items():
                self.assertEqual((index["weight_map"][name], tensor), (file, TENSORS[name]))
        self.assertEqual(self.answers(out), (ANSWER, KEEP))
        # From shards to one file again.
        self.assertEqual(read_safetensors(self.merge("--adapter", self.dir / "adapter", model=out, out="one") / "model.safetensors"), TENSORS)
        self.assertFalse((self.dir / "one/model.safetensors.index.json").exists())

    def test_names_stay_as_in_the_file(self):
        model = self.model_copy("newer", ["model.safetensors"])
        newer = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in TENSORS.items()}
        write_safetensors(model / "model.safetensors", newer)
        for name in ("model.layers.2.self_attn.q_proj", "model.language_model.layers.2.self_attn.q_proj"):
            out = self.merge("--adapter", self.adapter(1.0, name, name), model=model, out="of " + name)
            merged = read_safetensors(out / "model.safetensors")
            changed = {tensor for tensor in newer if merged[tensor] != newer[tensor]}
            self.assertEqual(changed, {"model.language_model.layers.2.self_attn.q_proj.weight"})

    def test_out_is_not_overwritten_by_chance(self):
        adapter = self.adapter(0.0)
        out = self.merge("--adapter", adapter)
        (out / "left over.txt").write_text("x")
        command = ["merge", "--model", MODEL, "--adapter", adapter, "--out"]
        self.fails([*command, out], "exists", "--overwrite")
        self.assertTrue((out / "left over.txt").exists())
        self.merge("--adapter", adapter, "--overwrite")
        self.assertFalse((out / "left over.txt").exists())
        self.assertEqual(read_safetensors(out / "model.safetensors"), TENSORS)
        (self.dir / "mine").mkdir()
        (self.dir / "mine/diary").write_text("x")
        self.fails([*command, self.dir / "mine", "--overwrite"], "is no model directory")
        self.fails([*command, self.dir / "mine/diary", "--overwrite"], "is no model directory")
        (self.dir / "config.json").write_text("{}")  # so the folder of everything looks like a model
        self.fails([*command, self.dir, "--overwrite"], "is or holds", "which is read")
        self.fails(["merge", "--model", out, "--adapter", adapter, "--out", out, "--overwrite"], "is or holds")
        self.assertTrue((self.dir / "mine/diary").exists())
        self.fails([*command, self.dir / "none/out"], "cannot write")

    def test_what_does_not_fit(self):
        command = ["merge", "--model", MODEL, "--out", self.dir / "out", "--adapter"]
        self.fails([*command, self.dir / "none"], "none' not found")
        self.fails([*command, self.adapter(0.0, "other", "model.layers.99.self_attn.q_proj")], "there is no 'model.layers.99")
        self.fails([*command, self.dir / "other", "--max-shard-size", "5 apples"], "--max-shard-size", status=2)
        self.fails(["merge", "--model", MODEL, "--out", self.dir / "out"], "--adapter is required", status=2)
        self.assertEqual({file.name for file in self.dir.iterdir()}, {"other"})


if __name__ == "__main__":
    unittest.main()
