"""Answers from GGUF files are those from a checkpoint with the same values (make_gguf.py).

GLIMPSE: the program; GLIMPSE_GGUF_DIR: what make_gguf.py wrote.
"""
import json
import os
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import gguf
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
import stub_hub

TINY = Path(__file__).resolve().parents[2] / "models/tiny"
DIR = Path(os.environ["GLIMPSE_GGUF_DIR"])
KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0", "iq4_nl", "mixed")
WIDE = ("--dtype", "fp32", "--weights", "bf16")
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
                ours, expected = (self.rows(*model, *WIDE)
                                  for model in (pair(kind), ["--model", DIR / kind / "expected"]))
                self.assertEqual(ours, expected)

    def test_by_name(self):
        """Fetched from a hub by name and quantisation, then found in the cache."""
        files = {"net-Q8_0.gguf": "q8_0/model.gguf", "net-Q4_0.gguf": "q4_0/model.gguf", "mmproj-net-F16.gguf": "f16/mmproj-model.gguf"}
        hub = stub_hub.Hub()
        self.addCleanup(hub.stop)
        hub.repos["org/net"] = stub_hub.Repo({name: (DIR / file).read_bytes() for name, file in files.items()})
        with tempfile.TemporaryDirectory() as folder:
            os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": folder, "no_proxy": "*"}
            model = ["--model", "org/net:Q8_0"]
            self.fails(["ask", *model, "x"], "--download")
            by_name = self.rows(*model, "--download")
            self.assertEqual(by_name, self.rows("--model", DIR / "q8_0/model.gguf", "--mmproj", DIR / "f16/mmproj-model.gguf"))
            del hub.requests[:]
            self.assertEqual(self.rows("--model", "org/net"), by_name)  # the one that is there
            self.assertEqual(hub.requests, [])

    def test_the_same_numbers_to_the_bit(self):
        flags = ["--image", IMAGE, "--json", "--threads", 1, *WIDE, "--new-modules", TINY / "new_modules"]
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

    def test_kept_in_few_bits(self):
        """The default: nearly every answer of the widened weights, also as a directory, from which it is the same to the bit."""
        for kind in ("q8_0", "q4_0", "iq4_nl", "mixed"):
            with self.subTest(kind), tempfile.TemporaryDirectory() as folder:
                kept, wide = self.rows(*pair(kind)), self.rows(*pair(kind), "--weights", "bf16")
                same = [a["answer"] == b["answer"] for a, b in zip(kept, wide)]
                self.assertGreaterEqual(sum(same), len(same) - 1)
                out = Path(folder) / "out"
                text, vision = pair(kind)[1::2]
                self.ok("quantize", text, out, "--mmproj", vision, "--weights", "auto", "--threads", 1)
                self.assertEqual(self.rows("--model", out), kept)
                bits = json.loads((out / "config.json").read_text())["quantization_config"]["bits"]
                self.assertEqual(bits, 8 if kind == "q8_0" else 4)
        self.fails(["quantize", *pair("bf16")[1::2][:1], DIR / "none", "--weights", "auto"], "has no layers in few bits to keep")

    def test_a_packed_copy_is_kept_and_mapped(self):
        """The second start reads a copy; one that is damaged or of another model is made again."""
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            flags = [*pair("mixed"), "--cache-dir", cache, "--cache-mb", 64]
            expected = self.rows(*flags, rows=2)
            (copy,) = cache.glob("weights-*.safetensors")
            whole, made = copy.read_bytes(), copy.stat()
            self.assertEqual(self.rows(*flags, rows=2), expected)
            self.assertEqual(copy.stat().st_ino, made.st_ino)
            self.assertGreater(copy.stat().st_mtime_ns, made.st_mtime_ns)  # used later
            damages = [whole[:-1], whole[: len(whole) // 2], b"", whole[:-1000] + bytes(b ^ 1 for b in whole[-1000:])]
            for damaged in damages:
                copy.write_bytes(damaged)
                self.assertEqual(self.rows(*flags, rows=2), expected)
                self.assertEqual(copy.read_bytes(), whole)
            self.rows(*pair("q4_0"), "--cache-dir", cache, "--cache-mb", 64, rows=1)
            self.assertEqual(len(list(cache.glob("weights-*"))), 2)
            other = next(path for path in cache.glob("weights-*") if path != copy)
            copy.write_bytes(other.read_bytes())
            self.assertEqual(self.rows(*flags, rows=2), expected)
            self.assertEqual(copy.read_bytes(), whole)
            # Widened weights leave none, and without a folder that can be written the answer comes all the same.
            self.rows(*pair("q8_0"), "--weights", "bf16", "--cache-dir", cache, "--cache-mb", 64, rows=1)
            self.assertEqual(len(list(cache.glob("weights-*"))), 2)

    def test_a_packed_copy_is_within_the_bound(self):
        """--cache-disk-gb is for all that is in the folder; the copy that is in use stays, one that exceeds it alone is not written."""
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            kept = lambda: {path: path.stat().st_size for path in cache.glob("*.safetensors")}
            copies = lambda: [path for path in kept() if path.name.startswith("weights-")]

            def answers(kind, size):
                with tempfile.TemporaryDirectory() as place:
                    result = run("infer", TINY / "test/rows.jsonl", "--image-root", TINY / "test", "--limit", 12, "--threads", 1, "--prune", "none",
                                 "--out", Path(place) / "out", *pair(kind), "--cache-dir", cache, "--cache-disk-gb", size / 2**30)
                    self.assertEqual(result.returncode, 0, result.stderr)
                    rows = [json.loads(line)["answer"] for line in (Path(place) / "out").read_text().splitlines()]
                    return rows, result.stderr

            expected, _ = answers("mixed", 2**30)
            all_kept, (copy,) = kept(), copies()
            copy_size = all_kept.pop(copy)
            picture = max(all_kept.values())
            self.assertGreater(len(all_kept), 2)
            made = copy.stat().st_ino
            size = copy_size + 2 * picture + 2**16
            self.assertEqual(answers("mixed", size)[0], expected)
            self.assertEqual(copy.stat().st_ino, made)
            self.assertLessEqual(sum(kept().values()), size)
            self.assertLess(sum(kept().values()) - copy_size, sum(all_kept.values()))
            # Another model's leaves together with its pictures when nobody runs it; alone it would exceed the bound.
            answers("q8_0", 2**30)
            (other,) = set(copies()) - {copy}
            other_size, smaller = other.stat().st_size, min(copy_size, other.stat().st_size)
            self.assertGreater(smaller, 2**20)
            answers("mixed" if smaller == copy_size else "q8_0", smaller + 2**16)
            self.assertEqual(copies(), [copy if smaller == copy_size else other])
            self.assertLessEqual(sum(kept().values()), smaller + 2**16)
            _, told = answers("mixed" if smaller == other_size else "q8_0", smaller + 2**16)
            self.assertIn("no copy of the packed weights was kept: it takes", told)
            self.assertIn("raise cache_disk_gb", told)
            # One that a program has stays.
            answers("mixed", copy_size + 2**16)
            self.assertEqual(copies(), [copy])
            both = copy_size + other_size - 2**16
            chat = subprocess.Popen([os.environ["GLIMPSE"], "chat", *map(str, pair("mixed")), "--cache-dir", cache, "--threads", "1"], text=True,
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            chat.stdin.write("What is red?\n")
            chat.stdin.flush()
            self.assertTrue(chat.stdout.readline())
            self.assertIn("in use", answers("q8_0", both)[1])
            self.assertEqual(copies(), [copy])
            chat.communicate(timeout=60)
            self.assertNotIn("in use", answers("q8_0", both)[1])
            self.assertEqual(copies(), [other])

    def test_llava(self):
        """LLaVA-1.5's pairs answer as the checkpoint in the original layout with the same values, also as a directory."""
        golden = Path(__file__).resolve().parents[1] / "data/golden/llava_tiny"

        def answer(*flags):
            ask = ["ask", "--image", golden / "inputs/imgA.png", "--json", "--threads", 1, "-n", 6, "--new-modules", golden / "nm_main"]
            got = json.loads(self.ok(*ask, *flags, "Where is that here? ü"))
            return {key: got[key] for key in ("answer", "token_ids", "images", "prompt_tokens")}

        for kind in ("f32", "q8_0", "q4_0"):
            with self.subTest(kind), tempfile.TemporaryDirectory() as folder:
                ours = pair(f"llava/{kind}")
                self.assertEqual(answer(*ours, *WIDE), answer("--model", DIR / f"llava/{kind}/expected/model", *WIDE))
                bits = "int8" if kind == "f32" else "auto"
                out = Path(folder) / "out"
                self.ok("quantize", ours[1], out, "--weights", bits, "--threads", 1)
                self.assertEqual(answer("--model", out), answer(*ours, "--weights", bits))
        kept, wide = (answer(*pair("llava/q8_0"), *flags) for flags in ((), WIDE))
        self.assertEqual(kept["images"], wide["images"])
        self.fails(["ask", "--model", DIR / "llava/f32/model.gguf", "--mmproj", DIR / "f32/mmproj-model.gguf", QUESTION], "known: mlp")
        parts = {name: (DIR / "llava/f32" / f"{name}.gguf").read_bytes() for name in ("model", "mmproj-model")}
        for part, name, says in [("model", b"llama.block_count", "llama.block_count is missing"),
                                 ("model", b"tokenizer.ggml.scores", "tokenizer.ggml.scores"),
                                 ("model", b"blk.1.attn_q.weight", "layers.1.self_attn.q_proj.weight' is missing"),
                                 ("mmproj-model", b"clip.vision.feed_forward_length", "feed_forward_length is missing"),
                                 ("mmproj-model", b"v.class_embd", "class_embedding' is missing"),
                                 ("mmproj-model", b"v.blk.1.ffn_up.weight", "v.blk.1.ffn_up.weight' is missing")]:
            with self.subTest(says), tempfile.TemporaryDirectory() as folder:
                self.assertIn(name, parts[part])
                for other, data in parts.items():
                    (Path(folder) / f"{other}.gguf").write_bytes(data.replace(name, name[:-1] + b"?") if other == part else data)
                self.fails(["ask", "--model", Path(folder) / "model.gguf", "--image", golden / "inputs/imgA.png", QUESTION], says)

    def test_qwen3(self):
        """Qwen3-VL's pairs answer as the published layout with the same values, also as a directory."""
        golden = Path(__file__).resolve().parents[1] / "data/golden/qwen3_vl_tiny"

        def answer(base, *flags):
            modules, picture = {"base": ("nm_main", "imgA.0.png"), "base_tied": ("nm_tied", "imgE.0.png")}[base]
            ask = ["ask", "--image", golden / "inputs" / picture, "--json", "--threads", 1, "-n", 8, "--new-modules", golden / modules]
            got = json.loads(self.ok(*ask, *flags, "Count the shapes."))
            return {key: got[key] for key in ("answer", "token_ids", "images", "prompt_tokens")}

        for base in ("base", "base_tied"):
            for kind in ("f32", "f16", "q8_0"):
                with self.subTest((base, kind)), tempfile.TemporaryDirectory() as folder:
                    name, out = f"qwen3/{base}/{kind}", Path(folder) / "out"
                    self.assertEqual(answer(base, *pair(name), *WIDE), answer(base, "--model", DIR / name / "expected", *WIDE))
                    self.ok("quantize", pair(name)[1], out, "--weights", "int8", "--threads", 1)
                    self.assertEqual(answer(base, "--model", out), answer(base, *pair(name), "--weights", "int8"))
        self.fails(["ask", *pair("qwen3/base/f32")[:2], "--mmproj", DIR / "f32/mmproj-model.gguf", QUESTION], "known: qwen3vl_merger")

    def test_scaled_positions(self):
        """Linear scaling and yarn: the config comes back that the converter was given, and answers are the checkpoint's with that config."""
        golden = Path(__file__).resolve().parents[1] / "data/golden"
        models = {"": ("f32", "rope", IMAGE, TINY / "new_modules"),
                  "llava/": ("llava/f32", "llava", golden / "llava_tiny/inputs/imgA.png", golden / "llava_tiny/nm_main"),
                  "qwen3/": ("qwen3/base/f32", "qwen3/base", golden / "qwen3_vl_tiny/inputs/imgA.0.png", golden / "qwen3_vl_tiny/nm_main")}

        def seen(model, image, modules):
            with tempfile.TemporaryDirectory() as folder:
                scores = Path(folder) / "scores"
                got = json.loads(self.ok("ask", *model, "--image", image, "--new-modules", modules, "--json", "--threads", 1, "-n", 8,
                                         "--scores-out", scores, *WIDE, QUESTION))
                return [got[key] for key in ("answer", "token_ids", "images")], scores.read_bytes()

        for family, (unscaled, scaled, image, modules) in models.items():
            plain = seen(pair(unscaled), image, modules)
            for name in ("yarn", "yarn_factors", "linear") if not family else ("yarn", "linear"):
                with self.subTest((family, name)):
                    expected = DIR / scaled / name / "expected"
                    expected /= "model" if family == "llava/" else ""
                    ours = seen(pair(f"{scaled}/{name}"), image, modules)
                    self.assertEqual(ours, seen(["--model", expected], image, modules))
                    self.assertNotEqual(ours[1], plain[1])
                    config = json.loads((expected / "config.json").read_text())
                    rope = config.get("text_config", config)["rope_scaling"]
                    inspected = json.loads(self.ok("inspect", *pair(f"{scaled}/{name}"), "--json"))["rope_scaling"]
                    self.assertEqual(inspected, {key: value for key, value in rope.items() if key != "rope_type"})
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            self.ok("quantize", pair("rope/yarn_factors")[1], out, "--weights", "int8", "--threads", 1)
            config, expected = (json.loads((model / "config.json").read_text()) for model in (out, DIR / "rope/yarn_factors/expected"))
            self.assertEqual(config["rope_scaling"], expected["rope_scaling"])

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
