"""LLaVA-1.5 through the commands: the golden data's tiny model in both published layouts, with a small vocabulary."""
import json
import unittest

from program import ROOT, CliTest, read_png
from tensor_files import read_safetensors, write_safetensors

GOLDEN = ROOT / "tests/data/golden/llava_tiny"
MODULES = GOLDEN / "nm_main"
CLIP = ROOT / "tests/data/golden/methods/clip_full_112"
PHOTO, OTHER = str(GOLDEN / "inputs/imgA.png"), str(GOLDEN / "inputs/imgB.png")
SPACE = "\u2581"
IMAGE_ID = 400


def tokenizer(characters=range(33, 127), image=IMAGE_ID):
    """A tokenizer.json as LLaMA's: bytes, printable characters, the special tokens."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *map(chr, characters), "he", "re"]
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": image}
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return json.dumps({
        "model": {"type": "BPE", "byte_fallback": True, "vocab": {piece: i for i, piece in enumerate(pieces)},
                  "merges": ["h e", "r e"]},
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replaced]},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "added_tokens": [{"id": i, "content": token, "special": True, "normalized": False} for token, i in special.items()],
    })


class Llava(CliTest):
    def original(self):
        """The original layout: the encoder lies beside the model under the last part of its published name."""
        model = self.model_copy("model", source=GOLDEN / "base")
        (model / "tokenizer.json").write_text(tokenizer())
        (self.dir / "clip-vit-tiny-patch14-112").symlink_to(GOLDEN / "vision_tower")
        return model

    def converted(self):
        """The same weights as Hugging Face's conversion names them."""
        model = self.dir / "converted"
        model.mkdir()
        (model / "tokenizer.json").write_text(tokenizer())
        tensors = {"vision_tower." + name: t for name, t in read_safetensors(GOLDEN / "vision_tower/model.safetensors").items()}
        for name, tensor in read_safetensors(GOLDEN / "base/model.safetensors").items():
            name = "language_model." + name
            for old, new in (("0", "linear_1"), ("2", "linear_2")):
                name = name.replace(f"language_model.model.mm_projector.{old}.", f"multi_modal_projector.{new}.")
            tensors[name] = tensor
        write_safetensors(model / "model.safetensors", tensors)
        text = json.loads((GOLDEN / "base/config.json").read_text())
        vision = json.loads((GOLDEN / "vision_tower/config.json").read_text())
        (model / "config.json").write_text(json.dumps({
            "model_type": "llava", "image_token_index": IMAGE_ID, "text_config": text, "vision_config": vision,
            "torch_dtype": "float32", "eos_token_id": 2}))
        (model / "preprocessor_config.json").symlink_to(GOLDEN / "vision_tower/preprocessor_config.json")
        return model

    def ask_llava(self, model, *args, images=(PHOTO,), question="Where?"):
        flags = [flag for image in images for flag in ("-i", image)]
        return json.loads(self.ok("ask", "--json", "-m", model, "--new-modules", MODULES, "-n", "6", *flags, *args, question))

    def test_ask(self):
        original = self.original()
        overlay, mask = self.dir / "overlay.png", self.dir / "mask.png"
        got = self.ask_llava(original, "--overlay-out", overlay, "--mask-out", mask)
        self.assertEqual((got["visual_tokens"], got["images"][0]["rows"], got["images"][0]["cols"]), (64, 8, 8))
        self.assertTrue(0 < got["kept_tokens"] < 64)
        self.assertLessEqual(len(got["token_ids"]), 6)
        # The conversation vicuna_v1: begin token, system message, question and answer in characters, the image.
        letters = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
                   "detailed, and polite answers to the user's questions. USER: \nWhere? ASSISTANT:")
        merged = letters.count("he") + letters.count("re")
        self.assertEqual(got["prompt_tokens"], 64 + 3 + len(letters) - merged)
        self.assertEqual(read_png(overlay)[:3], (*read_png(PHOTO)[:2], 3))
        self.assertEqual(read_png(mask)[:2], read_png(PHOTO)[:2])
        # Keeping everything changes nothing, also with two images.
        for images in ((PHOTO,), (PHOTO, OTHER)):
            all_kept = self.ask_llava(original, "--prune", "glimpse(threshold=0)", images=images)
            plain = self.ask_llava(original, "--prune", "none", images=images)
            self.assertEqual(all_kept["kept_tokens"], 64 * len(images))
            self.assertEqual(all_kept["token_ids"], plain["token_ids"])

    def test_reference_boxes(self):
        width, height = read_png(PHOTO)[:2]
        box = f"0,0,{width},{height}"
        got = self.ask_llava(self.original(), "--reference-boxes", box)
        # Padding to a square shows the whole picture in part of the grid.
        rows = {token // 8 for token in got["images"][0]["keep"]}
        columns = {token % 8 for token in got["images"][0]["keep"]}
        self.assertEqual(len(got["images"][0]["keep"]), len(rows) * len(columns))
        self.assertEqual(max(len(rows), len(columns)), 8)
        if width != height:
            self.assertLess(min(len(rows), len(columns)), 8)

    def test_class_token(self):
        """VisionZip's class token counts, but has no place in the picture."""
        overlay, mask = self.dir / "overlay.png", self.dir / "mask.png"
        zipped = ["--prune", "visionzip(dominant=7,contextual=2)", "--overlay-out", overlay, "--mask-out", mask]
        got = self.ask_llava(self.original(), *zipped)
        self.assertEqual((got["kept_tokens"], len(got["images"][0]["keep"])), (9, 8))
        self.assertLess(max(got["images"][0]["keep"]), 64)
        self.assertEqual(read_png(overlay)[:2], read_png(PHOTO)[:2])
        both = self.ask_llava(self.converted(), "--prune", "visionzip+glimpse", "--keep", "0.05", images=(PHOTO, OTHER))
        self.assertEqual(both["kept_tokens"], 6)
        self.fails(["ask", "-m", self.dir / "model", "-i", PHOTO, "--prune", "visionzip(dominant=60,contextual=20)", "x"],
                   "60 dominant and 20 contextual tokens are more than the 64 of an image")
        self.fails(["ask", "-m", self.dir / "model", "-i", PHOTO, "--prune", "visionzip(contextual=0)", "x"], "contextual is 0")

    def test_converted_layout(self):
        got = self.ask_llava(self.converted(), images=(PHOTO, OTHER))
        self.assertEqual((got["visual_tokens"], len(got["images"])), (128, 2))
        letters = "USER: \n\nWhere? ASSISTANT:"
        self.assertEqual(got["prompt_tokens"], 128 + 4 + len(letters) - letters.count("he") - letters.count("re"))
        text = self.ok("inspect", "-m", self.dir / "converted")
        self.assertIn("5 layers, hidden 128", text)

    def test_batches(self):
        rows = self.dir / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in [
            {"id": 0, "question": "Where?", "image": PHOTO}, {"id": 1, "question": "What is it, and why?", "image": OTHER},
            {"id": 2, "question": "Both?", "image": [OTHER, PHOTO]}, {"id": 3, "question": "Hello"}]))
        model, answers = self.original(), []
        for batch in ("1", "4"):
            out = self.dir / f"{batch}.jsonl"
            self.ok("infer", rows, "-m", model, "--new-modules", MODULES, "-n", "5", "--batch", batch, "--out", out)
            answers.append([{**json.loads(line), "times_ms": 0} for line in out.read_text().splitlines()])
        self.assertEqual(answers[0], answers[1])
        self.assertEqual([len(row["keep"]) for row in answers[0]], [1, 1, 2, 0])

    def test_chat(self):
        model = self.original()
        flags = ["chat", "-m", model, "--new-modules", MODULES, "-n", "4", "-i", PHOTO]
        both = self.ok(*flags, input="Where?\nAnd why?\n")
        self.assertTrue(both.startswith(self.ok(*flags, input="Where?\n")))

    def test_text_tower(self):
        """CDPruner compares with the text by CLIP where there is a text tower, and says by what it did."""
        asked = ["--prune", "cdpruner", "--keep", "0.2"]
        by = lambda got: got["pruning"][0]["settings"]["relevance"]
        alone, converted = self.original(), self.converted()
        words = self.ask_llava(alone, *asked)
        self.assertEqual(by(words), "words")
        self.assertIn("none (cdpruner compares with the words", self.ok("inspect", "-m", alone))
        self.fails(["ask", "-m", alone, "-i", PHOTO, "--prune", "cdpruner(relevance=clip)", "x"], "needs CLIP's text tower")
        self.fails(["ask", "-m", alone, "-i", PHOTO, "--prune", "cdpruner(relevance=x)", "x"], "expected clip or words, got 'x'")
        self.fails(["ask", "-m", alone, "--clip", GOLDEN / "vision_tower", "x"], "holds no text tower")
        self.fails(["ask", "--clip", CLIP, "x"], "is for models whose encoder is CLIP's")
        named = self.ask_llava(alone, *asked, "--clip", CLIP)
        # The converted layout crops the picture where the original pads it: other tokens are kept.
        self.assertEqual(by(self.ask_llava(converted, *asked, "--clip", CLIP)), "clip")
        (self.dir / "clip-vit-tiny-patch14-112").unlink()
        (self.dir / "clip-vit-tiny-patch14-112").symlink_to(CLIP)
        whole = self.ask_llava(alone, *asked)
        for got in (named, whole):
            self.assertEqual(by(got), "clip")
        self.assertEqual(named["images"][0]["keep"], whole["images"][0]["keep"])
        self.assertNotEqual(whole["images"][0]["keep"], words["images"][0]["keep"])
        # The line about the form of the answer is not part of the question.
        short = self.ask_llava(alone, *asked, "--system", "x", question="Where?\nAnswer the question using a single word or phrase.")
        self.assertEqual(short["images"][0]["keep"], whole["images"][0]["keep"])
        other = self.ask_llava(alone, *asked, question="What color is the umbrella on the left side of the picture?")
        self.assertNotEqual(other["images"][0]["keep"], whole["images"][0]["keep"])
        got = json.loads(self.ok("inspect", "--json", "-m", alone))
        self.assertEqual(got["text_tower"], {"layers": 3, "hidden_size": 48})
        self.assertIn("text tower", {part["part"] for part in got["parts"]})

    def test_quantize(self):
        """What is written needs neither the original nor its encoder, and answers as rounding at load does."""
        original, converted = self.original(), self.converted()
        tower = self.dir / "clip-vit-tiny-patch14-112"
        tower.unlink()
        tower.symlink_to(CLIP)  # with CLIP's text tower
        cases = {(model, *flags): [] for model, flags in ((original, []), (original, ["--prune", "cdpruner", "--keep", "0.2"]), (converted, []))}
        for bits, kind in (("int8", "I8"), ("int4", "U8")):
            for model, linears in ((original, ("model.layers.0.mlp.up_proj", "vision_model.encoder.layers.0.mlp.fc1", "model.mm_projector.0")),
                                   (converted, ("language_model.model.layers.0.mlp.up_proj", "vision_tower.vision_model.encoder.layers.0.mlp.fc1"))):
                out = self.dir / "far" / bits / model.name
                out.parent.mkdir(parents=True, exist_ok=True)
                self.ok("quantize", model, out, "--weights", bits, "--threads", "1")
                tensors = read_safetensors(out / "model.safetensors")
                self.assertEqual({tensors[name + ".weight"][0] for name in linears}, {kind})
            for (model, *flags), answers in cases.items():
                answers.append(self.ask_llava(model, "--weights", bits, *flags))
        tower.unlink()
        original.rename(self.dir / "moved")
        for (model, *flags), answers in cases.items():
            for bits, expected in zip(("int8", "int4"), answers):
                got = self.ask_llava(self.dir / "far" / bits / model.name, *flags)
                for key in ("token_ids", "images", "prompt_tokens", "pruning"):
                    self.assertEqual(got[key], expected[key], (bits, model.name, flags, key))

    def test_inspect(self):
        got = json.loads(self.ok("inspect", "--json", "-m", self.original(), "--new-modules", MODULES))
        self.assertEqual(got["vision_encoder"], {"layers": 7, "hidden_size": 64})
        self.assertEqual({part["part"] for part in got["parts"]}, {"embeddings", "language model", "vision encoder", "output head"})
        self.assertEqual((got["pruning_modules"]["attention"], got["pruning_modules"]["reduce_layer"]), ("log-softmax", 3))

    def test_mistakes(self):
        model = self.original()
        ask = ["ask", "-m", model, "-i", PHOTO]
        self.fails([*ask, "--max-pixels", "5000", "x"], "sees 112 x 112 pixels at a time")
        self.fails([*ask, "x " * 400], "do not fit the model's context of 512")
        (self.dir / "clip-vit-tiny-patch14-112").unlink()
        self.fails([*ask, "x"], "openai/clip-vit-tiny-patch14-112", "huggingface-cli download")
        config = json.loads((GOLDEN / "base/config.json").read_text())
        for key, value in {"mm_projector_type": "linear", "mm_vision_select_feature": "cls_patch", "image_aspect_ratio": "anyres_max_9",
                           "mm_use_im_start_end": True, "mm_vision_tower": 3, "rope_scaling": {"type": "linear"},
                           "mm_vision_select_layer": -9, "attention_bias": True, "hidden_act": "gelu"}.items():
            broken = self.dir / key
            broken.mkdir()
            (broken / "model.safetensors").symlink_to(GOLDEN / "base/model.safetensors")
            tower = str(GOLDEN / "vision_tower")
            (broken / "config.json").write_text(json.dumps({**config, "mm_vision_tower": tower, key: value}))
            self.fails(["inspect", "-m", broken], "hidden state -9" if key.endswith("layer") else key)
        # Other language models have windows, biases and norms that would be left out.
        converted = self.converted()
        config = json.loads((converted / "config.json").read_text())
        config["text_config"]["model_type"] = "mistral"
        (converted / "config.json").write_text(json.dumps(config))
        self.fails(["inspect", "-m", converted], "text_config: model_type \"mistral\" is not supported, only llama")


if __name__ == "__main__":
    unittest.main()
