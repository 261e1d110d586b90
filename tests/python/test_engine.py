"""The Python package: the same engine, the same answers."""
import base64
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
from program import ANSWER, IMAGE, KEEP, QUESTION  # noqa: E402

BEFORE = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
import glimpse  # noqa: E402

LONG = {"max_new_tokens": 3000, "ignore_eos": True}


class Engine(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.engine = glimpse.Engine(threads=1)

    def idle(self, seconds=5):
        deadline = time.monotonic() + seconds
        while self.engine.running:
            self.assertLess(time.monotonic(), deadline, "something still runs")
            time.sleep(0.01)

    def test_ask(self):
        answer = self.engine.ask(IMAGE, QUESTION)
        self.assertEqual((str(answer), answer.text, answer.finish_reason), (ANSWER, ANSWER, "stop"))
        image = answer.images[0]
        self.assertEqual((image.rows, image.cols, image.keep.tolist(), image.keep.dtype), (16, 16, KEEP, np.int64))
        self.assertEqual((image.scores.shape, image.scores.dtype), ((256,), np.float32))
        self.assertEqual(np.flatnonzero(image.scores > 0.5).tolist(), KEEP)
        self.assertEqual((answer.visual_tokens, answer.kept_tokens, answer.prompt_tokens), (256, 4, 285))
        self.assertEqual(set(answer.times_ms), {"vision", "prefill", "prune", "decode"})
        self.assertEqual(answer.pruning[0]["method"], "glimpse")

    def test_pictures_of_every_kind(self):
        file = Path(IMAGE).read_bytes()
        picture = Image.open(io.BytesIO(file))
        for kind, of in (("Path", Path(IMAGE)), ("bytes", file), ("memoryview", memoryview(file)), ("PIL", picture),
                         ("array", np.asarray(picture)), ("mirrored view", np.asarray(picture)[:, ::-1][:, ::-1]), ("list", [IMAGE]),
                         ("data URL", "data:image/jpeg;base64," + base64.b64encode(file).decode())):
            with self.subTest(kind=kind):
                self.assertEqual(self.engine.ask(of, QUESTION).text, ANSWER)
        grey = self.engine.ask(np.asarray(picture.convert("L")), QUESTION, max_new_tokens=2)
        self.assertEqual(grey.visual_tokens, 256)
        two = self.engine.ask([IMAGE, file], QUESTION, max_new_tokens=2)
        self.assertEqual((len(two.images), two.visual_tokens), (2, 512))
        self.assertEqual(self.engine.ask(None, "Hello", max_new_tokens=2).visual_tokens, 0)

    def test_settings(self):
        ask = self.engine.ask
        self.assertEqual(ask(IMAGE, QUESTION, prune="none").kept_tokens, 256)
        self.assertEqual(ask(IMAGE, QUESTION, prune="divprune", keep=0.25).kept_tokens, 64)
        self.assertEqual(ask(IMAGE, QUESTION, prune="divprune", keep=10).kept_tokens, 10)
        self.assertEqual(ask(IMAGE, QUESTION, stop="orange").text, "The letter on the ")
        self.assertEqual(len(ask(IMAGE, QUESTION, max_new_tokens=3).ids), 3)
        self.assertEqual(ask(IMAGE, QUESTION, max_pixels=224 * 224).visual_tokens, 64)
        seeded = {"temperature": 2.0, "seed": 7, "max_new_tokens": 20}
        self.assertEqual(ask(IMAGE, QUESTION, **seeded).text, ask(IMAGE, QUESTION, **seeded).text)
        tokens = ask(IMAGE, QUESTION, logprobs=2).tokens
        self.assertTrue(all(len(top) == 2 and top[0][0] == token and top[0][1] == logprob <= 0 for token, logprob, top in tokens))
        self.assertIn("glimpse", self.engine.methods)
        self.assertEqual((self.engine.default_prune, self.engine.context_length), ("glimpse", 4096))

    def test_messages(self):
        first = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": QUESTION}]}
        self.assertEqual(self.engine.ask(messages=[first]).text, ANSWER)
        first["content"][0] = {"type": "image", "image": IMAGE}
        more = [{"role": "system", "content": "Be brief."}, first, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": "And?"}]
        self.assertEqual(self.engine.ask(messages=more, max_new_tokens=2).visual_tokens, 256)
        for wrong in ({"images": IMAGE, "messages": [first]}, {}, {"question": "x", "messages": [first]},
                      {"messages": [{"role": "user", "content": [{"type": "audio"}]}]}):
            with self.assertRaises(TypeError):
                self.engine.ask(**wrong)

    def test_stream(self):
        stream = self.engine.stream(IMAGE, QUESTION)
        pieces = [next(stream)]
        self.assertEqual(stream.kept.images[0].keep.tolist(), KEEP)
        self.assertIsNone(stream.answer)
        pieces += stream
        self.assertGreater(len(pieces), 3)
        self.assertEqual(("".join(pieces), stream.answer.text, list(stream)), (ANSWER, ANSWER, []))

    def test_what_nobody_waits_for_ends(self):
        stream = self.engine.stream(IMAGE, QUESTION, **LONG)
        next(stream)
        stream.cancel()
        self.assertEqual(stream.result().finish_reason, "cancelled")
        dropped = self.engine.stream(IMAGE, QUESTION, **LONG)
        next(dropped)
        del dropped
        self.idle()

    def test_many(self):
        rows = [{"images": IMAGE, "question": q, "prune": prune} for q in (QUESTION, "What letter is on the purple hexagon?")
                for prune in ("glimpse", "none", "divprune")] * 4
        alone = [self.engine.ask(**row).text for row in rows[:6]]
        self.assertEqual([answer.text for answer in self.engine.ask_many(rows)], alone * 4)
        rows[3] = {"images": "/nowhere.png", "question": "x"}
        rows[20] = {"question": "word " * 5000}
        with self.assertRaisesRegex(glimpse.Error, "/nowhere.png"):
            self.engine.ask_many(rows)
        self.idle()
        got = self.engine.ask_many(rows, errors="return")
        self.assertEqual([i for i, answer in enumerate(got) if isinstance(answer, glimpse.Error)], [3, 20])
        self.assertEqual([answer.text for i, answer in enumerate(got) if i not in (3, 20)], [t for i, t in enumerate(alone * 4) if i not in (3, 20)])

    def test_pictures_are_known_to_the_next_engine(self):
        with tempfile.TemporaryDirectory() as folder:
            for known in (False, True):
                with glimpse.Engine(threads=1, cache_dir=folder) as engine:
                    answer = engine.ask(IMAGE, QUESTION)
                self.assertEqual((answer.text, answer.cached_tokens > 0), (ANSWER, known))
                del engine  # what it keeps is written then

    def test_small_kv_cache(self):
        plain = self.engine.ask(IMAGE, QUESTION)
        with glimpse.Engine(threads=1, kv="int8") as engine:
            answer = engine.ask(IMAGE, QUESTION)
        self.assertEqual((answer.text, answer.images[0].keep.tolist()), (ANSWER, KEEP))
        self.assertEqual(answer.kv_bytes * 128, plain.kv_bytes * 68)  # of a head of 64
        with self.assertRaisesRegex(glimpse.Error, "kv: expected bf16, int8 or int4, got 'int2'"):
            glimpse.Engine(kv="int2")

    def test_close(self):
        with glimpse.Engine(threads=1) as engine:
            self.assertEqual(engine.ask(None, "Hello", max_new_tokens=1).finish_reason, "length")
            stream = engine.stream(IMAGE, QUESTION, **LONG)
        self.assertEqual(stream.result().finish_reason, "cancelled")
        with self.assertRaisesRegex(glimpse.Error, "closed"):
            engine.ask(None, "Hello")

    def test_threads(self):
        got = []
        threads = [threading.Thread(target=lambda: got.append(self.engine.ask(IMAGE, QUESTION).text)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(got, [ANSWER] * 6)

    def test_errors(self):
        self.assertTrue(issubclass(glimpse.Error, ValueError))
        ask = self.engine.ask
        for words, call in (("no such file", lambda: ask("/nowhere.png", "x")), ("image", lambda: ask(b"no picture", "x")),
                            ("keep", lambda: ask(IMAGE, "x", prune="divprune", keep=7.5)), ("nonsense", lambda: ask(IMAGE, "x", prune="nonsense")),
                            ("temperatur", lambda: ask(IMAGE, "x", temperatur=1)), ("temperature", lambda: ask(IMAGE, "x", temperature=-1)),
                            ("max_new_tokens", lambda: ask(IMAGE, "x", max_new_tokens=0)),
                            ("whole number", lambda: ask(IMAGE, "x", max_new_tokens=2**70)), ("whole number", lambda: ask(IMAGE, "x", max_new_tokens=2.5)),
                            ("whole number", lambda: ask(IMAGE, "x", logprobs=1e300)), ("context", lambda: ask(None, "word " * 5000)),
                            ("shape", lambda: ask(np.zeros((4, 4, 4), np.uint8), "x")), ("base64", lambda: ask("data:image/png,x", "x")),
                            ("/nowhere", lambda: glimpse.Engine("/nowhere")), ("dtype", lambda: glimpse.Engine(dtype="fp8"))):
            with self.subTest(words=words), self.assertRaisesRegex(glimpse.Error, words):
                call()
        with self.assertRaisesRegex(TypeError, "float64"):
            ask(np.zeros((4, 4, 3)), "x")

    def test_shown(self):
        answer = self.engine.ask(IMAGE, QUESTION)
        overlay = answer.overlay()
        self.assertEqual(overlay.size, (448, 448))
        kept = np.zeros((16, 16), bool)
        kept.flat[KEEP] = True
        change = np.abs(np.asarray(overlay.convert("RGB"), int) - np.asarray(Image.open(IMAGE).convert("RGB"), int)).reshape(16, 28, 16, 28, 3)
        self.assertGreater(change.mean((1, 3, 4))[~kept].min(), change.mean((1, 3, 4))[kept].max() / 4)
        self.assertIn("4 of 256", answer._repr_html_())
        self.assertIn("data:image/png;base64", answer._repr_html_())

    def test_settings_of_the_host_stay(self):
        glimpse.Engine(threads=1)
        self.assertEqual((torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()), BEFORE)


class Process(unittest.TestCase):
    def run_python(self, code, **how):
        return subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, timeout=120, **how)

    def test_first_words(self):
        result = self.run_python(f"import glimpse; print(glimpse.ask({IMAGE!r}, {QUESTION!r}))")
        self.assertEqual((result.stdout, result.stderr), (ANSWER + "\n", ""))

    def test_threads_stay(self):
        result = self.run_python("import torch; torch.set_num_threads(2); import glimpse; glimpse.Engine(); print(torch.get_num_threads())")
        self.assertEqual(result.stdout, "2\n")

    def test_control_c(self):
        process = subprocess.Popen([sys.executable, "-B", "-c", f"import glimpse\ne = glimpse.Engine(threads=1)\nprint('go', flush=True)\n"
                                    f"e.ask({IMAGE!r}, 'x', max_new_tokens=3900, ignore_eos=True)"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.assertEqual(process.stdout.readline(), "go\n")
        time.sleep(0.3)
        begin = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        self.assertLess(time.monotonic() - begin, 5)
        self.assertIn("KeyboardInterrupt", errors)
        self.assertNotEqual(process.returncode, 0)

    def test_it_ends_in_the_middle(self):
        result = self.run_python(f"import glimpse\ne = glimpse.Engine(threads=1)\ns = e.stream({IMAGE!r}, 'x', max_new_tokens=3900, ignore_eos=True)\n"
                                 "next(s)\nprint('over')")
        self.assertEqual((result.stdout, result.stderr, result.returncode), ("over\n", "", 0))


if __name__ == "__main__":
    unittest.main()
