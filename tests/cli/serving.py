"""A running glimpse serve and requests for it. Shared by the tests of the server."""
import base64
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

from program import IMAGE, PROGRAM, QUESTION, CliTest

PICTURE = "data:image/jpeg;base64," + base64.b64encode(Path(IMAGE).read_bytes()).decode()


def asked(question=QUESTION, picture=PICTURE, **more):
    """A request with one picture."""
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}], **more}


class Server:
    """A running server at `port`, or a free one."""

    def __init__(self, *flags, port=0, env=None, wait=True):
        self.process = subprocess.Popen([PROGRAM, "serve", "--port", str(port), "--threads", "1", *map(str, flags)],
                                        env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.log = []
        self.told = False  # to end
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.match(r"listening on (https?)://(.*):(\d+)$", line):
                self.url, self.port = line.split()[2], int(found[3])
                break
        else:
            raise AssertionError("".join(self.log))
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.reader.start()
        deadline = time.monotonic() + 60
        while wait and self.get("/health")[0] != 200:
            assert time.monotonic() < deadline, "not ready in a minute"
            time.sleep(0.02)

    def connect(self, timeout=60):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None):
        """Status, headers in small letters, body: JSON if it is that."""
        with contextlib.closing(self.connect()) as connection:
            if isinstance(body, (dict, list)):
                body = json.dumps(body)
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            text = answer.read()
            of = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, of, json.loads(text) if "json" in of.get("content-type", "") and text else text

    def get(self, path, **headers):
        status, _, body = self.request("GET", path, headers=headers)
        return status, body

    def chat(self, body, **headers):
        status, _, answer = self.request("POST", "/v1/chat/completions", body, headers)
        return status, answer

    def stream(self, body):
        """The objects of a stream; the last line must be [DONE]."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": True}))
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            assert answer.getheader("content-type") == "text/event-stream"
            events = [event.removeprefix("data: ") for event in answer.read().decode().split("\n\n") if event]
        assert events[-1] == "[DONE]", events[-1]
        return [json.loads(event) for event in events[:-1]]

    def idle(self, seconds=30):
        """Waits until nothing runs or waits."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            text = self.get("/metrics")[1].decode()
            if re.search(r"num_requests_running\{.*\} 0$", text, re.M) and re.search(r"num_requests_waiting\{.*\} 0$", text, re.M):
                return float(re.search(r"kv_cache_bytes\{.*\} (\S+)$", text, re.M)[1])
            time.sleep(0.02)
        raise AssertionError(text)

    def tell(self, how):
        self.told = True
        self.process.send_signal(how)

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None and not self.told:
            self.process.send_signal(how)
        self.process.wait(60)
        self.reader.join(10)
        self.process.stderr.close()
        return self.process.returncode


class Served(CliTest):
    """Tests that share a server."""
    FLAGS = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.FLAGS)
        cls.addClassCleanup(cls.server.stop)

    def refused(self, body, status, words, param=None):
        got, answer = self.server.chat(body)
        self.assertEqual(got, status, answer)
        self.assertIn(words, answer["error"]["message"])
        self.assertEqual(set(answer["error"]), {"message", "type", "param", "code"})
        if param:
            self.assertEqual(answer["error"]["param"], param)
