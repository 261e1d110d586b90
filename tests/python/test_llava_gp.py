"""The LLaVA part of the reference's interface: golden data, Hugging Face transformers, and what the engine itself answers."""
import contextlib
import io
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

for folder in ("cli", "parity"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))
import test_llava  # noqa: E402
from llava_gp.mm_utils import get_model_name_from_path, process_bboxes, process_images, tokenizer_image_token  # noqa: E402
from llava_gp.model.builder import load_pretrained_model  # noqa: E402
from llava_gp.model.language_model.llava_llama import LlavaLlamaForCausalLM_GP  # noqa: E402
from program import ROOT, CliTest  # noqa: E402
from test_llava import GOLDEN, IMAGE_ID, MODULES, OTHER, PHOTO  # noqa: E402

import glimpse  # noqa: E402

ENDLESS = {"eos_token_id": -1, "do_sample": False}
PROMPT = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers "
          "to the user's questions. USER: {} ASSISTANT:")


def opened(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def places(mask):
    return mask.flatten().nonzero().flatten().tolist()


def joined(rows, side, pad=0):
    """A batch of rows of several lengths and its attention_mask; padding even has image marks."""
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        more = [pad] * (longest - len(row))
        ids.append(torch.tensor([*more, *row.tolist()] if side == "left" else [*row.tolist(), *more]))
        mask.append(torch.tensor([0] * len(more) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(more)))
    return torch.stack(ids), torch.stack(mask)


class Tiny(CliTest):
    """The golden data's model: original layout, 8 x 8 visual tokens, with a small vocabulary."""
    original, converted = test_llava.Llava.original, test_llava.Llava.converted

    def load(self, folder=None, base=None, modules=MODULES, **how):
        folder = folder or self.original()
        self.tokenizer, self.model, self.image_processor, self.length = load_pretrained_model(
            folder, base, get_model_name_from_path(folder), device="cpu", threads=1, multimodal=True, **how)
        if modules:
            self.model.load_new_modules(modules)
        return self.model

    def asked(self, *images, question="Where?"):
        """What generate() takes of a question about pictures."""
        prompt = PROMPT.format("<image>\n" * len(images) + question)
        out = {"input_ids": tokenizer_image_token(prompt, self.tokenizer, return_tensors="pt")[None]}
        if images:
            pictures = [opened(image) for image in images]
            out |= {"images": process_images(pictures, self.image_processor, self.model.config), "image_sizes": [each.size for each in pictures]}
        return out

    def assert_answers(self, ids, answer):
        """Generated ids [new] are those of an answer."""
        self.assertEqual(ids.tolist(), answer.ids + ([] if answer.end_id is None else [answer.end_id]))


class Golden(Tiny):
    def test_pictures(self):
        self.load()
        for name in "AB":
            expected = load_file(GOLDEN / f"inputs/img{name}.safetensors")["pixel_values"]
            got = process_images([GOLDEN / f"inputs/img{name}.png"], self.image_processor, self.model.config)
            self.assertEqual(got.shape, (1, 3, 112, 112))
            torch.testing.assert_close(got[0], expected, atol=1e-5, rtol=0)

    def test_cases(self):
        folder, count = self.original(), 0
        for file in sorted((GOLDEN / "cases").glob("*.json")):
            about, case = json.loads(file.read_text()), load_file(file.with_suffix(".safetensors"))
            if "labels" in case:
                continue
            with self.subTest(case=file.stem):
                model = self.load(folder, modules=GOLDEN / about["new_modules"])
                for name, value in about["overrides"].items():
                    setattr(model.config, name, value)
                selects = about["do_selection"]
                pixels = load_file(GOLDEN / f"{about['inputs']}.safetensors")["pixel_values"]
                asked = {"input_ids": case["input_ids"][None].long(), "images": pixels[None]}
                out = model.generate(**asked, do_selection=selects, max_new_tokens=16, return_dict_in_generate=True, output_logits=True, **ENDLESS)
                self.assertEqual(out.sequences.tolist(), [case["generated_ids"].tolist()])
                torch.testing.assert_close(out.logits[0][0], case["first_logits"], atol=5e-4, rtol=0)
                kept = places(case["keep_mask"]) if selects else list(range(64))
                self.assertEqual([places(mask) for mask in out.image_token_bool_masks], [kept])
                if selects:
                    once = model(**asked, return_dict=True, use_cache=True)
                    self.assertEqual(places(once.image_token_bool_masks[0]), kept)
                    torch.testing.assert_close(once.logits[0, -1], case["first_logits"], atol=5e-4, rtol=0)
                    torch.testing.assert_close(once.image_token_mask_logits[0], case["vip_logits"][-1:], atol=1e-2, rtol=1e-2)
            count += 1
        self.assertEqual(count, 7)


class Flow(Tiny):
    def test_as_the_engine_answers(self):
        model = self.load()
        self.assertEqual((self.length, model.get_vision_tower().num_patches_per_side, model.config.mm_use_im_start_end), (512, 8, False))
        for images in ((PHOTO,), (PHOTO, OTHER), ()):
            asked = self.asked(*images)
            for selects in (False, True):
                answer = model.engine.ask(images, "Where?", prune="glimpse" if selects else "none", max_new_tokens=8)
                out = model.generate(**asked, do_selection=selects, max_new_tokens=8, return_dict_in_generate=True)
                self.assertEqual(asked["input_ids"].numel() + 63 * len(images), answer.prompt_tokens)
                self.assert_answers(out.sequences[0], answer)
                self.assertEqual([places(mask) for mask in out.image_token_bool_masks], [image.keep.tolist() for image in answer.images])
        self.assertEqual(self.tokenizer.batch_decode(out.sequences, skip_special_tokens=True), [answer.text])
        torch.manual_seed(5)
        drawn = [model.generate(asked["input_ids"], do_selection=False, do_sample=True, temperature=2.0, max_new_tokens=8) for _ in range(2)]
        self.assertNotEqual(*map(torch.Tensor.tolist, drawn))

    def test_without_modules(self):
        """Nothing is pruned unless asked for, and then there are no modules."""
        model, asked = self.load(modules=None), self.asked(PHOTO)
        self.assert_answers(model.generate(**asked, max_new_tokens=4)[0], model.engine.ask(PHOTO, "Where?", max_new_tokens=4))
        with self.assertRaisesRegex(glimpse.Error, "load_new_modules"):
            model(**asked)

    def test_reference_masks(self):
        model, asked = self.load(), self.asked(PHOTO, OTHER)
        model.config.use_ref_masks, model.config.reduce_layer = True, 2
        boxes, masks = [(0.1, 0.2, 0.5, 0.75), (0.3, 0.1, 0.9, 0.4)], []
        for image, box in zip((PHOTO, OTHER), boxes):
            width, height = opened(image).size
            side = max(width, height)
            padded = [(at * own + (side - own) // 2) / side for at, own in zip(box, (width, height) * 2)]
            masks.append(process_bboxes([padded], (8, 8)))
            self.assertEqual((masks[-1].dtype, masks[-1].shape), (torch.bool, (8, 8)))
        answer = model.engine.ask([PHOTO, OTHER], "Where?", prune="reference(layer=2)", boxes=[[box] for box in boxes], max_new_tokens=6)
        out = model.generate(**asked, ref_token_masks=masks, do_selection=True, max_new_tokens=6, return_dict_in_generate=True)
        self.assert_answers(out.sequences[0], answer)
        self.assertEqual([places(mask) for mask in out.image_token_bool_masks], [image.keep.tolist() for image in answer.images])
        self.assertEqual([places(mask) for mask in out.image_token_bool_masks], [places(mask) for mask in masks])
        with self.assertRaisesRegex(ValueError, "one for each of the 2 images"):
            model.generate(**asked, use_ref_masks=True, ref_token_masks=masks[:1])
        with self.assertRaisesRegex(ValueError, r"mask of the shape \(7, 8\)"):
            model.generate(**asked, use_ref_masks=True, ref_token_masks=[masks[0][:7], masks[1]])
        model.config.use_ref_masks, model.config.use_zero_masks, model.config.min_remain_num = False, True, 3
        self.assertEqual(sum(int(mask.sum()) for mask in model(**asked).image_token_bool_masks), 6)

    def test_batches(self):
        """Rows of a batch answer as they do alone, wherever the padding stands and whatever it holds."""
        model = self.load()
        rows = [self.asked(PHOTO), self.asked(OTHER, PHOTO, question="What is it, and why?"), self.asked(question="Hello")]
        rows.append({"input_ids": tokenizer_image_token(PROMPT.format("<image><image>"), self.tokenizer, return_tensors="pt")[None],
                     "images": torch.cat([rows[0]["images"]] * 2)})  # neighbours
        how = {"do_selection": True, "max_new_tokens": 5, **ENDLESS}
        alone = [model.generate(**row, **how)[0].tolist() for row in rows]
        for picked in ((0, 1), (1, 0), (2, 1), (3, 0)):
            images = torch.cat([rows[i]["images"] for i in picked if "images" in rows[i]])
            for side in ("left", "right"):
                ids, mask = joined([rows[i]["input_ids"][0] for i in picked], side, pad=-200)
                got = model.generate(inputs=ids, attention_mask=mask, images=images if side == "left" else list(images), **how)
                self.assertEqual(got.tolist(), [alone[i] for i in picked], (picked, side))

    def test_what_is_outside_sees_the_answer_alone(self):
        model, asked, seen = self.load(), self.asked(PHOTO), []

        class Streamer:
            def put(self, ids):
                seen.append(ids.tolist())

            def end(self):
                seen.append("end")

        got = model.generate(**asked, streamer=Streamer(), max_new_tokens=9, stopping_criteria=[lambda ids, scores: ids.shape[1] == 3], **ENDLESS)
        self.assertEqual(got.shape, (1, 3))
        self.assertEqual(seen, [[[]], *([each] for each in got[0].tolist()), "end"])

    def test_loading(self):
        folder = self.original()
        for name, weights in (("load_8bit", "int8"), ("load_4bit", "int4")):
            model = self.load(folder, **{name: True})
            with glimpse.Engine(folder, new_modules=MODULES, weights=weights, threads=1) as engine:
                answer = engine.ask(PHOTO, "Where?", max_new_tokens=6)
            self.assert_answers(model.generate(**self.asked(PHOTO), max_new_tokens=6)[0], answer)
        self.load(folder, torch_dtype=torch.bfloat16, attn_implementation="flash_attention_2", device_map="cpu", use_flash_attn=True)
        self.assertEqual((self.model.dtype, self.model.device), (torch.bfloat16, torch.device("cpu")))
        self.assertEqual([get_model_name_from_path(name) for name in ("/a/llava-b/", "x/llava", "llava", "/a/b/checkpoint-3")],
                         ["llava-b", "llava", "llava", "b_checkpoint-3"])

    def test_adapter(self):
        folder, adapter = self.original(), self.dir / "llava-lora"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text(json.dumps(
            {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "bias": "none", "fan_in_fan_out": False}))
        generator, delta = torch.Generator().manual_seed(1), {}
        for name, out, into in (("self_attn.q_proj", 128, 128), ("mlp.down_proj", 128, 208)):
            delta[f"base_model.model.model.layers.1.{name}.lora_A.weight"] = torch.randn(2, into, generator=generator) / 4
            delta[f"base_model.model.model.layers.1.{name}.lora_B.weight"] = torch.randn(out, 2, generator=generator) / 4
        save_file(delta, adapter / "adapter_model.safetensors")
        base = self.load(folder).generate(**self.asked(PHOTO), max_new_tokens=6)
        model = self.load(adapter, folder)
        with glimpse.Engine(folder, new_modules=MODULES, adapters=[str(adapter)], threads=1) as engine:
            answer = engine.ask(PHOTO, "Where?", max_new_tokens=6)
        got = model.generate(**self.asked(PHOTO), max_new_tokens=6)
        self.assert_answers(got[0], answer)
        self.assertNotEqual(got.tolist(), base.tolist())
        (adapter / "non_lora_trainables.bin").touch()
        for wrong in (adapter, folder):
            with self.assertRaisesRegex(TypeError, "model_base"):
                self.load(wrong, folder)

    def test_errors(self):
        model, asked = self.load(), self.asked(PHOTO)
        ids, images = asked["input_ids"], asked["images"]
        for words, how in {
            r"\[1, 3, 112, 112\].*tiles of a picture and videos": {"images": images[None]},
            r"expected floats \[3, 112, 112\]": {"images": images[:, :, :98]},
            r"images: one is torch.float32 \[112, 112\]": {"images": images[0]}, "images: one is .*Image": {"images": opened(PHOTO)},
            "torch.uint8": {"images": images.byte()}, "places for images.*2 images": {"images": torch.cat([images, images])},
            "places for images.*0 images": {"images": None}, "attention_mask is": {"attention_mask": torch.ones(1, 3)},
            r"\[B, T\]": {"input_ids": ids[0]}, "two names": {"pixel_values": images}, "input_ids": {"input_ids": None},
            "'videos'": {"videos": images}, "num_beams": {"num_beams": 2}, "modalities": {"modalities": ["image"]},
            "outside the vocabulary": {"input_ids": torch.where(ids == 1, 600, ids)},
        }.items():
            with self.subTest(words=words), self.assertRaisesRegex((TypeError, ValueError), words):
                model.generate(**{**asked, **how}, max_new_tokens=2)
        model.config.image_aspect_ratio = "anyres"
        with self.assertRaisesRegex(TypeError, "anyres"):
            process_images([opened(PHOTO)], self.image_processor, model.config)
        with self.assertRaisesRegex(ValueError, "'np'"):
            tokenizer_image_token("x", self.tokenizer, return_tensors="np")
        (self.dir / "clip-vit-tiny-patch14-112").unlink()
        with self.assertRaisesRegex(glimpse.Error, "openai/clip-vit-tiny-patch14-112"):
            self.load(self.dir / "model")
        with self.assertRaisesRegex(glimpse.Error, "mm_vision_tower"):
            self.load(ROOT / "models/tiny/model")
        with self.assertRaisesRegex(TypeError, "unexpected argument 'nonsense'"):
            self.load(ROOT / "models/tiny/model", nonsense=1)
        other = self.dir / "other"
        other.mkdir()
        (other / "config.json").write_text('{"text_config": {}, "vision_config": {"patch_size": 14}}')
        with self.assertRaisesRegex(glimpse.Error, "other/config.json: no image_size"):
            self.load(other)

    def test_example(self):
        result = subprocess.run([sys.executable, "-B", str(ROOT / "examples/python/published_llava.py"), str(self.original()), str(MODULES), PHOTO],
                                capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        with glimpse.Engine(self.dir / "model", new_modules=MODULES, dtype="bf16", threads=1) as engine:
            answer = engine.ask(PHOTO, "Where is it?", prune="glimpse(max_keep=0.111)", max_new_tokens=64)
        self.assertEqual(result.stdout, f"{answer.text.strip()}\n{answer.kept_tokens} of 8 x 8 visual tokens kept\n")


class Transformers(Tiny):
    def test_ids(self):
        """Random checkpoints in every layout: the ids that transformers generates, with a place per visual token and with one per image."""
        import make_llava
        for seed, (name, spec) in enumerate(make_llava.SHAPES.items(), 101):
            folder = self.dir / name
            with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
                make_llava.make(name, spec, folder, seed)
            (folder / "model/tokenizer.json").write_text(test_llava.tokenizer())
            model = LlavaLlamaForCausalLM_GP.from_pretrained(folder / "model", torch_dtype=torch.float32, threads=1)
            place = -200 if spec["layout"] == "original" else make_llava.IMAGE
            for case, (images, _) in make_llava.CASES.items():
                with self.subTest(name=name, case=case):
                    tensors = load_file(folder / "cases" / f"{case}.safetensors")
                    ids = tensors["input_ids"].long()
                    once = ids[(ids != place) | ((ids == place).cumsum(0) % spec["side"]**2 == 1)]
                    self.assertEqual((once == place).sum(), images)
                    for prompt in (ids, once):
                        got = model.generate(prompt[None], pixel_values=tensors.get("pixel_values"), max_new_tokens=make_llava.STEPS, **ENDLESS)
                        self.assertEqual(got.tolist(), [tensors["generated_ids"].tolist()])

    def test_processor(self):
        """What LlavaProcessor gives feeds transformers' own class and this one."""
        from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
        folder = self.converted()
        config = json.loads((folder / "config.json").read_text())
        config |= {"tie_word_embeddings": False, "text_config": {**config["text_config"], "model_type": "llama"}}
        (folder / "config.json").write_text(json.dumps(config))
        described = json.loads(test_llava.tokenizer())
        described["model"]["vocab"]["<image>"] = IMAGE_ID  # else it gets the next free id
        for token in described["added_tokens"]:
            token.update(single_word=False, lstrip=False, rstrip=False)
        text, begin = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}
        described["post_processor"] = {"type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text, text],
                                       "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
        (folder / "full.json").write_text(json.dumps(described))
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "full.json"), bos_token="<s>", eos_token="</s>", pad_token="<unk>",
                                            model_input_names=["input_ids", "attention_mask"])
        images = CLIPImageProcessor.from_pretrained(folder)
        processor = LlavaProcessor(images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1)
        theirs = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
        model = self.load(folder, modules=None)
        for prompt in (PROMPT.format("<image>\nWhere is it?"), "<image><image>", "Hello"):
            own = tokenizer_image_token(prompt, self.tokenizer)
            self.assertEqual(own, tokenizer_image_token(prompt, tokenizer))
            texts = [tokenizer(text).input_ids for text in prompt.split("<image>")]
            self.assertEqual(own, texts[0] + [id for text in texts[1:] for id in [-200, *text[1:]]])
        own = process_images([PHOTO, OTHER], self.image_processor, model.config)
        pictures = [opened(PHOTO), opened(OTHER)]
        torch.testing.assert_close(own, images(pictures, return_tensors="pt")["pixel_values"], atol=1e-5, rtol=0)
        how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        inputs = processor(pictures, ["USER: <image>\nWhere? ASSISTANT:", "USER: <image>\nWhat is it? ASSISTANT:"], padding=True, padding_side="left",
                           return_tensors="pt")
        got, expected = model.generate(**inputs, **how), theirs.generate(**inputs, **how)
        self.assertEqual(got.tolist(), expected[:, inputs["input_ids"].shape[1]:].tolist())
        # One place per image, and as the original code marks it.
        single = inputs["input_ids"][1].tolist()
        first = single.index(IMAGE_ID)
        for mark in (IMAGE_ID, -200):
            ids = torch.tensor([single[:first] + [mark] + single[first + 64:]])
            self.assertEqual(model.generate(input_ids=ids, pixel_values=inputs["pixel_values"][1:], **how)[0].tolist(), got[1].tolist())


if __name__ == "__main__":
    unittest.main()
