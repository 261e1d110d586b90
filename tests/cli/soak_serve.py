#!/usr/bin/env python3
"""Many clients of every kind at once, polite and not, against one glimpse serve with the built-in model.

Usage: soak_serve.py [--requests 10000] [--clients 8] [--seed 1]     ($GLIMPSE: the program, as for the tests)

Prints what was done and exits with 1 if an answer was wrong, if something stayed behind, or if memory grew. Under the sanitizers
(make soak) their reports end the server, which is an error too.
"""
import argparse
import base64
import collections
import contextlib
import http.client
import json
import random
import re
import socket
import sys
import threading
import time
from pathlib import Path

from program import ROOT, TEST
from serving import PICTURE, Server, asked

CLIP = "data:video/mp4;base64," + base64.b64encode((ROOT / "tests/data/videos/h264.mp4").read_bytes()).decode()


def about(clip, **more):
    """A request with a video."""
    content = [{"type": "video_url", "video_url": {"url": clip}}, {"type": "text", "text": "What is shown?"}]
    return {"messages": [{"role": "user", "content": content}], **more}


METHODS = ("none", "glimpse", "divprune", "cdpruner", "visionzip", "vscan", "dart", "pyramiddrop", "random(seed=1)",
           "divprune(keep=0.5)+glimpse(threshold=0.3)")
BAD = (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages": []}', b'{"messages": [{"role": "user"}]}', b"[" * 5000,
       b'{"messages": [{"role": "user", "content": "x"}], "n": 99}', b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}',
       json.dumps(asked(picture="data:image/png;base64,aGVsbG8=")).encode(), json.dumps(asked(picture=PICTURE[:9000])).encode(),
       json.dumps(asked(picture="http://127.0.0.1/x.png")).encode(), json.dumps(asked(picture="file:///etc/passwd")).encode(),
       json.dumps(asked(pruning={"prune": "nonsense"})).encode(), json.dumps(asked(pruning={"keep": 7.5, "prune": "none"})).encode(),
       json.dumps(asked(model="unknown")).encode(), json.dumps(about(CLIP[:3000])).encode(),
       json.dumps(about(CLIP, mm_processor_kwargs={"fps": 0})).encode())


