"""The benchmark on the built-in model: rows go behind those of an earlier run, whose limits and the goals give verdicts."""
import json
import re
import subprocess
import sys
import unittest
from pathlib import Path

from program import PROGRAM, ROOT, TINY, CliTest

BENCH = Path(PROGRAM).with_name("glimpse_bench")


@unittest.skipUnless(BENCH.exists(), "built without the benchmarks")
class Bench(CliTest):
    def bench(self, *flags):
        """(name -> row of the file that the run wrote, what it printed)"""
        command = [BENCH, "--checkpoint", TINY, "--threads", 1, "--visual", 64, "--text", 10, "--decode", 4, "--rounds", 1,
                   "--json", self.dir / "rows.json", *flags]  # fmt: skip
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.said = done.stderr
        return {row["name"]: row for row in json.loads((self.dir / "rows.json").read_text())}, done.stdout

    def table(self, *flags):
        command = [sys.executable, ROOT / "bench/table.py", *flags, self.dir / "rows.json"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def limit_products(self, rate):
        """Writes the limits of an earlier run; returns the names of its rows."""
        names = ["gemm_peak", "gemm_int8_peak"]
        earlier = [{"name": name, "value": rate, "unit": "x", "peers": {}, "share_of_limit": None} for name in names]
        (self.dir / "rows.json").write_text(json.dumps(earlier))
        return names

    def test_goals(self):
        names = self.limit_products(1e9)  # that nothing reaches
        rows, text = self.bench("--append", "--prefix", "x_", "--weights", "int8", "--only", "resident", "decoder", "batch")
        self.assertEqual(list(rows)[:2], names)
        self.assertEqual(rows["x_prefill_ms"]["goal"], {"at_least": 0.6, "of": "share_of_limit", "met": False})
        decode = rows["x_decode_tokens_per_s"]  # its limit is read beside it
        self.assertGreater(decode["share_of_limit"], 0)
        self.assertEqual(decode["goal"], {"at_least": 0.9, "of": "share_of_limit", "met": decode["share_of_limit"] >= 0.9})
        self.assertIn("GB/s beside it", decode["note"])
        self.assertEqual(rows["x_resident_gib"]["goal"], {"at_most": 10, "of": "value", "met": True})
        gain = rows["x_decode_batch_gain"]
        self.assertEqual(gain["goal"], {"at_least": 3, "of": "value", "met": gain["value"] >= 3})
        self.assertIn("at least 60 %: MISSED", text)
        self.assertIn("at most 10: ok", text)
        goals = self.table("--goals").splitlines()
        self.assertEqual(len(goals), 2 + 4)
        self.assertIn("| x_prefill_ms | at least 60 % of limit | 0 % | MISSED |", goals)
        self.assertEqual(len(self.table().splitlines()), 2 + len(rows))

    def test_reached_share(self):
        self.limit_products(1e-9)  # that anything outruns
        rows, text = self.bench("--append", "--weights", "int8", "--only", "decoder")
        self.assertEqual(rows["prefill_ms"]["goal"], {"at_least": 0.6, "of": "share_of_limit", "met": True})
        self.assertIn("at least 60 %: ok", text)

    def test_without_limits(self):
        rows, text = self.bench("--only", "decoder", "sizes", "--sizes", 64, 256)
        self.assertEqual(rows["prefill_ms"]["goal"], {"at_least": 0.8, "of": "share_of_limit"})
        self.assertIn("at least 80 %: ?", text)
        self.assertIn("| ? |", self.table("--goals"))
        small, large = (rows[f"visual_{size}_memory_per_token"]["value"] for size in (64, 256))
        self.assertGreater(small, 0)
        self.assertAlmostEqual(rows["visual_memory_growth"]["value"], large / small)

    def test_kv(self):
        rows, _ = self.bench("--only", "kv")
        for length in (4096, 32768):
            for bits, size in {"bf16": 512, "int8": 272, "int4": 144}.items():
                row = rows[f"kv_{bits}_{length}_ms"]
                self.assertGreater(row["value"], 0)
                self.assertIn(f"{size} bytes per token and layer", row["note"])
                self.assertEqual("goal" in row, bits != "bf16")

    def test_step_of_tuning(self):
        rows, text = self.bench("--only", "tune", "--prompts", 2, "--answer", 5)
        self.assertIn("2 prompts, each 4 completions of 5 tokens", rows["tuning_samples_per_s"]["note"])
        mine, reference = (rows["tuning_samples_per_s"][key] for key in ("value", "peers"))
        self.assertAlmostEqual(rows["tuning_speedup"]["value"], mine / reference["reference_way"], 6)
        memory = rows["tuning_memory_mib"]
        self.assertAlmostEqual(rows["tuning_memory_share"]["value"], memory["value"] / memory["peers"]["reference_way"], 6)
        self.assertEqual(rows["tuning_speedup"]["goal"]["at_least"], 2.5)
        self.assertEqual(rows["tuning_memory_share"]["goal"]["at_most"], 0.5)
        # Both ways learn the same where nothing is pruned; dropout draws other numbers.
        self.bench("--only", "tune", "--answer", 16, "--keep", 1)
        mine, reference = map(float, re.findall("gradient ([0-9.]+)", self.said))
        self.assertAlmostEqual(mine / reference, 1, delta=0.1)


if __name__ == "__main__":
    unittest.main()
