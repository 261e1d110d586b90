"""`--kv`: KV caches of 8 and 4 bits keep the same tokens, give the same answer and are as small as they say."""
import json
import unittest

from program import ANSWER, KEEP, MODEL, MODULES, TEST, CliTest

ROWS = TEST / "rows.jsonl"
BYTES = {"bf16": 128, "int8": 64 + 4, "int4": 32 + 4}  # of a head of 64: codes, and two scales


class Kv(CliTest):
    def infer(self, *flags, out="out.jsonl"):
        return ["infer", ROWS, "--image-root", TEST, "-m", MODEL, "--new-modules", MODULES, "--limit", "6", "--out", self.dir / out, *flags]

    def answers(self, *flags, out):
        self.ok(*self.infer(*flags, out=out))
        return [json.loads(line) for line in (self.dir / out).read_text().splitlines()]

    def test_ask(self):
        plain = self.ask("--dtype", "bf16")
        for kv, size in BYTES.items():
            got = self.ask("--dtype", "bf16", "--kv", kv)
            self.assertEqual((got["answer"], got["images"][0]["keep"]), (ANSWER, KEEP))
            self.assertEqual(got["images"][0], plain["images"][0])
            self.assertEqual(got["kv_cache_bytes"] * BYTES["bf16"], plain["kv_cache_bytes"] * size)

    def test_infer(self):
        """The same kept tokens; behind cached images, beside others and from the disk, too; another kind is another run."""
        flags = ["--dtype", "fp32", "--cache-mb", "0"]
        plain, own = self.answers(*flags, out="plain.jsonl"), self.answers(*flags, "--kv", "int8", out="int8.jsonl")
        together = self.answers(*flags, "--kv", "int8", "--batch", "4", out="together.jsonl")
        cached = ["--dtype", "fp32", "--cache-dir", self.dir / "cache", "--kv", "int8"]
        first, again = self.answers(*cached, out="first.jsonl"), self.answers(*cached, out="again.jsonl")
        self.assertTrue(any(row["cached_tokens"] for row in first))
        self.assertTrue(all(row["cached_tokens"] for row in again))
        for rows in (own, together, first, again):
            self.assertEqual([row["answer"] for row in rows], [row["answer"] for row in plain])
            self.assertEqual([row["keep"] for row in rows], [row["keep"] for row in plain])
        self.fails(self.infer(*flags, "--kv", "int4", out="int8.jsonl"), "was made with other settings", "kv", "--overwrite")
        self.fails(self.infer(*flags, out="int8.jsonl"), "was made with other settings", "kv")
        self.ok(*self.infer(*flags, "--kv", "bf16", out="plain.jsonl"))

    def test_refusals(self):
        self.fails(["ask", "--kv", "int2", "Why?"], "kv: expected bf16, int8 or int4, got 'int2'", status=2)
        self.fails(["ask", "--kv", "int8", "--device", "cuda", "Why?"], "cuda")
        for command in ("ask", "chat", "infer", "serve", "eval", "inspect"):
            self.assertIn("--kv ", self.ok(command, "--help"))


if __name__ == "__main__":
    unittest.main()
