"""`glimpse quantize` and `--weights`: the same answers rounded at load and once for all, and what is refused."""
import json
import unittest

from program import ANSWER, KEEP, MODEL, MODULES, CliTest
from tensor_files import read_safetensors, write_safetensors

TENSORS = read_safetensors(MODEL / "model.safetensors")
LAYER = "model.layers.2.self_attn.q_proj.weight"


class Quantize(CliTest):
    def quantize(self, *flags, model=MODEL, out="small"):
        self.ok("quantize", model, self.dir / out, "--threads", "1", *flags)
        self.assertEqual([file.name for file in self.dir.iterdir() if ".tmp" in file.name], [])
        return self.dir / out

    def answer(self, *flags):
        got = self.ask("--new-modules", MODULES, *flags)
        return {key: got[key] for key in ("answer", "token_ids", "scores") if key in got} | {"keep": got["images"][0]["keep"]}

    def test_8_bits(self):
        out = self.quantize()
        small = read_safetensors(out / "model.safetensors")
        self.assertEqual(small[LAYER][0], "I8")
        self.assertEqual(small["visual.blocks.0.attn.qkv.weight"][0], "I8")
        self.assertEqual(small[LAYER + "_scale"][0], "F32")
        for name in ("model.embed_tokens.weight", "model.norm.weight", "visual.patch_embed.proj.weight"):
            self.assertEqual(small[name], TENSORS[name])
        size = sum(len(data) for _, _, data in small.values())
        self.assertLess(size, 0.7 * sum(len(data) for _, _, data in TENSORS.values()))
        config = json.loads((out / "config.json").read_text())
        self.assertEqual(config.pop("quantization_config"), {"quant_method": "glimpse", "bits": 8})
        self.assertEqual(config, json.loads((MODEL / "config.json").read_text()))
        # The answer, and the very same numbers as rounding at load.
        stored = self.answer("-m", out)
        self.assertEqual((stored["answer"], stored["keep"]), (ANSWER, KEEP))
        self.assertEqual(stored, self.answer("-m", MODEL, "--weights", "int8"))

    def test_4_bits(self):
        out = self.quantize("--weights", "int4")
        small = read_safetensors(out / "model.safetensors")
        self.assertEqual([small[LAYER + part][0] for part in ("", "_scale", "_multiple")], ["U8", "F32", "I8"])
        self.assertEqual(json.loads((out / "config.json").read_text())["quantization_config"]["group_size"], 64)
        self.assertEqual(self.answer("-m", out), self.answer("-m", MODEL, "--weights", "int4"))
        # Twice as many multiples.
        fine = read_safetensors(self.quantize("--weights", "int4", "--group", "32", out="fine") / "model.safetensors")
        self.assertEqual(fine[LAYER + "_multiple"][1][1], 2 * small[LAYER + "_multiple"][1][1])
        self.assertTrue(self.answer("-m", self.dir / "fine")["answer"])

    def test_shards(self):
        out = self.quantize("--max-shard-size", "1MB")
        index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
        self.assertGreater(len(set(index.values())), 2)
        self.assertEqual(self.answer("-m", out)["answer"], ANSWER)

    def test_refusals(self):
        out = self.quantize()
        self.fails(["quantize", MODEL, out], "exists", "--overwrite")
        self.fails(["quantize", MODEL, self.dir / "new", "--group", "48"], "--group", "32 or 64")
        self.fails(["quantize", MODEL, self.dir / "new", "--weights", "int2"], "--weights", "int2", status=2)
        self.fails(["quantize", self.dir / "none", self.dir / "new"], "none")
        self.fails(["quantize", out, self.dir / "new", "--weights", "int4"], "8 bits already")
        self.fails(["ask", "-m", out, "--weights", "int4", "Why?"], "8 bits already")
        self.fails(["ask", "-m", out, "--weights", "bf16", "Why?"], "8 bits already")
        self.fails(["merge", "--model", out, "--out", self.dir / "new", "--adapter", self.dir / "none"], "none")
        self.assertFalse((self.dir / "new").exists())
        self.quantize("--overwrite")

    def test_damaged_tensors(self):
        for bits in ("int8", "int4"):
            out = self.quantize("--weights", bits, out=bits)
            whole = read_safetensors(out / "model.safetensors")
            kind, shape, data = whole[LAYER]
            scale_kind, scale_shape, scales = whole[LAYER + "_scale"]
            half = [shape[0] // 2, *shape[1:]]
            damages = {
                "no scale": {LAYER + "_scale": None},
                "no correction": {LAYER + "_correction": None},
                "fewer rows": {LAYER: (kind, half, data[: len(data) // 2])},
                "flat": {LAYER: (kind, [len(data)], data)},
                "short scale": {LAYER + "_scale": (scale_kind, [1], scales[:4])},
                "wide scale": {LAYER + "_scale": ("I32", scale_shape, scales)},
                "no bytes": {LAYER: ("BF16", [*shape[:-1], shape[-1] // 2], data)},
            }
            if bits == "int4":
                damages["no multiple"] = {LAYER + "_multiple": None}
                multiple_kind, multiple_shape, multiples = whole[LAYER + "_multiple"]
                halved = [multiple_shape[0], multiple_shape[1], multiple_shape[2] // 2]
                damages["short multiple"] = {LAYER + "_multiple": (multiple_kind, halved, multiples[: len(multiples) // 2])}
            for what, change in damages.items():
                with self.subTest(bits=bits, what=what):
                    tensors = {name: tensor for name, tensor in {**whole, **change}.items() if tensor}
                    write_safetensors(out / "model.safetensors", tensors)
                    self.fails(["ask", "-m", out, "Why?"], "q_proj")


if __name__ == "__main__":
    unittest.main()
