"""glimpse train on the built-in model: what it writes, that it resumes to the bit, several processes, bad settings."""
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import unittest
from pathlib import Path

from program import PROGRAM, TEST, CliTest
from tensor_files import read_safetensors

CONFIGS = Path(__file__).parents[2] / "configs" / "train"
ROWS = TEST / "rows.jsonl"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Train(CliTest):
    def setUp(self):
        super().setUp()
        # Small pictures keep it short.
        lines = [line for line in ROWS.read_text().splitlines() if json.loads(line)["width"] <= 280]
        self.rows = self.dir / "rows.jsonl"
        self.rows.write_text("\n".join(lines[:24]) + "\n")

    def train(self, out, *flags, steps=4, batch=2, accumulation=2, overlays=0):
        return ["train", "--config", CONFIGS / "tiny.yaml", "--data", self.rows, "--image-root", TEST, "--out",
                self.dir / out, "--batch", str(batch), "--accumulation", str(accumulation), "--max-steps", str(steps),
                "--log-every", "1", "--overlay-every", str(overlays), "--threads", "1",
                "--save-dtype", "fp32", *flags]

    def final(self, out):
        return read_safetensors(self.dir / out / "final" / "new_modules_gp.safetensors")

    def start(self, command, **environment):
        return subprocess.Popen([PROGRAM, *map(str, command)], env={**os.environ, **environment}, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def pair(self, command):
        """Two processes of one run, started as a launcher does."""
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [self.start(command, RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(2)]

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
        processes = self.pair(self.train("two", batch=2, steps=3))
        for process in processes:
            _, errors = process.communicate(timeout=300)
            self.assertEqual(process.returncode, 0, errors)
        one, two = self.floats("one"), self.floats("two")
        self.assertEqual(one.keys(), two.keys())
        largest = max(abs(a - b) for name in one for a, b in zip(one[name], two[name]))
        self.assertLess(largest, 2e-4)  # two summation orders; a step moves a weight by up to 2e-3
        start = max(abs(a - b) for name in one for a, b in zip(one[name], self.floats("one", "checkpoints")[name]))
        self.assertLess(start, 1e-6)

    def floats(self, out, part="final"):
        import array
        if part == "final":
            tensors = self.final(out)
        else:
            newest = max((self.dir / out / "checkpoints").iterdir())
            tensors = {name.removeprefix("parameter/"): value for name, value in read_safetensors(newest).items()
                       if name.startswith("parameter/")}
        return {name: array.array("f", data).tolist() for name, (_, _, data) in tensors.items()}

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
        done = json.loads(metrics.read_text().splitlines()[-1])["step"]
        result = self.start(["train", "--resume", self.dir / "lost"])
        time.sleep(3)
        result.send_signal(signal.SIGINT)  # stopped by hand: a checkpoint, and the way to go on
        _, errors = result.communicate(timeout=120)
        self.assertEqual(result.returncode, 130, errors)
        self.assertIn("--resume", errors)
        self.assertGreaterEqual(json.loads(metrics.read_text().splitlines()[-1])["step"], done)

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
