"""The GlimpsePrune reference's classes against Hugging Face transformers, without pruning."""
import json
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from transformers import AutoProcessor, GenerationConfig, LogitsProcessorList, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

sys.path[:0] = [str(Path(__file__).resolve().parent)]
from reference_classes import END, PAD, messages, model_copy, own_model, picture  # noqa: E402
from make_checkpoints import SHAPES, random_weights  # noqa: E402
from program import IMAGE, MODEL  # noqa: E402

import glimpse  # noqa: E402
from transformers_gp.models.qwen2_5_vl import Qwen2_5_VL_GP_Processor  # noqa: E402


class Parity(unittest.TestCase):
    """Random weights and the built-in model's tokenizer: what transformers makes of the same messages, without pruning."""

    @classmethod
    def setUpClass(cls):
        torch.set_num_threads(1)
        cls.dir = Path(tempfile.mkdtemp(prefix="glimpse-python-"))
        cls.addClassCleanup(shutil.rmtree, cls.dir, True)
        cls.processors = (AutoProcessor.from_pretrained(MODEL, use_fast=False), Qwen2_5_VL_GP_Processor.from_pretrained(MODEL))
        cls.models = {name: cls.pair(name, seed) for seed, name in enumerate(("gqa", "one_kv_tied"), 3)}
        large = picture()
        cls.pictures = [large.resize((140, 196)), large.crop((0, 100, 300, 240)).resize((168, 84)), large.crop((200, 200, 440, 440)).resize((56, 60))]

    @classmethod
    def pair(cls, name, seed):
        """transformers' model and ours of a random checkpoint."""
        folder = cls.dir / name
        tiny = json.loads((MODEL / "config.json").read_text())
        ids = {key: value for key, value in tiny.items() if key.endswith("_token_id") or key == "vocab_size"}
        config = Qwen2_5_VLConfig(**{**json.loads(json.dumps(SHAPES[name]["config"])), **ids}, torch_dtype="float32")
        theirs = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
        random_weights(theirs, torch.Generator().manual_seed(seed))
        theirs.tie_weights()
        theirs.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD)
        theirs.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.json", "merges.txt", "vocab.json"):
            shutil.copy(MODEL / file, folder)
        return theirs, own_model(folder, None)

    def inputs(self, *conversations, **how):
        """Both processors' for conversations, which must be the same; ours."""
        both = []
        for processor in self.processors:
            texts = [processor.apply_chat_template(each, tokenize=False, add_generation_prompt=True) for each in conversations]
            pictures = [part["image"] for each in conversations for message in each for part in message["content"] if part["type"] == "image"]
            both.append(processor(text=texts, images=pictures or None, padding=True, return_tensors="pt", **how))
        theirs, ours = both
        self.assertEqual(set(theirs), set(ours) - {"ref_token_masks"})
        for name, tensor in theirs.items():
            self.assertEqual((tensor.dtype, tensor.shape), (ours[name].dtype, ours[name].shape), name)
            self.assertLessEqual((tensor - ours[name]).abs().max(), 1e-5 if name == "pixel_values" else 0, name)
        return ours

    def generate(self, inputs, which=("gqa",), **how):
        """Both models' answers to the same inputs, which must be the same ids, logits, scores and shapes; ours."""
        given = {name: value for name, value in inputs.items() if name != "ref_token_masks"}
        full = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, **how}
        for name in which:
            with self.subTest(model=name, how=how):
                theirs, ours = (model.generate(**given, **full) for model in self.models[name])
                self.assertEqual(theirs.sequences.dtype, ours.sequences.dtype)
                self.assertEqual(theirs.sequences.tolist(), ours.sequences.tolist())
                self.assertIs(ours[0], ours.sequences)
                tokens = theirs.sequences[:, inputs.input_ids.shape[1]:]
                ends = torch.tensor([full.get("eos_token_id", END) or -1]).flatten()
                running = torch.ones(len(tokens), dtype=torch.bool)
                for step, token in enumerate(tokens.T):
                    self.assertGreater((theirs.scores[step].topk(2).values @ torch.tensor([1.0, -1.0]))[running].min(), 1e-3, "choose another seed")
                    for key in ("scores", "logits"):
                        a, b = theirs[key][step], ours[key][step]
                        self.assertEqual((type(ours[key]), a.shape, a.dtype), (tuple, b.shape, b.dtype))
                        torch.testing.assert_close(b[running], a[running], atol=1e-3, rtol=0)
                    running &= ~torch.isin(token, ends)
                self.assertEqual(len(theirs.scores), len(ours.scores))
                self.assertEqual(self.models[name][1].generate(**given, **how).tolist(), theirs.sequences.tolist())
        return ours

    def test_processor(self):
        a, b, c = self.pictures
        odd = [picture(size=(61, 45), mode=mode) for mode in ("L", "RGBA", "P", "CMYK", "LA", "1")]
        self.inputs(messages("What is it?", a))
        self.inputs(messages("Hm?", a, b, c, *odd), messages("No picture."), messages("äß 🙂 日本", picture()))
        self.inputs(messages("No picture."))
        self.inputs(messages("Large?", picture(size=(1200, 900))))
        for side in ("left", "right"):
            for processor in self.processors:
                processor.tokenizer.padding_side = side
            self.addCleanup(lambda: [setattr(processor.tokenizer, "padding_side", "right") for processor in self.processors])
            mask = self.inputs(messages("Short?", a), messages("A longer question, is it not?", b, c), messages("Hello")).attention_mask
            self.assertEqual(mask[2, 0 if side == "right" else -1], 1)
            self.assertEqual(mask[2, 0 if side == "left" else -1], 0)
        theirs, ours = (processor(text=["one", "and two"]) for processor in self.processors)
        self.assertEqual(theirs["input_ids"], ours["input_ids"])
        self.assertEqual(theirs["attention_mask"], ours["attention_mask"])

    def test_processor_bounds(self):
        for bounds in ({"max_pixels": 28 * 28 * 20}, {"min_pixels": 28 * 28 * 250}, {"min_pixels": 28 * 28 * 16, "max_pixels": 28 * 28 * 16}):
            theirs, ours = (kind.from_pretrained(MODEL, **bounds, **more)(text="<|image_pad|>", images=picture(), return_tensors="pt")
                            for kind, more in ((AutoProcessor, {"use_fast": False}), (Qwen2_5_VL_GP_Processor, {"padding_side": "left"})))
            self.assertEqual(theirs.image_grid_thw.tolist(), ours.image_grid_thw.tolist())
            self.assertLess((theirs.pixel_values - ours.pixel_values).abs().max(), 1e-5)

    def test_one_prompt(self):
        a, b, c = self.pictures
        for case in (messages("What is it?", a), messages("Which?", a, b, c), messages("No picture.")):
            out = self.generate(self.inputs(case), ("gqa", "one_kv_tied"), max_new_tokens=12)
            self.assertEqual(len(out.logits), out.sequences.shape[1] - len(self.inputs(case).input_ids[0]))

    def test_batches(self):
        a, b, c = self.pictures
        rows = [messages("What is it?", a), messages("Which of them is it, do you think?", b, c), messages("No picture.")]
        left = self.inputs(*rows, padding_side="left")
        out = self.generate(left, ("gqa", "one_kv_tied"), max_new_tokens=12)
        # Padding on the other side, which transformers' models do not answer well, changes nothing here.
        right = self.inputs(*rows, padding_side="right")
        length = left.input_ids.shape[1]
        answers = self.models["one_kv_tied"][1].generate(**right, max_new_tokens=12)
        self.assertEqual(answers[:, length:].tolist(), out.sequences[:, length:].tolist())
        self.assertEqual(answers[:, :length].tolist(), right.input_ids.tolist())

    def test_settings(self):
        a, b, _ = self.pictures
        one, two = self.inputs(messages("What?", a)), self.inputs(messages("What?", a), messages("And what is this here?", b), padding_side="left")
        length = two.input_ids.shape[1]
        self.generate(one, repetition_penalty=1.5, max_new_tokens=12)
        plain = self.generate(two, max_new_tokens=12).sequences[:, length:].tolist()
        # Rows that end at other steps, by several end tokens; what is behind is padding.
        ends = [plain[0][3], plain[1][6]]
        out = self.generate(two, eos_token_id=ends, max_new_tokens=12)
        self.assertLess(out.sequences.shape[1] - length, 12)
        self.assertEqual(out.sequences[0, length + 4:].unique().tolist(), [PAD])
        self.generate(two, eos_token_id=ends[1], pad_token_id=7, max_new_tokens=12)
        self.generate(two, eos_token_id=ends, pad_token_id=None, max_new_tokens=12)
        self.generate(two, eos_token_id=ends, max_new_tokens=3)
        self.generate(two, max_length=length + 5)
        self.generate(one)
        self.generate(one, generation_config=GenerationConfig(max_new_tokens=3, repetition_penalty=1.2))
        self.generate(one, generation_config=GenerationConfig(max_new_tokens=3, repetition_penalty=1.2), repetition_penalty=1.0, eos_token_id=None)

    def test_scores_of_sampling(self):
        one = self.inputs(messages("What?", self.pictures[0]))
        theirs, ours = self.models["gqa"]
        for how in ({}, {"top_k": 5}, {"top_k": None, "top_p": 0.7}, {"top_k": 20, "top_p": 0.3, "temperature": 1.7}, {"top_k": 0, "min_p": 0.2},
                    {"temperature": 0.3, "repetition_penalty": 1.3}, {"top_k": 1}, {"top_p": 1e-6}, {"top_p": 0.0}, {"temperature": None, "top_p": None}):
            with self.subTest(how=how):
                out = ours.generate(**one, **how, do_sample=True, max_new_tokens=6, return_dict_in_generate=True, output_scores=True,
                                    output_logits=True)
                config = GenerationConfig(**{"pad_token_id": PAD, "do_sample": True, **how})
                theirs._prepare_special_tokens(config)
                processors = theirs._get_logits_processor(config, 0, None, None, LogitsProcessorList())
                for step, (logits, scores) in enumerate(zip(out.logits, out.scores)):
                    so_far = out.sequences[:, :one.input_ids.shape[1] + step]
                    torch.testing.assert_close(scores, processors(so_far, logits.clone()), atol=1e-5, rtol=1e-6)
                    self.assertTrue(scores[0, out.sequences[0, so_far.shape[1]]].isfinite(), "drawn although it was cut")

    def test_drawn_as_often_as_it_should(self):
        inputs = self.inputs(messages("What?", self.pictures[0]))
        ours = self.models["gqa"][1]
        many = {name: torch.cat([inputs[name]] * 200) for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
        torch.manual_seed(5)
        out = ours.generate(**many, do_sample=True, temperature=2.0, top_k=4, max_new_tokens=1, return_dict_in_generate=True, output_scores=True)
        chance = out.scores[0][0].softmax(0)
        count = torch.bincount(out.sequences[:, -1], minlength=len(chance))
        self.assertEqual(count[chance == 0].sum(), 0)
        self.assertLess((count / 200 - chance).abs().max(), 0.15)

    def test_chat_templates(self):
        cases = [messages("What?", "a"), messages("Two?", "a", "b"), [{"role": "user", "content": "Just a text <&\"'> 日本"}],
                 [{"role": "system", "content": "Be brief."}, *messages("x", "a"), {"role": "assistant", "content": "An \n answer"}, *messages("y")],
                 [{"role": "system", "content": [{"type": "text", "text": "parts"}]}, {"role": "user", "content": [{"type": "text", "text": ""}]}],
                 [{"role": "tool", "content": "3"}, {"role": "user", "content": [{"type": "image"}, {"text": "no type"}, {"image": "a"}]}]]
        templates = [None, "{% for m in messages %}{{ m | tojson(indent=2) }}{% if loop.last %}{% break %}{% endif %}\n  {% endfor %}\n {{ eos_token }}",
                     "{{ tools is none }}{{ documents is none }}{{ messages[0].role.upper()[:2] }}",
                     "{% set n = namespace(x=1) %}{% set n.x = 2 %}{{ n.x }}{%- for key in messages[0] | sort %} {{ key | tojson }}\n{% endfor %}"]
        for template in templates:
            for case in cases:
                for prompt in (False, True):
                    theirs, ours = (processor.apply_chat_template(case, chat_template=template, add_generation_prompt=prompt)
                                    for processor in self.processors)
                    self.assertEqual(theirs, ours)
        theirs, ours = (processor.apply_chat_template(cases, add_generation_prompt=True) for processor in self.processors)
        self.assertEqual(theirs, ours)
        self.assertEqual(self.processors[1].apply_chat_template(cases[0], "{{ mood }}", mood="good"), "good")
        # With the pictures.
        a, b, _ = self.pictures
        conversations = [messages("What?", a), messages("And these?", b, IMAGE)]
        of = {"tokenize": True, "return_dict": True, "padding": True, "return_tensors": "pt", "add_generation_prompt": True}
        theirs, ours = (processor.apply_chat_template(conversations, **of) for processor in self.processors)
        for name, tensor in theirs.items():
            self.assertLessEqual((tensor - ours[name]).abs().max(), 1e-5, name)
        ids = self.processors[1].apply_chat_template(messages("Hi"), tokenize=True)
        self.assertEqual(ids, self.processors[0].apply_chat_template(messages("Hi"), tokenize=True))

    def test_tokenizer(self):
        theirs, ours = (processor.tokenizer for processor in self.processors)
        ids = theirs.encode("A 🙂 <|im_end|> b")
        self.assertEqual(ours.encode("A 🙂 <|im_end|> b"), ids)
        for some in (ids, ids[:3], torch.tensor(ids), torch.tensor(ids[0]), []):
            for skip in (False, True):
                self.assertEqual(ours.decode(some, skip_special_tokens=skip), theirs.decode(some, skip_special_tokens=skip))
        batch = torch.tensor([ids, ids[::-1]])
        self.assertEqual(ours.batch_decode(batch, skip_special_tokens=True), theirs.batch_decode(batch, skip_special_tokens=True))
        for name in ("eos_token", "eos_token_id", "pad_token", "pad_token_id", "bos_token", "bos_token_id", "padding_side"):
            self.assertEqual(getattr(ours, name), getattr(theirs, name), name)
        self.assertEqual(len(ours), len(theirs))
        self.assertEqual(ours.convert_tokens_to_ids(["<|im_end|>", "A"]), theirs.convert_tokens_to_ids(["<|im_end|>", "A"]))
        self.assertEqual(ours.convert_tokens_to_ids("<|im_start|>"), theirs.convert_tokens_to_ids("<|im_start|>"))


class Templates(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.processor = Qwen2_5_VL_GP_Processor.from_pretrained(MODEL)

    def test_a_hostile_one_stays_inside(self):
        for template in ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.__class__.__base__ }}", "{{ ''['__class__']['__mro__'] }}",
                         "{{ (messages | attr('__class__')).__bases__ }}", "{{ raise_exception.__globals__ }}", "{{ strftime_now.__code__ }}",
                         "{{ cycler.__init__.__globals__.os.popen('id').read() }}", "{{ self.__init__.__globals__ }}",
                         "{{ '{0.__class__}'.format(messages) }}",
                         "{{ messages.append(1) }}", "{{ messages[0].update(role='system') }}", "{% include '/etc/passwd' %}",
                         "{% import 'os' as os %}",
                         "{{ open('/etc/passwd').read() }}", "{{ range(10 ** 9) | list }}", "{{ ().__reduce_ex__(2) }}",
                         "{{ lipsum.__globals__['os'] }}", "{{ ''.format_map.__self__.__class__ }}"):
            with self.subTest(template=template), self.assertRaisesRegex(glimpse.Error, "^chat template: "):
                out = self.processor.apply_chat_template(messages("x"), chat_template=template)
                if out in ("", "()"):  # jinja's sandbox gives nothing for what it hides
                    raise glimpse.Error("chat template: nothing")

    def test_wrong_ones(self):
        for words, template in (("TemplateSyntaxError", "{% for %}"), ("no roles here", "{{ raise_exception('no roles here') }}"),
                                ("UndefinedError", "{{ messages.nothing.more }}"), ("TypeError", "{{ 'a' + 1 }}"), ("ZeroDivision", "{{ 1 // 0 }}"),
                                ("RecursionError", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")):
            with self.subTest(template=template), self.assertRaisesRegex(glimpse.Error, f"chat template: .*{words}"):
                self.processor.apply_chat_template(messages("x"), chat_template=template)

    def test_where_they_come_from(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = model_copy(Path(folder) / "model", chat_template_json=None)
            of = lambda: Qwen2_5_VL_GP_Processor.from_pretrained(folder).apply_chat_template(messages("x"))
            plain = self.processor.apply_chat_template(messages("x"))
            self.assertEqual(of(), plain)  # tokenizer_config.json
            about = json.loads((MODEL / "tokenizer_config.json").read_text())
            (folder / "tokenizer_config.json").unlink()
            for template, said in (([{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}], "b"), (None, None)):
                (folder / "tokenizer_config.json").write_text(json.dumps({**about, "chat_template": template}))
                if said:
                    self.assertEqual(of(), said)
            with self.assertRaisesRegex(ValueError, "no chat template"):
                of()
            (folder / "chat_template.jinja").write_text("from a file")
            self.assertEqual(of(), "from a file")


if __name__ == "__main__":
    unittest.main()
