"""The examples that no other test runs say what they should."""
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(name, *arguments):
    result = subprocess.run([sys.executable, "-B", ROOT / "examples/python" / name, *arguments], capture_output=True, text=True, timeout=600, cwd=ROOT,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    if result.returncode:
        raise AssertionError(result.stderr)
    return result.stdout.splitlines()


class Examples(unittest.TestCase):
    def test_tour(self):
        lines = run("tour.py")
        self.assertEqual(lines[0], "The letter on the orange square is A. (4 of 256 visual tokens kept)")
        self.assertEqual(lines[1], "kept at rows [2 2 3 3] and columns [14 15 14 15] likeliest 1.000")
        self.assertRegex(lines[3], r"\(2\d\d of 282 prompt tokens were known\)")
        self.assertEqual([line.split(" kept")[0].split()[-1] for line in lines[4:8]], ["256", "4", "13", "4"])
        self.assertIn("|", lines[8])
        self.assertEqual(len(lines), 12)

    def test_own_pruner(self):
        with tempfile.TemporaryDirectory() as folder:
            lines = run("own_pruner.py", f"{folder}/run")
        self.assertEqual([line.split()[0] for line in lines], ["none", "unusual", "divprune", "glimpse"])
        self.assertEqual([line.split("kept ")[1].split()[0] for line in lines][0], "1.000")
        self.assertTrue(all(0.03 < float(line.split("kept ")[1].split()[0]) < 0.08 for line in lines[1:]), lines)


if __name__ == "__main__":
    unittest.main()
