"""lmms-eval, unmodified, against glimpse serve: for each model id the answers and the score are those of glimpse eval."""
import json
import os
import re
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
from evaluation import ROWS, EvalTest, answer_rows  # noqa: E402
from program import ROOT, TEST  # noqa: E402
from serving import Server  # noqa: E402

PYTHON = Path(os.environ.get("LMMS_EVAL_PYTHON", ROOT / "build/lmms-eval/bin/python"))
METHODS = {"glimpse-tiny": "glimpse", "glimpse-tiny+none": "none"}  # of model ids


@unittest.skipUnless(PYTHON.exists(), f"{PYTHON} is missing: run tools/setup_lmms_eval")
class LmmsEval(EvalTest):
    def setUp(self):
        super().setUp()
        self.folder = shutil.copytree(Path(__file__).parent / "lmms_eval", self.dir / "task")
        # Every kind of question, among them some that only one of the two gets right.
        self.rows = [{**row, "image": str(TEST / "cot" / row["dataset"] / row["image"])} for row in ROWS[::8]]
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def lmms_eval(self, server, model):
        """The score and, for every row, the answer and the tokens of prompt and answer."""
        out = self.dir / model
        run = subprocess.run([PYTHON, "-m", "lmms_eval", "--model", "openai",
                              "--model_args", f"model={model},base_url={server.url}/v1,api_key=x,num_concurrent=4",
                              "--tasks", "glimpse_tiny", "--include_path", self.folder, "--output_path", out, "--log_samples"],
                             cwd=self.dir, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
                             env={**os.environ, "HF_HOME": str(self.dir / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
                                  "PYTHONDONTWRITEBYTECODE": "1"})
        results = list(out.rglob("*_results.json"))  # it ends with 0 even when it could evaluate nothing
        self.assertEqual((run.returncode, len(results)), (0, 1), run.stdout + run.stderr)
        samples = [json.loads(line) for line in next(out.rglob("*_samples_*.jsonl")).read_text().splitlines()]
        answers = {}
        for sample in samples:
            tokens, = sample["token_counts"]
            answers[self.rows[sample["doc_id"]]["id"]] = sample["filtered_resps"], tokens["input_tokens"], tokens["output_tokens"]
        return json.loads(results[0].read_text())["results"]["glimpse_tiny"]["precision_match,none"], answers

    def glimpse_eval(self):
        """The same by method, and the visual tokens that were kept in all rows together."""
        task = self.dir / "mine.yaml"
        task.write_text("rows: task/rows.jsonl\nscore: precision_match\nmax_new_tokens: 64\n")
        self.ok(*self.eval("run", "--task", task, "--dtype", "auto", methods=",".join(METHODS.values()), limit=0), timeout=600)
        found = {cell["method"]: (cell["all"]["score"], {}, []) for cell in self.results("run")["cells"]}
        for way, row in answer_rows(self.dir / "run/answers/mine"):
            _, answers, kept = found[way.removesuffix("@own")]
            answers[row["id"]] = row["answer"], row["prompt_tokens"], row["tokens"]
            kept.append(row["kept_tokens"])
        return {method: (score, answers, sum(kept)) for method, (score, answers, kept) in found.items()}

    def test_same_scores(self):
        expected = self.glimpse_eval()
        server = Server()
        self.addCleanup(server.stop)
        kept = lambda: int(re.search(r"^glimpse:visual_tokens_kept_total\{.*\} (\d+)$", server.get("/metrics")[1].decode(), re.M)[1])
        for model, method in METHODS.items():
            with self.subTest(model):
                before = kept()
                score, answers = self.lmms_eval(server, model)
                expected_score, expected_answers, expected_kept = expected[method]
                print(f"{model}: lmms-eval {score:.5f}, glimpse eval {expected_score:.5f}, {len(answers)} answers")
                self.assertEqual(len(answers), len(self.rows))
                self.assertEqual(answers, expected_answers)
                self.assertAlmostEqual(score, expected_score, 4)
                self.assertTrue(0.5 < score < 1, score)
                self.assertEqual(kept() - before, expected_kept)  # so each id pruned as it says


if __name__ == "__main__":
    unittest.main()
