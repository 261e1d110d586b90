"""Answers from GGUF files are those from a checkpoint with the same values (make_gguf.py).

GLIMPSE: the program; GLIMPSE_GGUF_DIR: what make_gguf.py wrote.
"""
import json
import os
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

import gguf
from transformers import AutoTokenizer

TINY = Path(__file__).resolve().parents[2] / "models/tiny"
DIR = Path(os.environ["GLIMPSE_GGUF_DIR"])
KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0", "mixed")
IMAGE, QUESTION = TINY / "test/cot/read/read_000.jpg", "What letter is on the orange square?"


def run(*args):
    return subprocess.run([os.environ["GLIMPSE"], *map(str, args)], capture_output=True, text=True, timeout=300)


def pair(kind):
    return ["--model", DIR / kind / "model.gguf", "--mmproj", DIR / kind / "mmproj-model.gguf"]


class Gguf(unittest.TestCase):
    def ok(self, *args):
        result = run(*args)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def fails(self, args, *says):
        result = run(*args)
        self.assertEqual(result.returncode, 1, result.stderr)
        for text in says:
            self.assertIn(text, result.stderr)

    def rows(self, *flags, rows=6):
        """What `infer` answers to the first rows of the test set, without the times."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.jsonl"
            self.ok("infer", TINY / "test/rows.jsonl", "--image-root", TINY / "test", "--limit", rows, "--threads", 1,
                    "--new-modules", TINY / "new_modules", "--out", out, *flags)
            answers = [json.loads(line) for line in out.read_text().splitlines()]
        self.assertEqual(len(answers), rows)
        return [{key: row[key] for key in ("id", "answer", "keep")} for row in answers]

    def test_the_same_values_give_the_same_answers(self):
        for kind in KINDS:
            with self.subTest(kind):
                ours, expected = (self.rows(*model, "--dtype", "fp32")
                                  for model in (pair(kind), ["--model", DIR / kind / "expected"]))
                self.assertEqual(ours, expected)

    def test_the_same_numbers_to_the_bit(self):
        flags = ["--image", IMAGE, "--json", "--threads", 1, "--dtype", "fp32", "--new-modules", TINY / "new_modules"]
        for kind in ("f32", "mixed"):
            with tempfile.TemporaryDirectory() as folder:
                for name, model in (("a", pair(kind)), ("b", ["--model", DIR / kind / "expected"])):
                    self.ok("ask", *flags, *model, "--scores-out", Path(folder) / name, QUESTION)
                a, b = (Path(folder) / name for name in "ab")
                self.assertEqual(a.read_bytes(), b.read_bytes())

    def test_bf16_is_the_built_in_model(self):
        self.assertEqual(self.rows(*pair("bf16")), self.rows("--model", TINY / "model"))

    def test_rounded_models_still_answer(self):
        expected = self.rows("--model", TINY / "model")
        for flags in ([*pair("f16")], [*pair("q8_0")], [*pair("q8_0"), "--weights", "int8"]):
            with self.subTest(flags):
                self.assertEqual([r["answer"] for r in self.rows(*flags)], [r["answer"] for r in expected])
        self.rows(*pair("mixed"), "--weights", "int4", rows=1)

    def test_split_files_and_the_encoder_beside(self):
        parts = sorted((DIR / "split").glob("model-*.gguf"))
        self.assertGreater(len(parts), 2)
        self.assertEqual(self.rows("--model", parts[0]), self.rows(*pair("bf16")))
        ask = ["ask", "--image", IMAGE, QUESTION, "--model"]
        self.fails([*ask, parts[1]], "is one part of several, and not the first", parts[1].name)
        with tempfile.TemporaryDirectory() as folder:
            for file in [*parts[:-1], DIR / "split/mmproj-model.gguf"]:
                (Path(folder) / file.name).symlink_to(file)
            self.fails([*ask, Path(folder) / parts[0].name], parts[-1].name)
            (Path(folder) / parts[-1].name).symlink_to(parts[-2])
            self.fails([*ask, Path(folder) / parts[0].name], parts[-1].name, "is not part")

    def test_quantize(self):
        """The directory answers as the pair does when it is rounded at load, its tokenizer included."""
        for kind, bits in (("bf16", "int8"), ("mixed", "int8"), ("mixed", "int4")):
            with self.subTest((kind, bits)), tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                text, vision = pair(kind)[1::2]
                self.ok("quantize", text, out, "--mmproj", vision, "--weights", bits, "--threads", 1)
                self.assertEqual(self.rows("--model", out), self.rows(*pair(kind), "--weights", bits))
                config, built_in = (json.loads((model / "config.json").read_text()) for model in (out, TINY / "model"))
                self.assertEqual(config["quantization_config"]["bits"], int(bits[3]))
                self.assertEqual(config["vision_config"]["fullatt_block_indexes"], built_in["vision_config"]["fullatt_block_indexes"])
                ours, theirs = (AutoTokenizer.from_pretrained(model) for model in (out, TINY / "model"))
                for words in ("What letter is on the orange square?", " Grüße\n\n 12 345", "<|im_start|>user"):
                    self.assertEqual(ours(words).input_ids, theirs(words).input_ids)

    def test_inspect(self):
        model = json.loads(self.ok("inspect", *pair("mixed"), "--json"))
        self.assertEqual((model["model_type"], model["language_model"]["tied_head"]), ("qwen2_5_vl", True))
        built_in = json.loads(self.ok("inspect", "--model", TINY / "model", "--json"))
        self.assertEqual(model["language_model"], built_in["language_model"])
        self.assertEqual(model["vision_encoder"], built_in["vision_encoder"])
        parts = {part["part"]: part for part in model["parts"]}
        self.assertEqual(parts["language model"]["dtypes"], "F32, Q4_K, Q5_K, Q6_K")
        self.assertEqual({p["part"]: p["parameters"] for p in model["parts"]},
                         {p["part"]: p["parameters"] for p in built_in["parts"]})

    def test_eval(self):
        with tempfile.TemporaryDirectory() as folder:
            for name, model in (("ours", pair("bf16")), ("expected", ["--model", TINY / "model"])):
                self.ok("eval", *model, "--new-modules", TINY / "new_modules", "--methods", "glimpse", "--limit", 1, "--threads", 1,
                        "--out", Path(folder) / name)
            ours, expected = (json.loads((Path(folder) / name / "results.json").read_text()) for name in ("ours", "expected"))
        self.assertEqual(ours["about"]["model"], str(DIR / "bf16/model.gguf"))
        operations = [results["cells"][0]["all"]["gflop"] for results in (ours, expected)]
        self.assertGreater(operations[0]["vision"], 0)
        self.assertEqual(operations[0], operations[1])

    def test_errors_say_what_to_do(self):
        model, mmproj = (DIR / "q8_0" / name for name in ("model.gguf", "mmproj-model.gguf"))
        ask = ["ask", "--image", IMAGE, QUESTION]
        with tempfile.TemporaryDirectory() as folder:
            alone = Path(folder) / "x.gguf"
            alone.symlink_to(model)
            self.fails([*ask, "--model", alone], "holds a language model only", "--mmproj")
            self.fails(["quantize", alone, DIR / "out"], "holds a language model only", "--mmproj")
            for name in ("mmproj-a.gguf", "b-mmproj.gguf"):
                (Path(folder) / name).symlink_to(mmproj)
            self.fails([*ask, "--model", alone], "beside it are 2 vision encoders", "b-mmproj.gguf", "--mmproj")
        self.fails([*ask, "--model", mmproj, "--mmproj", model], "holds a vision encoder: name it with --mmproj")
        self.fails([*ask, "--model", model, "--mmproj", model], "holds no vision encoder")
        self.fails([*ask, "--model", TINY / "model", "--mmproj", mmproj], "--mmproj belongs to a --model that is a GGUF file")
        self.fails([*ask, "--mmproj", mmproj], "--mmproj belongs to")
        self.fails([*ask, "--model", DIR / "none.gguf", "--mmproj", mmproj], "no such file", "none.gguf")
        self.fails(["quantize", TINY / "model", DIR / "out", "--mmproj", mmproj], "--mmproj belongs to")
        self.fails(["quantize", model, DIR, "--mmproj", mmproj, "--overwrite"], "is no model directory")

    def test_damaged_files(self):
        """Metadata that is missing or of another kind, and tensors that are missing or of another shape."""
        def change(data, old, new, count=-1):
            self.assertIn(old, data)
            return data.replace(old, new, count)

        model, mmproj = ((DIR / "q8_0" / name).read_bytes() for name in ("model.gguf", "mmproj-model.gguf"))
        u32 = lambda value: struct.pack("<I", value)
        rename = lambda data, name: change(data, name, name[:-1] + b"?")
        cases = [
            (rename(model, b"qwen2vl.block_count"), None, "qwen2vl.block_count is missing"),
            (rename(model, b"qwen2vl.rope.dimension_sections"), None, "dimension_sections is missing"),
            (rename(model, b"tokenizer.ggml.tokens"), None, "no token <|image_pad|>"),
            (rename(model, b"tokenizer.ggml.merges"), None, "tokenizer.ggml.merges"),
            (rename(model, b"blk.3.ffn_gate.weight"), None, "tensor 'model.layers.3.mlp.gate_proj.weight' is missing"),
            (rename(model, b"<|image_pad|>"), None, "no token <|image_pad|>"),
            (change(model, b"\x05\0\0\0\0\0\0\0qwen2", b"\x05\0\0\0\0\0\0\0llama", 1), None, "tokenizer.ggml.pre"),
            (change(model, b"qwen2vl.block_count" + u32(4) + u32(6), b"qwen2vl.block_count" + u32(4) + u32(7)), None, "layers.6"),
            (change(model, b"qwen2vl.block_count" + u32(4) + u32(6), b"qwen2vl.block_count" + u32(4) + u32(2**31)), None,
             "qwen2vl.block_count is"),
            (change(model, b"qwen2vl.attention.head_count" + u32(4) + u32(4), b"qwen2vl.attention.head_count" + u32(4) + u32(0)),
             None, "do not divide"),
            (None, rename(mmproj, b"clip.projector_type"), "projector type ''"),
            (None, change(mmproj, b"qwen2.5vl_merger", b"qwen3.5vl_merger"), "projector type 'qwen3.5vl_merger'"),
            (None, rename(mmproj, b"clip.vision.n_wa_pattern"), "n_wa_pattern is missing"),
            (None, rename(mmproj, b"clip.vision.image_mean"), "image_mean is missing"),
            (None, rename(mmproj, b"v.patch_embd.weight.1"), "tensor 'v.patch_embd.weight.1' is missing"),
            (None, rename(mmproj, b"v.blk.2.attn_k.weight"), "tensor 'v.blk.2.attn_k.weight' is missing"),
            (None, rename(mmproj, b"mm.2.bias"), "tensor 'visual.merger.mlp.2.bias' is missing"),
            (None, rename(mmproj, b"clip.vision.block_count"), "block_count is missing"),
        ]
        with tempfile.TemporaryDirectory() as folder:
            for i, (text, vision, says) in enumerate(cases):
                with self.subTest(says):
                    files = [Path(folder) / f"{i}-{name}.gguf" for name in ("text", "vision")]
                    files[0].write_bytes(text or model)
                    files[1].write_bytes(vision or mmproj)
                    self.fails(["ask", "--model", files[0], "--mmproj", files[1], "--image", IMAGE, QUESTION],
                               "glimpse: ", says)
                    self.assertTrue(gguf.GGUFReader(files[0 if text else 1]).tensors)  # damaged in nothing else

    def test_cut_files(self):
        """Cut anywhere, a file is an error."""
        model = (DIR / "q8_0" / "model.gguf").read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "x.gguf"
            for size in [0, 3, 4, 23, 24, 40, *range(100, 30000, 4001), len(model) // 2, len(model) - 1]:
                file.write_bytes(model[:size])
                self.fails(["inspect", "--model", file, "--mmproj", DIR / "q8_0" / "mmproj-model.gguf"], "x.gguf")


if __name__ == "__main__":
    unittest.main()
