"""glimpse eval with a judge: a server that works, fails, talks nonsense, is slow, and a program killed meanwhile; or a program that scores."""
import json
import signal
import sys
import threading
import time
import unittest

from evaluation import ROWS, EvalTest, StubJudge, answer_rows
from program import TEST

ENV = {"OPENAI_API_KEY": "sk-none"}


class Judging(EvalTest):
    def setUp(self):
        super().setUp()
        self.judge = StubJudge(self)
        self.task = self.dir / "judged.yaml"
        self.task.write_text(f"rows: {TEST / 'rows.jsonl'}\nimages: {TEST}\nscore: llm\n")

    def command(self, model, *flags, jobs=3, methods="none"):
        """Answers are made once; every model is another judge, which has seen none of them."""
        return self.eval("run", "--task", self.task, "--judge-url", self.judge.url, "--judge-jobs", str(jobs), "--judge-model",
                         model, *flags, methods=methods, limit=2)

    def rows(self):
        return list(answer_rows(self.dir / "run/answers/judged"))

    def share_right(self, way="none@own"):
        mine = [row for each, row in self.rows() if each == way]
        return sum(row["answer"] == ROWS[row["id"]]["answer"] for row in mine) / len(mine)

    def judged(self, model):
        lines = map(json.loads, (self.dir / "run/judged.jsonl").read_text().splitlines())
        return [line for line in lines if line["key"][0] == model]

    def test_refusal_and_retries(self):
        judge, methods = self.judge, "none,glimpse"
        # What cannot work is said before any answer.
        self.fails(self.eval("run", "--task", self.task), "is scored by a judge: name a server with --judge-url")
        self.fails(self.eval("run", "--task", self.task, "--judge-url", judge.url), "no model is named", "--judge-model")
        for url in ("http://", "localhost:8000", "ftp://x"):
            self.fails(self.eval("run", "--task", self.task, "--judge-url", url, "--judge-model", "m"), "expected an address")
        self.assertFalse((self.dir / "run").exists())
        # A refusal ends the run at once, with what the server said; answers stay.
        judge.script = [{"status": 401}] * 3
        self.fails(self.command("grader", methods=methods), "refuses: status 401", "no such model", env=ENV)
        self.assertLessEqual(len(judge.seen), 3)
        # A server that fails now and then is asked again.
        judge.seen.clear()
        judge.script = [{"status": 500}, {"status": 429}]
        self.fails(self.command("grader", methods=methods), "20 of 20 answers are there already", "answers go to the judge",
                   status=0, env=ENV)
        for way, cell in self.cells("run").items():
            self.assertAlmostEqual(cell["all"]["score"], self.share_right(way), 4)
            self.assertEqual(cell["unparsed"], 0)
        # Equal answers are asked about once; the key goes in the header and nowhere else.
        different = {(ROWS[row["id"]]["question"], row["answer"]) for _, row in self.rows()}
        self.assertEqual(len(judge.seen), len(different) + 2)
        for path, key, body in judge.seen:
            self.assertEqual((path, key), ("/v1/chat/completions", "Bearer sk-none"))
            self.assertEqual((body["model"], body["temperature"]), ("grader", 0))
        for file in (self.dir / "run").rglob("*"):
            if file.is_file():
                self.assertNotIn(b"sk-none", file.read_bytes())
        # Nothing is asked twice.
        judge.seen.clear()
        self.ok(*self.command("grader", methods=methods), env=ENV)
        self.assertEqual(judge.seen, [])
        # Another judge is asked anew; one that is not there is given up.
        judge.close()
        self.fails(self.command("other", "--judge-tries", "2", methods=methods), "no reply after 2 tries", env=ENV)

    def test_replies_without_a_score(self):
        judge = self.judge
        garbage = [{"raw": "<html>busy</html>"}, {"raw": '{"choices": []}'}, {"raw": '{"choices": [{"message": {"content": 3}}]}'}]
        # What is no completion is asked again.
        judge.script = list(garbage)
        self.ok(*self.command("a"))
        count = len(self.judged("a"))
        self.assertEqual(len(judge.seen), count + len(garbage))
        self.assertAlmostEqual(self.cells("run")["none@own"]["all"]["score"], self.share_right(), 4)
        # One that never comes, none, and two scores count 0; they are told and not kept.
        judge.script = [garbage[0], {"content": "I cannot say."}, {"content": "score: 1\nscore: 0"}]
        out = self.ok(*self.command("b", "--judge-tries", "1", jobs=1))
        self.assertIn("3 replies of the judge held no score and count 0", out)
        cell = self.cells("run")["none@own"]
        self.assertEqual((cell["unparsed"], len(self.judged("b"))), (3, count - 3))
        self.assertLess(cell["all"]["score"], self.share_right())
        self.assertIn("3 replies of the judge held no score", (self.dir / "run/report.html").read_text())
        # The same command asks for those again, and for them only.
        judge.seen.clear()
        self.assertNotIn("held no score", self.ok(*self.command("b")))
        self.assertEqual(len(judge.seen), 3)
        cell = self.cells("run")["none@own"]
        self.assertEqual(cell["unparsed"], 0)
        self.assertAlmostEqual(cell["all"]["score"], self.share_right(), 4)

    def test_slow_and_full_servers(self):
        judge = self.judge
        # The server's own pause is kept, longer than ours would be.
        judge.script = [{"status": 429, "headers": {"Retry-After": 2}}]
        self.ok(*self.command("a", jobs=1))
        self.assertGreater(judge.times[1] - judge.times[0], 1.9)
        self.assertEqual(judge.seen[0][2], judge.seen[1][2])
        # A reply that does not come in time is asked for again.
        judge.seen.clear()
        judge.script = [{"wait": 4}]
        self.ok(*self.command("b", "--judge-timeout", "0.5", jobs=1))
        self.assertEqual(judge.seen[0][2], judge.seen[1][2])
        self.assertEqual(judge.in_flight, 1)  # the one given up
        while judge.in_flight:
            time.sleep(0.05)
        # As many at a time as allowed: each of the first three waits until all of them are there.
        barrier = threading.Barrier(3)
        judge.most_in_flight, judge.script = 0, [{"wait": lambda: barrier.wait(20)}] * 3
        self.ok(*self.command("c"))
        self.assertFalse(barrier.broken)
        self.assertEqual(judge.most_in_flight, 3)

    def test_killed_while_judging(self):
        judge = self.judge
        self.ok(*self.command("first"))
        count = len(self.judged("first"))
        for sent, status in [(signal.SIGKILL, -9), (signal.SIGINT, 130)]:
            model = str(sent)
            judge.seen.clear()
            judge.script = [{}, {}, {"wait": 60}]
            with self.start(self.command(model, jobs=1)) as process:
                while len(judge.seen) < 3:
                    self.assertIsNone(process.poll())
                    time.sleep(0.01)
                start = time.monotonic()
                process.send_signal(sent)
                _, errors = process.communicate(timeout=20)
            self.assertEqual(process.returncode, status, errors)
            self.assertLess(time.monotonic() - start, 5)  # not for the request on its way
            if sent == signal.SIGINT:
                self.assertIn("the same command goes on from here", errors)
            self.assertEqual(len(self.judged(model)), 2)
            judge.seen.clear()
            self.ok(*self.command(model))
            self.assertEqual((len(judge.seen), len(self.judged(model))), (count - 2, count))


