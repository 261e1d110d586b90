"""glimpse train on the built-in model: what it writes, that it resumes to the bit, several processes, bad settings."""
import json
import os
import random
import shutil
import signal
import time
import unittest
from pathlib import Path

from program import MODEL, TEST
from tensor_files import read_safetensors
from training import TrainingTest

CONFIGS = Path(__file__).parents[2] / "configs" / "train"


class Train(TrainingTest):
    def train(self, out, *flags, steps=4, batch=2, accumulation=2, overlays=0):
        return ["train", "--config", CONFIGS / "tiny.yaml", "--data", self.rows, "--image-root", TEST, "--out",
                self.dir / out, "--batch", str(batch), "--accumulation", str(accumulation), "--max-steps", str(steps),
                "--log-every", "1", "--overlay-every", str(overlays), "--threads", "1",
                "--save-dtype", "fp32", *flags]

    def final(self, out):
        return read_safetensors(self.dir / out / "final" / "new_modules_gp.safetensors")

    def test_run(self):
        self.ok(*self.train("run", "--save-every", "2", "--overlay-rows", "2", overlays=2))
        run = self.dir / "run"
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual([line["step"] for line in lines], [1, 2, 3, 4])
        for key in ("loss", "le_loss", "loc_loss", "precision", "recall", "f1", "iou", "kept", "lr", "grad_norm"):
            self.assertIsInstance(lines[0][key], (int, float), key)
        self.assertEqual(lines[0]["lr"], 0)  # warm-up starts from nothing
        self.assertGreater(lines[1]["lr"], lines[3]["lr"])
        self.assertLess(lines[-1]["loc_loss"], lines[0]["loc_loss"])
        self.assertEqual(sorted(p.name for p in (run / "final").iterdir()),
                         ["config.json", "new_modules_gp.pt", "new_modules_gp.safetensors"])
        self.assertTrue(list((run / "overlays").glob("step-000004-row-*.png")))
        self.assertIn("<svg", (run / "report.html").read_text())
        # What it wrote answers questions.
        row = json.loads(self.rows.read_text().splitlines()[0])
        image = TEST / "cot" / row["dataset"] / row["image"]
        answer = json.loads(self.ok("ask", "--new-modules", run / "final", "--image", image, "--json", row["question"]))
        self.assertLess(answer["kept_tokens"], answer["visual_tokens"])
        # A run is not overwritten by accident.
        self.fails(self.train("run"), "holds a training run", "--resume", "--overwrite")

    def test_killed_and_resumed_is_the_same_to_the_bit(self):
        self.ok(*self.train("whole", "--save-every", "1", "--epochs", "4", steps=20))
        whole = self.final("whole")
        rng = random.Random(0)
        command = self.train("killed", "--save-every", "1", "--epochs", "4", steps=20)
        process = self.start(command)
        kills = 0
        for _ in range(40):
            deadline = time.time() + rng.uniform(0.1, 1.0)
            while process.poll() is None and time.time() < deadline:
                time.sleep(0.01)
            if process.poll() is not None and process.returncode == 0:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close(), process.stderr.close()
            kills += 1
            resume = (self.dir / "killed" / "train.json").exists()
            if not resume:
                shutil.rmtree(self.dir / "killed", ignore_errors=True)
            # Late kills must become rarer than the run is long.
            rng = random.Random(kills) if kills < 6 else type("Never", (), {"uniform": lambda *_: 120})()
            process = self.start(["train", "--resume", self.dir / "killed"] if resume else command)
        self.assertEqual(process.wait(120), 0, process.stderr.read())
        process.stdout.close(), process.stderr.close()
        self.assertGreater(kills, 0)
        self.assertEqual(whole, self.final("killed"))
        lines = [json.loads(line)["step"] for line in (self.dir / "killed" / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual(lines, sorted(set(lines)))

    def test_loader_threads_do_not_matter(self):
        self.ok(*self.train("none", "--loader-threads", "0", steps=3))
        self.ok(*self.train("many", "--loader-threads", "4", steps=3))
        self.assertEqual(self.final("none"), self.final("many"))

    def test_two_processes_equal_one(self):
        self.ok(*self.train("one", batch=4, steps=3))
        self.errors_of(self.pair(self.train("two", batch=2, steps=3)))
        # Two summation orders; a step moves a weight by up to 2e-3.
        self.assertLess(self.largest_difference("one", "two"), 2e-4)
        one = self.floats("one")
        start = max(abs(a - b) for name in one for a, b in zip(one[name], self.floats("one", "checkpoints")[name]))
        self.assertLess(start, 1e-6)

    def test_lost_process(self):
        first, second = self.pair(self.train("lost", "--save-every", "1000", "--epochs", "1000", steps=5000))
        metrics = self.dir / "lost" / "metrics.jsonl"
        deadline = time.time() + 120
        while time.time() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            time.sleep(0.05)
        second.kill()
        _, errors = first.communicate(timeout=120)
        second.communicate()
        self.assertEqual(first.returncode, 1, errors)
        self.assertIn("lost another", errors)
        self.assertTrue(list((self.dir / "lost" / "checkpoints").glob("step-*.safetensors")))
        # The other process is back, without the run's checkpoints: it goes on from those of the first.
        done = json.loads(metrics.read_text().splitlines()[-1])["step"]
        away = self.dir / "away"
        away.mkdir()
        shutil.copy(self.dir / "lost/train.json", away)
        resumed = self.pair(["train", "--resume", self.dir / "lost"], ["train", "--resume", away])
        self.assertGreater(self.stop_after("lost", done + 2, resumed), done + 1)
        self.assertEqual([file.name for file in away.iterdir()], ["train.json"])

    def test_resumed_by_another_number_of_processes(self):
        """A step keeps its rows, learning rate and random numbers; where it cannot, the run is refused."""
        steps = {"steps": 12, "batch": 1, "accumulation": 2}
        run = lambda out: self.train(out, "--epochs", "4", "--save-every", "100", **steps)
        self.errors_of(self.pair(run("whole")))
        done = self.stop_after("resumed", 3, self.pair(run("resumed")))
        self.assertLess(done, 12)
        with self.start(["train", "--resume", self.dir / "resumed"]) as process:
            errors = self.errors_of([process])
        self.assertIn("began on 2 processes and goes on on 1: steps have the same rows, 4 batches on each process", errors[0])
        self.assertLess(self.largest_difference("whole", "resumed"), 2e-4)
        lines = [[json.loads(line) for line in (self.dir / out / "metrics.jsonl").read_text().splitlines()]
                 for out in ("whole", "resumed")]
        self.assertEqual([line["step"] for line in lines[1]], list(range(1, 13)))
        for whole, resumed in zip(*lines):
            self.assertEqual(whole["lr"], resumed["lr"])
            self.assertAlmostEqual(whole["loss"], resumed["loss"], delta=2e-3)
        # One batch a step is no work for two.
        self.ok(*self.train("single", steps=1, accumulation=1))
        for errors in self.errors_of(self.pair(["train", "--resume", self.dir / "single", "--max-steps", "3"]), status=1):
            self.assertIn("this run began on 1 processes, and each of its steps has 1 batches of 2 rows, which 2", errors)

    def test_extended(self):
        self.ok(*self.train("run", "--epochs", "4", steps=3))
        self.assertIn('"steps": 3', (self.dir / "run/train.json").read_text())
        resume = ["train", "--resume", self.dir / "run", "--max-steps"]
        self.fails([*resume, "2"], "this run has done 3 steps, more than the 2 that it is to have")
        self.fails([*resume, "5"], "run: planned for 3 steps, now for 5: from step 4 on the learning rate is that of 5 steps",
                   "going on after step 3", status=0)
        lines = [json.loads(line) for line in (self.dir / "run/metrics.jsonl").read_text().splitlines()]
        self.assertEqual([line["step"] for line in lines], [1, 2, 3, 4, 5])
        self.assertGreater(lines[3]["lr"], 0)
        self.assertEqual(json.loads((self.dir / "run/train.json").read_text())["began"]["schedules"],
                         [{"after_step": 0, "steps": 3}, {"after_step": 3, "steps": 5}])
        self.fails([*resume, "1000"], "the epochs end after 24 steps, before max_steps 1000", status=0)

    def test_what_a_run_began_with(self):
        """Other rows, other weights, a second process: none goes on in the run's directory."""
        model = self.model_copy("model", ["model.safetensors"])
        weights = bytearray((MODEL / "model.safetensors").read_bytes())
        (model / "model.safetensors").write_bytes(weights)
        train = self.train("run", "--model", model, "--epochs", "1000", steps=1000)
        process = self.start(train)
        metrics = self.dir / "run/metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text()):
            time.sleep(0.02)
        resume = ["train", "--resume", self.dir / "run"]
        for command in (resume, [*train, "--overwrite"]):
            self.fails(command, f"run/.lock: process {process.pid} (glimpse) is writing there")
        self.stop_after("run", 1, [process])
        rows = self.rows.read_text()
        self.rows.write_text(rows.replace("What", "Which", 1))
        self.fails(resume, "run began with other rows than its data files give now")
        self.rows.write_text(rows)
        weights[len(weights) // 2] ^= 1
        (model / "model.safetensors").write_bytes(weights)
        self.fails(resume, "run began with other weights than its model or its first modules have now")
        # What is to be read is not removed first.
        inside = self.train("run", "--overwrite", "--new-modules", self.dir / "run/final")
        self.fails(inside, "run/final, which is read; --overwrite would remove it")
        self.assertTrue(metrics.exists())

    @unittest.skipIf(os.path.exists("/dev/nvidia0"), "there is a CUDA device")
    def test_device_of_each_process(self):
        """The run's device is what was asked for; each process, also of a resumed run, takes its own."""
        self.ok(*self.train("run", steps=1))
        file = self.dir / "run/train.json"
        settings = json.loads(file.read_text())
        self.assertEqual(settings["device"], "cpu")
        file.write_text(json.dumps({**settings, "device": "cuda"}))
        self.fails(["train", "--resume", self.dir / "run"], "device: cuda:3 was asked for", env={"LOCAL_RANK": "3"})

    def test_bad_settings(self):
        config = self.dir / "wrong.yaml"

        def wrong(text, *messages):
            config.write_text(text)
            self.fails(["train", "--config", config, "--data", self.rows, "--image-root", TEST, "--out", self.dir / "x"],
                       *messages)
            self.assertFalse((self.dir / "x").exists())

        wrong("learning_rat: 1\n", "wrong.yaml", "unknown setting 'learning_rat'")
        wrong("epoch: 1\n", "did you mean 'epochs'")
        wrong("lr: fast\n", "lr: expected a number")
        wrong("lr: 1e-3\nlr: 1e-4\n", "'lr' is set twice")
        wrong("modules:\n  reduce_layers: 3\n", "unknown setting 'reduce_layers'", "did you mean 'reduce_layer'")
        wrong("modules:\n  selected_layers: [9]\n  reduce_layer: 9\n  attn_fuse_type: AttnFuserV1\n", "layer 9")
        wrong("[1, 2", "wrong.yaml")
        self.fails(["train", "--config", CONFIGS / "tiny.yaml", "--out", self.dir / "x"], "--data")
        self.fails(["train", "--resume", self.dir], "no training run")
        self.fails(["train", "--resume", self.dir, "--lr", "1"], "no training run")
        self.rows.write_text('{"question": "a"}\n' * 3)
        self.fails(self.train("x"), "rows.jsonl:1")


if __name__ == "__main__":
    unittest.main()
