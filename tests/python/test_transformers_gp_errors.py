"""What is wrong with what the GlimpsePrune reference's classes are given is said in words."""
import json
import sys
import unittest
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList

sys.path[:0] = [str(Path(__file__).resolve().parent)]
from reference_classes import END, GOLDEN, BuiltIn, Scratch, messages, model_copy, own_model, picture  # noqa: E402
from program import ANSWER, IMAGE, MODEL, MODULES, QUESTION  # noqa: E402

import glimpse  # noqa: E402
from transformers_gp.models.qwen2_5_vl import Qwen2_5_VL_GP_ForConditionalGeneration, Qwen2_5_VL_GP_Processor  # noqa: E402


class Inputs(BuiltIn):
    def test_wrong_inputs(self):
        ids, mask, pixels, grid = (self.inputs[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw"))
        grid_of = lambda *sizes: torch.tensor([sizes])
        first_is = lambda value: torch.cat([torch.tensor([[value]]), ids[:, 1:]], 1)
        cut = mask.clone().index_fill_(1, torch.arange(100, 120), 0)
        for words, given in (
                ("input_ids.*float32", {"input_ids": ids.float()}), ("input_ids.*list", {"input_ids": ids.tolist()}),
                ("input_ids.*NoneType", {"input_ids": None}),
                ("input_ids.*285\\]", {"input_ids": ids[0]}),
                ("no prompts", {"input_ids": ids[:0], "attention_mask": None, "pixel_values": None, "image_grid_thw": None}),
                ("without tokens", {"input_ids": ids[:, :0], "attention_mask": None, "pixel_values": None, "image_grid_thw": None}),
                ("without tokens", {"attention_mask": mask * 0, "pixel_values": None, "image_grid_thw": None}),
                ("576 is outside the vocabulary", {"input_ids": first_is(576)}), ("-1 is outside", {"input_ids": first_is(-1)}),
                ("outside", {"input_ids": first_is(2**62)}), ("no places for 1", {"attention_mask": mask * 0}),
                ("284.*285", {"attention_mask": mask[:, 1:]}),
                ("attention_mask", {"attention_mask": mask[None]}), ("do not fit", {"attention_mask": cut}),
                ("places", {"input_ids": torch.cat([ids, ids[:, 100:150]], 1), "attention_mask": None}),
                ("1023.*1024", {"pixel_values": pixels[1:]}), ("1175.*1176", {"pixel_values": pixels[:, 1:]}),
                ("0 values", {"pixel_values": pixels[:, :0]}),
                ("2352", {"pixel_values": torch.cat([pixels, pixels], 1)}), ("pixel_values", {"pixel_values": pixels.flatten()}),
                ("pixel_values", {"pixel_values": pixels[None]}), ("int64", {"pixel_values": pixels.long()}),
                ("complex", {"pixel_values": pixels + 1j}),
                ("not finite", {"pixel_values": pixels * float("nan")}), ("belong together", {"pixel_values": None}),
                ("belong together", {"image_grid_thw": None}),
                ("str", {"pixel_values": "x"}), ("above 0", {"image_grid_thw": grid_of(0, 32, 32)}),
                ("above 0", {"image_grid_thw": grid_of(1, -32, -32)}),
                ("1024", {"image_grid_thw": grid_of(2**40, 2**40, 2**40)}), ("image_grid_thw", {"image_grid_thw": grid_of(32, 32)}),
                ("image_grid_thw", {"image_grid_thw": grid[0]}), ("image_grid_thw", {"image_grid_thw": grid + 0.5}),
                ("image_grid_thw", {"image_grid_thw": grid.float()}),
                ("do not fit", {"image_grid_thw": grid_of(1, 1024, 1)}),
                ("multiples of 2", {"image_grid_thw": grid_of(1, 33, 32), "pixel_values": torch.cat([pixels, pixels[:32]])}),
                ("no places for 1", {"image_grid_thw": torch.cat([grid, grid]), "pixel_values": torch.cat([pixels, pixels])}),
                ("do not fit", {"image_grid_thw": grid_of(1, 16, 16), "pixel_values": pixels[:256]}),
                ("do not fit", {"pixel_values": None, "image_grid_thw": None}),
                ("ref_masks.*0", {"use_ref_masks": True}), ("ref_masks.*2", {"use_ref_masks": True, "ref_masks": [torch.ones(256)] * 2}),
                ("8, 32", {"use_ref_masks": True, "ref_masks": [torch.ones(8, 32)]}),
                ("255", {"use_ref_masks": True, "ref_masks": [torch.ones(255)]})):
            with self.subTest(words=words), self.assertRaisesRegex((glimpse.Error, ValueError, TypeError), words):
                self.model.generate(**{**self.inputs, "max_new_tokens": 2, **given})
        with self.assertRaisesRegex(glimpse.Error, "5000 tokens do not fit"):
            self.model.generate(torch.full((1, 5000), 70), max_new_tokens=2)
        with self.assertRaisesRegex(TypeError, "reduce_layer=2"):
            self.model.config.reduce_layer = 2
            self.model.generate(**self.inputs)

    def test_what_cannot_be_honoured(self):
        for name, value in (("num_beams", 4), ("num_return_sequences", 2), ("logits_processor", LogitsProcessorList([lambda ids, scores: scores])),
                            ("output_attentions", True), ("output_hidden_states", True), ("min_new_tokens", 3), ("no_repeat_ngram_size", 2), ("stop_strings", ["x"]),
                            ("nonsense", None),
                            ("position_ids", torch.zeros(1, 285)), ("past_key_values", ()), ("assistant_model", self.model),
                            ("delay_selection", True),
                            ("max_new_tokens", "x"), ("max_new_tokens", True), ("temperature", "x"), ("eos_token_id", [1, "x"]),
                            ("generation_config", 3)):
            with self.subTest(name=name, value=value), self.assertRaisesRegex(TypeError, name):
                self.model.generate(**self.inputs, **{name: value})
        for name, value in (("max_new_tokens", 0), ("max_new_tokens", 2.5), ("max_new_tokens", float("nan")), ("max_new_tokens", 2**70),
                            ("eos_token_id", 2**70),
                            ("repetition_penalty", -1), ("temperature", 0), ("temperature", float("inf")), ("top_p", 2), ("top_k", -1),
                            ("min_p", 3), ("max_length", 5)):
            with self.subTest(name=name, value=value), self.assertRaisesRegex(ValueError, name):
                self.model.generate(**self.inputs, do_sample=True, **{name: value})
        clip = {"pixel_values_videos": torch.zeros(16, 1176), "video_grid_thw": torch.tensor([[1, 4, 4]])}
        for words, given in (("belong together", {"pixel_values_videos": clip["pixel_values_videos"]}),
                             ("belong together", {"video_grid_thw": clip["video_grid_thw"]}),
                             ("counts 16 patches", {**clip, "pixel_values_videos": torch.zeros(4, 1176)}),
                             ("no places for 1 of the videos", clip), ("each of the 1 videos", {**clip, "second_per_grid_ts": [1.0, 2.0]}),
                             ("above 0", {**clip, "second_per_grid_ts": [0.0]}), ("above 0", {**clip, "second_per_grid_ts": [float("nan")]})):
            with self.subTest(words=words, given=list(given)), self.assertRaisesRegex(ValueError, words):
                self.model.generate(**self.inputs, **given)
        for name, value in (("labels", self.inputs.input_ids), ("output_attentions", True), ("num_beams", 2)):
            with self.subTest(name=name), self.assertRaisesRegex(TypeError, name):
                self.model(**self.inputs, **{name: value})
        with self.assertRaisesRegex(TypeError, "num_beams"):
            self.model.generate(**self.inputs, generation_config=GenerationConfig(num_beams=3))
        neutral = {"num_beams": 1, "use_cache": True, "synced_gpus": False, "min_new_tokens": 0, "logits_processor": LogitsProcessorList(),
                   "video_grid_thw": None}
        self.assertEqual(self.text(self.model.generate(**self.inputs, max_new_tokens=50, **neutral)), [ANSWER])

    def test_wrong_processor_inputs(self):
        place, image = "<|image_pad|>", picture()
        clip, clips = "<|video_pad|>", torch.zeros(2, 3, 56, 56)
        boxed = {"text": place, "images": image}
        for words, given in (
                ("uint8", {"text": clip, "videos": [1]}), ("frames", {"text": clip, "videos": "clip.mp4"}),
                ("1 videos but 0", {"text": "x", "videos": clips}), ("more places for videos", {"text": clip * 2, "videos": clips}),
                ("fps", {"text": clip, "videos": clips, "fps": [1, 2]}), ("fps", {"text": clip, "videos": clips, "fps": 0}),
                ("0 to 255", {"text": clip, "videos": clips + 0.5}), ("0 to 255", {"text": clip, "videos": clips - 7}),
                ("without frames", {"text": clip, "videos": torch.zeros(0, 3, 56, 56)}),
                ("do_sample_frames", {"text": clip, "videos": clips, "do_sample_frames": True}), ("return_tensors='np'", {"text": "x", "return_tensors": "np"}),
                ("padding='max_length'", {"text": "x", "padding": "max_length"}),
                ("truncation", {"text": "x", "truncation": True}), ("text", {"images": image}), ("text", {"text": 3}), ("text", {"text": []}),
                ("text", {"text": [["a"]]}),
                ("more places", {"text": place * 2, "images": image}), ("2 images but 1", {"text": place, "images": [image] * 2}),
                ("more places", {"text": place}),
                ("padding=True", {"text": ["a", "a b c"], "return_tensors": "pt"}), ("/nowhere.png", {"text": place, "images": "/nowhere.png"}),
                ("image format", {"text": place, "images": b"xx"}), ("float64", {"text": place, "images": np.zeros((9, 9, 3))}),
                ("aspect ratio", {"text": place, "images": np.zeros((1, 900, 3), np.uint8)}),
                ("shape", {"text": place, "images": np.zeros((0, 9, 3), np.uint8)}),
                ("2 masks for 1", {**boxed, "normed_bboxes": [[], []]}), ("box", {**boxed, "normed_bboxes": [[0, 0, 1, 1]]}),
                ("box", {**boxed, "normed_bboxes": [[[0, 1, 1]]]}),
                ("box", {**boxed, "normed_bboxes": [[[0, 0, 1, float("nan")]]]}), ("str", {**boxed, "normed_bboxes": [[["a", 0, 1, 1]]]}),
                ("0 masks", {**boxed, "ref_image_masks": []}), ("data type", {**boxed, "ref_image_masks": ["x"]})):
            with self.subTest(words=words, given=list(given)), self.assertRaisesRegex((glimpse.Error, ValueError, TypeError), words):
                self.processor(**given)
        for wrong in (None, [{"role": "user", "content": [{"type": "image"}]}]):
            with self.assertRaises(ValueError):
                self.processor.apply_chat_template(wrong, tokenize=True)


class Checkpoints(Scratch):
    def test_wrong_folders(self):
        for name, text in (("text", b"no json"), ("list", b"[1]"), ("deep", b"[" * 200000), ("bytes", b"\xff\xfe{"),
                           ("odd", b'{"self": 1, "vision_config": 3}')):
            (self.dir / name).mkdir()
            for file in ("config.json", "preprocessor_config.json"):
                (self.dir / name / file).write_bytes(text)
        (self.dir / "empty/config.json").mkdir(parents=True)
        for name in ("nowhere", "empty", "text", "list", "deep", "bytes", "odd", "../../no/such", "org/name", "a\0b"):
            with self.subTest(name=name):
                with self.assertRaises(glimpse.Error):
                    Qwen2_5_VL_GP_ForConditionalGeneration.from_pretrained(self.dir / name).engine
                with self.assertRaises(glimpse.Error):
                    Qwen2_5_VL_GP_Processor.from_pretrained(self.dir / name)
        for leave_out in ("config_json", "preprocessor_config_json"):
            with self.assertRaisesRegex(glimpse.Error, leave_out.replace("_json", ".json")):
                Qwen2_5_VL_GP_Processor.from_pretrained(model_copy(self.dir / leave_out, **{leave_out: None}))
        with self.assertRaisesRegex(glimpse.Error, "model.safetensors"):
            own_model(model_copy(self.dir / "no-weights", model_safetensors=None))
        odd = {"pad_token": {"lstrip": True}, "eos_token": {"content": "<|im_end|>"}, "chat_template": [{"name": "default"}, "x"]}
        processor = Qwen2_5_VL_GP_Processor.from_pretrained(model_copy(self.dir / "odd-tokens", tokenizer_config_json=odd))
        self.assertEqual((processor.tokenizer.pad_token_id, processor.tokenizer.eos_token_id, processor.tokenizer.chat_template), (None, END, None))
        with self.assertRaisesRegex(glimpse.Error, "token"):
            Qwen2_5_VL_GP_Processor.from_pretrained(model_copy(self.dir / "no-tokens", tokenizer_json=None, vocab_json=None))

    def test_wrong_settings(self):
        of = Qwen2_5_VL_GP_ForConditionalGeneration.from_pretrained
        for words, how in (("quantization_config", {"quantization_config": 3}), ("model", {"model": "x"}),
                           ("float16", {"torch_dtype": torch.float16}),
                           ("float16", {"torch_dtype": "float16"}), ("device_map", {"device_map": "nonsense"}),
                           ("device_map", {"device_map": {"a": 0, "b": 1}}),
                           ("device_map", {"device_map": {}}), ("new_modules", {"new_modules": "x"})):
            with self.subTest(how=how), self.assertRaisesRegex(TypeError, words):
                of(MODEL, **how)
        with self.assertRaisesRegex(glimpse.Error, "int3"):
            of(MODEL, weights="int3").engine
        for words, error, how in (("nonsense", TypeError, {"nonsense": 1}), ("padding_side", ValueError, {"padding_side": "top"})):
            with self.assertRaisesRegex(error, words):
                Qwen2_5_VL_GP_Processor.from_pretrained(MODEL, **how)

    def test_end_tokens(self):
        """Of generation_config.json, and only without one of config.json, as in transformers."""
        text = {"input_ids": torch.full((1, 4), 70), "max_new_tokens": 5}
        first = int(own_model(modules=None).generate(**text)[0, 4])
        for settings, length in (({"generation_config_json": {"eos_token_id": first}}, 5),
                                 ({"generation_config_json": None, "config_json": {"eos_token_id": first}}, 5),
                                 ({"generation_config_json": {"eos_token_id": None}, "config_json": {"eos_token_id": first}}, 9)):
            model = own_model(model_copy(self.dir / str(len(list(self.dir.iterdir()))), **settings), None)
            self.assertEqual(model.generate(**text).shape[1], length)

    def test_wrong_modules(self):
        model = own_model()
        processor = Qwen2_5_VL_GP_Processor.from_pretrained(MODEL)
        text = processor.apply_chat_template(messages(QUESTION, IMAGE), add_generation_prompt=True)
        inputs = processor(text=text, images=picture(), return_tensors="pt")
        before = model.config.to_dict()
        about = json.loads((MODULES / "config.json").read_text())
        for name, changed in (("size", {"attn_fuse_size": 65}), ("layer", {"selected_layers": [99], "reduce_layer": 99}),
                              ("type", {"attn_fuse_type": "X"}),
                              ("rule", {"reduce_threshold": "x"})):
            (self.dir / name).mkdir()
            (self.dir / name / "config.json").write_text(json.dumps({**about, **changed}))
            (self.dir / name / "new_modules_gp.pt").symlink_to(MODULES / "new_modules_gp.pt")
        (self.dir / "empty").mkdir()
        for folder in (GOLDEN / "qwen_tiny/nm_main", MODEL, *(self.dir / name for name in ("nowhere", "empty", "size", "layer", "type", "rule"))):
            with self.subTest(folder=folder), self.assertRaises(glimpse.Error):
                model.load_new_modules(folder)
        self.assertEqual(model.config.to_dict(), before)
        answer = model.generate(**inputs, max_new_tokens=50)[0, inputs.input_ids.shape[1]:]
        self.assertEqual(processor.decode(answer, skip_special_tokens=True), ANSWER)


if __name__ == "__main__":
    unittest.main()
