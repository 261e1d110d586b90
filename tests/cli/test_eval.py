"""glimpse eval: the grid, killed and resumed, several processes, a judge, what goes wrong."""
import csv
import html.parser
import http.server
import json
import os
import re
import signal
import subprocess
import threading
import time
import unittest

from program import PROGRAM, TEST, CliTest

RECORDED = [json.loads(line) for line in (TEST / "answers.jsonl").read_text().splitlines()]


class Judge(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible server that gives 1 when answer and right answer are equal; each `fail`th request fails first."""
    seen, fail, lock = [], [], threading.Lock()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Judge.lock:
            Judge.seen.append((self.path, self.headers.get("Authorization"), body))
            status = Judge.fail.pop(0) if Judge.fail else 200
        text = body["messages"][1]["content"]
        right, answer = re.search(r"Correct answer: (.*)\nAnswer to grade: (.*)", text).groups()
        reply = {"choices": [{"message": {"role": "assistant", "content": f"Hm.\nscore: {float(right == answer)}"}}]}
        data = json.dumps(reply if status == 200 else {"error": {"message": "no such model"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


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


class Eval(CliTest):
    def eval(self, out, *flags, methods="none,glimpse", limit=1):
        return ["eval", "--out", self.dir / out, "--methods", methods, "--limit", str(limit), "--threads", "1", "--gallery",
                "1", *([] if "--dtype" in flags else ["--dtype", "fp32"]), *flags]

    def results(self, out):
        return json.loads((self.dir / out / "results.json").read_text())

    def answers(self, out):
        """What was answered, by way and row, without times."""
        found = {}
        for file in (self.dir / out / "answers" / "tiny").glob("*.jsonl"):
            for line in file.read_text().splitlines():
                row = json.loads(line)
                key = file.name.split(".r")[0], row["set"], row["id"]
                self.assertNotIn(key, found)
                found[key] = row["answer"], row["keep"]
        return found

    def start(self, command, **environment):
        return subprocess.Popen([PROGRAM, *map(str, command)], env={**os.environ, **environment}, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

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
        # The grid grows: only what is new is answered. A budget from another way's file.
        self.fails(self.eval("run", methods="none,random@0.2"), "5 of 10 answers are there already", status=0)
        counts = self.dir / "run/answers/tiny/glimpse@own.r0.jsonl"
        self.ok(*self.eval("from", "--budget-from", counts, methods="divprune,none"))
        kept = {json.loads(line)["id"]: json.loads(line)["kept_tokens"] for line in counts.read_text().splitlines()}
        for line in (self.dir / "from/answers/tiny/divprune@from.r0.jsonl").read_text().splitlines():
            row = json.loads(line)
            self.assertEqual(row["kept_tokens"], kept[row["id"]])

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
        processes = [self.start(self.eval("b", **flags), SLURM_PROCID=str(rank), SLURM_NTASKS="2") for rank in range(2)]
        for process in processes:
            _, errors = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 0, errors)
        for out in ("a", "b"):
            self.assertEqual(self.answers(out), self.answers("whole"))
            self.assertEqual([cell["average"] for cell in self.results(out)["cells"]],
                             [cell["average"] for cell in self.results("whole")["cells"]])
            self.assertEqual(len(list((self.dir / out / "answers/tiny").glob("*.r1.jsonl"))), 2)
        self.fails(self.eval("c"), "RANK 2 is not below WORLD_SIZE 2", env={"RANK": "2", "WORLD_SIZE": "2"})
        self.fails(self.eval("c"), "RANK: expected a number", env={"RANK": "x", "WORLD_SIZE": "2"})

    def test_judge(self):
        Judge.seen.clear()
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Judge)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        task = self.dir / "judged.yaml"
        task.write_text(f"rows: {TEST / 'rows.jsonl'}\nimages: {TEST}\nscore: llm\n")
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        flags = ["--task", task, "--judge-url", url, "--judge-jobs", "3", "--judge-model", "grader"]
        self.fails(self.eval("run", "--task", task), "is scored by a judge: name a server with --judge-url")
        env = {"OPENAI_API_KEY": "sk-none"}
        # A refusal ends the run at once, with what the server said; answers stay.
        Judge.fail[:] = [401] * 3
        self.fails(self.eval("run", *flags), "refuses: status 401", "no such model", env=env)
        self.assertLessEqual(len(Judge.seen), 3)
        # A server that fails now and then is asked again.
        Judge.seen.clear()
        Judge.fail[:] = [500, 429]
        self.fails(self.eval("run", *flags), "10 of 10 answers are there already", "answers go to the judge", status=0,
                   env=env)
        results = self.results("run")
        rows = {(file.name.split(".r")[0], row["id"]): row for file in (self.dir / "run/answers/judged").glob("*.jsonl")
                for row in map(json.loads, file.read_text().splitlines())}
        all_rows = [json.loads(line) for line in (TEST / "rows.jsonl").read_text().splitlines()]
        for cell in results["cells"]:
            mine = [row for (way, _), row in rows.items() if way == f"{cell['method']}@{cell['budget']}"]
            expected = sum(row["answer"] == all_rows[row["id"]]["answer"] for row in mine) / len(mine)
            self.assertAlmostEqual(cell["all"]["score"], expected, 4)
        # Equal answers are asked about once; the key goes in the header and nowhere else.
        different = {(all_rows[row["id"]]["question"], row["answer"]) for row in rows.values()}
        self.assertEqual(len(Judge.seen), len(different) + 2)
        for path, key, body in Judge.seen:
            self.assertEqual((path, key), ("/v1/chat/completions", "Bearer sk-none"))
            self.assertEqual((body["model"], body["temperature"]), ("grader", 0))
        for file in (self.dir / "run").rglob("*"):
            if file.is_file():
                self.assertNotIn(b"sk-none", file.read_bytes())
        # Nothing is asked twice.
        Judge.seen.clear()
        self.ok(*self.eval("run", *flags), env=env)
        self.assertEqual(Judge.seen, [])
        # Another judge is asked anew; one that is not there is given up.
        server.shutdown()
        server.server_close()
        self.fails(self.eval("run", *flags[:-1], "other", "--judge-tries", "2"), "no reply after 2 tries", env=env)

    def test_bad_input(self):
        self.fails(self.eval("x", "--task", "nothing"), "task 'nothing'", "known: refcoco, tiny")
        self.fails(self.eval("x", methods="none,sharpen"), "unknown method 'sharpen'", "known: none, glimpse")
        self.fails(self.eval("x", methods="divprune(kept=1)"), "unknown setting 'kept'")
        self.fails(self.eval("x", "--budgets", "2"), "budget: expected a fraction in (0, 1] or own, got '2'")
        self.fails(self.eval("x", "--sets", "reed"), "has no set 'reed'; the nearest is 'read'")
        self.fails(self.eval("x", methods="none,none"), "none@own occurs twice")
        self.fails(self.eval("x", "--model", self.dir / "nowhere"), "nowhere")
        self.fails(self.eval("x", "--budget-from", self.dir / "none.jsonl"), "none.jsonl")
        self.fails(self.eval("x", "--task", "viscot", "--judge-url", "http://127.0.0.1:1", "--data-root", self.dir),
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
        self.assertIn("broken.jpg", result.stderr)
        results = self.results("x")
        self.assertEqual((results["tasks"][0]["rows"], results["tasks"][0]["left_out"]), (2, 1))
        for cell in results["cells"]:
            self.assertEqual((cell["all"]["rows"], cell["average"]), (1, 1))


if __name__ == "__main__":
    unittest.main()
