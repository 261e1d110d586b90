"""What the tests of glimpse eval share: the command, its files, a judge."""
import contextlib
import http.server
import json
import os
import re
import subprocess
import threading
import time

from program import PROGRAM, TEST, CliTest

ROWS = [json.loads(line) for line in (TEST / "rows.jsonl").read_text().splitlines()]


def answer_rows(folder):
    """(way, row) of every line of answers below a folder."""
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            yield file.name.split(".r")[0], json.loads(line)


class EvalTest(CliTest):
    def eval(self, out, *flags, methods="none,glimpse", limit=1):
        return ["eval", "--out", self.dir / out, "--methods", methods, "--limit", str(limit), "--threads", "1", "--gallery",
                "1", *([] if "--dtype" in flags else ["--dtype", "fp32"]), *flags]

    def results(self, out):
        return json.loads((self.dir / out / "results.json").read_text())

    def cells(self, out):
        return {f"{cell['method']}@{cell['budget']}": cell for cell in self.results(out)["cells"]}

    def answers(self, out, task="tiny"):
        """What was answered, by way and row, without times."""
        found = {}
        for way, row in answer_rows(self.dir / out / "answers" / task):
            key = way, row["set"], row["id"]
            self.assertNotIn(key, found)
            found[key] = row["answer"], row["keep"]
        return found

    def start(self, command, **environment):
        return subprocess.Popen([PROGRAM, *map(str, command)], env={**os.environ, **environment}, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class StubJudge:
    """An OpenAI-compatible server that gives 1 when answer and right answer are equal. Requests first use up `script`: dicts
    with a `status`, a `content` of the completion, a `raw` body, `headers`, and a `wait` in seconds or a function to wait with."""

    def __init__(self, case):
        self.seen, self.times, self.script, self.lock = [], [], [], threading.Lock()
        self.in_flight = self.most_in_flight = 0
        judge = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client may be gone
                    judge.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        case.addCleanup(self.close)

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request):
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self.lock:
            self.seen.append((request.path, request.headers.get("Authorization"), body))
            self.times.append(time.monotonic())
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            step = self.script.pop(0) if self.script else {}
        wait = step.get("wait", 0)
        wait() if callable(wait) else time.sleep(wait)
        text = body["messages"][1]["content"]
        right, answer = re.search(r"Correct answer: (.*)\nAnswer to grade: (.*)", text).groups()
        content = step.get("content", f"Hm.\nscore: {float(right == answer)}")
        status = step.get("status", 200)
        reply = {"choices": [{"message": {"role": "assistant", "content": content}}]}
        data = step.get("raw", json.dumps(reply if status == 200 else {"error": {"message": "no such model"}})).encode()
        with self.lock:
            self.in_flight -= 1
        request.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **step.get("headers", {})}.items():
            request.send_header(name, str(value))
        request.end_headers()
        request.wfile.write(data)
