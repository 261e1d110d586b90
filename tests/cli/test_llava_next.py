"""LLaVA-NeXT through the commands: the golden data's tiny models in both published layouts, with a small vocabulary."""
import json
import shutil
import unittest

from program import ROOT, TEST, CliTest, read_png
from tensor_files import read_safetensors, write_safetensors
from test_llava import tokenizer

GOLDEN = ROOT / "tests/data/golden/llava_next_tiny"
LAND, PORT = str(GOLDEN / "inputs/mistral_land.0.png"), str(GOLDEN / "inputs/mistral_port.0.png")
LETTERS = range(ord("a"), ord("z") + 1)  # the vocabularies are small: what else there is comes in bytes


def length(text):
    """In tokens: "he" and "re" are one each."""
    return len(text) - text.count("he") - text.count("re")


class LlavaNext(CliTest):
    def mistral(self):
        """llava-hf's layout."""
        model = self.model_copy("mistral", source=GOLDEN / "base_mistral")
        (model / "tokenizer.json").write_text(tokenizer(LETTERS, image=300))
        return model

    def vicuna(self):
        """The original layout: beside the model only the settings of its encoder."""
        model = self.model_copy("vicuna", source=GOLDEN / "base_vicuna")
        (model / "tokenizer.json").write_text(tokenizer(LETTERS, image=300))
        (self.dir / "vision_tower_vicuna").symlink_to(GOLDEN / "vision_tower_vicuna")
        return model

    def ask_next(self, model, *args, images=(LAND,), question="Where?"):
        flags = [flag for image in images for flag in ("-i", image)]
        modules = GOLDEN / ("nm_" + model.name)
        return json.loads(self.ok("ask", "--json", "-m", model, "--new-modules", modules, "-n", "6", *flags, *args, question))

    def test_grids(self):
        """Two grids for each picture, newlines beside them, one overlay and mask of both."""
        model, overlay, mask, scores = self.mistral(), self.dir / "o.png", self.dir / "m.png", self.dir / "s.json"
        got = self.ask_next(model, "--overlay-out", overlay, "--mask-out", mask, "--scores-out", scores)
        self.assertEqual([(grid["rows"], grid["cols"], grid["image"]) for grid in got["images"]], [(8, 8, 0), (8, 16, 0)])
        self.assertEqual(got["visual_tokens"], 192)
        self.assertTrue(0 < got["kept_tokens"] < 192)
        self.assertEqual(got["prompt_tokens"], 192 + 8 + 3 + length("[INST] \nWhere? [/INST]"))
        self.assertEqual([len(grid["probability"]) for grid in json.loads(scores.read_text())["images"]], [64, 128])
        width, height, channels, rows = read_png(mask)
        self.assertEqual((width, height, channels), (*read_png(LAND)[:2], 1))
        self.assertEqual(read_png(overlay)[:3], (width, height, 3))
        # A pixel is marked if either grid keeps its cell.
        whole, tiles = (set(grid["keep"]) for grid in got["images"])
        for y, x in ((2, 3), (height // 2, width // 2), (height - 2, width // 3)):
            kept = y * 8 // height * 8 + x * 8 // width in whole or y * 8 // height * 16 + x * 16 // width in tiles
            self.assertEqual(rows[y][x] > 0, kept, (y, x))
        both = self.ask_next(model, "--overlay-out", overlay, images=(LAND, PORT))
        self.assertEqual([grid["image"] for grid in both["images"]], [0, 0, 1, 1])
        self.assertEqual(read_png(self.dir / "o.2.png")[:2], read_png(PORT)[:2])

    def test_keeping_everything(self):
        for model, images in ((self.mistral(), (LAND, PORT)), (self.vicuna(), (LAND,))):
            plain = self.ask_next(model, "--prune", "none", images=images)
            for prune in ("glimpse(threshold=0)", "random(keep=1)"):
                kept = self.ask_next(model, "--prune", prune, images=images)
                self.assertEqual((kept["kept_tokens"], kept["token_ids"]), (plain["visual_tokens"], plain["token_ids"]), prune)

    def test_every_method(self):
        model = self.mistral()
        for prune in ("glimpse", "random", "divprune", "dart", "cdpruner", "visionzip", "vscan", "pyramiddrop"):
            for keep, count in (("0.25", 100), ("3", 3)):
                got = self.ask_next(model, "--prune", prune, "--keep", keep, images=(LAND, PORT))
                self.assertEqual((got["visual_tokens"], got["kept_tokens"]), (400, count), prune)

    def test_boxes(self):
        """A box marks the tokens of both grids."""
        width, height = read_png(LAND)[:2]
        got = self.ask_next(self.mistral(), "--reference-boxes", f"1,1,{width // 2 - 2},{height // 2 - 2}")
        self.assertEqual(got["images"][0]["keep"], [row * 8 + col for row in range(4) for col in range(4)])
        self.assertEqual(got["images"][1]["keep"], [row * 16 + col for row in range(4) for col in range(8)])

    def test_prompts(self):
        """The first public code's conversation llava_v1 speaks of a human; its checkpoint's encoder is its own."""
        got = self.ask_next(self.vicuna(), images=(GOLDEN / "inputs/vicuna_wide.0.png",))
        letters = ("A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
                   "detailed, and polite answers to the human's questions. USER: \nWhere? ASSISTANT:")
        self.assertEqual(got["visual_tokens"], 1344)
        self.assertEqual(got["prompt_tokens"], 1360 + 3 + length(letters))
        text = self.ok("inspect", "-m", self.dir / "vicuna")
        self.assertIn("4 layers, hidden 48", text)

    def test_batches_and_chat(self):
        rows, model, answers = self.dir / "rows.jsonl", self.mistral(), []
        rows.write_text("".join(json.dumps(row) + "\n" for row in [
            {"id": 0, "question": "Where?", "image": LAND}, {"id": 1, "question": "What is it?", "image": PORT},
            {"id": 2, "question": "Both?", "image": [PORT, LAND]}, {"id": 3, "question": "Hello"}]))
        for batch in ("1", "4"):
            out = self.dir / f"{batch}.jsonl"
            self.ok("infer", rows, "-m", model, "--new-modules", GOLDEN / "nm_mistral", "-n", "5", "--batch", batch, "--out", out)
            answers.append([{**json.loads(line), "times_ms": 0} for line in out.read_text().splitlines()])
        self.assertEqual(answers[0], answers[1])
        self.assertEqual([len(row["keep"]) for row in answers[0]], [2, 2, 4, 0])
        flags = ["chat", "-m", model, "--new-modules", GOLDEN / "nm_mistral", "-n", "4", "-i", LAND]
        both = self.ok(*flags, input="Where?\nAnd why?\n")
        self.assertTrue(both.startswith(self.ok(*flags, input="Where?\n")))

    def test_quantize(self):
        """A packed copy needs nothing else and answers as rounding at load does."""
        for model in (self.mistral(), self.vicuna()):
            for bits in ("int8", "int4"):
                expected, out = self.ask_next(model, "--weights", bits), self.dir / bits / model.name
                out.parent.mkdir(exist_ok=True)
                self.ok("quantize", model, out, "--weights", bits)
                got = self.ask_next(out)
                for key in ("token_ids", "images", "prompt_tokens"):
                    self.assertEqual(got[key], expected[key], (model.name, bits, key))

    def test_train(self):
        """The published settings by analogy, at the tiny model's sizes: modules that answer."""
        config = (ROOT / "configs/train/llava_next_7b.yaml").read_text()
        for old, new in (("selected_layers: [21]", "selected_layers: [3]"), ("reduce_layer: 21", "reduce_layer: 3"),
                         ("[23, 17, 11, 5]", "[5, 4, 2, 0]"), ("attn_fuse_size: 256", "attn_fuse_size: 32"),
                         ("visual_cond_size: 512", "visual_cond_size: 32"), ("dataset: gqa\n", "")):
            self.assertIn(old, config)
            config = config.replace(old, new)
        (self.dir / "next.yaml").write_text(config)
        model, run = self.mistral(), self.dir / "run"
        self.ok("train", "--config", self.dir / "next.yaml", "-m", model, "--data", TEST / "rows.jsonl", "--image-root", TEST, "--out", run,
                "--max-steps", "3", "--accumulation", "2", "--samples", "8", "--log-every", "1", "--overlay-every", "3", "--overlay-rows", "1",
                "--dtype", "fp32", "--save-dtype", "fp32")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual([line["step"] for line in lines], [1, 2, 3])
        self.assertTrue(all(line["loc_loss"] > 0 for line in lines))
        self.assertTrue(list((run / "overlays").glob("step-000003-row-*.png")))
        modules = json.loads((run / "final/config.json").read_text())
        self.assertEqual((modules["model_type"], modules["use_attention_logits"]), ("llava_next_gp", False))
        got = json.loads(self.ok("ask", "--json", "-m", model, "--new-modules", run / "final", "-i", LAND, "-n", "2", "x"))
        self.assertEqual(got["visual_tokens"], 192)

    def test_scouts(self):
        """Cuts before the language model and between the encoder's blocks, by scouts that a predictor taught."""
        model = self.mistral()
        for kind, taps, prune in (("scout", "[4, 3, 2, 1]", "scout"), ("encoder_scout", "[2, 1]", "scout(encoder=2)")):
            config = (ROOT / f"configs/train/tiny_{kind}.yaml").read_text()
            config = config.replace("[5, 3, 2, 1]", taps).replace("match_rank: 32", "match_rank: 16")
            (self.dir / "scout.yaml").write_text(config)
            self.ok("train", "--config", self.dir / "scout.yaml", "-m", model, "--teacher", GOLDEN / "nm_mistral", "--data", TEST / "rows.jsonl",
                    "--image-root", TEST, "--out", self.dir / kind, "--max-steps", "1", "--batch", "2", "--accumulation", "2", "--samples", "8",
                    "--overlay-every", "0")
            got = json.loads(self.ok("ask", "--json", "-m", model, "--new-modules", self.dir / kind / "final", "-i", LAND, "-n", "2", "--prune", prune, "x"))
            self.assertTrue(0 < got["kept_tokens"] < 192, kind)

    def test_mistakes(self):
        model = self.mistral()
        self.fails(["ask", "-m", model, "-i", LAND, "--max-pixels", "5000", "x"], "sees 112 x 112 pixels at a time")
        config = json.loads((model / "config.json").read_text())

        def broken(name, source=model, **changes):
            folder = self.dir / name
            shutil.copytree(source, folder, symlinks=True)
            (folder / "config.json").unlink()
            (folder / "config.json").write_text(json.dumps({**config, **changes}))
            return folder

        text = config["text_config"]
        for name, changes, says in (
                ("window", {"text_config": {**text, "sliding_window": 0}}, "sliding_window is 0, expected at least 1"),
                ("pairs", {"image_grid_pinpoints": [[112]]}, "image_grid_pinpoints has a resolution of 1 numbers"),
                ("none", {"image_grid_pinpoints": []}, "image_grid_pinpoints is empty"),
                ("kind", {"text_config": {**text, "model_type": "qwen2"}}, "only llama and mistral"),
                ("old", {"model_type": "llava"}, "only llama")):
            self.fails(["inspect", "-m", broken(name, **changes)], says)
        odd = broken("odd", image_grid_pinpoints=[[112, 100]])
        self.fails(["ask", "-m", odd, "-i", LAND, "x"], "image_grid_pinpoints: 100 x 112 pixels are no tiles of 112 x 112")
        yi = broken("yi")
        known = json.loads((yi / "tokenizer.json").read_text())
        known["added_tokens"].append({**known["added_tokens"][-1], "id": 301, "content": "<|im_start|>"})
        (yi / "tokenizer.json").write_text(json.dumps(known))
        self.fails(["ask", "-m", yi, "-i", LAND, "x"], "asked in ChatML, as llava-v1.6-34b is")
        bare = broken("bare")
        (bare / "model.safetensors").unlink()
        tensors = read_safetensors(GOLDEN / "base_mistral/model.safetensors")
        del tensors["image_newline"]
        write_safetensors(bare / "model.safetensors", tensors)
        self.fails(["ask", "-m", bare, "-i", LAND, "x"], "image_newline")


if __name__ == "__main__":
    unittest.main()
