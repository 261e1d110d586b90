"""Cuts within the encoder against transformers' own blocks, and a scout that makes them against PyTorch."""
import json
import sys
import tempfile
import unittest
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, CLIPImageProcessor, CLIPVisionModel, Qwen2_5_VLForConditionalGeneration

import glimpse

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "cli")]
from program import ANSWER, IMAGE, KEEP, MODEL, QUESTION  # noqa: E402
from test_llava import GOLDEN as LLAVA, tokenizer  # noqa: E402
from test_scout import SIZE, Recorder, norm, scout_logits, scout_settings, train  # noqa: E402

BLOCK, TAPS, GUESS = 2, [2, 1], 48  # block 2 of 6 is the first that attends to the whole picture


class Within(glimpse.Pruner):
    """Keeps what `choose` says of (living tokens, their windows), after a block of the encoder."""

    def __init__(self, choose, block=BLOCK):
        self._choose, self._block, self._states = choose, block, None

    def cuts(self, model):
        return [glimpse.Cut("within", self._block)]

    def taps(self, model):
        return glimpse.Taps(vision_layers=[self._block])

    def select(self, view, cut, budget):
        self._view = view
        return self._choose(view.living, view.windows[view.living])


class Entering(glimpse.Pruner):
    """Notes what enters the language model, and puts other features there if there are some."""

    def __init__(self, keep=None, features=None):
        self._keep, self._features, self._living, self._hidden = keep, features, None, None

    def cuts(self, model):
        return [glimpse.Cut("before", 0)]

    def select(self, view, cut, budget):
        self._living, self._hidden = view.living.clone(), view.hidden.clone()
        return range(len(view)) if self._keep is None else glimpse.Selection(self._keep, self._features)


@torch.no_grad()
def merged_by_transformers(visual, pixels, grid, block, kept):
    """Merged tokens [kept, D], row-major, where only the `kept` units (a mask [N], row-major) go on after a block."""
    x, turn = visual.patch_embed(pixels), visual.rot_pos_emb(grid)
    order, ends = visual.get_window_index(grid)
    ends = torch.tensor(ends, dtype=torch.int32).unique_consecutive()
    unit = visual.spatial_merge_unit
    in_order = lambda t: t.reshape(-1, unit, t.shape[-1])[order].flatten(0, 1)  # noqa: E731
    x, turn = in_order(x), in_order(turn)
    angles = torch.cat([turn, turn], -1)
    stays = kept[order].repeat_interleave(unit)
    window = torch.bucketize(torch.arange(len(x)), ends[1:], right=True)
    for i, layer in enumerate(visual.blocks):
        if i == block + 1:
            x, angles, window = x[stays], angles[stays], window[stays]
        lengths = torch.tensor([len(x)]) if i in visual.fullatt_block_indexes else window.unique_consecutive(return_counts=True)[1]
        x = layer(x, cu_seqlens=F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), position_embeddings=(angles.cos(), angles.sin()))
    places = order[kept[order]]
    return visual.merger(x)[places.argsort()]


