"""glimpse infer."""
import json
import shutil
import signal
import subprocess
import time
import unittest

from program import IMAGES, MODULES, PROGRAM, TEST, CliTest, write_large_png

ROWS = TEST / "rows.jsonl"
RECORDED = [json.loads(line) for line in (TEST / "answers.jsonl").read_text().splitlines()[:8]]

MEMORY = 400 << 20  # enough for the program, not for a picture of 12000 x 12000 pixels


def read(path):
    """The rows by id, without what differs from run to run."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["id"]: {key: value for key, value in row.items() if key not in ("times_ms", "cached_tokens")} for row in rows}


class Infer(CliTest):
    def infer(self, *flags, rows=ROWS, out="out.jsonl"):
        return ["infer", rows, "--image-root", TEST, "--out", self.dir / out, *flags]

    def rows_file(self, *rows):
        """A file of rows: objects, or text as it is."""
        path = self.dir / "rows.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    def test_reuse(self):
        """Rows 0 to 3 are about one picture, row 4 about another."""
        rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
        asked = [0, 1, 2, 3, 0, 1, 4]
        some = self.rows_file(*[{**rows[row], "id": place} for place, row in enumerate(asked)])
        for reuse, expected in (("auto", [True] * 4 + [False] * 2 + [True]), ("never", [True] * 7), ("always", [False] * 7)):
            out = f"{reuse}.jsonl"
            self.ok(*self.infer("--prune", "scout+glimpse", "--reuse", reuse, rows=some, out=out))
            lines = [json.loads(line) for line in (self.dir / out).read_text().splitlines()]
            self.assertEqual([line["shortcut"] for line in lines], expected)
            self.assertEqual([line["answer"] for line in lines], [RECORDED[row]["answer_pruned"] for row in asked])
        self.ok(*self.infer("--prune", "scout+glimpse", "--cache-mb", "0", rows=some))
        self.assertNotIn("shortcut", (self.dir / "out.jsonl").read_text())
        self.fails(self.infer("--reuse", "often"), "--reuse: often not in {auto,never,always}", status=2)

    def test_output(self):
        self.assertEqual(self.ok(*self.infer("--limit", "6")), "")
        rows = [json.loads(line) for line in (self.dir / "out.jsonl").read_text().splitlines()]
        for row, recorded in zip(rows, RECORDED):
            self.assertEqual(set(row), {"id", "row", "answer", "token_ids", "finish_reason", "visual_tokens", "kept_tokens",
                                        "keep", "times_ms", "cached_tokens"})
            self.assertEqual((row["id"], row["answer"]), (recorded["id"], recorded["answer_pruned"]))
            self.assertEqual((row["visual_tokens"], row["kept_tokens"]), (recorded["visual"], len(row["keep"][0])))
            self.assertEqual(set(row["times_ms"]), {"vision", "prefill", "prune", "decode"})
            self.assertEqual(row["finish_reason"], "stop")
        self.assertEqual(len(rows), 6)
        # Row by row and as ragged batches (the last one short): the same.
        self.ok(*self.infer("--limit", "6", "--batch", "4", out="batch.jsonl"))
        self.assertEqual(read(self.dir / "batch.jsonl"), read(self.dir / "out.jsonl"))

        # What was done, for the log; nothing is said of answers that end by themselves.
        result = self.fails(self.infer("--limit", "6", out="again.jsonl"), "glimpse: 6 rows answered in ", " rows/s), visual tokens "
                            "kept: ", status=0)
        self.assertNotIn("cut", result.stderr)
        self.fails(self.infer("--limit", "2", "-n", "3", out="cut.jsonl"), "2 of these answers were cut at --max-new-tokens",
                   status=0)

        # Torn in the middle of line 4: lines 1 to 3 stay as they are.
        whole = (self.dir / "out.jsonl").read_bytes()
        lines = whole.splitlines(keepends=True)
        (self.dir / "out.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:20])
        result = self.fails(self.infer("--limit", "6"), "3 rows are already answered", status=0)
        self.assertEqual(result.stdout, "")
        again = (self.dir / "out.jsonl").read_bytes()
        self.assertEqual(again.splitlines()[:3], whole.splitlines()[:3])
        self.assertEqual(read(self.dir / "out.jsonl"), read(self.dir / "batch.jsonl"))

        # The same answers under other settings are refused and kept; --overwrite starts again.
        self.fails(self.infer("--limit", "6", "--threshold", "0.4"), "out.jsonl was made with other settings (pruning.0.settings.threshold 0.5, now 0.4)",
                   "--overwrite")
        self.fails(self.infer("--limit", "6", "--system", "x"), "was made with other settings")
        self.assertEqual((self.dir / "out.jsonl").read_bytes(), again)
        self.ok(*self.infer("--limit", "1", "--threshold", "0.4", "--overwrite"))
        self.assertEqual(len(read(self.dir / "out.jsonl")), 1)

    def test_cache(self):
        """Rows about one image are asked together, answered in their own order, and as without a cache."""
        scattered = []
        for k in range(4):  # four questions about each of the first three images
            scattered += [json.loads(line) for line in ROWS.read_text().splitlines()[k:12:4]]
        rows = self.rows_file(*scattered)
        cached = {}
        for name, flags in {"cache": [], "batch": ["--batch", "3"], "none": ["--cache-mb", "0"], "small": ["--cache-mb", "1"],
                            "scarce": ["--batch", "4", "--kv-mb", "7"]}.items():
            self.ok(*self.infer(*flags, rows=rows, out=name))
            lines = [json.loads(line) for line in (self.dir / name).read_text().splitlines()]
            cached[name] = [row["cached_tokens"] for row in lines]
            self.assertEqual([row["id"] for row in lines], [row["id"] for row in scattered], name)
            self.assertEqual(read(self.dir / name), read(self.dir / "cache"), name)
        self.assertEqual(cached["none"], [0] * 12)
        for name in ("cache", "batch", "small", "scarce"):
            self.assertEqual(cached[name][:3], [0, 0, 0], name)
            self.assertTrue(all(tokens > 200 for tokens in cached[name][3:]), cached)
        result = self.fails(self.infer("--kv-mb", "1", rows=rows, out="refused"), "rows.jsonl:1: this request may need ",
                            "MiB of KV cache (a prompt of 285 tokens and up to 512 new ones)", "have 1 MiB")
        self.assertNotIn("rows.jsonl:2", result.stderr)
        result = self.fails(self.infer("--kv-mb", "1", "--keep-going", rows=rows, out="refused"), "12 of 12 rows could not be")

    def test_budgets(self):
        image = str(IMAGES / "read_000.jpg")
        rows = self.rows_file({"id": 1, "question": "Two?", "image": [image, image], "dataset": "b"})
        infer = lambda out, *flags: self.infer("-n", "1", *flags, rows=rows, out=out)
        kept = lambda out: [len(image) for image in read(self.dir / out)[1]["keep"]]
        for keep in ("128", "0.25"):
            self.ok(*infer(keep, "--prune", "divprune", "--keep", keep))
            self.assertEqual(kept(keep), [64, 64])
        self.fails(infer("128", "--prune", "divprune", "--keep", "0.25"), "was made with other settings")
        for wrong in ("1.5", "0", "-3", "x"):
            self.fails(infer("x", f"--keep={wrong}"), "expected a fraction in (0, 1] or a number of tokens above 1", status=2)
        # As many of each image as another run; sets that share ids are told apart.
        counts = self.dir / "counts.jsonl"
        line = lambda name, *sizes: json.dumps({"id": 1, "set": name, "kept_tokens": sum(sizes),
                                                "keep": [list(range(size)) for size in sizes]}) + "\n"
        counts.write_text(line("b", 3, 9) + line("a", 5, 5))
        like = infer("like", "--prune", "divprune", "--budget-from", counts)
        self.ok(*like)
        self.assertEqual(kept("like"), [3, 9])
        # A file of that name with other counts is another budget.
        counts.write_text(line("b", 9, 3))
        self.fails(like, "was made with other settings")
        counts.write_text(line("a", 9, 3))
        self.fails(infer("none", "--prune", "divprune", "--budget-from", counts), "has no row with id 1 of the set 'b'")
        for method in ("none", "reference"):
            self.fails(infer("none", "--prune", method, "--keep", "7"), "--keep needs a pruning method that takes a budget")
            self.fails(infer("none", "--prune", method, "--budget-from", counts), "--budget-from needs a pruning method")

    def test_killed(self):
        out = self.dir / "out.jsonl"
        command = [PROGRAM, *self.infer("--threads", "1")]
        for signal_sent, status in [(signal.SIGKILL, -9), (signal.SIGINT, 130)]:
            before = out.read_text().count("\n") if out.exists() else 0
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
                while not out.exists() or out.read_text().count("\n") < before + 2:
                    self.assertIsNone(process.poll())
                    time.sleep(0.02)
                process.send_signal(signal_sent)
                start = time.monotonic()
                _, errors = process.communicate(timeout=10)
            self.assertLess(time.monotonic() - start, 5)
            self.assertEqual(process.returncode, status, errors)
        self.assertIn("the same command goes on from here", errors)
        self.fails(self.infer("--limit", "6"), "rows are already answered", status=0)
        got = read(out)
        self.assertEqual(list(got), list(range(len(got))))  # every row once, in order
        for recorded in RECORDED[:6]:
            self.assertEqual(got[recorded["id"]]["answer"], recorded["answer_pruned"])

    def test_interrupts_that_the_parent_ignores(self):
        """As of every job that a script starts in the background."""
        out = self.dir / "out.jsonl"
        command = [PROGRAM, *self.infer("--threads", "1", "--limit", "12")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as process:
            while not out.exists() or out.read_text().count("\n") < 2:
                self.assertIsNone(process.poll())
                time.sleep(0.02)
            for _ in range(2):
                process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, errors)
        self.assertEqual(len(read(out)), 12)

    def test_log(self):
        """Without a terminal a line now and then says how far it is."""
        rows = self.rows_file(*[{"question": "Hello"}] * 1000)
        command = [PROGRAM, *self.infer("-n", "2000", "--threads", "1", "-m", self.endless_model(), rows=rows)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            self.assertRegex(process.stderr.readline(), r"^glimpse: \d+/1000 [\d.]+ rows/s, [\d.]+ s left$")
            process.kill()

    def test_keep_on_text(self):
        text = {"id": 1, "question": "Hello"}
        self.fails(self.infer("--keep", "0.5", "--prune", "divprune", rows=self.rows_file(text)), "--keep: there is no image")
        rows = self.rows_file(text, {"id": 2, "question": "What?", "image": str(IMAGES / "read_000.jpg")})
        self.ok(*self.infer("--keep", "0.5", "--prune", "divprune", "-n", "1", rows=rows))

    def test_rows_of_every_kind(self):
        image = str(IMAGES / "read_000.jpg")
        rows = self.rows_file({"id": "a", "question": "What letter is on the orange square?", "image": image}, "",
                              {"question": "Hello", "extra": {"any": 1}},
                              {"id": 7, "question": "Two?", "image": [image, "read_001.jpg"], "dataset": "read"})
        self.ok(*self.infer("-n", "4", rows=rows))
        got = read(self.dir / "out.jsonl")
        self.assertEqual(list(got), ["a", 2, 7])  # without an id: the line's index
        self.assertEqual([len(row["keep"]) for row in got.values()], [1, 0, 2])
        boxed = self.rows_file({"id": 1, "question": "x", "image": image, "bboxs": [[394, 57, 446, 109]]})
        self.ok(*self.infer("-n", "1", "--prune", "reference", rows=boxed, out="boxed.jsonl"))
        self.assertEqual(read(self.dir / "boxed.jsonl")[1]["keep"], [[46, 47, 62, 63]])

    def test_keep_going(self):
        image = str(IMAGES / "read_000.jpg")
        broken = self.dir / "broken.jpg"
        broken.write_bytes((IMAGES / "read_000.jpg").read_bytes()[:3000])
        good = {"question": "What letter is on the orange square?", "image": image}
        rows = self.rows_file({**good, "id": 1}, {**good, "id": 2, "image": str(broken)},
                              {**good, "id": 3, "image": "missing.jpg"}, {**good, "id": 4, "question": "word " * 9000},
                              {**good, "id": 5, "image": "x" * 300}, {**good, "id": 6})
        for batch in ("1", "6"):
            result = self.fails(self.infer("--keep-going", "--batch", batch, "--overwrite", rows=rows),
                                "4 of 6 rows could not be answered")
            for line in (2, 3, 4, 5):
                self.assertIn(f"rows.jsonl:{line}: ", result.stderr)
            self.assertEqual(list(read(self.dir / "out.jsonl")), [1, 6], batch)
        # Without the flag a missing image is found before any work, a broken one when its turn comes.
        self.fails(self.infer("--limit", "3", rows=rows, out="b.jsonl"), "rows.jsonl:3: image not found; looked at")
        self.assertFalse((self.dir / "b.jsonl").exists())
        self.fails(self.infer("--limit", "2", rows=rows, out="b.jsonl"), "rows.jsonl:2: ", "broken.jpg")
        self.assertEqual(list(read(self.dir / "b.jsonl")), [1])

    def test_keep_going_past_bad_lines(self):
        """A line that cannot be read is told by its reason and column; the others are answered."""
        good = {"question": "Hello"}
        digits = "123456789012345678901234567890"
        rows = self.rows_file("\ufeff", {**good, "id": 1}, '{"id": 2, "question": "\\ud83d"}', {**good, "id": 1},
                              '{"id": 3, "question": "Hello", "score": NaN}', f'{{"id": {digits}, "question": "Hello"}}',
                              f'{{"id": {digits[:-1]}1, "question": "Hello"}}')
        result = self.fails(self.infer("-n", "1", "--keep-going", rows=rows), "2 of 6 rows could not be answered",
                            "rows.jsonl:3: not valid JSON: column 30: ", "surrogate", "rows.jsonl:4: id 1 occurs twice")
        self.assertEqual(result.stderr.count("rows.jsonl"), 2)
        self.assertEqual(list(read(self.dir / "out.jsonl")), [1, 3, digits, digits[:-1] + "1"])
        self.fails(self.infer("-n", "1", rows=rows), "rows.jsonl:3: not valid JSON")

    def test_images_key(self):
        """Many data sets say "images"; under any other name a picture is not left out in silence."""
        row = {"id": 1, "question": "What letter is on the orange square?"}
        self.ok(*self.infer(rows=self.rows_file({**row, "images": ["cot/read/read_000.jpg"]})))
        self.assertEqual(read(self.dir / "out.jsonl")[1]["answer"], RECORDED[0]["answer_pruned"])
        self.fails(self.infer(rows=self.rows_file({**row, "image_path": "cot/read/read_000.jpg"}), out="b.jsonl"),
                   'rows.jsonl:1: "image_path" names a picture', 'call it so, or add "image": null')
        self.fails(self.infer(rows=self.rows_file({**row, "image": "cot/read/read_000.jpg\0.png"}), out="b.jsonl"),
                   "rows.jsonl:1: image not found")

    def test_out_of_memory(self):
        """What is no fault of a row may pass: the others are answered, and it is asked again."""
        write_large_png(self.dir / "large.png")
        good = {"question": "What letter is on the orange square?", "image": "cot/read/read_000.jpg"}
        rows = self.rows_file({**good, "id": 1}, {**good, "id": 2, "image": str(self.dir / "large.png")}, {**good, "id": 3})
        infer = self.infer("-n", "1", "--max-pixels", "100000", rows=rows)
        self.fails(infer, "rows.jsonl:2: std::bad_alloc", memory=MEMORY)
        self.fails([*infer, "--keep-going"], "rows.jsonl:2: std::bad_alloc", "1 of 3 rows could not be answered", memory=MEMORY)
        self.assertEqual(list(read(self.dir / "out.jsonl")), [1, 3])
        self.fails(infer, "2 rows are already answered", status=0)
        self.assertEqual(list(read(self.dir / "out.jsonl")), [1, 3, 2])

    def test_answers_of_other_rows_or_weights(self):
        """The same ids, the same paths, but another question, picture, box, model or modules."""
        shutil.copy(IMAGES / "read_000.jpg", self.dir / "a.jpg")
        row = {"id": 1, "question": "What?", "image": str(self.dir / "a.jpg"), "bboxs": [[1, 2, 30, 40]]}
        model, modules = self.model_copy(), self.model_copy("modules", source=MODULES)
        infer = lambda row=row, model=model: self.infer("-n", "1", "--model", model, "--new-modules", modules,
                                                        rows=self.rows_file(row))
        self.ok(*infer())
        before = (self.dir / "out.jsonl").read_bytes()
        self.fails(infer(), "1 rows are already answered", status=0)
        other = "out.jsonl has an answer to id 1, asked with another question, box or picture than now; name another --out"
        self.fails(infer({**row, "question": "Who?"}), other)
        self.fails(infer({**row, "bboxs": [[1, 2, 30, 41]]}), other)
        shutil.copy(IMAGES / "read_001.jpg", self.dir / "a.jpg")
        self.fails(infer(), other)
        shutil.copy(IMAGES / "read_000.jpg", self.dir / "a.jpg")
        # Moved is not changed.
        shutil.move(model, self.dir / "moved")
        self.ok(*infer(model=self.dir / "moved"))
        shutil.move(self.dir / "moved", model)
        for folder, name in ((model, "model.safetensors"), (modules, "config.json"), (model, "config.json")):
            file = folder / name
            whole = bytearray(file.read_bytes())
            file.unlink()
            changed = whole + b" " if name.endswith("json") else whole[:len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1:]
            file.write_bytes(changed)
            self.fails(infer(), "was made with other settings (content.", ", now ")
            file.write_bytes(whole)
        self.fails(infer(), "1 rows are already answered", status=0)
        self.assertEqual((self.dir / "out.jsonl").read_bytes(), before)

    def test_two_writers(self):
        """The second one names the first, whatever it was to do, and harms nothing."""
        out = self.dir / "out.jsonl"
        with subprocess.Popen([PROGRAM, *self.infer("--threads", "1")], stderr=subprocess.PIPE) as process:
            while not out.exists() or out.read_text().count("\n") < 1:
                self.assertIsNone(process.poll())
                time.sleep(0.02)
            for flags in ([], ["--overwrite"]):
                self.fails(self.infer(*flags), f"out.jsonl: process {process.pid} (glimpse) is writing there")
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
        ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
        self.assertEqual(ids, list(range(len(ids))))

    def test_bad_rows(self):
        good = {"id": 1, "question": "x"}
        for bad, says in [
            ("{", "rows.jsonl:2: not valid JSON"), ("[1]", "expected a JSON object"), ("\x00", "not valid JSON"),
            ({"id": 1, "question": "y"}, "rows.jsonl:2: id 1 occurs twice"), ({}, '"question" is missing'),
            ({"question": 3}, '"question" is missing or no text'), ({"question": "x", "image": 4}, '"image" must be'),
            ({"question": "x", "bboxs": 4}, '"bboxs" must be a list'), ({"question": "x", "id": {}}, '"id" must be'),
            ({"question": "x", "bboxs": [[1, 2]]}, "a box has 2 numbers"), ('{"id": ' + "[" * 100000, "not valid JSON"),
        ]:
            self.fails(self.infer(rows=self.rows_file(good, bad)), "rows.jsonl:2: ", says)
        self.fails(self.infer(rows=self.rows_file("", " ")), "rows.jsonl: no rows")
        self.fails(self.infer(rows=self.dir / "none.jsonl"), "no such file: ", "none.jsonl")
        self.fails(self.infer(rows=self.dir), "not a regular file: ")
        self.assertFalse((self.dir / "out.jsonl").exists())

    def test_bad_out(self):
        rows = self.rows_file({"id": 1, "question": "x"})
        text = rows.read_text()
        for flags in ([], ["--overwrite"]):
            self.fails(self.infer(*flags, rows=rows, out="rows.jsonl"), "is the file of rows itself")
            self.fails(self.infer(*flags, rows=rows, out="."), "exists and is not a regular file")
            (self.dir / "link.jsonl").unlink(missing_ok=True)
            (self.dir / "link.jsonl").symlink_to(rows)
            self.fails(self.infer(*flags, rows=rows, out="link.jsonl"), "is the file of rows itself")
        self.assertEqual(rows.read_text(), text)
        (self.dir / "other.jsonl").write_text('{"id": 1}\n')
        self.fails(self.infer(rows=rows, out="other.jsonl"), "other.jsonl exists and is no output of this command")
        self.assertEqual((self.dir / "other.jsonl").read_text(), '{"id": 1}\n')
        self.fails(self.infer(rows=rows, out="nowhere/out.jsonl"), "nowhere/out.jsonl", "No such file or directory")
        self.fails(["infer", rows, "--out", "/proc/out.jsonl"], "/proc/out.jsonl: cannot be written")
        (self.dir / "out.jsonl").touch()  # an empty file is welcome
        self.ok(*self.infer("-n", "1", rows=rows))


if __name__ == "__main__":
    unittest.main()
