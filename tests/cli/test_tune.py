"""glimpse tune on the built-in model: answers drawn and scored by rules, a judge or a program, the supervised control, rows without
boxes, answers before and after, what is kept of pictures, resuming, two processes."""
import html
import json
import re
import sys
import unittest
from pathlib import Path

from evaluation import StubJudge
from program import MODULES, TEST
from tensor_files import read_safetensors
from training import TrainingTest

CONFIGS = Path(__file__).parents[2] / "configs" / "tune"
ENV = {"OPENAI_API_KEY": "sk-none"}

# Writes what it reads into a file and gives the share of the right answer's letters that an answer has.
SCORER = """
import json, sys
with open(sys.argv[1], "a") as log:
    log.write("started\\n")
    for line in sys.stdin:
        log.write(line)
        log.flush()
        row = json.loads(line)
        right = set(row["answer"])
        print(json.dumps({"score": len(right & set(row["completion"])) / len(right)}), flush=True)
    log.write("ended\\n")
"""


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

    def scorer(self, text=SCORER):
        """A command line of a program whose argument has a space in it."""
        (self.dir / "my scorer.py").write_text(text)
        return f'{sys.executable} "{self.dir}/my scorer.py" {self.dir}/log'

    def test_score_of_a_program(self):
        rows = self.some_rows(2, id="row \u00e9", score=["command", "one_box_format"])
        self.ok(*self.tune("run", "--score-command", self.scorer(), steps=2, batch=1))
        first, *lines, last = (self.dir / "log").read_text().splitlines()
        self.assertEqual((first, last), ("started", "ended"))  # once, and not killed
        lines = [json.loads(line) for line in lines]
        self.assertEqual(len(lines), 2 * 3)
        for step, metrics in enumerate(self.metrics("run")):
            mine = lines[3 * step:3 * step + 3]
            row = next(row for row in rows if row["question"] == mine[0]["question"])
            for line in mine:
                del line["completion"]
                self.assertEqual(line, {name: row[name] for name in
                                        ("id", "question", "answer", "dataset", "image", "bboxs", "width", "height")})
        drawn = re.findall(r"(?m)^  ([0-9.]+)  (.*)$", (self.dir / "run/samples.txt").read_text())
        self.assertEqual(len(drawn), 6)
        right = {row["question"]: set(row["answer"]) for row in rows}
        for (score, text), line in zip(drawn, lines):
            letters = right[line["question"]]
            self.assertAlmostEqual(float(score), len(letters & set(text)) / len(letters), 4)
        rewards = [sum(float(score) for score, _ in drawn[at:at + 3]) / 3 for at in (0, 3)]
        for metrics, reward in zip(self.metrics("run"), rewards):
            self.assertAlmostEqual(metrics["reward"], reward, 4)

    def test_programs_that_do_not_score(self):
        self.fails(self.tune("run", "--scores", "command"), "--score-command")
        self.fails(self.tune("a", "--score-command", "no-such-program"), "no-such-program")
        command = lambda text: ("--scores", "command", "--score-command", self.scorer(text))
        self.fails(self.tune("b", *command("import sys; sys.exit(7)")), "ended with status 7", "after 0 of")
        self.fails(self.tune("c", *command("input(); print({'score': 2})")), "expected {\"score\": x} with x from 0 to 1")
        self.fails(self.tune("d", *command("import time; time.sleep(60)"), "--score-timeout", "0.5"), "said nothing for 0.5 seconds")

    def infer(self, out, *flags):
        """What infer says of the rows, in order."""
        self.ok("infer", self.rows, "--image-root", TEST, "--dtype", "fp32", "--out", self.dir / out, *flags)
        return [json.loads(line) for line in (self.dir / out).read_text().splitlines()]

    def test_rows_without_boxes(self):
        """They are pruned as inference does it, without the adapter, however strong that is; rows with boxes are not."""
        with_boxes, without = self.some_rows(2)
        del without["bboxs"]
        self.rows.write_text(json.dumps(without) + "\n")
        said, = self.infer("said.jsonl", "--new-modules", MODULES)
        share = len(said["keep"][0]) / said["visual_tokens"]
        modules = ("--new-modules", MODULES)
        flags = ("--epochs", 3, "--lr", 0.5, "--warmup-ratio", 0)
        self.ok(*self.tune("run", *modules, *flags, config="tiny_sft", steps=3))
        lines = self.metrics("run")
        self.assertEqual([round(line["kept"], 6) for line in lines], [round(share, 6)] * 3)
        self.assertGreater(abs(lines[-1]["answer_loss"] - lines[0]["answer_loss"]), 1)  # the adapter is another one
        # What was trained goes on from there, and changes nothing of it.
        self.ok(*self.tune("on", *modules, *flags, "--adapter", self.dir / "run/final", steps=1))
        self.assertAlmostEqual(self.metrics("on")[0]["kept"], share, 6)
        # The likeliest stay where there is no room for all.
        refused = self.fails(self.tune("full", *modules, *flags, "--max-pruned-prompt", 1, config="tiny_sft"), "max_pruned_prompt 1")
        least = int(re.search(r"its pruned prompt has (\d+) tokens", refused.stderr)[1])  # with one visual token
        self.ok(*self.tune("room", *modules, *flags, "--max-pruned-prompt", least + 1, config="tiny_sft", steps=1))
        self.assertAlmostEqual(self.metrics("room")[0]["kept"], 2 / said["visual_tokens"], 6)
        # One stays where the predictor keeps none.
        strict = self.model_copy("strict", ["config.json"], MODULES)
        config = json.loads((MODULES / "config.json").read_text()) | {"reduce_threshold": 1, "min_remain_num": -1}
        (strict / "config.json").write_text(json.dumps(config))
        self.ok(*self.tune("one", *flags, "--new-modules", strict, config="tiny_sft", steps=1))
        self.assertAlmostEqual(self.metrics("one")[0]["kept"], 1 / said["visual_tokens"], 6)
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in (with_boxes, without)))
        self.fails(self.tune("none"), "rows.jsonl:2", "bboxs")

    def shown(self, out, when):
        return json.loads((self.dir / out / "answers" / f"{when}.json").read_text())

    def test_answers_before_and_after(self):
        """Those of rows that are not trained on are what inference gives with the same tokens kept."""
        rows = {(row["question"], row["answer"]): row for row in self.some_rows(24)}
        flags = "--cut-layer", 3, "--lr", 1e-1, "--warmup-ratio", 0
        self.ok(*self.tune("run", *flags, config="tiny_sft", steps=4))
        prune = "--prune", "reference(layer=3)", "--max-new-tokens", 9
        said = [{line["id"]: line["answer"] for line in self.infer(out, *prune, *more)}
                for out, more in (("before.jsonl", ()), ("after.jsonl", ("--adapter", self.dir / "run/final")))]
        both = self.shown("run", "before"), self.shown("run", "after")
        self.assertEqual([len(answers) for answers in both], [2, 2])  # a tenth of 24
        self.assertNotEqual(*both)
        for shown, expected in zip(both, said):
            for one in shown:
                self.assertEqual(one["answer"], expected[rows[one["question"], one["right"]]["id"]])
        report = (self.dir / "run/report.html").read_text()
        for one in both[0] + both[1]:
            self.assertIn(html.escape(one["answer"]), report)
        # They change nothing of the training but that their rows are not in it.
        held_out = [(one["question"], one["right"]) for one in both[0]]
        self.rows.write_text("".join(json.dumps(row) + "\n" for key, row in rows.items() if key not in held_out))
        self.ok(*self.tune("without", *flags, "--held-out", 0, config="tiny_sft", steps=4))
        self.assertFalse((self.dir / "without/answers").exists())
        self.assertEqual(self.final("run"), self.final("without"))
        # Where answers are drawn they are scored, too.
        self.ok(*self.tune("rl", "--held-out", 64, "--scores", "normal_match", steps=1))
        for when in ("before", "after"):
            for one in self.shown("rl", when):
                self.assertIn(one["score"], (0, 1))
        self.assertIn("<b>1</b>", (self.dir / "rl/report.html").read_text())

    def test_pictures_are_kept(self):
        """What the encoder gave is used again, also by the next run, and gives the same to the bit; what is damaged is made again."""
        how = {"steps": 4, "dropout": 0.1}
        self.some_rows(3)
        cache = self.dir / "cache"
        flags = ("--epochs", 2, "--cache-dir", cache)
        self.ok(*self.tune("none", "--epochs", 2, "--cache-mb", 0, **how))
        self.ok(*self.tune("first", *flags, **how))
        files = sorted(cache.glob("*.safetensors"))
        rows = [json.loads(line) for line in self.rows.read_text().splitlines()]
        self.assertEqual(len(files), len({row["image"] for row in rows}))
        before = [file.read_bytes() for file in files]
        files[0].write_bytes(before[0][:-8])
        self.ok(*self.tune("second", *flags, **how))
        self.assertEqual([file.read_bytes() for file in files], before)
        # Another model's pictures are others.
        self.assertEqual(self.final("none"), self.final("first"))
        self.assertEqual(self.final("none"), self.final("second"))
        self.fails(self.tune("wrong", *flags, "--cache-mb", 0), "cache_mb must be above 0")

    def test_stopped_and_resumed_is_the_same_to_the_bit(self):
        flags, how = ("--save-every", 1, "--epochs", 2), {"steps": 6, "dropout": 0.05}
        self.ok(*self.tune("whole", *flags, **how))
        done = self.stop_after("stopped", 2, [self.start(self.tune("stopped", *flags, **how))])
        self.assertLess(done, 6)
        self.ok("tune", "--resume", self.dir / "stopped")
        self.assertEqual(self.final("whole"), self.final("stopped"))
        for when in ("before", "after"):
            self.assertEqual(self.shown("whole", when), self.shown("stopped", when))

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