def good_requests():
    """Requests whose answers are the same however they are batched: greedy, of the built-in model's own test set."""
    rows = [json.loads(line) for line in (TEST / "rows.jsonl").read_text().splitlines()[:120:10]]
    requests = []
    for i, row in enumerate(rows):
        file = TEST / "cot" / row["dataset"] / row["image"]
        picture = "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode()
        more = {"pruning": {"prune": METHODS[i % len(METHODS)], "return": ["keep"]}, "temperature": 0}
        if i % 3 == 0:
            more["logprobs"] = True
        if i % 4 == 1:
            more["stop"] = ["orange", "is "]
        if i % 4 == 2:
            more["max_tokens"] = 5
        requests.append(asked(row["question"], picture, **more))
    requests.append({"messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 12, "temperature": 0})
    requests.append(about(CLIP, max_tokens=6, temperature=0, pruning={"return": ["keep"]}))
    return requests


def shown(answer):
    """What must be the same every time."""
    return [(choice["message"]["content"], choice["finish_reason"]) for choice in answer["choices"]], \
        [image.get("keep") for image in answer["glimpse"]["images"]]


class Soak:
    def __init__(self, server, total, clients, seed):
        self.server, self.total, self.clients, self.seed = server, total, clients, seed
        self.requests = good_requests()
        self.expected = [shown(self.ask(body)) for body in self.requests]
        self.done, self.problems, self.lock = collections.Counter(), [], threading.Lock()
        self.left = total
        self.memory = []

    def ask(self, body):
        status, answer = self.server.chat(body)
        assert status == 200, (status, answer)
        return answer

    def problem(self, text):
        with self.lock:
            self.problems.append(text)

    @contextlib.contextmanager
    def sent(self, body):
        """A socket that has sent a request for an answer."""
        with socket.create_connection(("127.0.0.1", self.server.port), 60) as raw:
            raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            yield raw

    def whole(self, chance):
        i = chance.randrange(len(self.requests))
        got = shown(self.ask(self.requests[i]))
        if got != self.expected[i]:
            self.problem(f"request {i}: {got} instead of {self.expected[i]}")

    def several(self, chance):
        i = chance.randrange(len(self.requests))
        n = chance.randrange(2, 4)
        texts, keep = shown(self.ask({**self.requests[i], "n": n}))
        if (texts, keep) != (self.expected[i][0] * n, self.expected[i][1]):
            self.problem(f"request {i}, {n} times: {texts}")

    def stream(self, chance):
        i = chance.randrange(len(self.requests))
        events = self.server.stream(self.requests[i])
        text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
        if text != self.expected[i][0][0][0]:
            self.problem(f"request {i} streamed: {text!r}")

    def sampled(self, chance):
        body = {**chance.choice(self.requests), "temperature": 1.5, "seed": chance.randrange(1 << 30), "top_p": chance.random() * 0.9 + 0.1,
                "top_k": chance.randrange(0, 50), "min_p": chance.random() * 0.5, "max_tokens": chance.randrange(1, 30)}
        if len(self.ask(body)["choices"]) != 1:
            self.problem("a sampled answer without a choice")

    def leaves_at_once(self, chance):
        with self.sent(json.dumps({**chance.choice(self.requests), "ignore_eos": True, "max_tokens": 400}).encode()):
            time.sleep(chance.random() * 0.2)

    def leaves_a_stream(self, chance):
        with self.sent(json.dumps({**chance.choice(self.requests), "ignore_eos": True, "max_tokens": 400, "stream": True}).encode()) as raw:
            for _ in range(chance.randrange(1, 6)):
                if not raw.recv(300):
                    break

    def leaves_in_the_body(self, chance):
        body = json.dumps(chance.choice(self.requests)).encode()
        with socket.create_connection(("127.0.0.1", self.server.port), 60) as raw:
            raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) +
                        body[:chance.randrange(len(body))])

    def bad(self, chance):
        with contextlib.closing(self.server.connect()) as connection:
            connection.request("POST", "/v1/chat/completions", chance.choice(BAD))
            answer = connection.getresponse()
            body = json.loads(answer.read())
            if answer.status not in (400, 404) or "message" not in body["error"]:
                self.problem(f"bad request: {answer.status} {body}")

    def noise(self, chance):
        with socket.create_connection(("127.0.0.1", self.server.port), 60) as raw:
            raw.sendall(chance.randbytes(chance.randrange(1, 3000)) + b"\r\n\r\n")
            raw.settimeout(5)
            with contextlib.suppress(OSError):
                raw.recv(100)

    KINDS = (("whole", 5), ("several", 1), ("stream", 3), ("sampled", 2), ("leaves_at_once", 3), ("leaves_a_stream", 2),
             ("leaves_in_the_body", 1), ("bad", 3), ("noise", 1))

    def client(self, number):
        chance = random.Random(self.seed * 1000 + number)
        names, weights = zip(*self.KINDS)
        while True:
            with self.lock:
                if self.left == 0 or len(self.problems) > 20:
                    return
                self.left -= 1
                if self.left % max(1, self.total // 10) == 0:
                    self.memory.append(self.resident())
                    print(f"{self.total - self.left} of {self.total}, {self.memory[-1]:.0f} MiB, {len(self.problems)} problems",
                          file=sys.stderr, flush=True)
            kind = chance.choices(names, weights)[0]
            try:
                getattr(self, kind)(chance)
            except (AssertionError, OSError, http.client.HTTPException, ValueError, KeyError) as error:
                self.problem(f"{kind}: {type(error).__name__}: {error}")
            with self.lock:
                self.done[kind] += 1

    def resident(self):
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def run(self):
        threads = [threading.Thread(target=self.client, args=(i,)) for i in range(self.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        try:
            kept = self.server.idle(60)
            if kept:
                self.problem(f"{kept} bytes of KV cache are left")
        except AssertionError as error:
            self.problem(f"something still runs: {error}")
        for i, body in enumerate(self.requests):
            if shown(self.ask(body)) != self.expected[i]:
                self.problem(f"request {i} is answered otherwise at the end")
        # The caches of pictures and threads fill in the first fifth.
        early, late = max(self.memory[:len(self.memory) // 5 + 1]), max(self.memory[len(self.memory) // 5 + 1:] or [0])
        if late > early * 1.1 + 32:
            self.problem(f"memory grew from {early:.0f} to {late:.0f} MiB")
        return self.problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    server = Server("--quiet", "--parallel", 8, "--queue", 64, "--cache-mb", 4)
    begin = time.monotonic()
    soak = Soak(server, flags.requests, flags.clients, flags.seed)
    problems = soak.run()
    code = server.stop()
    if code != 0:
        problems.append(f"the server ended with {code}: " + "".join(server.log)[-4000:])
    print(f"{sum(soak.done.values())} requests in {time.monotonic() - begin:.0f} s: {dict(soak.done)}; memory {soak.memory[0]:.0f} to "
          f"{soak.memory[-1]:.0f} MiB; {len(problems)} problems")
    print("\n".join(problems[:20]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
