"""The reference's numbers (tests/data/golden) through the classes that take the place of its own."""
import json
import tempfile
import unittest
from pathlib import Path

import torch
from safetensors.torch import load_file

from transformers_gp.models.qwen2_5_vl import Qwen2_5_VL_GP_ForConditionalGeneration
from transformers_gp.processing import mask_of_boxes

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/data/golden"
FAMILIES = ("qwen_tiny", "qwen_tiny_tied")


class Golden(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.base, cls.models = {}, {}
        for family in FAMILIES:  # with a tokenizer, which the engine wants and the ids have no use for
            cls.base[family] = Path(folder.name) / family
            cls.base[family].mkdir()
            tokenizer = [ROOT / "models/tiny/model" / name for name in ("tokenizer.json", "tokenizer_config.json")]
            for file in (*(GOLDEN / family / "base").iterdir(), *tokenizer):
                (cls.base[family] / file.name).symlink_to(file)

    def model(self, family, modules):
        """With the settings that it was loaded with."""
        if (family, modules) not in self.models:
            model = Qwen2_5_VL_GP_ForConditionalGeneration.from_pretrained(self.base[family], torch_dtype=torch.float32, threads=1)
            model.load_new_modules(GOLDEN / family / modules)
            self.models[family, modules] = model, dict(vars(model.config))
        model, loaded = self.models[family, modules]
        vars(model.config).update(loaded)
        return model

    def cases(self):
        """Family, name, what it is, its arrays and its images' of each case of inference."""
        for family in FAMILIES:
            for file in sorted((GOLDEN / family / "cases").glob("*.safetensors")):
                info, arrays = json.loads(file.with_suffix(".json").read_text()), load_file(file)
                if "labels" not in arrays:
                    yield family, file.stem, info, arrays, load_file(GOLDEN / family / f"{info['inputs']}.safetensors")

    def inputs(self, info, arrays, images):
        """As generate() takes them; None for ref_masks where the case has none."""
        grids = images["image_grid_thw"].long()
        masks = info["ref_boxes"] and [mask_of_boxes(boxes, (h // 2, w // 2)) for boxes, (_, h, w) in zip(info["ref_boxes"], grids.tolist())]
        if masks:
            self.assertEqual(torch.cat([mask.flatten() for mask in masks]).tolist(), arrays["ref_mask"].bool().tolist())
        return {"input_ids": arrays["input_ids"].long()[None], "pixel_values": images["pixel_values"], "image_grid_thw": grids,
                "do_selection": info["do_selection"], "use_ref_masks": bool(masks), "ref_masks": masks or None}

    def test_cases(self):
        count = 0
        for family, name, info, arrays, images in self.cases():
            with self.subTest(family=family, case=name, what=info["what"]):
                model = self.model(family, info["new_modules"])
                vars(model.config).update(info["overrides"])
                given = self.inputs(info, arrays, images)
                out = model.generate(**given, max_new_tokens=info["max_new_tokens"], eos_token_id=None, return_dict_in_generate=True,
                                     output_logits=True)
                length = given["input_ids"].shape[1]
                self.assertEqual(out.sequences[0, length:].tolist(), arrays["generated_ids"].tolist())
                logits = torch.cat(out.logits)
                best = logits.topk(2).values
                self.assertLess((logits[0] - arrays["first_logits"]).abs().max(), 5e-4)
                for key, values in (("step_top2", best), ("step_logits", logits)):
                    if key in arrays:
                        self.assertLess((values - arrays[key]).abs().max(), 5e-4, key)
                masks = torch.cat(out.image_token_bool_masks)
                self.assertEqual(masks.tolist(), arrays["keep_mask"].bool().tolist() if "keep_mask" in arrays else [True] * len(masks))
                if "vip_logits" in arrays:
                    self.assertLess((torch.cat(out.image_token_mask_logits, 1)[0] - arrays["vip_logits"][-1]).abs().max(), 2e-3)
                # The same masks given back: the method's answer without its predictor.
                if "keep_mask" in arrays:
                    vars(model.config).update({"max_remain_ratio": None, "min_remain_num": None, "anchor_positions": [], "use_zero_masks": False})
                    given.update(use_ref_masks=True, ref_masks=out.image_token_bool_masks)
                    again = model.generate(**given, max_new_tokens=info["max_new_tokens"], eos_token_id=None)
                    self.assertEqual(again.tolist(), out.sequences.tolist())
            count += 1
        self.assertEqual(count, 22)

    def test_together(self):
        """Cases that ask for the same in one batch, padded on either side."""
        names = ("c01_single", "c02_two_images", "c03_tail_long", "c03_tail_short")
        of = [each for each in self.cases() if each[1] in names]
        model = self.model("qwen_tiny", "nm_main")
        rows = [arrays["input_ids"].long() for *_, arrays, _ in of]
        length = max(map(len, rows))
        for side in ("left", "right"):
            pad = lambda row, value: torch.nn.functional.pad(row, (length - len(row), 0) if side == "left" else (0, length - len(row)), value=value)
            out = model.generate(input_ids=torch.stack([pad(row, 5) for row in rows]),
                                 attention_mask=torch.stack([pad(torch.ones_like(row), 0) for row in rows]),
                                 pixel_values=torch.cat([images["pixel_values"] for *_, images in of]),
                                 image_grid_thw=torch.cat([images["image_grid_thw"] for *_, images in of]), max_new_tokens=16, eos_token_id=None,
                                 return_dict_in_generate=True)
            self.assertEqual(out.sequences[:, length:].tolist(), [arrays["generated_ids"].tolist() for *_, arrays, _ in of])
            self.assertEqual(torch.cat(out.image_token_bool_masks).tolist(), torch.cat([arrays["keep_mask"].bool() for *_, arrays, _ in of]).tolist())

    def test_boxes(self):
        boxes = json.loads((GOLDEN / "misc/boxes_to_masks.json").read_text())
        for boxes, grid, kept in [(each["boxes"], each["grid_hw"], each["kept"]) for each in boxes["masks"]] + \
                [([each["normed"]], each["grid_hw"], each["kept"]) for each in boxes["pixel_boxes"]]:
            self.assertEqual(mask_of_boxes(boxes, tuple(grid)).flatten().nonzero().flatten().tolist(), kept)


if __name__ == "__main__":
    unittest.main()
