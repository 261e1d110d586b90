"""glimpse tune on the built-in model: answers drawn and scored, a judge, the supervised control, resuming, two processes."""
import json
import unittest
from pathlib import Path

from evaluation import StubJudge
from program import TEST
from tensor_files import read_safetensors
from training import TrainingTest

CONFIGS = Path(__file__).parents[2] / "configs" / "tune"
ENV = {"OPENAI_API_KEY": "sk-none"}


class Tune(TrainingTest):
    def tune(self, out, *flags, config="tiny_rl", steps=2, batch=2, dropout=0):
        return ["tune", "--config", CONFIGS / f"{config}.yaml", "--data", self.rows, "--image-root", TEST, "--out", self.dir / out,
                "--batch", batch, "--accumulation", 1, "--max-steps", steps, "--threads", 1, "--max-new-tokens", 8, "--completions", 3,
                "--lora-dropout", dropout, *flags]  # fmt: skip

    def final(self, out):
        return read_safetensors(self.dir / out / "final" / "adapter_model.safetensors")

    def metrics(self, out):
        return [json.loads(line) for line in (self.dir / out / "metrics.jsonl").read_text().splitlines()]

    def some_rows(self, count, **changed):
        rows = [json.loads(line) | changed for line in self.rows.read_text().splitlines()[:count]]
        self.rows.write_text("".join(json.dumps({key: value for key, value in row.items() if value is not None}) + "\n" for row in rows))
        return rows

    def test_run(self):
        self.ok(*self.tune("run", steps=3))
        lines = self.metrics("run")
        self.assertEqual([line["step"] for line in lines], [1, 2, 3])
        for line in lines:
            self.assertLess(line["completion_length"], 10)
            self.assertLess(line["kept"], 0.5)
            self.assertLessEqual(abs(line["reward_loss"]), 1e-6)  # its gradient is what counts
            self.assertTrue(0 <= line["reward"] <= 1)
        self.assertEqual(lines[0]["kd_loss"], 0)  # a new adapter changes nothing
        self.assertGreater(lines[-1]["grad_norm"], 0)
        self.assertIn("step 3: ", (self.dir / "run/samples.txt").read_text())
        self.assertIn("kd_loss", (self.dir / "run/report.html").read_text())
        self.ask("--adapter", self.dir / "run/final")  # what it wrote loads

    def test_supervised(self):
        self.some_rows(2)
        self.ok(*self.tune("run", "--lr", 2e-3, "--epochs", 6, "--warmup-ratio", 0, config="tiny_sft", steps=6))
        losses = [line["answer_loss"] for line in self.metrics("run")]
        self.assertLess(losses[-1], 0.5 * losses[0])

    def test_scores_of_rows(self):
        """A judge's scores and those that need none add up; what it says without a score counts as 0."""
        judge = StubJudge(self)
        self.some_rows(2, score=["llm", "one_box_format"])
        self.ok(*self.tune("run", "--judge-url", judge.url, "--judge-model", "grader", steps=1), env=ENV)
        bodies = [json.dumps(body, sort_keys=True) for _, _, body in judge.seen]
        self.assertEqual(len(set(bodies)), len(bodies))  # equal answers are asked about once
        known = [json.loads(line) for line in (self.dir / "run/judged.jsonl").read_text().splitlines()]
        self.assertTrue(known)
        self.assertTrue(self.metrics("run"))

    def test_stopped_and_resumed_is_the_same_to_the_bit(self):
        flags, how = ("--save-every", 1, "--epochs", 2), {"steps": 6, "dropout": 0.05}
        self.ok(*self.tune("whole", *flags, **how))
        done = self.stop_after("stopped", 2, [self.start(self.tune("stopped", *flags, **how))])
        self.assertLess(done, 6)
        self.ok("tune", "--resume", self.dir / "stopped")
        self.assertEqual(self.final("whole"), self.final("stopped"))

    def test_two_processes_equal_one(self):
        self.ok(*self.tune("one", batch=2))
        self.errors_of(self.pair(self.tune("two", batch=1)))
        for one, two in zip(self.metrics("one"), self.metrics("two")):
            for name in ("reward", "completion_length", "kept"):
                self.assertAlmostEqual(one[name], two[name], 6, name)
        self.assertLess(self.largest_difference("one", "two"), 2e-4)

    def test_mistakes(self):
        self.fails(self.tune("run", "--scores", "beauty"), "beauty", "unknown")
        self.fails(self.tune("run", "--cut-layer", 6), "cut_layer", "6 layers")
        self.fails(self.tune("run", "--scores", "llm"), "--judge-url")
        self.fails(self.tune("other", "--max-pruned-prompt", 10), "max_pruned_prompt 10")
        self.fails(self.tune("boxes", "--stage", "best"), "expected rl or sft", status=2)
        self.some_rows(2, bboxs=None)
        self.fails(self.tune("none"), "bboxs")


if __name__ == "__main__":
    unittest.main()
