"""glimpse serve, as its clients see it."""
import base64
import contextlib
import json
import socket
import threading
import time
import unittest

from program import ANSWER, KEEP, QUESTION, read_png
from serving import PICTURE, Served, asked


class Chat(Served):
    def test_answer(self):
        status, answer = self.server.chat(asked(pruning={"return": ["keep", "scores", "overlay"]}))
        self.assertEqual(status, 200, answer)
        [choice] = answer["choices"]
        self.assertEqual(choice["message"], {"role": "assistant", "content": ANSWER, "refusal": None})
        self.assertEqual(choice["finish_reason"], "stop")
        self.assertEqual(answer["object"], "chat.completion")
        usage = answer["usage"]
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])
        kept = answer["glimpse"]
        [image] = kept["images"]
        self.assertEqual(image["keep"], KEEP)
        self.assertEqual((kept["kept_tokens"], kept["visual_tokens"]), (len(KEEP), image["rows"] * image["cols"]))
        self.assertEqual(len(image["scores"]), kept["visual_tokens"])
        self.assertTrue(all(image["scores"][i] > 0.5 for i in KEEP))
        picture = base64.b64decode(image["overlay"].removeprefix("data:image/png;base64,"))
        (self.dir / "overlay.png").write_bytes(picture)
        read_png(self.dir / "overlay.png")

    def test_stream(self):
        chunks = self.server.stream(asked(stream_options={"include_usage": True}, pruning={"return": ["keep"]}))
        self.assertEqual(chunks[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
        self.assertEqual(chunks[0]["glimpse"]["images"][0]["keep"], KEEP)
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
        self.assertEqual(text, ANSWER)
        self.assertEqual(chunks[-2]["choices"][0]["finish_reason"], "stop")
        self.assertEqual((chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"] > 3), ([], True))
        self.assertEqual(len({chunk["id"] for chunk in chunks}), 1)

    def test_pruning_per_request(self):
        none = self.server.chat(asked(pruning={"prune": "none"}))[1]
        self.assertEqual(none["glimpse"]["kept_tokens"], none["glimpse"]["visual_tokens"])
        self.assertEqual(self.server.chat(asked(model="glimpse-tiny+none"))[1]["glimpse"]["kept_tokens"],
                         none["glimpse"]["visual_tokens"])
        few = self.server.chat(asked(pruning={"max_keep": 0.01, "return": ["keep"]}))[1]["glimpse"]
        self.assertLess(few["kept_tokens"], len(KEEP))
        some = self.server.chat(asked(pruning={"prune": "divprune", "keep": 7}))[1]["glimpse"]
        self.assertEqual(some["kept_tokens"], 7)
        more = self.server.chat(asked(pruning={"threshold": 1e-6}))[1]["glimpse"]
        self.assertGreater(more["kept_tokens"], len(KEEP))

    def test_reuse(self):
        """Whether the scout of scout+glimpse gives way to what is kept of the picture."""
        def ran(reuse):
            glimpse = self.server.chat(asked(pruning={"prune": "scout+glimpse", "reuse": reuse}))[1]["glimpse"]
            self.assertEqual([stage["method"] for stage in glimpse["pruning"]], ["scout", "glimpse"] if glimpse["shortcut"] else ["glimpse"])
            return glimpse["shortcut"]
        self.assertEqual([ran(reuse) for reuse in ("never", "always", "auto", "never", None)], [True, False, False, True, False])
        self.assertNotIn("shortcut", self.server.chat(asked(pruning={"prune": "glimpse"}))[1]["glimpse"])

    def test_sampling_and_ends(self):
        def texts(**more):
            answer = self.server.chat(asked(**more))[1]
            return [choice["message"]["content"] for choice in answer["choices"]]
        self.assertEqual(texts(n=2), [ANSWER, ANSWER])
        drawn = texts(n=4, temperature=2, top_p=1, top_k=0, seed=5, max_tokens=12)
        self.assertEqual(drawn, texts(n=4, temperature=2, top_p=1, top_k=0, seed=5, max_tokens=12))
        self.assertGreater(len(set(drawn)), 1)
        self.assertEqual(texts(stop=" the orange"), ["The letter on"])
        streamed = self.server.stream(asked(stop=["range squ"]))
        self.assertEqual("".join(c["choices"][0]["delta"].get("content", "") for c in streamed), "The letter on the o")
        cut = self.server.chat(asked(max_completion_tokens=2))[1]
        self.assertEqual((cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]), ("length", 2))
        tokens = self.server.request("POST", "/v1/tokenize", {"content": " letter"})[2]["tokens"]
        self.assertNotIn("letter", texts(logit_bias={str(tokens[0]): -100})[0])

    def test_logprobs(self):
        answer = self.server.chat(asked(logprobs=True, top_logprobs=3))[1]
        content = answer["choices"][0]["logprobs"]["content"]
        self.assertEqual("".join(bytes(t["bytes"]).decode() for t in content), ANSWER)
        for token in content:
            self.assertLessEqual(token["logprob"], 0)
            self.assertEqual(token["token"], token["top_logprobs"][0]["token"])
            self.assertEqual(len(token["top_logprobs"]), 3)
        streamed = self.server.stream(asked(logprobs=True))
        self.assertEqual(sum(len(c["choices"][0]["logprobs"]["content"]) for c in streamed if c["choices"][0]["logprobs"]),
                         len(content))

    def test_conversations(self):
        first = asked()
        first["messages"] += [{"role": "assistant", "content": ANSWER}, {"role": "user", "content": "And on the blue one?"}]
        status, answer = self.server.chat(first)
        self.assertEqual(status, 200, answer)
        self.assertGreater(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        text = self.server.chat({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "Hello"}], "max_tokens": 3})
        self.assertEqual((text[0], text[1]["glimpse"]["visual_tokens"]), (200, 0))

    def test_pictures_named_again(self):
        def with_uuid(url):
            body = asked()
            body["messages"][0]["content"][0] = {"type": "image_url", "image_url": {"url": url} if url else {}, "uuid": "one"}
            return body
        self.refused(asked(picture=""), 400, "image_url")
        self.assertEqual(self.server.chat(with_uuid(PICTURE))[0], 200)
        self.assertEqual(self.server.chat(with_uuid(""))[1]["choices"][0]["message"]["content"], ANSWER)

    def test_what_is_refused(self):
        hello = [{"role": "user", "content": "x"}]
        for body, words, param in [
            ({"messages": []}, "at least one", "messages"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "system, user and assistant", "messages[0].role"),
            ({"messages": [{"role": "user", "content": 3}]}, "text or a list", "messages[0].content"),
            ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "not supported", "messages[0].content[0].type"),
            ({"messages": hello, "n": 0}, "outside [1, 8]", "n"),
            ({"messages": hello, "n": 9}, "outside [1, 8]", "n"),
            ({"messages": hello, "n": 1.5}, "expected an integer", "n"),
            ({"messages": hello, "temperature": -1}, "outside", "temperature"),
            ({"messages": hello, "top_p": "x"}, "expected a number", "top_p"),
            ({"messages": hello, "max_tokens": 0}, "outside", "max_tokens"),
            ({"messages": hello, "stream": 1}, "true or false", "stream"),
            ({"messages": hello, "stop": [""]}, "not empty", "stop"),
            ({"messages": hello, "tools": [{}]}, "calls no tools", "tools"),
            ({"messages": hello, "response_format": {"type": "json_object"}}, "only", "response_format"),
            ({"messages": hello, "logit_bias": {"x": 1}}, "token ids", "logit_bias"),
            ({"messages": hello, "top_logprobs": 2}, "logprobs", "top_logprobs"),
            (asked(mm_processor_kwargs={"min_pixels": 10**9, "max_pixels": 10**10}), "at most 16777216", "mm_processor_kwargs.min_pixels"),
            (asked(mm_processor_kwargs={"min_pixels": 6273, "max_pixels": 6272}), "at most max-pixels 6272", "mm_processor_kwargs.min_pixels"),
            (asked(mm_processor_kwargs={"min_pixels": 200705}), "at most max-pixels 200704", "mm_processor_kwargs.min_pixels"),
            (asked(mm_processor_kwargs={"max_pixels": 3}), "at most max-pixels 3", "mm_processor_kwargs.max_pixels"),
            (asked(pruning={"trheshold": 1}), "known are prune, keep", "pruning.trheshold"),
            (asked(pruning={"prune": "fastw"}), "fastw", "pruning.prune"),
            (asked(pruning={"reuse": "often"}), "expected auto, never or always", "pruning.reuse"),
            (asked(pruning={"reuse": 1}), "expected auto, never or always", "pruning.reuse"),
            (asked(pruning={"threshold": 7}), "outside [0, 1]", "pruning.threshold"),
            (asked(pruning={"keep": 0}), "fraction", "pruning.keep"),
            (asked(pruning={"return": ["x"]}), "keep, scores and overlay", "pruning.return"),
            (asked(pruning={"prune": "none", "max_keep": 0.1}), "belong to", "pruning.max_keep"),
            (asked(picture="data:image/png;base64,AAAA"), "image", None),
            (asked(picture="data:image/png;base64,*"), "base64", None),
            (asked(picture="data:image/png,x"), "base64", None),
            (asked(picture=PICTURE[:2023]), "image", None),
            (asked(picture="http://127.0.0.1/x.png"), "fetches no pictures", None),
            (asked(picture="file:///etc/passwd"), "not allowed", None),
            (asked(picture="ftp://x"), "begins with", None),
            ([1], "no JSON object", None),
        ]:
            with self.subTest(words=words, param=param):
                self.refused(body, 400, words, param)
        self.refused(asked(model="gpt-9"), 404, "there are glimpse-tiny, glimpse-tiny+glimpse, glimpse-tiny+none", "model")
        self.assertEqual(self.server.chat("{")[0], 400)
        many = asked()
        many["messages"][0]["content"] *= 17
        self.refused(many, 400, "more than 16 images")
        self.refused({"messages": [{"role": "user", "content": "7" * 9000}]}, 400, "context")
        self.server.idle()

    def test_other_endpoints(self):
        self.assertEqual(self.server.get("/health"), (200, {"status": "ok"}))
        ids = [model["id"] for model in self.server.get("/v1/models")[1]["data"]]
        self.assertEqual(ids, ["glimpse-tiny", "glimpse-tiny+glimpse", "glimpse-tiny+none"])
        self.assertEqual(self.server.get("/props")[1]["default_prune"], "glimpse")
        tokens = self.server.request("POST", "/v1/tokenize", {"content": QUESTION})[2]
        self.assertEqual(tokens["count"], len(tokens["tokens"]))
        back = self.server.request("POST", "/v1/detokenize", {"tokens": tokens["tokens"]})[2]
        self.assertEqual(back["content"], QUESTION)
        self.assertEqual(self.server.request("POST", "/v1/detokenize", {"tokens": [-1]})[0], 400)
        self.assertEqual(self.server.get("/nothing")[0], 404)
        status, headers, _ = self.server.request("GET", "/v1/chat/completions")
        self.assertEqual((status, headers["allow"]), (405, "POST"))
        status, headers, page = self.server.request("GET", "/")
        self.assertEqual((status, headers["content-type"]), (200, "text/html; charset=utf-8"))
        self.assertNotRegex(page.decode(), r'(src|href)="(?!data:)|https?://')  # asks for nothing from elsewhere

    def test_hostile_http(self):
        def raw(data, shut=False):
            with socket.create_connection(("127.0.0.1", self.server.port), 10) as s:
                s.sendall(data)
                if shut:
                    s.shutdown(socket.SHUT_WR)
                out = b""
                while piece := s.recv(65536):
                    out += piece
                return out
        self.assertIn(b" 400 ", raw(b"nonsense\r\n\r\n"))
        self.assertIn(b" 431 ", raw(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 20000 + b"\r\n\r\n"))
        self.assertIn(b" 413 ", raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"))
        self.assertIn(b" 404 ", raw(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nabc"))
        self.assertIn(b" 400 ", raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n"))
        one = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        self.assertEqual(raw(one + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).count(b"HTTP/1.1 200 OK"), 2)  # pipelined
        self.assertIn(b"Connection: close", raw(b"GET /health HTTP/1.0\r\n\r\n"))
        body = b"POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 15\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.server.port), 10) as s:
            s.sendall(body)
            self.assertEqual(s.recv(100), b"HTTP/1.1 100 Continue\r\n\r\n")
            s.sendall(b'{"content":"a"}')
            self.assertIn(b" 200 OK", s.recv(1000))
        self.assertEqual(self.server.get("/health")[0], 200)

    def test_deep_bodies(self):
        deep, hello = "[" * 2000000 + "]" * 2000000, '"messages": [{"role": "user", "content": "x"}]'
        for path, body in (("/v1/chat/completions", f'{{{hello}, "temperature": {deep}}}'), ("/v1/chat/completions", deep),
                           ("/v1/chat/completions", '{"a":' * 2000000), ("/v1/responses", f'{{"input": "x", "metadata": {deep}}}'),
                           ("/v1/tokenize", f'{{"content": {deep}}}')):
            status, _, answer = self.server.request("POST", path, body)
            self.assertEqual(status, 400)
            self.assertIn("nested deeper", answer["error"]["message"])

    def test_connections_are_kept(self):
        with contextlib.closing(self.server.connect()) as connection:
            for body in (asked(), {"messages": []}, asked(stream=True), asked()):
                connection.request("POST", "/v1/chat/completions", json.dumps(body))
                first = connection.sock
                answer = connection.getresponse()
                self.assertEqual(answer.getheader("connection"), "keep-alive")
                answer.read()
                self.assertIs(connection.sock, first)  # http.client drops it where the server says so

    def test_clients_that_leave(self):
        """What nobody waits for any more is stopped: streaming or not, early or late."""
        for stream in (False, True):
            for wait in (0, 0.05, 0.3):
                body = json.dumps(asked(max_tokens=3000, ignore_eos=True, stream=stream)).encode()
                with socket.create_connection(("127.0.0.1", self.server.port), 10) as s:
                    s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                    time.sleep(wait)
        start = time.monotonic()
        self.assertEqual(self.server.idle(), 0)
        self.assertLess(time.monotonic() - start, 10)

    def test_many_at_once(self):
        answers = []
        def ask(i):
            answers.append(self.server.chat(asked(model=["glimpse-tiny", "glimpse-tiny+none"][i % 2]))[1]["choices"][0]["message"]["content"])
        threads = [threading.Thread(target=ask, args=[i]) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(answers, [ANSWER] * 16)
        self.assertEqual(self.server.idle(), 0)


if __name__ == "__main__":
    unittest.main()
