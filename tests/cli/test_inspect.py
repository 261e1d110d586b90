"""glimpse inspect, --help, --version, wrong usage."""
import json
import subprocess
import unittest

from program import IMAGE, MODEL, MODULES, PROGRAM, CliTest, run

COMMANDS = ["ask", "chat", "infer", "inspect"]


class Inspect(CliTest):
    def test_built_in_model(self):
        text = self.ok("inspect")
        for part in ["6 layers, hidden 256, 4 heads (2 key/value) of 64, MLP 512, vocabulary 576, tied head, context 4096",
                     "6 layers, hidden 128", "after layer 3 of 0..5", "logits of layers [3], encoder blocks [5,3,2,1]",
                     "BFloat16", "glimpse token", "predictor"]:
            self.assertIn(part, text)
        got = json.loads(self.ok("inspect", "--json"))
        self.assertEqual((got["model"], got["model_type"]), (str(MODEL), "qwen2_5_vl"))
        self.assertEqual(got["language_model"]["layers"], 6)
        self.assertEqual(got["vision_encoder"], {"layers": 6, "hidden_size": 128})
        parts = {part["part"]: part for part in got["parts"]}
        self.assertEqual(set(parts), {"embeddings", "language model", "vision encoder"})
        # models/tiny/README.md: 3.69 and 1.83 million parameters, 11.1 MB.
        self.assertEqual(round(parts["vision encoder"]["parameters"] / 1e6, 2), 1.83)
        self.assertEqual(round((parts["embeddings"]["parameters"] + parts["language model"]["parameters"]) / 1e6, 2), 3.69)
        self.assertEqual(round(sum(part["bytes"] for part in got["parts"]) / 1e6, 1), 11.1)
        pruning = got["pruning_modules"]
        self.assertEqual((pruning["folder"], pruning["reduce_layer"], pruning["selected_visual_layers"]),
                         (str(MODULES), 3, [5, 3, 2, 1]))
        self.assertEqual(round(sum(part["parameters"] for part in pruning["parts"]) / 1e6, 2), 0.36)

    def test_without_modules(self):
        self.assertIn("pruning modules   none (--new-modules)", self.ok("inspect", "-m", MODEL))
        self.assertNotIn("pruning_modules", json.loads(self.ok("inspect", "--json", "-m", MODEL)))


class Usage(CliTest):
    def test_help(self):
        top = self.ok("--help")
        self.assertIn("Usage: glimpse [OPTIONS] SUBCOMMAND", top)
        for command in COMMANDS:
            self.assertIn(f"\n  {command} ", top)
            text = subprocess.run([PROGRAM, command, "--help"], capture_output=True, text=True)
            self.assertEqual((text.returncode, text.stderr), (0, ""))
            self.assertIn(f"Usage: glimpse {command} [OPTIONS]", text.stdout)
            self.assertIn("--model DIR", text.stdout)
            self.assertEqual("--threshold VALUE" in text.stdout, command != "inspect")

    def test_version(self):
        for flag in ("--version", "-V"):
            self.assertRegex(self.ok(flag), r"^glimpse \d+\.\d+\.\d+ \(\S+\)\n$")

    def test_wrong_usage(self):
        def wrong(*args):
            result = subprocess.run([PROGRAM, *args], capture_output=True, text=True)
            self.assertEqual((result.returncode, result.stdout), (2, ""), args)
            self.assertIn("--help", result.stderr)
            return result.stderr

        self.assertIn("subcommand", wrong())
        wrong("paint")
        wrong("ask")
        wrong("ask", "one", "two")
        wrong("ask", "--imagee", IMAGE, "x")
        self.assertIn("--out is required", wrong("infer", "rows.jsonl"))
        wrong("infer", "--out", "x")
        wrong("inspect", "--threshold", "0.5")
        for flags in ["--threshold 2", "--threshold x", "--threshold nan", "--max-keep -0.1", "--min-keep -1", "--min-keep 1.5",
                      "--temperature -1", "--temperature hot", "--top-p 2", "--top-k -1", "--repetition-penalty 0",
                      "--seed many", "--max-new-tokens 0", "--max-new-tokens -3", "--max-new-tokens 5000000000",
                      "--threads -1", "--threads 1e9", "--dtype int8", "--min-pixels x", "--max-pixels 1e99"]:
            text = wrong("ask", *flags.split(), "x")
            name = flags.split()[0][2:]
            self.assertIn(name.replace("-", "_"), text.replace("-", "_"), flags)
        for flags in ["--limit -1", "--batch 0", "--batch 5000", "--limit x"]:
            wrong("infer", "rows", "--out", "x", *flags.split())

    def test_question_that_looks_like_a_flag(self):
        self.assertEqual(run("ask", "-n", "1", "--", "--version").returncode, 0)


if __name__ == "__main__":
    unittest.main()
