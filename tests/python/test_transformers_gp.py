"""The GlimpsePrune reference's classes on the engine: what they keep and answer is what the engine does."""
import copy
import os
import pickle
import subprocess
import sys
import threading
import unittest
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, GenerationConfig
from transformers.generation import stopping_criteria, streamers

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]
from reference_classes import END, PAD, BuiltIn, messages, own_model, picture  # noqa: E402
from program import ANSWER, IMAGE, IMAGES, KEEP, MODEL, MODULES, QUESTION, ROOT  # noqa: E402  (beside reference_classes, which knows where)

import glimpse  # noqa: E402
from transformers_gp.models.qwen2_5_vl import Qwen2_5_VL_GP_ForConditionalGeneration  # noqa: E402


class Generation(BuiltIn):
    def test_published(self):
        out = self.model.generate(**self.inputs, max_new_tokens=1024, do_selection=True)
        self.assertEqual(self.processor.batch_decode(out[:, self.length:], skip_special_tokens=False, clean_up_tokenization_spaces=False),
                         [ANSWER + "<|im_end|>"])
        self.assertEqual(out[:, :self.length].tolist(), self.inputs.input_ids.tolist())
        theirs = AutoProcessor.from_pretrained(MODEL, use_fast=False)(
            text=self.processor.apply_chat_template(messages(QUESTION, IMAGE), add_generation_prompt=True), images=picture(), return_tensors="pt")
        self.assertEqual(self.model.generate(**theirs, max_new_tokens=1024).tolist(), out.tolist())
        with torch.inference_mode():
            self.assertEqual(self.model.generate(self.inputs.input_ids, **{key: value for key, value in self.inputs.items() if key != "input_ids"},
                                                 max_new_tokens=1024).tolist(), out.tolist())

    def test_rule(self):
        config = self.model.config
        self.assertEqual((config.reduce_threshold, config.max_remain_ratio, config.min_remain_num, config.anchor_positions), (0.5, None, 1, []))
        logits = self.model(**self.inputs).image_token_mask_logits[0].double().sort(descending=True).values[0]
        two, six, none = (float(((logits[i - 1] + logits[i]) / 2).sigmoid()) if i else 1 - 1e-15 for i in (2, 6, 0))
        counts = []
        for settings, prune in (({}, "glimpse"), ({"max_remain_ratio": 0.005}, "glimpse(max_keep=0.005)"),
                                ({"reduce_threshold": six}, f"glimpse(threshold={six})"), ({"reduce_threshold": two}, f"glimpse(threshold={two})"),
                                ({"min_remain_num": 30}, "glimpse(min_keep=30)"),
                                ({"anchor_positions": ["tl", "br"]}, "glimpse(anchors=tl+br)"), ({"anchor_positions": "bl"}, "glimpse(anchors=bl)"),
                                ({"anchor_positions": None}, "glimpse"), ({"max_remain_ratio": 0.0}, "glimpse(max_keep=0)"),
                                ({"max_remain_ratio": 1.0}, "glimpse"), ({"reduce_threshold": 0.0}, "none"), ({"reduce_threshold": 1}, "glimpse(threshold=1)"),
                                ({"reduce_threshold": none}, f"glimpse(threshold={none})"),
                                ({"reduce_threshold": none, "min_remain_num": None}, f"glimpse(threshold={none},min_keep=none)"),
                                ({"reduce_threshold": six, "max_remain_ratio": np.float64(0.02), "min_remain_num": np.int64(2),
                                  "anchor_positions": ("tr",)},
                                 f"glimpse(threshold={six},max_keep=0.02,min_keep=2,anchors=tr)")):
            with self.subTest(prune=prune):
                vars(config).update({"reduce_threshold": 0.5, "max_remain_ratio": None, "min_remain_num": 1, "anchor_positions": []})
                vars(config).update(settings)
                kept = self.kept()
                self.assertEqual(kept, self.asked(prune))
                counts.append(len(kept[0][0]))
        self.assertEqual(counts, [4, 1, 6, 2, 30, 6, 5, 4, 1, 4, 256, 1, 1, 0, 6])
        vars(config).update({"reduce_threshold": 2})
        with self.assertRaisesRegex(glimpse.Error, "threshold"):
            self.kept()

    def test_without_selection(self):
        self.assertEqual(self.kept(do_selection=False), self.asked("none"))
        self.assertEqual(self.kept(do_selection=True), ([KEEP], self.kept()[1]))
        text = self.prepared(messages("Hello"))
        self.assertEqual(self.kept(text, do_selection=True), self.kept(text, do_selection=False))
        bare = own_model(modules=None)
        self.assertEqual([bare.generate(**self.inputs, max_new_tokens=16)[:, self.length:].tolist()], [self.kept(do_selection=False)[1]])
        self.assertIsNone(self.model(**self.inputs, do_selection=False).image_token_mask_logits)
        with self.assertRaisesRegex(glimpse.Error, "load_new_modules"):
            bare.generate(**self.inputs, do_selection=True)

    def test_mask_as_the_demo_shows_it(self):
        out = self.model(**self.inputs, do_selection=True)
        rows, cols = (self.inputs.image_grid_thw[0, 1:] // 2).tolist()
        mask = out.image_token_bool_masks[0].reshape(rows, cols)
        self.assertEqual((mask.dtype, mask.nonzero().tolist()), (torch.bool, [list(divmod(each, cols)) for each in KEEP]))
        self.assertEqual(((out.image_token_mask_logits[0] > 0).nonzero()[:, 1].tolist(), out.image_token_mask_logits[0].shape), (KEEP, (1, 256)))
        self.assertEqual((out.logits.shape, out.logits.argmax(-1).item()), ((1, 1, 576), self.kept()[1][0][0]))
        # And gives it back.
        given = {"use_ref_masks": True, "ref_token_masks": out.image_token_bool_masks}
        self.assertEqual(self.kept(**given), self.kept())
        self.assertEqual(self.model(**{**self.inputs, "ref_token_masks": None}, return_dict=True)["image_token_bool_masks"][0].sum(), 4)

    def test_batches(self):
        others = [messages("What letter is on the purple hexagon?", IMAGE), messages("Hello"), messages(QUESTION, IMAGES / "read_001.jpg", IMAGE)]
        inputs = self.prepared(messages(QUESTION, IMAGE), *others)
        together = self.kept(inputs)
        alone = [self.kept(self.prepared(each)) for each in (messages(QUESTION, IMAGE), *others)]
        self.assertEqual(together[0], [mask for masks, _ in alone for mask in masks])
        longest = max(len(ids[0]) for _, ids in alone)
        self.assertEqual(together[1], [ids[0] + [PAD] * (longest - len(ids[0])) for _, ids in alone])
        out = self.model.generate(**inputs, max_new_tokens=16)
        self.assertEqual(self.text(out, inputs.input_ids.shape[1])[0], ANSWER)

    def test_reference_masks(self):
        boxes = [[0.1, 0.2, 0.4, 0.35], [0.8, 0.8, 1.0, 1.0]]
        inputs = self.prepared(messages(QUESTION, IMAGE), normed_bboxes=[boxes])
        self.assertEqual((inputs.ref_token_masks[0].dtype, inputs.ref_token_masks[0].shape), (torch.bool, (16, 16)))
        for settings, prune in (({}, "reference"), ({"max_remain_ratio": 0.05}, "reference(max_keep=0.05)"),
                                ({"reduce_layer": 1}, "reference(layer=1)"), ({"anchor_positions": ["tl"]}, "reference(anchors=tl)")):
            with self.subTest(prune=prune):
                vars(self.model.config).update({"max_remain_ratio": None, "reduce_layer": 3, "anchor_positions": []})
                vars(self.model.config).update(settings)
                self.assertEqual(self.kept(inputs, use_ref_masks=True), self.asked(prune, boxes=[boxes]))
        logits = {}
        for layer in (0, 5):
            vars(self.model.config).update({"anchor_positions": [], "reduce_layer": layer})
            logits[layer] = self.model(**inputs, use_ref_masks=True).logits[0]
            answer = self.model.engine.ask(IMAGE, QUESTION, prune=f"reference(layer={layer})", boxes=[boxes], max_new_tokens=1, logits=True)
            torch.testing.assert_close(logits[layer], answer.logits, atol=1e-4, rtol=0)
        self.assertGreater((logits[0] - logits[5]).abs().max(), 1e-2)
        vars(self.model.config).update({"reduce_layer": 3, "use_ref_masks": True})
        self.assertEqual(self.kept(inputs), self.asked("reference", boxes=[boxes]))
        self.assertEqual(self.kept(inputs, use_ref_masks=False)[0], [KEEP])
        # Whatever a mask is made of.
        mask = inputs.ref_token_masks[0]
        for of in (mask.float(), mask.int(), mask.numpy(), mask.flatten(), mask.reshape(1, -1), mask.tolist()):
            self.assertEqual(self.kept(ref_masks=[of]), self.asked("reference", boxes=[boxes]))
        self.assertEqual(self.kept(ref_masks=mask[None]), self.asked("reference", boxes=[boxes]))
        shown = Image.fromarray(mask.numpy()).resize((160, 160), Image.Resampling.NEAREST)
        for of in (shown, shown.convert("L"), shown.convert("RGB"), np.asarray(shown)):
            self.assertEqual(self.prepared(messages(QUESTION, IMAGE), ref_image_masks=[of]).ref_token_masks[0].tolist(), mask.tolist())
        self.assertEqual(self.prepared(messages(QUESTION, IMAGE), ref_image_masks=[None]).ref_token_masks, [None])
        # Nothing of a picture, but for its minimum.
        vars(self.model.config).update({"min_remain_num": 2})
        self.assertEqual(self.kept(ref_masks=[None])[0], [[0, 1]])
        vars(self.model.config).update({"use_ref_masks": False, "use_zero_masks": True, "min_remain_num": None})
        self.assertEqual(self.kept()[0], [[]])

    def test_masks_of_probabilities(self):
        chance = torch.rand(256, generator=torch.Generator().manual_seed(1))
        best = chance.argsort(descending=True)
        for settings, expected in (({"reduce_threshold": 0.9}, (chance > 0.9).nonzero().flatten()), ({"max_remain_ratio": 0.1}, best[:25]),
                                   ({"reduce_threshold": 1.0, "min_remain_num": 3}, best[:3])):
            vars(self.model.config).update({"reduce_threshold": 0.5, "max_remain_ratio": None, "min_remain_num": 1})
            vars(self.model.config).update(settings)
            self.assertEqual(self.kept(use_ref_masks=True, ref_masks=[chance])[0], [expected.sort().values.tolist()])

    def test_boxes_as_masks(self):
        of = lambda box: self.prepared(messages("x", picture(size=(140, 84))), normed_bboxes=[[box]]).ref_token_masks[0]  # 3 rows, 5 columns
        self.assertEqual(of([0, 0, 1, 1]).sum(), 15)
        self.assertEqual(of([0.2, 0.34, 0.59, 0.66]).nonzero().tolist(), [[1, 1], [1, 2]])
        self.assertEqual(of([-3, 0.9, 0.1, 7]).nonzero().tolist(), [[2, 0]])
        for outside in ([0.5, 0.5, 0.2, 0.2], [-2, 0, -1, 1], [1.5, 0, 2, 1]):
            self.assertEqual(of(outside).sum(), 0)

    def test_stream_as_in_the_demo(self):
        for kind in (self.processor, AutoProcessor.from_pretrained(MODEL, use_fast=False)):
            streamer = streamers.TextIteratorStreamer(kind, skip_prompt=True, skip_special_tokens=True, timeout=60)
            settings = dict(self.inputs, streamer=streamer, max_new_tokens=64, temperature=0.7, top_p=0.9, do_sample=False, do_selection=True)
            thread = threading.Thread(target=self.model.generate, kwargs=settings)
            thread.start()
            pieces = list(streamer)
            thread.join()
            self.assertEqual("".join(pieces), ANSWER)
            self.assertGreater(len(pieces), 3)

    def test_who_reads_a_stream_does_not_wait_for_ever(self):
        streamer = streamers.TextIteratorStreamer(self.processor, timeout=60)
        with self.assertRaises(TypeError):
            self.model.generate(**self.inputs, streamer=streamer, num_beams=4)
        self.assertEqual("".join(streamer), "")
        with self.assertRaisesRegex(ValueError, "streamer"):
            self.model.generate(**self.prepared(messages("a"), messages("b")), streamer=streamer)

    def test_stopping_criteria(self):
        class After(stopping_criteria.StoppingCriteria):
            def __init__(self):
                self.seen = []

            def __call__(self, input_ids, scores, **_):
                self.seen.append(input_ids.tolist())
                return torch.tensor([input_ids[0, -1] == word], dtype=torch.bool)

        full = self.model.generate(**self.inputs, max_new_tokens=16)
        word = full[0, self.length + 2]
        after = After()
        out = self.model.generate(**self.inputs, max_new_tokens=16, stopping_criteria=stopping_criteria.StoppingCriteriaList([after]))
        self.assertEqual(out.tolist(), full[:, :self.length + 3].tolist())
        self.assertEqual(after.seen, [full[:, :self.length + 1 + i].tolist() for i in range(3)])
        # In a batch it ends its row, and what is behind has neither tokens nor scores.
        rows = self.prepared(messages(QUESTION, IMAGE), messages("Hello"))
        out = self.model.generate(**rows, max_new_tokens=6, eos_token_id=-1, pad_token_id=PAD, return_dict_in_generate=True, output_scores=True,
                                  output_logits=True, stopping_criteria=[lambda ids, scores: ids[0, -1] == word])
        self.assertEqual(out.sequences[0, -6:].tolist(), [*full[0, self.length:self.length + 3].tolist(), PAD, PAD, PAD])
        for steps in (out.scores, out.logits):
            self.assertEqual([bool(step[0].any()) for step in steps], [True] * 3 + [False] * 3)
            self.assertTrue(all(step[1].any() for step in steps))
        for rule, length in ((stopping_criteria.MaxLengthCriteria(self.length + 4), 4), (lambda ids, scores: ids.shape[1] == self.length + 2, 2),
                             (stopping_criteria.EosTokenCriteria(END), full.shape[1] - self.length)):
            of = stopping_criteria.StoppingCriteriaList([rule]) if isinstance(rule, stopping_criteria.StoppingCriteria) else rule
            self.assertEqual(self.model.generate(**self.inputs, max_new_tokens=16, stopping_criteria=of).shape[1], self.length + length)
        with self.assertRaises(ZeroDivisionError):
            self.model.generate(**self.inputs, max_new_tokens=1000, eos_token_id=-1, stopping_criteria=lambda ids, scores: 1 // 0)
        self.assertEqual(self.kept()[0], [KEEP])

    def test_generation_config(self):
        for config in (GenerationConfig(max_new_tokens=3), {"max_new_tokens": 3}, GenerationConfig(max_new_tokens=9, max_length=3)):
            more = {} if getattr(config, "max_length", 20) == 20 else {"max_new_tokens": 3}
            self.assertEqual(self.model.generate(**self.inputs, generation_config=config, **more).shape[1], self.length + 3)
        saved = GenerationConfig.from_pretrained(MODEL, max_new_tokens=50)
        self.assertEqual(self.text(self.model.generate(**self.inputs, generation_config=saved)), [ANSWER])
        copied = copy.deepcopy(self.model.generation_config)
        self.addCleanup(setattr, self.model, "generation_config", copied)
        self.model.generation_config.max_new_tokens = 2
        self.assertEqual(self.model.generate(**self.inputs).shape[1], self.length + 2)
        self.assertEqual(self.model.generate(**self.inputs, max_new_tokens=4).shape[1], self.length + 4)
        vars(self.model.generation_config).update(max_new_tokens=50, a_name_of_another_program=3)
        self.assertEqual(self.text(self.model.generate(**self.inputs)), [ANSWER])
        with self.assertRaisesRegex(TypeError, "num_beams"):
            vars(self.model.generation_config).update(num_beams=3)
            self.model.generate(**self.inputs)
        self.model.generation_config.num_beams = 1
        # transformers takes only the tokens of what is older than 4.50 then.
        vars(self.model.generation_config).update(max_new_tokens=50, repetition_penalty=1.0, transformers_version="4.49.0")
        self.assertEqual(self.model.generate(**self.inputs, generation_config=GenerationConfig(eos_token_id=-1)).shape[1], self.length + 20)
        self.assertEqual(self.text(self.model.generate(**self.inputs)), [ANSWER])

    def test_drawn(self):
        draw = lambda **how: self.text(self.model.generate(**self.inputs, do_sample=True, temperature=3.0, max_new_tokens=12, **how))
        torch.manual_seed(1)
        first, second = draw(), draw()
        torch.manual_seed(1)
        self.assertEqual((draw(), draw()), (first, second))
        self.assertNotEqual(first, second)
        self.assertEqual(draw(top_k=1), [ANSWER])
        state = torch.get_rng_state()
        self.model.generate(**self.inputs, max_new_tokens=4)
        self.assertTrue(torch.equal(torch.get_rng_state(), state), "greedy answers draw nothing")
        twice = {name: torch.cat([value] * 2) for name, value in self.inputs.items() if isinstance(value, torch.Tensor)}
        two = self.model.generate(**twice, do_sample=True, temperature=5.0, max_new_tokens=12)
        self.assertNotEqual(*two.tolist())

    def test_output(self):
        out = self.model.generate(**self.inputs, max_new_tokens=4, return_dict_in_generate=True)
        self.assertEqual((set(out), out.scores, out.logits), ({"sequences", "image_token_bool_masks", "image_token_mask_logits"}, None, None))
        for same in (copy.deepcopy(out), pickle.loads(pickle.dumps(out)), out):
            self.assertEqual((same.sequences.tolist(), same[0].tolist(), same[:1][0].tolist()), (out["sequences"].tolist(),) * 3)
        for same in (copy.copy(self.inputs), pickle.loads(pickle.dumps(self.inputs))):
            self.assertEqual(same.input_ids.tolist(), self.inputs.input_ids.tolist())
        with self.assertRaises(AttributeError):
            self.inputs.nothing
        moved = copy.copy(self.inputs).to(self.model.device, torch.bfloat16)
        self.assertEqual((moved.pixel_values.dtype, moved.input_ids.dtype), (torch.bfloat16, torch.int64))
        self.assertEqual(self.text(self.model.generate(**moved, max_new_tokens=50)), [ANSWER])

    def test_model(self):
        self.assertEqual((self.model.device, self.model.dtype), (torch.device("cpu"), torch.float32))
        self.assertIs(self.model.to("cpu").eval().cpu().to(torch.float32), self.model)
        self.assertEqual(self.model.config.vision_config.patch_size, 14)
        self.assertEqual(self.model.config.to_dict()["vision_config"]["patch_size"], 14)
        other = Qwen2_5_VL_GP_ForConditionalGeneration.from_pretrained(MODEL, device_map={"": "cpu"}, attn_implementation="sdpa", threads=1)
        self.assertEqual(other.dtype, torch.bfloat16)  # as the checkpoint says
        other.load_new_modules(MODULES)
        self.assertEqual(self.text(other.generate(**self.inputs, max_new_tokens=50)), [ANSWER])
        self.assertEqual(other.to(torch.float32).dtype, torch.float32)
        self.assertEqual(self.text(other.generate(**self.inputs, max_new_tokens=50)), [ANSWER])
        quantized = Qwen2_5_VL_GP_ForConditionalGeneration.from_pretrained(MODEL, weights="int8", device_map="cpu", threads=1)
        self.assertEqual(quantized.generate(**self.inputs, max_new_tokens=2).shape[1], self.length + 2)
        for call in (self.model.train, self.model.requires_grad_, lambda: self.model.to(torch.float16)):
            with self.assertRaises(TypeError):
                call()
        self.assertIs(self.model.train(False).requires_grad_(False), self.model)

    def test_many_at_once(self):
        for model in (self.model, own_model(modules=None)):  # which is not loaded yet
            got = []
            ask = lambda: got.append(self.text(model.generate(**self.inputs, max_new_tokens=9))[0])
            threads = [threading.Thread(target=ask) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(got, [ANSWER] * 6)


class Published(unittest.TestCase):
    def test_example(self):
        """With qwen_vl_utils as it is."""
        for arguments in ([], [MODEL, MODULES, IMAGE]):
            script = [HERE / "beside_torchvision.py", ROOT / "examples/python/published.py", *arguments]
            result = subprocess.run([sys.executable, "-B", *script], capture_output=True, text=True, timeout=300,
                                    env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
            self.assertEqual(result.stdout, ANSWER + "<|im_end|>\n", result.stderr)


if __name__ == "__main__":
    unittest.main()
