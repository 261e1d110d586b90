"""What the tests of transformers_gp share."""
import json
import logging
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import torch
import transformers
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "cli"), str(HERE.parent / "parity")]
from program import IMAGE, MODEL, MODULES, QUESTION, ROOT  # noqa: E402

from transformers_gp.models.qwen2_5_vl import Qwen2_5_VL_GP_ForConditionalGeneration, Qwen2_5_VL_GP_Processor  # noqa: E402

transformers.logging.set_verbosity_error()
logging.getLogger("transformers").setLevel(logging.ERROR)
END, PAD = 556, 554  # <|im_end|>, <|endoftext|>
GOLDEN = ROOT / "tests/data/golden"


def own_model(folder=MODEL, modules=MODULES, **how):
    """A model in fp32, on one thread."""
    model = Qwen2_5_VL_GP_ForConditionalGeneration.from_pretrained(folder, torch_dtype=torch.float32, threads=1, **how)
    if modules:
        model.load_new_modules(modules)
    return model.eval()


def picture(name=IMAGE, size=None, mode="RGB"):
    image = Image.open(name).convert(mode)
    return image.resize(size) if size else image


def messages(text=QUESTION, *images):
    return [{"role": "user", "content": [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]}]


def model_copy(folder, **files):
    """The built-in model's files, some with settings of their own (config_json={"vocab_size": 3}), None: without that file."""
    folder.mkdir()
    for file in MODEL.iterdir():
        name = file.name.replace(".", "_")
        if name not in files:
            (folder / file.name).symlink_to(file)
        elif files[name] is not None:
            own = json.loads(file.read_text())
            (folder / file.name).write_text(json.dumps({**own, **files[name]}))
    return folder


class Scratch(unittest.TestCase):
    """With an empty folder, `self.dir`."""

    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(prefix="glimpse-python-"))
        self.addCleanup(shutil.rmtree, self.dir, True)


class BuiltIn(unittest.TestCase):
    """The built-in model with its modules, a prepared question, and ways to ask."""

    @classmethod
    def setUpClass(cls):
        cls.model = own_model()
        cls.processor = Qwen2_5_VL_GP_Processor.from_pretrained(MODEL)
        cls.inputs = cls.prepared(messages(QUESTION, IMAGE))
        cls.length = cls.inputs.input_ids.shape[1]

    def setUp(self):
        before = dict(vars(self.model.config))
        self.addCleanup(lambda: (vars(self.model.config).clear(), vars(self.model.config).update(before)))

    @classmethod
    def prepared(cls, *conversations, **how):
        texts = cls.processor.apply_chat_template(list(conversations), add_generation_prompt=True)
        images = [part["image"] for each in conversations for message in each for part in message["content"] if part["type"] == "image"]
        return cls.processor(text=texts, images=images, padding=True, return_tensors="pt", padding_side="left", **how)

    def text(self, sequences, length=None):
        return self.processor.batch_decode(sequences[:, self.length if length is None else length:], skip_special_tokens=True)

    def kept(self, inputs=None, **how):
        """Kept tokens of each image, and the answers' ids."""
        inputs = self.inputs if inputs is None else inputs
        out = self.model.generate(**{**inputs, **how}, max_new_tokens=16, return_dict_in_generate=True)
        return [mask.nonzero().flatten().tolist() for mask in out.image_token_bool_masks], out.sequences[:, inputs.input_ids.shape[1]:].tolist()

    def asked(self, prune, images=IMAGE, question=QUESTION, **how):
        answer = self.model.engine.ask(images, question, prune=prune, max_new_tokens=16, **how)
        return [image.keep.tolist() for image in answer.images], [[*answer.ids, *([] if answer.end_id is None else [answer.end_id])]]
