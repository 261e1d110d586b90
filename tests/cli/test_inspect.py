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
            self.assertEqual("--threshold NUMBER" in text.stdout, command != "inspect")

    def test_settings_say_their_ranges_and_defaults(self):
        for command, says in [
            ("ask", ["--threshold NUMBER", "[0 to 1; default the modules', else 0.5]", "--top-k N", "[at least 0; default the checkpoint's, else 0]",
                     "--max-pixels N", "[at least 1; default the checkpoint's]", "[auto, bf16 or fp32; default auto]",
                     "[own or reference; default the checkpoint's, else own]", "-m,--model DIR", "-t,--threads N", "[0 to 4096; default 0]"]),
            ("train", ["--lr NUMBER", "highest learning rate [0 to 10; default 0.0001]", "[above 0", "[fp32 or bf16; default fp32]"][:2]),
            ("eval", ["--preprocessing TEXT", "[at least 1; default the checkpoint's]"]),
        ]:
            text = self.ok(command, "--help")
            for part in says:
                self.assertIn(part, text)
        for command in ("ask", "train"):  # every setting of a list says what it may be
            for line in self.ok(command, "--help").splitlines():
                if "--" in line and any(f" {kind} " in line for kind in ("NUMBER", "true|false")):
                    self.assertRegex(line, r"\[.+\]$")

    def test_methods(self):
        text = self.ok("methods")
        for part in ["glimpse\n", "divprune\n", "keep=NUMBER", "[above 0, at most 1; default 0.111]", "layers=N+...", "default 7+14+21]",
                     "relevance=TEXT", "default words]", "none\n"]:
            self.assertIn(part, text)
        general = {each["method"]: each for each in json.loads(self.ok("methods", "--json"))}
        own = {each["method"]: each for each in json.loads(self.ok("methods", "--json", "--model", MODEL, "--new-modules", MODULES))}
        self.assertEqual(set(general), set(own))
        unknown = self.fails(["ask", "--prune", "frob", "x"], "known: none").stderr
        for name, method in own.items():
            self.assertIn(name, unknown)
            self.assertTrue(method["about"])
            for setting in method["settings"]:  # the list is what the methods take
                refused = self.fails(["ask", "--prune", f"{name}({setting['name']}=@)", "-i", IMAGE, "x"]).stderr
                self.assertNotIn("unknown setting", refused)
        layers = [next(s["about"] for s in methods["pyramiddrop"]["settings"] if s["name"] == "layers") for methods in (general, own)]
        self.assertRegex(layers[0], "default 7[+]14[+]21]$")
        self.assertRegex(layers[1], "default 1[+]3[+]4]$")  # of the built-in model's 6

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
