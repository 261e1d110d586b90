"""Checkpoints as people have them: the built-in weights in every layout give the answer of the built-in model."""
import json
import unittest

from program import ANSWER, IMAGE, KEEP, MODEL, MODULES, CliTest
from tensor_files import converted, read_safetensors, read_torch_bf16, write_safetensors

TENSORS = read_safetensors(MODEL / "model.safetensors")


class Checkpoints(CliTest):
    def same(self, model=MODEL, *flags, modules=MODULES):
        got = self.ask("-m", model, "--new-modules", modules, *flags)
        self.assertEqual((got["answer"], got["images"][0]["keep"]), (ANSWER, KEEP))

    def without_weights(self, name="model", *others):
        return self.model_copy(name, ["model.safetensors", *others])

    def test_shards(self):
        model = self.without_weights()
        names = list(TENSORS)
        index = {}
        for i in range(3):
            shard = f"model-0000{i + 1}-of-00003.safetensors"
            write_safetensors(model / shard, {name: TENSORS[name] for name in names[i::3]})
            index.update(dict.fromkeys(names[i::3], shard))
        (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        self.same(model)
        (model / shard).unlink()
        self.fails(["ask", "-m", model, "x"], "shard ", "model-00003-of-00003.safetensors is missing", "index.json names it")

    def test_other_dtypes(self):
        for dtype in ("F16", "F32"):
            model = self.without_weights(dtype)
            write_safetensors(model / "model.safetensors", converted(TENSORS, dtype))
            self.same(model)
            self.assertIn({"F16": "Half", "F32": "Float"}[dtype], self.ok("inspect", "-m", model))

    def test_newer_names_and_nested_config(self):
        model = self.without_weights("model", "config.json")
        renamed = {}
        for name, tensor in TENSORS.items():
            newer = name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else "model." + name
            renamed[newer] = tensor
        self.assertTrue(all(name.startswith(("model.visual.", "model.language_model.")) for name in renamed))
        write_safetensors(model / "model.safetensors", renamed)
        config = json.loads((MODEL / "config.json").read_text())
        outer = {key: config.pop(key) for key in list(config)
                 if key in ("architectures", "model_type", "vision_config", "tie_word_embeddings", "torch_dtype")
                 or key.endswith("_token_id") and key not in ("bos_token_id", "eos_token_id")}
        config["model_type"] = "qwen2_5_vl_text"
        (model / "config.json").write_text(json.dumps({**outer, "text_config": config}))
        self.same(model)
        self.ok("ask", "-m", model, "-n", "1", "-i", IMAGE, "x")  # without modules, whose config would fill gaps

    def test_vocabulary_files(self):
        self.same(self.model_copy("model", ["tokenizer.json"]))

    def test_modules_as_safetensors(self):
        modules = self.model_copy("modules", ["new_modules_gp.pt"], MODULES)
        write_safetensors(modules / "new_modules_gp.safetensors", read_torch_bf16(MODULES / "new_modules_gp.pt"))
        self.same(modules=modules)

    def test_adapter(self):
        adapter = self.dir / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
        weights = {}
        for layer in range(6):
            for part in ("q_proj", "o_proj"):
                name = f"model.layers.{layer}.self_attn.{part}"
                out, into = TENSORS[name + ".weight"][1]
                weights[f"base_model.model.{name}.lora_A.weight"] = ("F32", [2, into], bytes(8 * into))
                weights[f"base_model.model.{name}.lora_B.weight"] = ("F32", [out, 2], bytes(8 * out))
        write_safetensors(adapter / "adapter_model.safetensors", weights)
        self.same(MODEL, "--adapter", adapter)
        # One that is not zero changes the answer.
        ones = b"\0\0\x80\x3f"
        weights = {name: (dtype, shape, ones * (len(data) // 4)) for name, (dtype, shape, data) in weights.items()}
        write_safetensors(adapter / "adapter_model.safetensors", weights)
        self.assertNotEqual(self.ask("-n", "9", "--adapter", adapter)["answer"], ANSWER)
        self.fails(["ask", "--adapter", self.dir, "x"], "adapter_config.json")

    def test_hub_cache(self):
        hub = self.dir / "hub/models--org--name"
        (hub / "refs").mkdir(parents=True)
        (hub / "refs/main").write_text("0123abc\n")
        (hub / "snapshots").mkdir()
        env = {"HF_HOME": str(self.dir), "HF_HUB_CACHE": ""}
        missing = ["ask", "-m", "org/name", "x"]
        self.fails(missing, "model 'org/name' not found", "missing snapshot '0123abc'", "huggingface-cli download", env=env)
        (hub / "snapshots/0123abc").symlink_to(MODEL)
        got = self.ask("-m", "org/name", "--new-modules", MODULES, env=env)
        self.assertEqual(got["answer"], ANSWER)
        got = self.ask("-m", "org/name", env={"HF_HOME": "", "HF_HUB_CACHE": str(self.dir / "hub")})
        self.assertEqual((got["answer"], got["kept_tokens"]), (ANSWER, 256))


    def test_hub_cache_variables(self):
        """As the hub's own client reads them: the older name too, ~ and other variables in them."""
        hub = self.dir / "hub/models--org--name"
        (hub / "refs").mkdir(parents=True)
        (hub / "refs/main").write_text("abc")
        (hub / "snapshots").mkdir()
        (hub / "snapshots/abc").symlink_to(MODEL)
        unset = {"HF_HOME": "", "HF_HUB_CACHE": "", "HUGGINGFACE_HUB_CACHE": "", "HOME": str(self.dir)}
        for set_ in [{"HUGGINGFACE_HUB_CACHE": str(self.dir / "hub")}, {"S": str(self.dir), "HF_HUB_CACHE": "$S/hub"},
                     {"S": str(self.dir), "HF_HOME": "${S}"}, {"HF_HUB_CACHE": "~/hub"},
                     {"HUGGINGFACE_HUB_CACHE": "/nowhere", "HF_HUB_CACHE": "$HOME/hub"}]:
            self.ok("ask", "-m", "org/name", "-n", "1", "x", env={**unset, **set_})
        self.fails(["ask", "-m", "org/name", "x"], "$UNSET_VARIABLE/hub", env={**unset, "HF_HUB_CACHE": "$UNSET_VARIABLE/hub"})

    def test_adapters_on_tied_embeddings(self):
        """PEFT changes one side of a tied embedding: the same as a model whose head is stored and adapted."""
        embed = "model.embed_tokens.weight"
        dtype, (count, width), data = TENSORS[embed]
        rolled = (dtype, [count, width], data[-len(data) // count:] + data[:-len(data) // count])
        for module, head, embedding in [("model.embed_tokens", TENSORS[embed], rolled), ("lm_head", rolled, TENSORS[embed])]:
            adapter = self.dir / f"adapter_{module}"
            adapter.mkdir()
            (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
            write_safetensors(adapter / "adapter_model.safetensors", {f"base_model.model.{module}.weight": rolled})
            untied = self.model_copy(f"untied_{module}", ["model.safetensors", "config.json"])
            write_safetensors(untied / "model.safetensors", {**TENSORS, embed: embedding, "lm_head.weight": head})
            config = json.loads((MODEL / "config.json").read_text())
            (untied / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
            stored = self.without_weights(f"stored_{module}")  # tied, and a head that nobody reads
            write_safetensors(stored / "model.safetensors", {**TENSORS, "lm_head.weight": TENSORS[embed]})

            def ids(*flags):
                return self.ask("-n", "9", "--dtype", "fp32", "--new-modules", MODULES, *flags)["token_ids"]

            expected = ids("-m", untied)
            self.assertNotEqual(expected, ids("-m", MODEL))
            for model in (MODEL, stored):
                self.assertEqual(ids("-m", model, "--adapter", adapter), expected)
                merged = self.dir / "merged"
                self.ok("merge", "-m", model, "--adapter", adapter, "-o", merged, "--overwrite")
                self.assertEqual(ids("-m", merged), expected)
                self.assertIs(json.loads((merged / "config.json").read_text())["tie_word_embeddings"], False)


if __name__ == "__main__":
    unittest.main()