class Commanding(EvalTest):
    def test_program_that_scores(self):
        """A program of the user's scores the answers, a line each, in order."""
        task, scorer = self.dir / "own.yaml", self.dir / "score.py"
        task.write_text(f"rows: {TEST / 'rows.jsonl'}\nimages: {TEST}\nscore: command\n")
        scorer.write_text("import json, sys\n"
                          f"log = open({str(self.dir / 'log')!r}, 'a')\n"
                          "for line in sys.stdin:\n"
                          "    log.write(line)\n"
                          "    row = json.loads(line)\n"
                          "    print(json.dumps({'score': (row['answer'] == row['completion']) / 4}), flush=True)\n")
        run = lambda *flags: self.eval("run", "--task", task, *flags, limit=2)
        self.fails(run(), "is scored by a program", "--score-command")
        self.assertFalse((self.dir / "run").exists())
        self.ok(*run("--score-command", f"{sys.executable} {scorer}"))
        asked = [json.loads(line) for line in (self.dir / "log").read_text().splitlines()]
        answers = self.answers("run", "own")
        self.assertEqual(len(asked), len(answers))
        for way, cell in self.cells("run").items():
            mine = [(ROWS[id]["answer"], answer) for (each, _, id), (answer, _) in answers.items() if each == way]
            self.assertAlmostEqual(cell["all"]["score"], sum(right == answer for right, answer in mine) / 4 / len(mine), 4)
        for row in asked:
            expected = ROWS[row["id"]]
            self.assertEqual((row["question"], row["answer"], row["answers"], row["dataset"], row["bboxs"]),
                             (expected["question"], expected["answer"], [expected["answer"]], expected["dataset"], expected["bboxs"]))
        self.fails(run("--score-command", "false"), "score_command 'false'", "ended with status 1")


if __name__ == "__main__":
    unittest.main()
