"""Methods of one's own, and the library's as functions on tensors."""
import json
import sys
import tempfile
import threading
import traceback
import unittest
from pathlib import Path

import numpy as np
import torch

import glimpse

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
from program import ANSWER, IMAGE, KEEP, QUESTION  # noqa: E402


class Kept(glimpse.Pruner):
    """keeps given tokens"""

    def __init__(self, keep=tuple(KEEP), place="after", layer=None):
        self.keep, self.place, self._layer = list(keep), place, layer

    def cuts(self, model):
        return [glimpse.Cut(self.place, model.cut_layer if self._layer is None else self._layer)]

    def select(self, view, cut, budget):
        return self.keep


class Own(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.engine = glimpse.Engine(threads=1)

    def ask(self, prune, **more):
        return self.engine.ask(IMAGE, QUESTION, prune=prune, **more)

    def test_as_the_library_would(self):
        ours, theirs = self.ask(Kept(), logits=True, max_new_tokens=4), self.ask("glimpse", logits=True, max_new_tokens=4)
        self.assertEqual((ours.ids, ours.images[0].keep.tolist()), (theirs.ids, KEEP))
        # Without the glimpse token the other rows are the same up to the order of sums.
        self.assertLess((ours.logits - theirs.logits).abs().max(), 0.5)
        self.assertEqual(ours.pruning, [{"method": "kept", "settings": {"keep": KEEP, "place": "after"}}])
        everything = self.ask(Kept(range(256), "before", 0))
        self.assertEqual((everything.ids, everything.kept_tokens), (self.ask("none").ids, 256))

    def test_forms_of_a_choice(self):
        mask = torch.zeros(256, dtype=torch.bool)
        mask[KEEP] = True
        for choice in (KEEP, tuple(KEEP[::-1]), np.array(KEEP), torch.tensor(KEEP, dtype=torch.int32), mask, mask.numpy(), glimpse.Selection(mask)):
            with self.subTest(choice=type(choice)):
                pruner = Kept()
                pruner.select = lambda view, cut, budget, choice=choice: choice
                self.assertEqual(self.ask(pruner, max_new_tokens=1).images[0].keep.tolist(), KEEP)
        self.assertEqual(self.ask(Kept([]), max_new_tokens=1).kept_tokens, 0)

    def test_scores_and_features(self):
        class Halved(Kept):
            def select(self, view, cut, budget):
                return glimpse.Selection(self.keep, view.hidden[self.keep] / 2, torch.linspace(0, 1, len(view)))
        answer = self.ask(Halved(layer=2), logits=True, max_new_tokens=2)
        self.assertEqual(answer.images[0].scores.tolist(), torch.linspace(0, 1, 256).tolist())
        self.assertGreater((answer.logits[0] - self.ask(Kept(layer=2), logits=True, max_new_tokens=2).logits[0]).abs().max(), 1e-3)

    def test_what_it_sees(self):
        seen = []

        class Watching(glimpse.Pruner):
            def cuts(self, model):
                self._model = model
                return [glimpse.Cut("before", 0, ahead="with_rope"), glimpse.Cut("after", 3)]

            def taps(self, model):
                return glimpse.Taps(vision_layers=[2], attention_layers=[1, 3], vision_attention=[-1], boxes=True)

            def select(self, view, cut, budget):
                seen.append((view, cut, budget))
                return np.arange(0, len(view), 2)

        pruner = Watching()
        answer = self.engine.ask([IMAGE, IMAGE], QUESTION, prune=["divprune(keep=0.5)", pruner], keep=0.1, max_new_tokens=1, boxes=[[(0, 0, 0.5, 1)], []])
        (first, at_first, budget), (second, at_second, _) = seen
        self.assertEqual(pruner._model, glimpse.ModelInfo(6, 3, 2, False, False))
        self.assertEqual((at_first.place, at_first.layer, at_first.ahead, at_second.place, at_second.layer), ("before", 0, "with_rope", "after", 3))
        self.assertEqual((budget, budget.of(512), budget.of(3)), (glimpse.Budget(keep=0.1), 51, 1))
        self.assertEqual([glimpse.Budget(keep=0.5).of(n) for n in (1, 3, 5)], [1, 2, 3])  # halves as the library rounds them
        self.assertEqual([(s.rows, s.cols, s.first, s.medium, s.area) for s in first.segments], [(16, 16, 0, 0, (0, 0, 1, 1)), (16, 16, 256, 1, (0, 0, 1, 1))])
        self.assertEqual((first.total, len(second), answer.kept_tokens), (512, (len(first) + 1) // 2, (len(second) + 1) // 2))
        self.assertTrue(torch.equal(second.living, first.living[::2]))
        n, width = len(second), first.hidden.shape[1]
        self.assertEqual((second.hidden.shape, second.attention.shape, second.attention.dtype), ((n, width), (n, 2 * 4), torch.float32))
        self.assertEqual(([s.shape for s in second.vision_states], len(second.windows)), ([(512, 128)], 512))
        received, keys = second.vision_attention[0]
        self.assertEqual((received.shape, keys.shape[0]), ((512,), 512))
        self.assertEqual((first.ahead.shape, second.ahead, second.shared_image), ((len(first),), None, None))
        self.assertEqual(second.text_hidden.shape[1], width)
        self.assertLess(int(second.question.max()), len(second.text_hidden))
        self.assertEqual(first.boxes, [[(0, 0, 0.5, 1)], []])

    def test_by_name(self):
        glimpse.register(Kept, "kept_tokens")
        self.assertEqual(glimpse.methods()["kept_tokens"], "keeps given tokens")
        answer = self.ask("kept_tokens(place=after) + glimpse(threshold=0.2)".replace(" ", ""), max_new_tokens=1)
        self.assertEqual([each["method"] for each in answer.pruning], ["kept", "glimpse"])

        @glimpse.register
        class Sized(glimpse.Pruner):
            def __init__(self, count=3, scale=1.0, note=None):
                self.count, self.scale, self.note = count, scale, note

            def cuts(self, model):
                return [glimpse.Cut("before", 0, reads_text=False)]

            def select(self, view, cut, budget):
                return range(budget.of(view.total) or self.count)

        answer = self.ask("sized(count=7,scale=0.5,note=x)", max_new_tokens=1)
        self.assertEqual((answer.kept_tokens, answer.pruning[0]["settings"]), (7, {"count": 7, "scale": 0.5, "note": "x"}))
        self.assertEqual(self.ask("sized(note=none)", keep=11, max_new_tokens=1).kept_tokens, 11)
        for name in ("glimpse", "none", "auto", "Big", "a b", ""):
            with self.assertRaises(glimpse.Error, msg=name):
                glimpse.register(Kept, name) if name else glimpse._engine.register("", "", Kept)
        with self.assertRaisesRegex(glimpse.Error, "unexpected keyword argument 'cuont'"):
            self.ask("sized(cuont=7)")

    def test_faults_end_their_request_alone(self):
        def failing(**methods):
            return type("Failing", (Kept,), methods)()

        def explode(self, *_):
            raise ZeroDivisionError("what went wrong")

        others = [self.engine.stream(IMAGE, QUESTION) for _ in range(3)]
        for method in ("select", "cuts", "taps", "settings"):
            with self.subTest(method=method), self.assertRaisesRegex(ZeroDivisionError, "what went wrong"):
                try:
                    self.ask(failing(**{method: explode}))
                except ZeroDivisionError as error:
                    self.assertIn("in explode", "".join(traceback.format_tb(error.__traceback__)))
                    raise
        for words, choice in (("twice", [1, 1]), ("the token 256 of 256", [256]), ("the token -1", [-1]), ("mask of 3", torch.ones(3, dtype=torch.bool)),
                              ("no integers", [0.5]), ("dimension", [[1, 2]]), ("features of the shape", glimpse.Selection([1, 2], torch.zeros(3, 256))),
                              ("features of the shape", glimpse.Selection([1], torch.zeros(1, 5))), ("scores of the shape", glimpse.Selection([1], None, torch.zeros(3)))):
            with self.subTest(words=words), self.assertRaisesRegex(glimpse.Error, words):
                self.ask(failing(select=lambda self, view, cut, budget, choice=choice: choice))
        for words, kind, cut in (("layer 6", glimpse.Error, glimpse.Cut("after", 6)), ("layer -1", glimpse.Error, glimpse.Cut("after", -1)),
                                 ("one of within, encoder", ValueError, glimpse.Cut("inside", 0)), ("renumbers", glimpse.Error, glimpse.Cut("encoder")),
                                 ("layer is 'x'", TypeError, glimpse.Cut("after", "x"))):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                self.ask(failing(cuts=lambda self, model, cut=cut: [cut]))
        with self.assertRaisesRegex(glimpse.Error, "nowhere"):
            self.ask(failing(cuts=lambda self, model: []))
        with self.assertRaisesRegex(TypeError, "expected a tensor"):
            self.ask(failing(select=lambda self, view, cut, budget: "abc"))
        for wrong in (3, [object()]):
            with self.assertRaises((TypeError, AttributeError)):
                self.ask(wrong)
        self.assertEqual([stream.result().text for stream in others], [ANSWER] * 3)

    def test_many_threads(self):
        got = []
        threads = [threading.Thread(target=lambda: got.append(self.ask(Kept()).text)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(got, [ANSWER] * 8)


class OnTensors(unittest.TestCase):
    def test_as_in_the_engine(self):
        recorded = {}

        class Recording(glimpse.Pruner):
            def cuts(self, model):
                return [glimpse.Cut("before", 0)]

            def taps(self, model):
                return glimpse.Taps(vision_attention=[-1], vision_layers=[0])

            def select(self, view, cut, budget):
                recorded.update(hidden=view.hidden.clone(), text_hidden=view.text_hidden.clone(), question=view.question.clone(), windows=view.windows,
                                vision_attention=[view.vision_attention[0][0].clone()], vision_keys=[view.vision_attention[0][1].clone()])
                return range(len(view))

        engine = glimpse.Engine(threads=1)
        engine.ask(IMAGE, QUESTION, prune=Recording(), max_new_tokens=1)
        tensors = dict(recorded)
        hidden = tensors.pop("hidden")
        for method in ("divprune(keep=0.1)", "dart(keep=0.1)", "cdpruner(keep=0.1)"):
            with self.subTest(method=method):
                in_engine = engine.ask(IMAGE, QUESTION, prune=method, max_new_tokens=1).images[0].keep
                self.assertEqual(engine.prune(method, hidden, [(16, 16)], **tensors).tolist(), in_engine.tolist())
                self.assertEqual(glimpse.prune(method, hidden, [(16, 16)], layers=6, **tensors).tolist(), in_engine.tolist())
        visionzip = engine.ask(IMAGE, QUESTION, prune="visionzip", max_new_tokens=1)
        self.assertEqual(engine.prune("visionzip", hidden, [(16, 16)], **tensors).tolist(), visionzip.images[0].keep.tolist())
        self.assertEqual(engine.prune("reference", hidden, [(16, 16)], boxes=[[(0.01, 0.01, 0.05, 0.05)]]).tolist(), [0])

    def test_wrong_calls(self):
        x = torch.randn(64, 32)
        prune = glimpse.prune
        self.assertEqual(len(prune("divprune", x, [(8, 8)], keep=5)), 5)
        self.assertEqual(len(prune("divprune", x[:10], [(8, 8)], keep=5, living=range(10))), 5)
        for words, kind, call in (("vision_attention", TypeError, lambda: prune("visionzip", x, [(8, 8)])), ("nonsense", glimpse.Error, lambda: prune("nonsense", x, [(8, 8)])),
                                  ("one method", ValueError, lambda: prune("divprune+random", x, [(8, 8)])), ("63 rows|64 rows", glimpse.Error, lambda: prune("divprune", x[:63], [(8, 8)])),
                                  ("grid", ValueError, lambda: prune("divprune", x, [(0, 8)])), ("attnetion", TypeError, lambda: prune("divprune", x, [(8, 8)], attnetion=x)),
                                  ("keep", glimpse.Error, lambda: prune("divprune", x, [(8, 8)], keep=-1)), ("modules", glimpse.Error, lambda: prune("glimpse", x, [(8, 8)])),
                                  ("living", ValueError, lambda: prune("divprune", x[:2], [(8, 8)], living=[3, 3])), ("cuts", ValueError, lambda: prune("divprune", x, [(8, 8)], cut=4))):
            with self.subTest(words=words), self.assertRaisesRegex(kind, words):
                call()


class Commands(unittest.TestCase):
    def test_evaluate(self):
        @glimpse.register
        class Even(glimpse.Pruner):
            """every second token"""
            def cuts(self, model):
                return [glimpse.Cut("before", 0)]

            def select(self, view, cut, budget):
                return range(0, len(view), 2)

        threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:
            table = glimpse.evaluate(Path(folder) / "run", methods=["none", "even", "glimpse"], limit=2, threads=1)
            rows = {row["method"]: row for row in table if row["set"] == "all rows"}
            self.assertEqual({name: row["rows"] for name, row in rows.items()}, {"none": 10, "even": 10, "glimpse": 10})
            self.assertEqual((rows["none"]["kept"], round(rows["even"]["kept"], 2)), (1, 0.5))
            self.assertLess(rows["glimpse"]["kept"], 0.1)
            self.assertTrue((table.folder / "report.html").exists())
            self.assertIn("even", str(table))
            self.assertIn("<td>even</td>", table._repr_html_())
            json.dumps(table)
            with self.assertRaisesRegex(glimpse.Error, "unknown method 'nonsense'"):
                glimpse.evaluate(Path(folder) / "other", methods="nonsense", limit=2)
            with self.assertRaisesRegex(glimpse.Error, "no-such-flag"):
                glimpse.evaluate(Path(folder) / "other", no_such_flag=True)
        self.assertEqual(torch.get_num_threads(), threads)

    def test_train_and_tune(self):
        pictures = Path(IMAGE).parents[2]
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "rows.jsonl"
            data.write_text(json.dumps({"question": QUESTION, "answer": "A", "image": Path(IMAGE).name, "dataset": Path(IMAGE).parent.name, "bboxs": [[400, 0, 448, 60]],
                                        "width": 448, "height": 448}) + "\n")
            made = glimpse.train(Path(folder) / "run", config=pictures.parents[2] / "configs" / "train" / "tiny.yaml", data=data, image_root=pictures,
                                 max_steps=1, threads=1)
            engine = glimpse.Engine(glimpse._engine.model_dir(""), new_modules=made, threads=1)
            self.assertEqual(engine.ask(IMAGE, QUESTION, max_new_tokens=1).pruning[0]["method"], "glimpse")
            with self.assertRaisesRegex(glimpse.Error, "holds a training run"):
                glimpse.train(Path(folder) / "run", data=data, image_root=pictures)
            adapter = glimpse.tune(Path(folder) / "tuned", data=data, image_root=pictures, stage="sft", accumulation=1, lora_r=2, threads=1)
            self.assertTrue((adapter / "adapter_model.safetensors").exists())


if __name__ == "__main__":
    unittest.main()
