"""models/tiny-plus: the built-in model, taught to count on pruned pictures, beside the built-in model as it is."""
import json
import unittest
from collections import Counter

from program import ROOT, CliTest

TEST, PLUS = ROOT / "models/tiny/test", ROOT / "models/tiny-plus"


class TaughtToCount(CliTest):
    def right(self, rows, name, *flags):
        """Exact answers to rows of each kind, and the share of the visual tokens that were dropped."""
        (self.dir / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.ok("infer", self.dir / "rows.jsonl", "--image-root", TEST, "--out", self.dir / name, "--prune", "glimpse", *flags)
        answers = [json.loads(line) for line in (self.dir / name).read_text().splitlines()]
        kept, all_tokens = (sum(answer[key] for answer in answers) for key in ("kept_tokens", "visual_tokens"))
        return Counter(row["dataset"] for row, answer in zip(rows, answers) if answer["answer"].strip() == row["answer"]), 1 - kept / all_tokens

    def test_counts(self):
        rows = [json.loads(line) for line in (TEST / "rows.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["dataset"] in ("count", "exist", "read")][::2]
        number = Counter(row["dataset"] for row in rows)
        base, _ = self.right(rows, "base.jsonl")
        plus, gone = self.right(rows, "plus.jsonl", "--adapter", PLUS / "adapter", "--new-modules", PLUS / "new_modules")
        self.assertLess(base["count"], 0.6 * number["count"])
        self.assertGreaterEqual(plus["count"], 0.75 * number["count"])
        for kind in ("exist", "read"):
            self.assertGreaterEqual(plus[kind], base[kind] - 1)
        self.assertGreater(gone, 0.94)


if __name__ == "__main__":
    unittest.main()
