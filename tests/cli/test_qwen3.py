"""Qwen3-VL through the commands: the golden data's tiny model, with the built-in model's tokenizer."""
import json
import math
import unittest

from program import MODEL, ROOT, CliTest
from tensor_files import read_safetensors

GOLDEN = ROOT / "tests/data/golden/qwen3_vl_tiny"
MODULES = GOLDEN / "nm_main"
PHOTO, OTHER = str(GOLDEN / "inputs/imgA.0.png"), str(GOLDEN / "inputs/imgB.1.png")
FP32 = ["--dtype", "fp32"]
METHODS = ["glimpse", "random", "random(layer=-1)", "divprune", "dart", "cdpruner", "visionzip", "vscan", "pyramiddrop(layers=1+2+4,keep=0.8+0.5+0.3)"]


class Qwen3(CliTest):
    def qwen3(self, base="base"):
        model = self.dir / base
        if not model.exists():
            model.mkdir()
            for file in (GOLDEN / base).iterdir():
                (model / file.name).symlink_to(file)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (model / name).symlink_to(MODEL / name)
        return model

    def ask_qwen3(self, *args, images=(PHOTO,), question="Count the shapes.", base="base", modules=MODULES):
        flags = [flag for image in images for flag in ("-i", image)]
        return json.loads(self.ok("ask", "--json", "-m", self.qwen3(base), "--new-modules", modules, *flags, *args, question))

    def test_ask(self):
        """From the picture's file to the golden case's answer."""
        for case, base, modules, photo, more in (("g01_image", "base", MODULES, PHOTO, []),
                                                 ("g11_tied_image", "base_tied", GOLDEN / "nm_tied", str(GOLDEN / "inputs/imgE.0.png"),
                                                  ["--prune", "glimpse(min_keep=5)"])):
            golden = {name: memoryview(data).cast({"I32": "i", "U8": "B", "F32": "f"}[kind]).tolist()
                      for name, (kind, _, data) in read_safetensors(GOLDEN / f"glimpse/{case}.safetensors").items()}
            question = json.loads((GOLDEN / f"glimpse/{case}.json").read_text())["prompt"].split("<|vision_end|>")[1].split("<|im_end|>")[0]
            got = self.ask_qwen3(*FP32, *more, "-n", "16", base=base, modules=modules, images=(photo,), question=question)
            self.assertEqual(got["images"][0]["keep"], [i for i, kept in enumerate(golden["keep_mask"]) if kept])
            self.assertEqual(got["prompt_tokens"], len(golden["input_ids"]))
            self.assertGreater(len(got["token_ids"]), 3)  # an end token ends it
            self.assertEqual(got["token_ids"], golden["generated_ids"][: len(got["token_ids"])])

    def test_video(self):
        """Slices behind their times as text; more of them, or later ones, are more or other text."""
        folder = self.dir / "frames"
        folder.mkdir()
        for i in range(6):
            (folder / f"{i}.png").symlink_to((PHOTO, OTHER)[i == 4])
        self.fails(["ask", "-m", self.qwen3(), "--video", folder, "What?"], "4.png")  # of another size
        (folder / "4.png").unlink()
        (folder / "4.png").symlink_to(PHOTO)
        flags = ["--video", folder, "--min-pixels", "1", "--max-pixels", "16384"]
        got = self.ask_qwen3(*FP32, "-n", "4", *flags, images=())
        rows, cols = got["images"][0]["rows"], got["images"][0]["cols"]
        self.assertEqual([grid["seconds"] for grid in got["images"]], [0.25, 1.25, 2.25])
        self.assertEqual(got["visual_tokens"], 3 * rows * cols)
        self.assertLess(got["kept_tokens"], got["visual_tokens"])
        fewer = self.ask_qwen3(*FP32, "-n", "4", *flags, "--frames", "4", images=())
        text = [each["prompt_tokens"] - each["visual_tokens"] for each in (got, fewer)]
        self.assertGreater(text[0], text[1] + 8)  # "<2.2 seconds>" and the marks around the slice
        slow = self.ask_qwen3(*FP32, "-n", "4", *flags, "--fps", "0.05", images=())
        self.assertGreater(slow["prompt_tokens"], got["prompt_tokens"])  # "<10.0 seconds>"

    def test_methods(self):
        for method in METHODS:
            with self.subTest(method):
                got = self.ask_qwen3(*FP32, "-n", "4", "--prune", method, "--keep", "0.2", images=(PHOTO, OTHER))
                self.assertEqual((got["visual_tokens"], got["kept_tokens"]), (34, 7))
        plain = self.ask_qwen3(*FP32, "-n", "6", "--prune", "none", images=(PHOTO, OTHER))
        for method in ("glimpse(threshold=0)", "pyramiddrop(layers=1+2+3,keep=1+1+1)"):
            self.assertEqual(self.ask_qwen3(*FP32, "-n", "6", "--prune", method, images=(PHOTO, OTHER))["token_ids"], plain["token_ids"])

    def test_batches_and_cache(self):
        """Together and one by one, and a second question from the first one's image prefix."""
        rows = self.dir / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in [
            {"id": 0, "question": "Where?", "image": PHOTO}, {"id": 1, "question": "What is it, and why?", "image": PHOTO},
            {"id": 2, "question": "Both?", "image": [OTHER, PHOTO]}, {"id": 3, "question": "Hello"},
            {"id": 4, "question": "Where does the blue shape go?", "image": PHOTO}]))
        for method in ("glimpse", "none", "divprune", "pyramiddrop(layers=1+3,keep=0.6+0.4)"):
            answers = []
            for flags in (["--batch", "1", "--cache-mb", "0"], ["--batch", "4", "--cache-mb", "0"], ["--batch", "1", "--cache-mb", "64"]):
                out = self.dir / f"{len(answers)}.jsonl"
                self.ok("infer", rows, "-m", self.qwen3(), "--new-modules", MODULES, *FP32, "-n", "5", "--prune", method, *flags, "--out", out,
                        "--overwrite")
                answers.append([json.loads(line) for line in out.read_text().splitlines()])
            for other in answers[1:]:
                self.assertEqual([(row["answer"], row["keep"]) for row in other], [(row["answer"], row["keep"]) for row in answers[0]])

    def test_inspect(self):
        text = self.ok("inspect", "-m", self.qwen3())
        self.assertIn("7 layers, hidden 48", text)
        # A preprocessor_config.json that leaves out the bounds has Qwen3-VL's, 4096 x 4096 pixels at most.
        config, preprocessor = (json.loads((GOLDEN / "base" / name).read_text()) for name in ("config.json", "preprocessor_config.json"))
        config["text_config"]["max_position_embeddings"] = 32768
        del preprocessor["size"]
        for name, changed in (("config.json", config), ("preprocessor_config.json", preprocessor)):
            (self.qwen3() / name).unlink()
            (self.qwen3() / name).write_text(json.dumps(changed))
        memory = json.loads(self.ok("inspect", "--json", "-m", self.qwen3()))["memory"]
        self.assertEqual(memory["largest_image"], {"visual_tokens": 16384, "limit": "max_pixels", "side_pixels": 4096})

    def test_weights(self):
        plain = self.ask_qwen3(*FP32, "-n", "8")
        out = self.dir / "small"
        self.ok("quantize", self.qwen3(), out, "--threads", "1")
        flags = ["--json", "-n", "8", *FP32, "--new-modules", MODULES, "-i", PHOTO, "Count the shapes."]
        stored = json.loads(self.ok("ask", "-m", out, *flags))
        loaded = json.loads(self.ok("ask", "-m", self.qwen3(), "--weights", "int8", *flags))
        self.assertEqual(stored["token_ids"], loaded["token_ids"])
        self.assertEqual(len(stored["token_ids"]), len(plain["token_ids"]))
        self.assertTrue(json.loads(self.ok("ask", "-m", self.qwen3(), "--weights", "int4", *flags))["token_ids"])

    def test_training(self):
        """New modules of our own: losses fall, and what is written answers."""
        rows = self.dir / "rows.jsonl"
        rows.write_text("".join(json.dumps({
            "id": i, "question": "Which?", "answer": "ab"[i % 2], "dataset": "few", "image": f"{i % 2}.png", "width": 192, "height": 128,
            "bboxs": [[0, 0, 60, 60] if i % 2 else [100, 60, 190, 120]]}) + "\n" for i in range(8)))
        pictures = self.dir / "cot/few"
        pictures.mkdir(parents=True)
        for i in range(2):
            (pictures / f"{i}.png").symlink_to(PHOTO)
        config = self.dir / "config.yaml"
        text = (ROOT / "configs/train/qwen3_vl_4b.yaml").read_text()
        for line, value in (("dataset: gqa\n", ""), ("samples: 20000\n", ""), ("[23, 17, 11, 5]", "[7, 5, 3, 1]"), ("[23]", "[4]"),
                            ("reduce_layer: 23", "reduce_layer: 4"), ("attn_fuse_size: 256", "attn_fuse_size: 32"),
                            ("visual_cond_size: 512", "visual_cond_size: 32"), ("lr: 1.0e-4", "lr: 1.0e-2"), ("bf16", "fp32"),
                            ("accumulation: 8", "accumulation: 2"), ("le_dropout_prob: 0.1", "le_dropout_prob: 0.0")):
            self.assertIn(line, text)
            text = text.replace(line, value)
        config.write_text(text)
        self.ok("train", "--config", config, "--model", self.qwen3(), "--data", rows, "--image-root", self.dir, "--out", self.dir / "run",
                "--epochs", "6", "--threads", "1")
        losses = [json.loads(line)["loss"] for line in (self.dir / "run/metrics.jsonl").read_text().splitlines()]
        self.assertTrue(all(map(math.isfinite, losses)), losses)
        self.assertLess(losses[-1], 0.9 * losses[0])
        got = self.ask_qwen3(*FP32, "-n", "2", modules=self.dir / "run/final", question="Which?")
        self.assertTrue(0 < got["kept_tokens"] <= 24)

    def test_refusals(self):
        flags = ["ask", "-m", self.qwen3(), "-i", PHOTO, "x"]
        self.fails([*flags, "--preprocessing", "reference"], "published evaluation knows no model of this kind")
        config = json.loads((GOLDEN / "base/config.json").read_text())
        for part, key, value, says in (("text_config", "attention_bias", True, "attention_bias is not supported"),
                                       ("vision_config", "deepstack_visual_indexes", [3, 1], "deepstack_visual_indexes must ascend"),
                                       ("vision_config", "deepstack_visual_indexes", [1, 8], "deepstack_visual_indexes must ascend"),
                                       ("vision_config", "num_position_embeddings", 143, "is no square"),
                                       ("vision_config", "hidden_act", "gelu", "hidden_act 'gelu' is not supported"),
                                       ("text_config", "rope_scaling", {"rope_type": "default", "mrope_section": [6, 3]}, "mrope_section"),
                                       ("text_config", "rope_scaling", {"mrope_interleaved": False, "mrope_section": [6, 3, 3]}, "mrope_interleaved")):
            (self.dir / "base/config.json").unlink()
            (self.dir / "base/config.json").write_text(json.dumps({**config, part: {**config[part], key: value}}))
            self.fails(flags, says)


if __name__ == "__main__":
    unittest.main()