class EncoderCut(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        torch.set_num_threads(1)
        cls.engine = glimpse.Engine(MODEL, new_modules=glimpse._engine.builtin_modules_dir(), dtype="fp32", threads=1)
        cls.visual = Qwen2_5_VLForConditionalGeneration.from_pretrained(MODEL, torch_dtype=torch.float32).eval().visual
        cls.processor = AutoProcessor.from_pretrained(MODEL, use_fast=False).image_processor
        picture = Image.open(IMAGE).convert("RGB")
        cls.pictures = [picture, picture.resize((308, 252))]  # windows of 4 x 4 tokens; 11 x 9 tokens: some are smaller

    @classmethod
    def tearDownClass(cls):
        cls.engine.close()

    def test_kept_windows_against_transformers(self):
        for picture in self.pictures:
            inputs = self.processor(picture, return_tensors="pt")
            for block, wanted in ((BLOCK, (0, 3, 5)), (1, (2,)), (4, (1, 2, 3, 4, 5))):
                cut, entering = Within(lambda living, windows, wanted=wanted: [i for i, w in enumerate(windows.tolist()) if w in wanted], block), Entering()
                answer = self.engine.ask(picture, QUESTION, prune=[cut, entering], max_new_tokens=4)
                rows, cols = answer.images[0].rows, answer.images[0].cols
                self.assertEqual([rows * 2, cols * 2], inputs["image_grid_thw"][0, 1:].tolist())
                kept = torch.zeros(rows * cols, dtype=torch.bool)
                kept[answer.images[0].keep] = True
                self.assertEqual(len(cut._view.living), rows * cols)
                reference = merged_by_transformers(self.visual, inputs["pixel_values"], inputs["image_grid_thw"], block, kept)
                with self.subTest(size=picture.size, block=block, kept=int(kept.sum())):
                    self.assertLess(int(kept.sum()), len(kept))
                    self.assertLess((entering._hidden - reference).abs().max(), 1e-4 * reference.abs().max())
                    # The rest is as if they had been chosen before the language model.
                    by_hand = self.engine.ask(picture, QUESTION, prune=Entering(kept.nonzero().flatten(), entering._hidden), max_new_tokens=4, logits=True)
                    again = self.engine.ask(picture, QUESTION, prune=cut, max_new_tokens=4, logits=True)
                    self.assertEqual(again.ids, by_hand.ids)
                    self.assertTrue(torch.allclose(again.logits, by_hand.logits, atol=1e-5))

    def test_everything_kept_is_no_cut(self):
        for picture in self.pictures:
            entering, plain = Entering(), Entering()
            cut = self.engine.ask(picture, QUESTION, prune=[Within(lambda living, windows: range(len(living))), entering], logits=True)
            none = self.engine.ask(picture, QUESTION, prune=plain, logits=True)
            self.assertTrue(torch.equal(entering._hidden, plain._hidden))
            self.assertEqual((cut.ids, torch.equal(cut.logits, none.logits)), (none.ids, True))

    def test_nothing_kept(self):
        nothing = Within(lambda living, windows: [])
        for prune, expected in ((nothing, Entering([])), ([nothing, "glimpse"], [Entering([]), "glimpse"])):
            one, other = (self.engine.ask(self.pictures, QUESTION, prune=each, max_new_tokens=4, logits=True) for each in (prune, expected))
            self.assertEqual((one.kept_tokens, one.ids), (0, other.ids))
            self.assertTrue(torch.allclose(one.logits, other.logits, atol=1e-5))
        self.assertEqual(self.engine.ask(IMAGE, QUESTION, prune=Within(lambda living, windows: [7]), max_new_tokens=1).kept_tokens, 1)  # part of a window

    def test_what_it_sees(self):
        cut, embedded = Within(lambda living, windows: range(len(living))), Recorder()
        self.engine.ask(IMAGE, QUESTION, prune=[cut, embedded], max_new_tokens=1)
        view = cut._view
        self.assertIsNone(view.hidden)
        self.assertEqual(view.vision_states[0].shape, (256, self.visual.config.hidden_size))
        self.assertTrue(torch.equal(view.text_hidden[view.question], embedded._seen[2]))
        self.assertEqual(view.windows.reshape(16, 16)[::4, ::4].flatten().tolist(), list(range(16)))

    def test_two_pictures_and_many_at_once(self):
        def some(living, windows):
            return [i for i, w in enumerate(windows.tolist()) if w % 3 == 0]
        rows = [{"images": pictures, "question": QUESTION, "prune": [Within(some), "glimpse"], "max_new_tokens": 8}
                for pictures in (self.pictures, self.pictures[:1], self.pictures[1:])]
        alone = [self.engine.ask(**row) for row in rows]
        for one, together in zip(alone * 2, self.engine.ask_many(rows * 2)):
            self.assertEqual((one.ids, [i.keep.tolist() for i in one.images]), (together.ids, [i.keep.tolist() for i in together.images]))

    def test_the_built_in_scout(self):
        answer = self.engine.ask(IMAGE, QUESTION, prune="scout(encoder=2)+glimpse")
        self.assertEqual(answer.text, ANSWER)
        self.assertEqual([each["method"] for each in answer.pruning], ["scout", "glimpse"])
        self.assertTrue(set(KEEP) <= set(self.engine.ask(IMAGE, QUESTION, prune="scout(encoder=2)", max_new_tokens=1).images[0].keep.tolist()))

    def test_wrong_cuts(self):
        keep = lambda living, windows: range(len(living))  # noqa: E731
        at_output = Entering()
        at_output.cuts = lambda model: [glimpse.Cut("encoder", renumbers=True)]
        for words, prune in (("after block 5", Within(keep, 5)), ("after block 99", Within(keep, 99)), ("no other one there", [Within(keep), Within(keep, 1)]),
                             ("no other one there", [Within(keep), at_output]), ("not among|after block 2", "scout(encoder=3)")):
            with self.subTest(words=words), self.assertRaisesRegex(glimpse.Error, words):
                self.engine.ask(IMAGE, QUESTION, prune=prune, max_new_tokens=1)


class ClipCut(unittest.TestCase):
    """LLaVA's encoder, the golden data's tiny one: every block attends to the whole picture, so tokens go one by one."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        place = Path(cls.folder.name)
        (place / "model").mkdir()
        for file in (LLAVA / "base").iterdir():
            (place / "model" / file.name).symlink_to(file)
        (place / "model" / "tokenizer.json").write_text(tokenizer())
        (place / "clip-vit-tiny-patch14-112").symlink_to(LLAVA / "vision_tower")
        cls.model = place / "model"
        cls.engine = glimpse.Engine(cls.model, new_modules=LLAVA / "nm_main", dtype="fp32", threads=1)
        cls.visual = CLIPVisionModel.from_pretrained(LLAVA / "vision_tower", torch_dtype=torch.float32).eval().vision_model
        cls.projector = {name.partition("mm_projector.")[2]: tensor for name, tensor in load_file(LLAVA / "base/model.safetensors").items() if "mm_projector" in name}
        cls.pictures = [Image.open(LLAVA / "inputs" / name).convert("RGB").resize((112, 112)) for name in ("imgA.png", "imgB.png")]
        cls.pixels = CLIPImageProcessor.from_pretrained(LLAVA / "vision_tower")(cls.pictures, return_tensors="pt")["pixel_values"]

    @classmethod
    def tearDownClass(cls):
        cls.engine.close()
        cls.folder.cleanup()

    @torch.no_grad()
    def projected_by_transformers(self, pixels, block, kept):
        x = self.visual.pre_layrnorm(self.visual.embeddings(pixels[None]))
        for i, layer in enumerate(self.visual.encoder.layers[:-1]):  # LLaVA reads the last but one state
            if i == block + 1:
                x = x[:, torch.cat([torch.tensor([0]), 1 + kept])]
            x = layer(x, None, None)[0]
        return F.linear(F.gelu(F.linear(x[0, 1:], self.projector["0.weight"], self.projector["0.bias"])), self.projector["2.weight"], self.projector["2.bias"])

    def test_kept_tokens_against_transformers(self):
        kept = [torch.tensor([0, 5, 6, 20, 41, 63]), torch.arange(3, 60, 7)]
        for block in range(len(self.visual.encoder.layers) - 2):
            cut, entering = Within(lambda living, windows: torch.cat([kept[0], 64 + kept[1]]), block), Entering()
            cut.taps = lambda model: glimpse.Taps()
            answer = self.engine.ask(self.pictures, "Where?", prune=[cut, entering], max_new_tokens=4)
            self.assertEqual([image.keep.tolist() for image in answer.images], [k.tolist() for k in kept])
            reference = torch.cat([self.projected_by_transformers(pixels, block, k) for pixels, k in zip(self.pixels, kept)])
            self.assertLess((entering._hidden - reference).abs().max(), 1e-4 * reference.abs().max(), block)
            by_hand = self.engine.ask(self.pictures, "Where?", prune=Entering(torch.cat([kept[0], 64 + kept[1]]), entering._hidden), max_new_tokens=4, logits=True)
            again = self.engine.ask(self.pictures, "Where?", prune=cut, max_new_tokens=4, logits=True)
            self.assertTrue(torch.allclose(again.logits, by_hand.logits, atol=1e-5))

    def test_everything_or_nothing(self):
        for choose, expected in ((lambda living, windows: range(len(living)), "none"), (lambda living, windows: [], Entering([]))):
            cut = Within(choose, 1)
            cut.taps = lambda model: glimpse.Taps()
            one, other = (self.engine.ask(self.pictures, "Where?", prune=each, max_new_tokens=4, logits=True) for each in (cut, expected))
            self.assertEqual((one.ids, torch.equal(one.logits, other.logits)), (other.ids, True))

    def test_scout(self):
        """Trained for a step: its rule goes by tokens."""
        place = Path(self.folder.name)
        self.pictures[0].save(place / "a.png")
        (place / "rows.jsonl").write_text(json.dumps({"question": "Where?", "answer": "here", "image": "a.png", "dataset": ".", "width": 112, "height": 112, "bboxs": [[0, 0, 30, 30]]}) + "\n")
        (place / "config.yaml").write_text("batch: 1\naccumulation: 1\nlr: 0.001\nmax_steps: 1\ndtype: fp32\ndistil_weight: 0\nscout:\n  encoder: 1\n  visual_layers: [1]\n  width: 32\n"
                                           "  heads: 2\n  match_heads: 2\n  match_rank: 16\n  guess: 16\n")
        modules = glimpse.train(place / "run", config=place / "config.yaml", model=self.model, data=place / "rows.jsonl", image_root=place, threads=1)
        with glimpse.Engine(self.model, new_modules=[f"own={modules}", str(LLAVA / "nm_main")], dtype="fp32", threads=1) as engine:
            image = engine.ask(self.pictures[0], "Where?", prune="scout(encoder=1,threshold=1,floor=0.25)", max_new_tokens=1).images[0]
            self.assertEqual(image.keep.tolist(), sorted(torch.from_numpy(image.scores).argsort(descending=True, stable=True)[:16].tolist()))
            self.assertLessEqual(engine.ask(self.pictures, "Where?", prune="scout(encoder=1,threshold=1,floor=0.25)+glimpse", max_new_tokens=1).kept_tokens, 32)


class EncoderScout(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.modules, cls.metrics = train(Path(cls.folder.name), scout_settings(encoder=BLOCK, guess=GUESS, visual_layers=TAPS))
        cls.weights = load_file(cls.modules / "encoder_scout.safetensors")
        cls.engine = glimpse.Engine(MODEL, new_modules=[glimpse._engine.builtin_modules_dir(), f"own={cls.modules}"], dtype="fp32", threads=1)
        recorder = Recorder()
        recorder.taps = lambda model: glimpse.Taps(vision_layers=TAPS)
        cls.engine.ask(IMAGE, QUESTION, prune=recorder, max_new_tokens=1)
        cls.tokens, cls.states, cls.words = recorder._seen
        cls.cells = torch.arange(256)
        cls.windows = cls.cells // 64 * 4 + cls.cells % 16 // 4

    @classmethod
    def tearDownClass(cls):
        cls.engine.close()
        cls.folder.cleanup()

    def predicted(self, w):
        """Logits [n] and guessed tokens [n, D]."""
        taps = torch.cat([norm(tap, w[f"tap_norms.{i}.weight"]) for i, tap in enumerate(self.states)], 1)
        guess = F.linear(F.silu(F.linear(taps, w["guess_0.weight"], w["guess_0.bias"])), w["guess_2.weight"], w["guess_2.bias"])
        return scout_logits(w, guess, self.states, self.words, (self.cells // 16).float(), (self.cells % 16).float()), guess

    def ask(self, settings, **more):
        return self.engine.ask(IMAGE, QUESTION, prune=f"scout(encoder={BLOCK},modules=own{settings})", max_new_tokens=1, **more).images[0]

    def test_logits(self):
        scores = torch.from_numpy(self.ask("").scores)
        self.assertLess((scores.logit() - self.predicted(self.weights)[0]).abs().max(), 1e-3)
        self.assertGreater(scores.std(), 1e-3)

    def test_loss_and_gradient(self):
        weights = {name: tensor.clone().requires_grad_() for name, tensor in self.weights.items()}
        logits, guess = self.predicted(weights)
        taught = torch.from_numpy(self.engine.ask(IMAGE, QUESTION, prune="glimpse", max_new_tokens=1).images[0].scores)
        boxes = torch.zeros(16, 16)
        boxes[20 * 16 // SIZE:100 * 16 // SIZE + 1, 400 * 16 // SIZE:] = 1
        boxes, p = boxes.flatten(), logits.sigmoid()

        def largest(values):
            return torch.stack([values[self.windows == w].max() for w in range(16)])
        wanted = largest(boxes)
        located = (1 - (2 * (p * boxes).sum() + 1e-6) / (p.sum() + boxes.sum() + 1e-6) + 0.1 * F.binary_cross_entropy_with_logits(logits, boxes) +
                   0.3 * F.binary_cross_entropy_with_logits(largest(logits), wanted, weight=1 + wanted))
        taught = F.binary_cross_entropy_with_logits(logits, taught) + (guess - self.tokens).square().sum() / self.tokens.square().sum()
        loss = located / 2 + taught  # means over two rows, of which the second has no boxes
        self.assertAlmostEqual(self.metrics["le_loss"], taught.item(), delta=1e-4 * taught.item())
        self.assertAlmostEqual(self.metrics["loss"], loss.item(), delta=1e-4 * loss.item())
        loss.backward()
        size = torch.stack([tensor.grad.norm() for tensor in weights.values()]).norm().item()
        self.assertAlmostEqual(self.metrics["grad_norm"], size, delta=1e-3 * size)

    def test_the_rule(self):
        scores = torch.from_numpy(self.ask("").scores)
        best = torch.stack([scores[self.windows == w].max() for w in range(16)])
        ranked, middle = best.argsort(descending=True, stable=True), float(best.median())
        for settings, kept in ((f",threshold={middle},floor=0", (best > middle).nonzero().flatten()), (",threshold=1,floor=0.25", ranked[:4]),
                               (",threshold=0,floor=0,max_keep=0.2", ranked[:3]), (",threshold=1,floor=0,min_keep=2", ranked[:2]), (",threshold=0", torch.arange(16))):
            with self.subTest(settings=settings):
                self.assertEqual(torch.isin(self.windows, kept).nonzero().flatten().tolist(), self.ask(settings).keep.tolist())
        self.assertEqual(torch.isin(self.windows, ranked[:3]).nonzero().flatten().tolist(), self.ask("", keep=60).keep.tolist())  # room for three windows of 16
        self.assertEqual(len(self.ask("", keep=5).keep), 16)

    def test_before_other_methods(self):
        everything = f"scout(encoder={BLOCK},modules=own,threshold=0)+glimpse"
        for prune, expected in ((everything, "glimpse"), (f"scout(encoder={BLOCK},modules=own,threshold=0)+scout", "scout")):
            one, other = (self.engine.ask(IMAGE, QUESTION, prune=each, logits=True) for each in (prune, expected))
            self.assertEqual((one.ids, torch.equal(one.logits, other.logits)), (other.ids, True))
        answer = self.engine.ask(IMAGE, QUESTION, prune=f"scout(encoder={BLOCK},modules=own,threshold=1,floor=0.5)+glimpse")
        self.assertLess(answer.kept_tokens, 128)

    def test_wrong_files(self):
        place = Path(self.folder.name) / "wrong"
        place.mkdir()
        config = json.loads((self.modules / "config.json").read_text())["encoder_scout"]
        (place / "encoder_scout.safetensors").write_bytes((self.modules / "encoder_scout.safetensors").read_bytes())
        for words, changed in (("a block must follow", {"encoder": 5}), ("names block 2 but the scout chooses after block 1", {"encoder": 1}), ("belongs to a scout", {"encoder": -1}),
                               ("guess_0", {"guess": 64})):
            (place / "config.json").write_text(json.dumps({"encoder_scout": {**config, **changed}}))
            with self.subTest(words=words), self.assertRaisesRegex(glimpse.Error, words):
                glimpse.Engine(MODEL, new_modules=place)
        with self.assertRaisesRegex(glimpse.Error, "encoder is 3, but the scout that was given chooses after block 2"):
            self.engine.ask(IMAGE, QUESTION, prune="scout(encoder=3,modules=own)")


if __name__ == "__main__":
    unittest.main()
