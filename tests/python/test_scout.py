"""The scout against PyTorch: its logits, the loss of a training step and the size of its gradient; and what it promises in the engine."""
import json
import math
import os
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import glimpse

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
from program import IMAGE, QUESTION  # noqa: E402

TAPS, WIDTH, HEADS, MATCH, RANK, LAYERS = [5, 3, 2, 1], 64, 4, 4, 32, 2
BOX, SIZE = [400, 20, 448, 100], 448


def norm(x, weight):
    return F.rms_norm(x.float(), (x.shape[-1],), weight, 1e-6)


def rotated(x, angles):
    cos, sin = (torch.cat([t, t], -1)[:, None] for t in (angles.cos(), angles.sin()))
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def scout_logits(w, visual, taps, words, rows, cols):
    """One picture by the formulas of docs/early_cut.md: visual [n, D], taps [n, Dv] each, words [T, D] -> [n]."""
    def linear(name, x):
        return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))

    n, t = len(visual), len(words)
    v, e = norm(visual, w["visual_norm.weight"]), norm(words, w["text_norm.weight"])
    c = torch.cat([norm(tap, w[f"tap_norms.{i}.weight"]) for i, tap in enumerate(taps)], 1)
    scores = torch.einsum("thr,nhr->htn", linear("match_q", e).view(t, MATCH, RANK), linear("match_k", torch.cat([v, c], 1)).view(n, MATCH, RANK)) / math.sqrt(RANK)
    weight = linear("match_gate", e).T.softmax(1)
    matched = torch.cat([scores.amax(1), torch.einsum("ht,htn->hn", weight, scores)]).T
    place = torch.arange(t).float()[:, None] * 10000.0 ** (-torch.arange(WIDTH // 2).float() / (WIDTH // 2))
    x = torch.cat([linear("visual_proj", v) + linear("tap_proj", c) + w["kinds"][0] + linear("match_proj", matched),
                   linear("text_proj", e) + 0.5 * torch.cat([place.sin(), place.cos()], 1) + w["kinds"][1]])
    frequency = 100.0 ** (-torch.arange(WIDTH // HEADS // 4).float() / (WIDTH // HEADS // 4))
    angles = torch.cat([torch.cat([rows[:, None] * frequency, cols[:, None] * frequency], 1), torch.zeros(t, WIDTH // HEADS // 2)])
    for i in range(LAYERS):
        p = f"layers.{i}."
        q, k, value = linear(p + "qkv_proj", norm(x, w[p + "norm1.weight"])).view(n + t, 3, HEADS, -1).unbind(1)
        q, k = rotated(q, angles), rotated(k, angles)
        mixed = F.scaled_dot_product_attention(*(s.transpose(0, 1)[None] for s in (q, k, value)))[0].transpose(0, 1).reshape(n + t, WIDTH)
        x = x + linear(p + "o_proj", mixed)
        h = norm(x, w[p + "norm2.weight"])
        x = x + linear(p + "down_proj", F.silu(linear(p + "gate_proj", h)) * linear(p + "up_proj", h))
    return (linear("out_proj", norm(x[:n], w["norm.weight"])) + linear("match_out", matched))[:, 0]


class Recorder(glimpse.Pruner):
    def cuts(self, model):
        return [glimpse.Cut("before", 0)]

    def taps(self, model):
        return glimpse.Taps(vision_layers=TAPS)

    def select(self, view, cut, budget):
        self._seen = [view.hidden.clone(), [state.clone() for state in view.vision_states], view.text_hidden[view.question].clone()]
        return range(len(view))


def train(place, settings):
    """A step that changes nothing, over a row with boxes and one without: folder of the modules, metrics. settings: the end of a config.yaml."""
    row = {"question": QUESTION, "answer": "A", "image": Path(IMAGE).name, "dataset": Path(IMAGE).parent.name, "width": SIZE, "height": SIZE}
    (place / "rows.jsonl").write_text(json.dumps({**row, "bboxs": [BOX]}) + "\n" + json.dumps(row) + "\n")
    (place / "config.yaml").write_text(f"batch: 2\naccumulation: 1\nlr: 0\ndtype: fp32\nlog_every: 1\n{settings}")
    modules = glimpse.train(place / "run", config=place / "config.yaml", data=place / "rows.jsonl", image_root=Path(IMAGE).parents[2], threads=1)
    return modules, json.loads((place / "run" / "metrics.jsonl").read_text().splitlines()[-1])


def scout_settings(**own):
    """`scout:` of a config.yaml, of the sizes above."""
    sizes = {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "match_heads": MATCH, "match_rank": RANK}
    return "scout:\n" + "".join(f"  {name}: {value}\n" for name, value in {**sizes, **own}.items())


class Scout(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.modules, cls.metrics = train(Path(cls.folder.name), scout_settings(visual_layers=TAPS))
        cls.weights = load_file(cls.modules / "scout.safetensors")
        model = glimpse._engine.model_dir("")
        cls.engine = glimpse.Engine(model, new_modules=[glimpse._engine.builtin_modules_dir(), f"scout={cls.modules}"], dtype="fp32", threads=1)
        recorder = Recorder()
        cls.engine.ask(IMAGE, QUESTION, prune=recorder, max_new_tokens=1)
        cls.seen = recorder._seen
        cls.cells = torch.arange(256)

    @classmethod
    def tearDownClass(cls):
        cls.engine.close()
        cls.folder.cleanup()

    def logits(self, weights):
        return scout_logits(weights, *self.seen, (self.cells // 16).float(), (self.cells % 16).float())

    def test_logits(self):
        scores = torch.from_numpy(self.engine.ask(IMAGE, QUESTION, prune="scout(modules=scout)", max_new_tokens=1).images[0].scores)
        self.assertLess((scores.logit() - self.logits(self.weights)).abs().max(), 1e-3)
        self.assertGreater(scores.std(), 1e-3)

    def test_two_pictures_are_two_views(self):
        one = self.engine.ask(IMAGE, QUESTION, prune="scout", max_new_tokens=1).images[0]
        two = self.engine.ask([IMAGE, IMAGE], QUESTION, prune="scout", max_new_tokens=1).images
        for image in two:
            self.assertLess(abs(image.scores - one.scores).max(), 1e-4)

    def test_loss_and_gradient(self):
        weights = {name: tensor.clone().requires_grad_() for name, tensor in self.weights.items()}
        logits = self.logits(weights)
        taught = torch.from_numpy(self.engine.ask(IMAGE, QUESTION, prune="glimpse", max_new_tokens=1).images[0].scores)
        boxes = torch.zeros(16, 16)
        boxes[20 * 16 // SIZE:100 * 16 // SIZE + 1, 400 * 16 // SIZE:] = 1
        boxes = boxes.flatten()
        p = logits.sigmoid()
        dice = 1 - (2 * (p * boxes).sum() + 1e-6) / (p.sum() + boxes.sum() + 1e-6)
        bce = F.binary_cross_entropy_with_logits(logits, boxes)
        distilled = F.binary_cross_entropy_with_logits(logits, taught)
        # Means over two rows, of which the second has no boxes.
        for name, value in (("dice", dice / 2), ("bce", bce / 2), ("le_loss", distilled), ("loss", (dice + 0.1 * bce) / 2 + distilled)):
            self.assertAlmostEqual(self.metrics[name], value.item(), delta=1e-4 * max(1, abs(value.item())), msg=name)
        ((dice + 0.1 * bce) / 2 + distilled).backward()
        size = torch.stack([tensor.grad.norm() for tensor in weights.values()]).norm().item()
        self.assertAlmostEqual(self.metrics["grad_norm"], size, delta=1e-3 * size)
        self.assertTrue(all(tensor.grad is not None for tensor in weights.values()))

    def test_lessons_on_disk(self):
        """Further trainings read what the frozen model made of a row, and make again what is damaged."""
        place = Path(self.folder.name) / "lessons"
        numbers = ("loss", "le_loss", "dice", "bce", "grad_norm")

        def run(name, kept="kept", gb=1):
            (place / name).mkdir(parents=True)
            metrics = train(place / name, f"cache_dir: {place / kept}\ncache_disk_gb: {gb}\n" + scout_settings(visual_layers=TAPS))[1]
            return [metrics[number] for number in numbers]

        first = run("first")
        picture, row = sorted((place / "kept").iterdir())  # of both rows, which ask the same
        self.assertEqual([path.name.split("-")[0] for path in (picture, row)], ["picture", "row"])
        self.assertEqual(run("second"), first)
        tensors = load_file(row)
        save_file({**tensors, "taught": 1 - tensors["taught"]}, row)
        self.assertNotEqual(run("other teacher")[1], first[1])
        save_file(tensors, row)
        picture.write_bytes(picture.read_bytes()[:1000])
        self.assertEqual(run("damaged"), first)
        self.assertEqual(run("mended"), first)
        self.assertGreater(picture.stat().st_size, 1000)
        # Room is made of what others kept and this training has not used, never of its own rows; what is more is not kept.
        old = place / "full" / ("0" * 32 + ".safetensors")
        for name, size, left in (("room", picture.stat().st_size + row.stat().st_size + 2**13, {picture.name, row.name}),
                                 ("none", picture.stat().st_size, {row.name})):
            old.parent.mkdir(exist_ok=True)
            old.write_bytes(bytes(2**14))
            os.utime(old, (1e9, 1e9))
            self.assertEqual(run(name, "full", size / 2**30), first)
            self.assertEqual({path.name for path in old.parent.iterdir()} - {old.name}, left)
            self.assertEqual(old.exists(), name == "none")
            shutil.rmtree(old.parent)

    def test_the_rule(self):
        scores = torch.from_numpy(self.engine.ask(IMAGE, QUESTION, prune="scout", max_new_tokens=1).images[0].scores)
        ranked = scores.argsort(descending=True, stable=True)
        middle = float(scores.median())
        for settings, expected in ((f"threshold={middle},floor=0", (scores > middle).nonzero().flatten()), ("threshold=1,floor=0.25", ranked[:64]),
                                   ("threshold=0,max_keep=0.1", ranked[:25]), ("threshold=1,max_keep=0.1", ranked[:25]), ("threshold=1,floor=0,min_keep=3", ranked[:3]), ("threshold=0", self.cells)):
            with self.subTest(settings=settings):
                keep = self.engine.ask(IMAGE, QUESTION, prune=f"scout({settings})", max_new_tokens=1).images[0].keep
                self.assertEqual(sorted(expected.tolist()), keep.tolist())
        self.assertEqual(self.engine.ask(IMAGE, QUESTION, prune="scout", keep=7, max_new_tokens=1).kept_tokens, 7)

    def test_everything_kept_is_no_pruning(self):
        def answered(prune):
            answer = self.engine.ask(IMAGE, QUESTION, prune=prune, logits=True)
            return answer.ids, answer.logits
        for first, second in (("scout(threshold=0)", "none"), ("scout(threshold=0)+glimpse", "glimpse")):
            (ids, logits), (expected, reference) = answered(first), answered(second)
            self.assertEqual((ids, torch.equal(logits, reference)), (expected, True), first)

    def test_composed_by_hand(self):
        cut = self.engine.ask(IMAGE, QUESTION, prune="scout(threshold=1,floor=0.3)", max_new_tokens=1).images[0].keep.tolist()

        class Same(glimpse.Pruner):
            def cuts(self, model):
                return [glimpse.Cut("before", 0)]

            def select(self, view, at, budget):
                return cut
        by_hand = self.engine.ask(IMAGE, QUESTION, prune=[Same(), "glimpse"])
        composed = self.engine.ask(IMAGE, QUESTION, prune="scout(threshold=1,floor=0.3)+glimpse")
        self.assertEqual((composed.ids, composed.images[0].keep.tolist()), (by_hand.ids, by_hand.images[0].keep.tolist()))

    def test_many_at_once(self):
        rows = [{"images": IMAGE, "question": question, "prune": "scout+glimpse"} for question in (QUESTION, "Is there a circle?")] * 3
        alone = [self.engine.ask(**row) for row in rows[:2]]
        self.assertEqual([(a.ids, a.images[0].keep.tolist()) for a in self.engine.ask_many(rows)], [(a.ids, a.images[0].keep.tolist()) for a in alone] * 3)

    def test_training_glimpse_on_leaves_scouts_out(self):
        """What goes on from a folder that has scouts, too, writes the modules that it trained, and a config.json that asks for no others."""
        with tempfile.TemporaryDirectory() as place:
            rows = [{"question": QUESTION, "answer": "A", "image": Path(IMAGE).name, "dataset": Path(IMAGE).parent.name, "width": SIZE, "height": SIZE, "bboxs": [BOX]}]
            (Path(place) / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            modules = glimpse.train(Path(place) / "run", data=Path(place) / "rows.jsonl", image_root=Path(IMAGE).parents[2], new_modules=glimpse._engine.builtin_modules_dir(),
                                    max_steps=1, accumulation=1, threads=1)
            with glimpse.Engine(glimpse._engine.model_dir(""), new_modules=modules, threads=1) as engine:
                self.assertEqual(engine.default_prune, "glimpse")

    def test_wrong_files(self):
        place = Path(self.folder.name) / "wrong"
        place.mkdir()
        config = json.loads((self.modules / "config.json").read_text())
        (place / "scout.safetensors").write_bytes((self.modules / "scout.safetensors").read_bytes())
        for words, scout in (("visual_layers is missing", {"visual_layers": []}), ("names block 6", {"visual_layers": [6, 3, 2, 1]}), ("does not divide", {"heads": 7}),
                             ("visual_proj", {"width": 32}), ("widht", {"widht": 64}), ("tap_proj", {"visual_layers": [1, 2, 3]}), ("layers", {"layers": 1})):
            (place / "config.json").write_text(json.dumps({"scout": {**config["scout"], **scout}}))
            with self.subTest(words=words), self.assertRaisesRegex(glimpse.Error, words):
                glimpse.Engine(glimpse._engine.model_dir(""), new_modules=place)
        with self.assertRaisesRegex(glimpse.Error, "asks nothing|no pruning modules"):
            glimpse.Engine(threads=1, new_modules=glimpse._engine.builtin_modules_dir()).ask(IMAGE, QUESTION, prune="scout(modules=nobody)")


if __name__ == "__main__":
    unittest.main()
