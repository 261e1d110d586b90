"""glimpse ask."""
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
import unittest
from pathlib import Path

from program import ANSWER, IMAGE, IMAGES, KEEP, PROGRAM, QUESTION, CliTest, read_png, run

SMALL = str(IMAGES / "read_002.jpg")


class Ask(CliTest):
    def test_answer_and_summary(self):
        result = run("ask", "-i", IMAGE, QUESTION)
        self.assertEqual((result.returncode, result.stdout), (0, ANSWER + "\n"))
        self.assertIn("visual tokens kept: 4 of 256 (1.6 %)", result.stderr)
        self.assertRegex(result.stderr, r"prefill [\d.]+ ms for 285 tokens .* decode 9 tokens at [\d.]+ tokens/s")
        quiet = run("ask", "-q", "-i", IMAGE, QUESTION)
        self.assertEqual((quiet.stdout, quiet.stderr), (ANSWER + "\n", ""))

    def test_json(self):
        got = self.ask()
        self.assertEqual(set(got), {"answer", "token_ids", "finish_reason", "prompt_tokens", "cached_tokens",
                                    "visual_tokens", "kept_tokens", "images", "pruning", "times_ms", "decode_tokens_per_s",
                                    "kv_cache_bytes", "peak_memory_mib"})
        self.assertEqual(got["answer"], ANSWER)
        self.assertEqual(len(got["token_ids"]), 9)
        self.assertEqual(got["finish_reason"], "stop")
        self.assertEqual((got["prompt_tokens"], got["visual_tokens"], got["kept_tokens"]), (285, 256, 4))
        self.assertEqual(got["images"], [{"rows": 16, "cols": 16, "visual_tokens": 256, "kept_tokens": 4, "keep": KEEP}])
        own = {"threshold": 0.5, "max_keep": None, "min_keep": 1, "anchors": []}
        self.assertEqual(got["pruning"], [{"method": "scout", "settings": {**own, "encoder": -1, "floor": 0.22}}, {"method": "glimpse", "settings": own}])
        self.assertEqual(self.ask("--threshold", "0.5")["pruning"], [{"method": "glimpse", "settings": own}])  # a rule is that of glimpse alone
        self.assertEqual(set(got["times_ms"]), {"vision", "prefill", "prune", "decode"})
        self.assertTrue(all(ms > 0 for ms in got["times_ms"].values()), got["times_ms"])

    def test_no_pruning(self):
        got, pruned = self.ask("--prune", "none"), self.ask()
        self.assertEqual((got["answer"], got["kept_tokens"], got["pruning"]), (ANSWER, 256, []))
        self.assertEqual(got["images"][0]["keep"], list(range(256)))
        self.assertGreater(got["kv_cache_bytes"], 3 * pruned["kv_cache_bytes"])

    def test_keep_settings(self):
        keep = lambda *flags: self.ask(*flags)["images"][0]["keep"]
        self.assertEqual(len(keep("--threshold", "0")), 256)
        top = keep("--max-keep", "0.01")
        self.assertEqual(len(top), 2)  # int(0.01 * 256)
        self.assertLess(set(top), set(KEEP))
        at_least = keep("--threshold", "1", "--min-keep", "9")
        self.assertEqual(len(at_least), 9)
        self.assertLess(set(KEEP), set(at_least))
        self.assertEqual(keep("--anchors", "tl+br"), [0, *KEEP, 255])
        self.assertEqual(keep("--prune", "glimpse(max_keep=0.01, anchors=tr)"), sorted([*top, 15]))

    def test_compositions(self):
        got = self.ask("--prune", "random(keep=0.5,seed=3)")
        self.assertEqual(got["kept_tokens"], 128)
        self.assertEqual(got["pruning"][0]["method"], "random")
        self.assertEqual(got["images"], self.ask("--prune", "random(keep=0.5,seed=3)")["images"])
        self.assertNotEqual(got["images"], self.ask("--prune", "random(keep=0.5,seed=4)")["images"])
        both = self.ask("--prune", "glimpse+random(keep=0.01,layer=4)")
        self.assertEqual([one["method"] for one in both["pruning"]], ["glimpse", "random"])
        self.assertLess(set(both["images"][0]["keep"]), set(KEEP))

    def test_reference_boxes(self):
        # Row 0's box covers columns 14..15 and rows 2..3 of 28 pixels each: the very tokens that glimpse keeps.
        got = self.ask("--reference-boxes", "394,57,446,109")
        self.assertEqual((got["answer"], got["images"][0]["keep"]), (ANSWER, KEEP))
        self.assertEqual(got["pruning"][0]["method"], "reference")
        got = self.ask("--reference-boxes", "394,57,446,109; 0,0,1,1")
        self.assertEqual(got["images"][0]["keep"], [0, *KEEP])
        for boxes in ["1,2,3", "1,2,3,4,5", "a,b,c,d", "1;2;3;4", ";"]:
            self.fails(["ask", "-i", IMAGE, "--reference-boxes", boxes, QUESTION], "--reference-boxes: expected x1,y1")
        self.fails(["ask", "-i", IMAGE, *["--reference-boxes", "0,0,1,1"] * 2, QUESTION], "once per image: 1 images, 2 lists")

    def test_pictures_and_scores(self):
        mask, overlay, scores = self.dir / "mask.png", self.dir / "overlay.png", self.dir / "scores.json"
        self.ask("--mask-out", mask, "--overlay-out", overlay, "--scores-out", scores)
        width, height, channels, rows = read_png(mask)
        self.assertEqual((width, height, channels), (448, 448, 1))
        white = [r * 16 + c for r in range(16) for c in range(16) if rows[28 * r + 14][28 * c + 14] == 255]
        self.assertEqual(white, KEEP)
        self.assertEqual(sum(row.count(255) for row in rows), 4 * 28 * 28)
        self.assertEqual(read_png(overlay)[:3], (448, 448, 3))
        image = json.loads(scores.read_text())["images"][0]
        self.assertEqual((image["rows"], image["cols"], image["keep"]), (16, 16, KEEP))
        self.assertEqual([i for i, p in enumerate(image["probability"]) if p > 0.5], KEEP)
        self.assertEqual(len(list(self.dir.iterdir())), 3)  # no temporary file is left

    def test_two_images(self):
        got = json.loads(self.ok("ask", "--json", "-i", IMAGE, "--image", SMALL, "--mask-out", self.dir / "m.png",
                                 "--overlay-out", self.dir / "o.png", QUESTION))
        self.assertEqual(len(got["images"]), 2)
        self.assertEqual(sum(image["visual_tokens"] for image in got["images"]), got["visual_tokens"])
        self.assertEqual(sum(image["kept_tokens"] for image in got["images"]), got["kept_tokens"])
        self.assertEqual(sorted(file.name for file in self.dir.iterdir()), ["m.1.png", "m.2.png", "o.1.png", "o.2.png"])
        for i, image in enumerate(got["images"], 1):
            size = (image["cols"] * 28, image["rows"] * 28)
            self.assertEqual(read_png(self.dir / f"m.{i}.png")[:2], size)
            self.assertEqual(read_png(self.dir / f"o.{i}.png")[:2], size)

    def test_image_from_standard_input(self):
        result = run("ask", "-q", "-i", "-", QUESTION, input=Path(IMAGE).read_bytes(), text=False)
        self.assertEqual(result.stdout.decode(), ANSWER + "\n")
        self.fails(["ask", "-i", "-", "-i", "-", QUESTION], "standard input holds one image", input="")
        self.fails(["ask", "-i", "-", QUESTION], "empty (0 bytes)", input="")

    def test_text_only_and_system(self):
        got = json.loads(self.ok("ask", "--json", "-n", "5", "Hello"))
        self.assertEqual((got["images"], got["visual_tokens"]), ([], 0))
        self.assertLessEqual(len(got["token_ids"]), 5)
        longer = json.loads(self.ok("ask", "--json", "-n", "5", "--system", "word " * 20, "Hello"))
        self.assertGreater(longer["prompt_tokens"], got["prompt_tokens"] + 10)
        self.fails(["ask", "--scores-out", self.dir / "s", "-n", "1", "Hello"], "--scores-out: no method with scores ran")

    def test_sampling(self):
        flags = ["--temperature", "3", "--top-k", "200", "--top-p", "0.99", "-n", "12", "--repetition-penalty", "1.1"]
        one, again, other = (self.ask(*flags, "--seed", seed)["token_ids"] for seed in (7, 7, 8))
        self.assertEqual(one, again)
        self.assertNotEqual(one, other)
        self.assertEqual(self.ask("--temperature", "3", "--top-k", "1")["answer"], ANSWER)

    def test_length(self):
        got = self.ask("--max-new-tokens", "3")
        self.assertEqual((got["finish_reason"], len(got["token_ids"])), ("length", 3))
        self.assertTrue(ANSWER.startswith(got["answer"]))
        note = "glimpse: the answer was cut after "
        self.assertIn(note + "3 tokens (--max-new-tokens)\n", run("ask", "-n", "3", "-i", IMAGE, QUESTION).stderr)
        self.assertNotIn(note, run("ask", "-i", IMAGE, QUESTION).stderr)
        endless = run("ask", "-m", self.endless_model(), "-n", "100000", "Hello")
        self.assertRegex(endless.stderr, note + r"\d+ tokens: the model's context is full\n")

    def test_outputs_over_files(self):
        """No output goes over an input or another output; a link stays one."""
        photo, other = self.dir / "p.1.jpg", self.dir / "p.2.jpg"
        for file in (photo, other):
            shutil.copy(IMAGE, file)
        (self.dir / "link.png").symlink_to(photo)
        ask = lambda *flags, images=(photo,): ["ask", *(f for image in images for f in ("-i", image)), *flags, QUESTION]
        for out in (photo, self.dir / "link.png", self.dir / ".." / self.dir.name / photo.name):
            self.fails(ask("--overlay-out", out), "--overlay-out ", " is --image itself; name another file")
        self.fails(ask("--mask-out", self.dir / "p.jpg", images=(photo, other)), "p.1.jpg is --image itself")
        same = ["--overlay-out", self.dir / "s.png", "--mask-out"]
        self.fails(ask(*same, f"{self.dir}/./s.png"), "--mask-out and --overlay-out would both be written to")
        self.fails(ask(*same[:2], "--scores-out", self.dir / "s.png"), "name two files")
        self.assertEqual(photo.read_bytes(), Path(IMAGE).read_bytes())
        (self.dir / "out.png").symlink_to("sub/real.png")
        (self.dir / "sub").mkdir()
        self.ok(*ask("--overlay-out", self.dir / "out.png", "-n", "1"))
        self.assertTrue((self.dir / "out.png").is_symlink())
        self.assertEqual(read_png(self.dir / "sub/real.png")[:2], (448, 448))

    def test_flags_that_would_do_nothing(self):
        out = self.dir / "out.png"
        for flag in ("--overlay-out", "--mask-out"):
            self.fails(["ask", flag, out, "Hello"], flag + ": there is no image to draw")
        for flag in (("--keep", "7"), ("--threshold", "0.3"), ("--max-keep", "0.5")):
            self.fails(["ask", *flag, "Hello"], flag[0] + ": there is no image whose tokens it could keep")
        boxes = ["ask", "-i", IMAGE, "--reference-boxes", "394,57,446,109", "--prune"]
        self.fails([*boxes, "glimpse", QUESTION], "--reference-boxes belongs to the method reference; --prune glimpse would not")
        self.ok(*boxes, "divprune(keep=0.9)+reference", "-n", "1", QUESTION)
        self.assertFalse(out.exists())

    def test_start_up(self):
        """The CPU time to the first token, most of it libtorch's start; other programs here do not count."""

        def used():
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            return usage.ru_utime + usage.ru_stime

        before = used()
        self.ok("ask", "-i", IMAGE, "-n", "1", QUESTION)
        self.assertLess(used() - before, 2)  # seconds; 0.4 where nothing else runs

    def test_image_bounds(self):
        got = self.ask("--max-pixels", "100000")
        self.assertLessEqual(got["visual_tokens"], 100000 // 784)
        self.fails(["ask", "-i", IMAGE, "--min-pixels", "-5", "x"], "min_pixels: -5 is outside", status=2)
        self.fails(["ask", "-i", IMAGE, "--min-pixels", "5000", "--max-pixels", "4000", "x"], "at most max-pixels 4000")

    def test_arithmetic_and_threads(self):
        for dtype in ("bf16", "fp32"):
            got = self.ask("--dtype", dtype, "--threads", "2")
            self.assertEqual((got["answer"], got["images"][0]["keep"]), (ANSWER, KEEP), dtype)

    @unittest.skipIf(os.path.exists("/dev/nvidia0"), "there is a CUDA device")
    def test_threads_wait_briefly(self):
        """Spinning threads would take cores from those that they wait for; what the user set stays."""
        def seen(env):
            clean = {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None, **env}
            env = {name: value for name, value in {**os.environ, **clean}.items() if value is not None}
            result = subprocess.run([PROGRAM, "--version"], env={**env, "OMP_DISPLAY_ENV": "verbose"}, text=True,
                                    capture_output=True, timeout=60)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("glimpse ", result.stdout)
            return dict(re.findall(r"(\w+) = '(\w*)'", result.stderr))
        self.assertEqual(seen({})["GOMP_SPINCOUNT"], "20000")
        self.assertEqual(seen({"GOMP_SPINCOUNT": "7"})["GOMP_SPINCOUNT"], "7")
        passive = seen({"OMP_WAIT_POLICY": "passive"})
        self.assertEqual((passive["OMP_WAIT_POLICY"], passive["GOMP_SPINCOUNT"]), ("PASSIVE", "0"))

    def test_kernels(self):
        for level in ("scalar", "auto"):
            got = self.ask("--kernels", level)
            self.assertEqual((got["answer"], got["images"][0]["keep"]), (ANSWER, KEEP))
        self.fails(["ask", "--kernels", "neon", "Why?"], "kernels: ", "avx2", status=2)

    def test_device(self):
        self.fails(["ask", "--device", "cuda", "x"], "device: cuda was asked for, but", "no usable CUDA device")
        self.fails(["ask", "--device", "cuda:1", "x"], "no usable CUDA device")
        for name in ("tpu", "cuda:", "cuda:-1", "cuda:99999", ""):
            self.fails(["ask", "--device", name, "x"], "device: expected cpu, cuda or cuda:i, got '" + name)

    def test_full_disk(self):
        with open("/dev/full", "w") as full:
            result = subprocess.run([PROGRAM, "ask", "-t", "1", "-n", "2", "x"], stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn("standard output cannot be written", result.stderr)


class Interrupt(CliTest):
    def start(self, *flags):
        command = [PROGRAM, "ask", "-t", "1", "-m", self.endless_model(), "-n", "100000", "-i", IMAGE, *flags, QUESTION]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_streams_and_stops(self):
        with self.start() as process:
            begin = process.stdout.read(10)  # comes while the answer is still going on
            self.assertIsNone(process.poll())
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            start = time.monotonic()
            rest, errors = process.communicate(timeout=10)
            self.assertLess(time.monotonic() - start, 5)
        self.assertEqual(process.returncode, 130)
        self.assertTrue((begin + rest).decode().startswith(ANSWER[:10]))
        self.assertGreater(len(rest), 1)
        self.assertIn(b"glimpse: stopped", errors)

    def test_json_of_what_there_is(self):
        with self.start("--json") as process:
            time.sleep(3)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=10)
        self.assertEqual(process.returncode, 130)
        if out:  # nothing when it came while the model was loading
            self.assertEqual(json.loads(out)["finish_reason"], "cancelled")


if __name__ == "__main__":
    unittest.main()
