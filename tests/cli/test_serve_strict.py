"""What glimpse serve takes and refuses where HTTP or OpenAI's API say how: each was wrong once."""
import json
import socket
import time
from pathlib import Path

from program import ANSWER, IMAGE
from serving import PICTURE, Served, asked


class Strict(Served):
    FLAGS = ("--api-key", "secret", "--cors-origin", "http://page.test", "--media-path", IMAGE.rpartition("/")[0])

    def chat(self, body):
        return self.server.chat(body, Authorization="Bearer secret")

    def post(self, path, body):
        status, _, answer = self.server.request("POST", path, body, {"Authorization": "Bearer secret"})
        return status, answer

    def raw(self, head, body=b""):
        """Status lines of all answers to these bytes."""
        with socket.create_connection(("127.0.0.1", self.server.port), 10) as connection:
            connection.sendall(head.replace("\n", "\r\n").encode() + body)
            connection.settimeout(5)
            text = b""
            while piece := connection.recv(1 << 16):
                text += piece
        return [int(line.split()[1]) for line in text.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]

    def wrong(self, body, param, path="/v1/chat/completions"):
        with self.subTest(body=str(body)[:100]):
            status, answer = self.post(path, body)
            self.assertEqual((status, answer["error"]["param"] if status == 400 else answer), (400, param))
            self.assertLess(len(json.dumps(answer)), 1000)

    def test_framing(self):
        auth = "Host: x\nAuthorization: Bearer secret\n"
        for coding in ("gzip", "gzip, chunked", "xchunked", "chunked\nTransfer-Encoding: gzip"):
            with self.subTest(coding=coding):
                got = self.raw(f"POST /v1/tokenize HTTP/1.1\n{auth}Transfer-Encoding: {coding}\n\nGET /health HTTP/1.1\nHost: x\n\n")
                self.assertIn(got, ([400], [501]))  # one answer: what follows is no request
        both = self.raw(f"POST /v1/tokenize HTTP/1.1\n{auth}Content-Length: 5\nTransfer-Encoding: chunked\n\n0\n\nGET /health HTTP/1.1\nHost: x\n\n")
        self.assertEqual(both, [400])
        self.assertEqual(self.raw("POST /v1/tokenize HTTP/1.0\nTransfer-Encoding: chunked\n\n0\n\n"), [400])
        self.assertEqual(self.raw(f'POST /v1/tokenize HTTP/1.1\n{auth}Transfer-Encoding: Chunked\nConnection: close\n\n10\n{{"content": "x"}}\n0\n\n'), [200])
        for hosts in ("", "Host: x\nHost: y\n"):
            self.assertEqual(self.raw(f"GET /health HTTP/1.1\n{hosts}Connection: close\n\n"), [400])
        self.assertEqual(self.raw("GET /health HTTP/1.0\n\n"), [200])
        self.assertEqual(self.raw("GET http://x.test/health?a=b HTTP/1.1\nHost: x\nConnection: close\n\n"), [200])

    def test_wrong_types(self):
        text = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        for value in ({"type": 3}, {"type": None}, {"type": {}}, 3, "text"):
            self.wrong({**text, "response_format": value}, "response_format")
            self.wrong({"input": "x", "text": {"format": value}}, "text.format", "/v1/responses")
        for value in (3, [None], "x", {"a": 1}):
            self.wrong({"input": "x", "metadata": value}, "metadata", "/v1/responses")
        self.wrong({"input": "x", "text": 3}, "text", "/v1/responses")
        self.wrong({"input": [], "instructions": "x"}, "input", "/v1/responses")
        for key in ("tools", "functions"):
            self.wrong({**text, key: {}}, key)
        for value in (3, {}, "x"):
            self.wrong({"content": "x", "parse_special": value}, "parse_special", "/v1/tokenize")
        self.wrong({**text, "max_completion_tokens": 3, "max_tokens": -1}, "max_tokens")
        part = {"type": "image_url", "uuid": "known", "image_url": {"url": {}}}
        self.wrong({"messages": [{"role": "user", "content": [part]}]}, "messages[0].content[0].image_url")

    def test_pruning(self):
        for anchors in (["xx"], ["tl)+divprune(keep=0.5"], ")+divprune", [3]):
            self.wrong(asked(pruning={"anchors": anchors}), "pruning.anchors")
            self.wrong({"messages": [{"role": "user", "content": "x"}], "pruning": {"anchors": anchors}}, "pruning.anchors")
        self.assertEqual(self.chat(asked(pruning={"anchors": ["tl", "br"], "return": ["keep"]}))[1]["glimpse"]["images"][0]["keep"][0], 0)
        before = time.monotonic()
        self.wrong(asked(pruning={"prune": "+".join(["glimpse"] * 17)}), "pruning.prune")
        self.wrong(asked(pruning={"prune": "+".join(["glimpse"] * 1000000)}), "pruning.prune")
        self.assertLess(time.monotonic() - before, 5)
        self.assertNotIn("reference", [method["name"] for method in self.server.get("/props", Authorization="Bearer secret")[1]["methods"]])

    def test_errors_are_short(self):
        long = "x" * 1000000
        for body in (asked(temperature=long), asked(model=long), asked(pruning={long: 1}), asked(pruning={"return": [long]}),
                     {"messages": [{"role": long, "content": "x"}]}):
            status, answer = self.chat(body)
            self.assertIn(status, (400, 404))
            self.assertLess(len(answer["error"]["message"]), 700)

    def test_texts_that_cannot_fit(self):
        before = time.monotonic()
        status, answer = self.chat({"messages": [{"role": "user", "content": "word " * (4 << 20)}]})
        self.assertEqual((status, answer["error"]["code"]), (400, "context_length_exceeded"))
        self.assertLess(time.monotonic() - before, 2)

    def test_what_clients_send(self):
        for more in ({"n": 1.0}, {"top_k": 1.0}, {"max_tokens": 20.0}, {"top_p": 0, "temperature": 1}, {"seed": -1}, {"seed": 4611686018427387904},
                     {"top_k": -1}, {"pruning": {"min_keep": 1.0}}):
            with self.subTest(more=more):
                self.assertEqual(self.chat(asked(**more))[0], 200)
        self.assertEqual(self.chat(asked(top_p=0, temperature=2, seed=5))[1]["choices"][0]["message"]["content"], ANSWER)
        self.assertEqual(self.post("/v1/detokenize", {"tokens": [65.0]})[0], 200)
        for url in ("DATA:" + PICTURE.partition(":")[2], "file://localhost/read_000.jpg", "FILE:///read_000.jpg"):
            self.assertEqual(self.chat(asked(picture=url))[1]["choices"][0]["message"]["content"], ANSWER)
        for key in ("bearer secret", "BEARER   secret"):
            self.assertEqual(self.server.get("/v1/models", Authorization=key)[0], 200)
        for key in ("bearer secre", "bearer secrett", "secret", "Basic secret", "bearer", "bearer "):
            self.assertEqual(self.server.get("/v1/models", Authorization=key)[0], 401)

    def test_one_model(self):
        for name in ("glimpse-tiny", "glimpse-tiny+none", "glimpse-tiny%2Bnone"):
            status, answer = self.server.get("/v1/models/" + name, Authorization="Bearer secret")
            self.assertEqual((status, answer["id"]), (200, name.replace("%2B", "+")))
        for name in ("other", "%", "glimpse-tiny/"):
            self.assertEqual(self.server.get("/v1/models/" + name, Authorization="Bearer secret")[0], 404)

    def test_words(self):
        self.wrong({"messages": [{"role": "user", "content": "x"}], "stream_options": {"include_usage": 3}}, "stream_options.include_usage")
        large = self.chat(asked(mm_processor_kwargs={"min_pixels": 16 << 20, "max_pixels": 16 << 20}))[1]["error"]["message"]
        self.assertIn("max_pixels", large)
        self.assertNotIn("--", large)

    def test_words_of_responses(self):
        self.wrong({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "/v1/responses")
        self.wrong({"input": [{"role": "user", "content": 3}]}, "input[0].content", "/v1/responses")
        self.wrong({"input": [{"role": "user", "content": "x"}, {"role": "user", "content": 3}], "instructions": "x"}, "input[1].content",
                   "/v1/responses")
        self.assertEqual(self.post("/v1/responses", {"input": "x", "response_format": 3, "max_output_tokens": 1})[0], 200)

    def test_cors(self):
        status, headers, _ = self.server.request("OPTIONS", "/v1/chat/completions", headers={
            "Origin": "http://page.test", "Access-Control-Request-Headers": "authorization,x-stainless-os", "Access-Control-Request-Method": "POST"})
        self.assertEqual((status, headers["access-control-allow-headers"], headers["vary"]), (204, "authorization,x-stainless-os", "Origin"))
        self.assertNotIn("content-length", headers)

    def test_memory(self):
        """Nothing above made it large."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        self.assertLess(int(status.partition("VmHWM:")[2].split()[0]), 1 << 20, "1 GiB in KiB")
