"""The package's annotations agree with each other."""
import subprocess
import sys
import unittest
from pathlib import Path

PYTHON = Path(__file__).resolve().parents[2] / "python"


class Types(unittest.TestCase):
    def test_mypy(self):
        result = subprocess.run([sys.executable, "-m", "mypy", "--no-incremental", "--ignore-missing-imports", "glimpse", "transformers_gp", "llava_gp"], cwd=PYTHON,
                                capture_output=True, text=True, timeout=600)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)


if __name__ == "__main__":
    unittest.main()
