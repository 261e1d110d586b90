"""glimpse eval: the grid, budgets, killed and resumed, several processes, what goes wrong."""
import csv
import functools
import html.parser
import json
import re
import shutil
import signal
import time
import unittest

from evaluation import ROWS, EvalTest, answer_rows
from program import MODEL, TEST, write_large_png

RECORDED = [json.loads(line) for line in (TEST / "answers.jsonl").read_text().splitlines()]


class WellFormed(html.parser.HTMLParser):
    """Every tag of a page is closed where it should be, and pictures have their data with them."""

    def check(self, case, page):
        self.case, self.open = case, []
        self.feed(page)
        self.close()
        case.assertEqual(self.open, [])

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.case.assertTrue(dict(attributes)["src"].startswith("data:image/jpeg;base64,"))
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        self.case.assertEqual(self.open.pop(), tag)


class Eval(EvalTest):
    def test_grid(self):
        methods = "none,glimpse,glimpse@own,reference,divprune(keep=0.5)+random"
        out = self.ok(*self.eval("run", "--budgets", "0.111,1", methods=methods))
        self.assertIn("divprune(keep=0.5)+random", out)
        results = self.results("run")
        cells = {(cell["method"], cell["budget"]): cell for cell in results["cells"]}
        self.assertEqual(list(cells), [("none", "own"), ("glimpse", "0.111"), ("glimpse", "1"), ("glimpse", "own"),
                                       ("reference", "own"), ("divprune(keep=0.5)+random", "0.111"),
                                       ("divprune(keep=0.5)+random", "1")])
        self.assertEqual(results["tasks"][0]["rows"], 5)  # one of each set
        # What the recorded answers say about these rows.
        answers = self.answers("run")
        for name, recorded in (("none@own", "answer_full"), ("glimpse@own", "answer_pruned")):
            for (way, _, row), (answer, _) in answers.items():
                if way == name:
                    self.assertEqual(answer, RECORDED[row][recorded])
        self.assertLess(cells["glimpse", "0.111"]["all"]["kept"], 0.1111)
        self.assertEqual(cells["glimpse", "1"]["all"]["kept"], 1)
        self.assertEqual(cells["reference", "own"]["all"]["mask"]["recall"], 1)
        self.assertEqual(cells["none", "own"]["all"]["mask"]["recall"], 1)
        for cell in cells.values():
            times, work = cell["all"]["times_ms"], cell["all"]["gflop"]
            self.assertGreater(times["total"], times["vision"] + times["prefill"])
            self.assertGreaterEqual(times["prefill"], times["prune"])
            self.assertAlmostEqual(work["total"], sum(work[part] for part in ("vision", "prefill", "prune", "decode")), 3)
            self.assertEqual(cell["average"], sum(s["score"] for s in cell["sets"].values()) / 5)
        for smaller, larger in ((("glimpse", "0.111"), ("glimpse", "1")), (("glimpse", "own"), ("none", "own"))):
            for number in ("kv_mib", "kept"):
                self.assertLess(cells[smaller]["all"][number], cells[larger]["all"][number])
        with (self.dir / "run/table.csv").open() as file:
            lines = list(csv.DictReader(file))
        self.assertEqual(len(lines), 7 * (5 + 2))
        self.assertEqual({line["set"] for line in lines}, {"read", "colour", "shape", "count", "exist", "average", "all rows"})
        page = (self.dir / "run/report.html").read_text()
        for part in ("Score against time", "<svg", "data:image/jpeg;base64,", "glimpse (own rule)", "Settings"):
            self.assertIn(part, page)
        WellFormed().check(self, page)
        for never in ("<script", "http:", "https:", str(self.dir)):
            self.assertNotIn(never, page)
        # Again: nothing to answer, so no model is needed, and the same page.
        before = (self.dir / "run/results.json").read_bytes()
        result = self.fails(self.eval("run", "--budgets", "0.111,1", methods=methods), "35 of 35 answers are there already",
                            status=0)
        self.assertEqual(result.stdout, out)
        self.assertEqual((self.dir / "run/results.json").read_bytes(), before)
        # What each method ran with, in the results and on the page.
        self.assertEqual([stage["method"] for stage in cells["divprune(keep=0.5)+random", "1"]["pruning"]], ["divprune", "random"])
        self.assertEqual(cells["glimpse", "own"]["pruning"][0]["settings"]["threshold"], 0.5)
        self.assertIn("divprune: keep 0.5; random: ", page)
        # The grid grows: only what is new is answered.
        self.fails(self.eval("run", methods="none,random@0.2"), "5 of 10 answers are there already", status=0)
        # What an answer takes is far less than the model with all that is loaded, which is above 100 MiB.
        for cell in self.results("run")["cells"]:
            self.assertGreater(cell["all"]["peak_mib"] or 1, 0)
            self.assertLess(cell["all"]["peak_mib"] or 1, 80)

    def test_downsample(self):
        """The baseline that any choice of tokens has to beat: smaller pictures."""
        self.ok(*self.eval("run", methods="none,downsample@0.1,downsample@20,downsample@1"))
        lines = {(way, line["set"], line["id"]): line for way, line in answer_rows(self.dir / "run/answers/tiny")}
        for (way, *row), line in lines.items():
            method, _, budget = way.partition("@")
            visual = lines["none@own", *row]["visual_tokens"]
            room = 20 if budget == "20" else visual if method == "none" else max(1, round(float(budget) * visual))
            rows, cols = line["images"][0]["grid"]
            with self.subTest(way=way, row=row):
                self.assertEqual((line["visual_tokens"], line["kept_tokens"]), (visual, rows * cols))
                self.assertEqual([stage["method"] for stage in line["pruning"]], ["downsample"] * (method != "none"))
                self.assertLessEqual(line["kept_tokens"], room)
                self.assertGreaterEqual(line["kept_tokens"], room * 0.75)
        cells = {(cell["method"], cell["budget"]): cell["all"] for cell in self.results("run")["cells"]}
        self.assertLess(cells["downsample", "0.1"]["gflop"]["vision"], 0.2 * cells["none", "own"]["gflop"]["vision"])
        self.assertEqual(cells["downsample", "1"]["kept"], 1)
        self.fails(self.eval("own", methods="downsample@own"), "downsample: needs a budget")

    def test_budgets(self):
        """Numbers of tokens, and another run's counts, image by image."""
        images = ["read/read_000.jpg", "read/read_001.jpg"]
        rows = [{"id": i, "set": name, "question": "What letter is on the orange square?", "answer": "x",
                 "image": [f"cot/{image}" for image in images[:count]]}
                for i, name, count in ((1, "a", 1), (1, "b", 2), (2, "b", 1))]
        (self.dir / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = self.dir / "mine.yaml"
        task.write_text(f"rows: rows.jsonl\nimages: {TEST}\nset: set\n")
        flags = ["--task", task, "-n", "2"]
        run = functools.partial(self.eval, limit=0)
        out = self.ok(*run("run", *flags, "--budgets", "64", methods="none,random,glimpse,glimpse@0.1"))
        self.assertRegex(out, r"(?m)^random +64 ")
        for way, row in answer_rows(self.dir / "run/answers/mine"):
            self.assertEqual(row["kept_tokens"], {"none@own": 256 * len(row["images"]), "glimpse@0.1": round(25.6 * len(row["images"]))}.get(way, 64), way)
        # A sharded run is named by its folder and the way; every method keeps as many of each image.
        for rank in ("0", "1"):
            self.ok(*run("counts", *flags, methods="glimpse"), env={"RANK": rank, "WORLD_SIZE": "2"})
        self.ok(*run("from", *flags, "--budget-from", self.dir / "counts/glimpse@own", methods="none,divprune,random,dart"))
        kept = lambda row: [len(image) for image in row["keep"]]
        counts = {(row["set"], row["id"]): kept(row) for _, row in answer_rows(self.dir / "counts/answers/mine")}
        self.assertEqual([len(each) for each in counts.values()], [1, 1, 2])
        for way, row in answer_rows(self.dir / "from/answers/mine"):
            if way != "none@own":
                self.assertEqual(kept(row), counts[row["set"], row["id"]], way)
                self.assertEqual(row["budget"], kept(row))
        # A row that the run could not answer is missed only where it is needed.
        files = sorted((self.dir / "counts/answers/mine").glob("glimpse@own.*"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        for line in lines:
            if line["set"] == "a":
                line["problem"] = "no image"
        (self.dir / "part.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        part = run("part", *flags, "--budget-from", self.dir / "part.jsonl", methods="divprune")
        self.fails(part, "rows.jsonl:1: ", "could not answer this row: no image")
        self.ok(*part, "--sets", "b")
        self.fails([*part, "--keep-going"], "rows.jsonl:1: left out", status=0)
        # Another run under the same name is noticed.
        for line in lines:
            line["keep"] = [image[:1] for image in line["keep"]]
            line["kept_tokens"] = len(line["keep"])
        (self.dir / "part.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.fails([*part, "--sets", "b"], "divprune@from to ", "asked with another budget", "--overwrite")
        for bad, says in [("none@0.1", "none takes no budget; write it without one"), ("least", "give it a budget"),
                          ("reference@5", "reference takes no budget"), ("dart@from", "--budget-from names no run")]:
            self.fails(run("x", methods=bad), says)
        self.fails(run("x", *flags, "--budget-from", self.dir / "counts"), "RUN/METHOD@BUDGET", "it has glimpse@own")

    def test_what_a_folder_was_made_with(self):
        """Other weights or another picture under the same name, another question: no answers are mixed."""
        shutil.copytree(TEST / "cot", self.dir / "images/cot")
        rows = [{key: row[key] for key in ("id", "question", "answer", "image", "dataset")} for row in ROWS[:8]]
        write = lambda: (self.dir / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        write()
        task = self.dir / "mine.yaml"
        task.write_text("rows: rows.jsonl\nimages: images\n")
        run = self.eval("run", "--task", task, "-n", "2", methods="none", limit=2)
        self.ok(*run)
        # Built from what --version says.
        settings = json.loads((self.dir / "run/eval.json").read_text())
        self.assertEqual(f"({settings['commit']})", self.ok("--version").split()[2])
        self.assertEqual(self.results("run")["about"]["commit"], settings["commit"])
        # Another build goes on, and says so; nothing is said of one that only looks.
        (self.dir / "run/eval.json").write_text(json.dumps({**settings, "commit": "another"}))
        self.ok(*run)
        self.assertEqual(self.results("run")["about"]["commit"], "another")
        # More rows are welcome, others not.
        self.fails(self.eval("run", "--task", task, "-n", "2", methods="none", limit=4), "2 of 4 answers are there already",
                   f"were made by another, this is {settings['commit']}; the results name both", status=0)
        about = self.results("run")["about"]
        self.assertEqual((about["commit"], about["earlier_commits"]), (settings["commit"], ["another"]))
        question = rows[0]["question"]
        rows[0]["question"] = "What is it?"
        write()
        self.fails(run, "none@own to ", "rows.jsonl:1, asked with another question, image or box", "--overwrite")
        rows[0]["question"] = question
        write()
        self.ok(*run)
        picture = self.dir / "images/cot/read/read_000.jpg"
        shutil.copy(TEST / "cot/read/read_001.jpg", picture)
        self.fails(run, "asked with another question, image or box")
        # The same rows and pictures elsewhere are the same.
        shutil.copy(TEST / "cot/read/read_000.jpg", picture)
        shutil.move(self.dir / "images", self.dir / "moved")
        self.ok(*run, "--image-root", self.dir / "moved")

    def test_other_weights(self):
        model = self.model_copy("model", ["model.safetensors"])
        weights = bytearray((MODEL / "model.safetensors").read_bytes())
        (model / "model.safetensors").write_bytes(weights)
        run = self.eval("run", "-n", "2", "--model", model, methods="none", limit=1)
        self.ok(*run)
        weights[len(weights) // 2] ^= 1
        (model / "model.safetensors").write_bytes(weights)
        self.fails(run, "was made with other settings (", "content.model ", ", now ", "--overwrite")
        self.ok(*run, "--overwrite")
        shutil.move(model, self.dir / "moved")
        self.ok(*self.eval("run", "-n", "2", "--model", self.dir / "moved", methods="none", limit=1))

    def test_two_writers(self):
        """A second process with the same share of the rows, and --overwrite under a process at work, are refused."""
        folder = self.dir / "run/answers/tiny"
        run = self.eval("run", methods="none,glimpse", limit=50)
        with self.start(run) as process:
            while not folder.exists() or not sum(file.read_text().count("\n") for file in folder.glob("*.jsonl")):
                self.assertIsNone(process.poll())
                time.sleep(0.01)
            self.fails(run, f".r0.jsonl: process {process.pid} (glimpse) is writing there")
            self.fails([*run, "--overwrite"], ".running: process ", "is writing there")
            self.assertIsNone(process.poll())
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
        self.assertGreater(len(self.answers("run")), 0)

    def test_keep_going(self):
        """A line that is no JSON is left out; what failed for want of memory is asked again, what is broken is not."""
        shutil.copytree(TEST / "cot/read", self.dir / "images")
        write_large_png(self.dir / "images/large.png")
        (self.dir / "images/broken.jpg").write_bytes((TEST / "cot/read/read_000.jpg").read_bytes()[:3000])
        row = lambda id, image: json.dumps({"id": id, "question": "What?", "answer": "x", "image": image})
        (self.dir / "rows.jsonl").write_text("\n".join([row(1, "read_000.jpg"), '{"id": 2, "question": "\\ud83d"}',
                                                        row(3, "large.png"), row(4, "broken.jpg")]) + "\n")
        task = self.dir / "mine.yaml"
        task.write_text("rows: rows.jsonl\nimages: images\n")
        run = self.eval("run", "--task", task, "-n", "2", "--max-pixels", "100000", "--keep-going", methods="none", limit=0)
        left_out = "rows.jsonl:2: left out: not valid JSON: column 30"
        self.fails(run, left_out, "rows.jsonl:3: std::bad_alloc", "rows.jsonl:4: ", status=0, memory=400 << 20)
        self.assertEqual(self.results("run")["tasks"][0]["left_out"], 2)
        result = self.fails(run, "2 of 3 answers are there already", status=0)
        self.assertNotIn("rows.jsonl:4", result.stderr)
        self.assertEqual(self.results("run")["tasks"][0]["left_out"], 1)
        self.fails(run, "3 of 3 answers are there already", status=0)

    def test_killed_and_resumed(self):
        flags = dict(methods="none,glimpse,dart@0.2", limit=2)
        self.ok(*self.eval("whole", **flags))
        folder = self.dir / "run/answers/tiny"
        for signal_sent, status in [(signal.SIGKILL, -9), (signal.SIGINT, 130)]:
            count = lambda: sum(file.read_text().count("\n") for file in folder.glob("*.jsonl"))
            before = count()
            with self.start(self.eval("run", **flags)) as process:
                while count() < before + 4:
                    self.assertIsNone(process.poll())
                    time.sleep(0.01)
                process.send_signal(signal_sent)
                _, errors = process.communicate(timeout=20)
            self.assertEqual(process.returncode, status, errors)
            self.assertFalse((self.dir / "run/report.html").exists())
        self.assertIn("the same command goes on from here", errors)
        file = next(folder.glob("glimpse@own.*"))
        file.write_bytes(file.read_bytes()[:-30])  # torn in a line
        self.fails(self.eval("run", **flags), "of 30 answers are there already", status=0)
        self.assertEqual(self.answers("run"), self.answers("whole"))
        score = lambda out: [(cell["average"], cell["all"]["mask"]) for cell in self.results(out)["cells"]]
        self.assertEqual(score("run"), score("whole"))

    def test_processes(self):
        flags = dict(methods="none,glimpse", limit=2)
        self.ok(*self.eval("whole", **flags))
        # One after the other: the last one makes the results. Then two at once, under another launcher.
        self.fails(self.eval("a", **flags), "process 0 of 2 is done; 10 of 20 answers are still missing", status=0,
                   env={"RANK": "0", "WORLD_SIZE": "2"})
        self.assertFalse((self.dir / "a/results.json").exists())
        self.ok(*self.eval("a", **flags), env={"RANK": "1", "WORLD_SIZE": "2"})
        processes = [self.start(self.eval("b", **flags), SLURM_PROCID=str(rank), SLURM_STEP_NUM_TASKS="2")
                     for rank in range(2)]
        for process in processes:
            _, errors = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 0, errors)
        for out in ("a", "b"):
            self.assertEqual(self.answers(out), self.answers("whole"))
            self.assertEqual([cell["average"] for cell in self.results(out)["cells"]],
                             [cell["average"] for cell in self.results("whole")["cells"]])
            self.assertEqual(len(list((self.dir / out / "answers/tiny").glob("*.r1.jsonl"))), 2)
        # A batch script of Slurm's that starts no steps is one process, whatever tasks it asked for.
        self.ok(*self.eval("c", methods="none"), env={"SLURM_PROCID": "0", "SLURM_NTASKS": "2"})
        self.fails(self.eval("c"), "RANK 2 is not below WORLD_SIZE 2", env={"RANK": "2", "WORLD_SIZE": "2"})
        self.fails(self.eval("c"), "RANK: expected a number", env={"RANK": "x", "WORLD_SIZE": "2"})

    def test_bad_input(self):
        self.fails(self.eval("x", "--task", "nothing"), "task 'nothing'", "known: refcoco, tiny")
        self.fails(self.eval("x", methods="none,sharpen"), "unknown method 'sharpen'", "known: none, glimpse")
        self.fails(self.eval("x", methods="divprune(kept=1)"), "unknown setting 'kept'")
        self.fails(self.eval("x", "--budgets", "1.5"), "budget: expected a fraction in (0, 1], a number of tokens above 1, or own,",
                   "got '1.5'")
        self.fails(self.eval("x", "--sets", "reed"), "has no set 'reed'; the nearest is 'read'")
        self.fails(self.eval("x", methods="none,none"), "none@own occurs twice")
        self.fails(self.eval("x", "--model", self.dir / "nowhere"), "nowhere")
        self.fails(self.eval("x", "--budget-from", self.dir / "none.jsonl"), "none.jsonl")
        self.fails(self.eval("x", "--task", "viscot", "--judge-url", "http://127.0.0.1:1", "--judge-model", "m", "--data-root", self.dir),
                   "cub.json")
        self.fails(["eval"], "--out", status=2)
        (self.dir / "other").mkdir()
        (self.dir / "other/file").touch()
        self.fails(self.eval("other"), "holds something that is no evaluation")
        (self.dir / "file").touch()
        self.fails(self.eval("file"), "is no folder")
        self.ok(*self.eval("run", methods="none@own"))
        self.fails(self.eval("run", "--dtype", "bf16"), "was made with other settings", "dtype", "--overwrite")
        self.ok(*self.eval("run", "--max-new-tokens", "2", "--overwrite", methods="none@own"))
        for line in (self.dir / "run/answers/tiny/none@own.r0.jsonl").read_text().splitlines():
            self.assertLessEqual(json.loads(line)["tokens"], 2)

    def test_broken_rows(self):
        good = json.loads((TEST / "rows.jsonl").read_text().splitlines()[0])
        image = TEST / "cot/read" / good["image"]
        broken = self.dir / "broken.jpg"
        broken.write_bytes(image.read_bytes()[:2000])
        rows = [{**good, "image": str(image)}, {**good, "id": 1, "image": str(broken)},
                {**good, "id": 2, "image": "missing.jpg"}]
        (self.dir / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = self.dir / "mine.yaml"
        task.write_text("rows: rows.jsonl\nscore: normal_match\n")
        flags = ["--task", task]
        self.fails(self.eval("x", *flags, limit=0), "rows.jsonl:3: image not found")
        result = self.fails(self.eval("x", *flags, "--keep-going", limit=0), "rows.jsonl:3: left out", "rows.jsonl:2: ", status=0)
        self.assertEqual(len(re.findall(r"rows.jsonl:2: .*broken.jpg", result.stderr)), 2)  # once for each way
        results = self.results("x")
        self.assertEqual((results["tasks"][0]["rows"], results["tasks"][0]["left_out"]), (2, 1))
        for cell in results["cells"]:
            self.assertEqual((cell["all"]["rows"], cell["average"]), (1, 1))
        # A way that fails alone has the problem alone, and what others answered stays.
        bad = "dart(image_pivots=0,text_pivots=0)@0.2"
        result = self.fails(self.eval("y", *flags, "--keep-going", methods=f"none,{bad},glimpse", limit=0),
                            "dart: needs a pivot", "no row could be answered")
        self.assertEqual(result.stderr.count("rows.jsonl:1: "), 1)
        problems = {(way, row["id"]) for way, row in answer_rows(self.dir / "y/answers/mine") if "problem" in row}
        self.assertEqual(problems, {(bad, 0), (bad, 1), ("none@own", 1), ("glimpse@own", 1)})


if __name__ == "__main__":
    unittest.main()
