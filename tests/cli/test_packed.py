"""Checkpoints of other quantisations and with scaled positions: asked, inspected, rounded again, refused."""
import json
import struct
import unittest

from program import ANSWER, KEEP, MODEL, MODULES, CliTest
from tensor_files import converted, read_safetensors, write_safetensors

TENSORS = read_safetensors(MODEL / "model.safetensors")
MODULE = "model.layers.2.self_attn.q_proj"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True, "checkpoint_format": "gptq"}
GROUP, ZERO = 64, 8


def packed_layer():
    """The layer's tensors in GPTQ's layout, and the float32 weight that they stand for."""
    (_, (out, inputs), data) = converted({"x": TENSORS[MODULE + ".weight"]}, "F32")["x"]
    weight = struct.unpack(f"<{out * inputs}f", data)
    scales, words, plain = [], [0] * (inputs // 8 * out), [0.0] * (out * inputs)
    for group in range(inputs // GROUP):
        for o in range(out):
            columns = range(group * GROUP, (group + 1) * GROUP)
            largest = max(abs(weight[o * inputs + i]) for i in columns)
            scale = struct.unpack("<e", struct.pack("<e", largest / 7))[0]
            scales.append(scale)
            for i in columns:
                step = min(15, max(0, round(weight[o * inputs + i] / scale) + ZERO))
                words[i // 8 * out + o] |= step << 4 * (i % 8)
                plain[o * inputs + i] = (step - ZERO) * scale
    zeros = [0x77777777] * (inputs // GROUP * out // 8)  # less one
    return {
        MODULE + ".qweight": ("I32", [inputs // 8, out], struct.pack(f"<{len(words)}I", *words)),
        MODULE + ".qzeros": ("I32", [inputs // GROUP, out // 8], struct.pack(f"<{len(zeros)}I", *zeros)),
        MODULE + ".scales": ("F16", [inputs // GROUP, out], struct.pack(f"<{len(scales)}e", *scales)),
    }, {MODULE + ".weight": ("F32", [out, inputs], struct.pack(f"<{len(plain)}f", *plain))}  # fmt: skip


class Packed(CliTest):
    def setUp(self):
        super().setUp()
        layer, self.plain = packed_layer()
        self.tensors = {name: tensor for name, tensor in TENSORS.items() if name != MODULE + ".weight"}
        self.model = self.model_with({**self.tensors, **layer}, "packed", quantization_config=GPTQ)

    def model_with(self, tensors, name, **settings):
        model = self.model_copy(name, ["model.safetensors", "config.json"])
        write_safetensors(model / "model.safetensors", tensors)
        config = json.loads((MODEL / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, **settings}))
        return model

    def answer(self, *flags):
        got = self.ask("--new-modules", MODULES, *flags)
        return {key: got[key] for key in ("answer", "token_ids")} | {"keep": got["images"][0]["keep"]}

    def test_answers_are_those_of_the_weights_that_it_stands_for(self):
        plain = self.model_with({**self.tensors, **self.plain}, "plain")
        answer = self.answer("-m", self.model, "--weights", "bf16")
        self.assertEqual(answer, self.answer("-m", plain))
        self.assertEqual(answer["keep"], KEEP)
        self.assertEqual(self.answer("-m", self.model, "--weights", "int4"), self.answer("-m", plain, "--weights", "int4"))

    def test_kept_in_4_bits(self):
        """By default, and as a directory of our own, which has the steps of the layer that was packed."""
        kept = self.answer("-m", self.model)
        self.assertEqual((kept["answer"], kept["keep"]), (ANSWER, KEEP))
        out = self.dir / "out"
        self.ok("quantize", self.model, out, "--weights", "auto", "--threads", "1")
        small = read_safetensors(out / "model.safetensors")
        self.assertEqual(small[MODULE + ".weight"][0], "U8")
        self.assertEqual(small[MODULE + ".weight_multiple"][0], "F16")
        self.assertNotIn(MODULE + ".weight_correction", small)
        self.assertEqual(small[MODULE.replace("q_proj", "k_proj") + ".weight"], TENSORS[MODULE.replace("q_proj", "k_proj") + ".weight"])
        self.assertEqual(self.answer("-m", out), kept)
        self.fails(["quantize", MODEL, self.dir / "new", "--weights", "auto"], "has no layers in few bits to keep")

    def test_inspect(self):
        text = self.ok("inspect", "-m", self.model)
        for part in ("quantised", "GPTQ, 4 bits, groups of 64", "BFloat16, GPTQ 4 bits"):
            self.assertIn(part, text)
        got = json.loads(self.ok("inspect", "-m", self.model, "--json"))
        self.assertEqual(got["quantization"], "GPTQ, 4 bits, groups of 64")
        self.assertNotIn("quantization", json.loads(self.ok("inspect", "-m", MODEL, "--json")))

    def test_rounded_once_and_for_all(self):
        out = self.dir / "out"
        self.ok("quantize", self.model, out, "--weights", "int8", "--threads", "1")
        self.assertEqual(read_safetensors(out / "model.safetensors")[MODULE + ".weight"][0], "I8")
        self.assertEqual(json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"], "glimpse")
        self.assertEqual(self.answer("-m", out), self.answer("-m", self.model, "--weights", "int8"))

    def test_refusals(self):
        self.fails(["merge", "-m", self.model, "-o", self.dir / "new", "--adapter", self.dir], "is quantised (GPTQ, 4 bits")
        config = json.loads((self.model / "config.json").read_text())
        for change, says in [({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes' is not supported"),
                             ({**GPTQ, "bits": 2}, "bits 2"), ({**GPTQ, "bits": 8}, "qzeros has shape [4, 32]; expected [2, 64]"),
                             ({**GPTQ, "group_size": 128}, "qzeros has shape [4, 32]; expected [2, 32]"),
                             (None, "config.json has no quantization_config")]:
            config["quantization_config"] = change
            (self.model / "config.json").write_text(json.dumps(config))
            self.fails(["ask", "-m", self.model, "Why?"], says)

    def test_scaled_positions(self):
        rope = {"type": "yarn", "mrope_section": [8, 12, 12], "factor": 4, "original_max_position_embeddings": 4096}
        model = self.model_with(TENSORS, "yarn", rope_scaling=rope)
        text = self.ok("inspect", "-m", model, "--new-modules", MODULES)
        self.assertIn('"type":"yarn"', text)
        self.assertIn("context 16384", text)
        self.assertEqual(json.loads(self.ok("inspect", "-m", model, "--json"))["rope_scaling"], rope)
        self.assertEqual(self.answer("-m", model)["answer"], ANSWER)
        # Far too slow to see anything; and the modules' config does not take it back.
        slow = self.model_with(TENSORS, "slow", rope_scaling={**rope, "type": "linear", "factor": 64})
        self.assertNotEqual(self.answer("-m", slow)["answer"], ANSWER)


if __name__ == "__main__":
    unittest.main()
