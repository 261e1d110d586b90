"""Settings of glimpse serve, its start and its end."""
import base64
import contextlib
import http.client
import json
import random
import re
import resource
import signal
import socket
import ssl
import subprocess
import threading
import time
import unittest
from pathlib import Path

from program import ANSWER, IMAGE, IMAGES, MODEL, CliTest, png, run
from serving import Server, asked


class Settings(CliTest):
    def serve(self, *flags, **how):
        server = Server(*flags, **how)
        self.addCleanup(server.stop)
        return server

    def test_keys(self):
        (self.dir / "keys").write_text("one\ntwo\n")
        server = self.serve("--api-key-file", self.dir / "keys", env={"GLIMPSE_SERVE_API_KEY": "three"})
        for path in ("/v1/models", "/metrics", "/props"):
            self.assertEqual(server.get(path)[0], 401)
        status, body = server.chat(asked(), Authorization="Bearer four")
        self.assertEqual((status, body["error"]["type"]), (401, "authentication_error"))
        for key in ("one", "two", "three"):
            self.assertEqual(server.get("/v1/models", Authorization="Bearer " + key)[0], 200)
        self.assertEqual(server.get("/health")[0], 200)

    def test_media_path(self):
        media = self.dir / "media"
        (media / "in").mkdir(parents=True)
        (media / "in/a b.jpg").write_bytes(Path(IMAGE).read_bytes())
        (media / "out").symlink_to(IMAGES)
        (media / "link.jpg").symlink_to(IMAGE)
        server = self.serve("--media-path", media)
        for url in (f"file://{media}/in/a%20b.jpg", "file:///in/a%20b.jpg"):
            self.assertEqual(server.chat(asked(picture=url))[1]["choices"][0]["message"]["content"], ANSWER)
        for url, words in (("file:///../x", "'..'"), ("file:///in/%2e%2e/in/a%20b.jpg", "'..'"), ("file:///link.jpg", "symbolic link"),
                           ("file:///out/read_000.jpg", ""), ("file:///in", "no file"), ("file:///none", "No such file"),
                           (f"file://{IMAGE}", "No such file"), ("file:///in/a%2", "'%'"), ("file:///a%00b", "zero byte")):
            with self.subTest(url=url):
                status, body = server.chat(asked(picture=url))
                self.assertEqual(status, 400, body)
                self.assertIn(words, body["error"]["message"])

    def test_log(self):
        server = self.serve()
        server.get("/health", **{"X-Request-Id": "mine"})
        status, headers, _ = server.request("GET", "/v1/nothing?x=secret")
        server.stop()
        log = "".join(server.log)
        self.assertRegex(log, r"(?m)^\S+Z 127\.0\.0\.1 GET /health 200 [\d.]+ ms mine$")
        self.assertRegex(log, r"(?m)^\S+Z 127\.0\.0\.1 GET /v1/nothing 404 [\d.]+ ms " + headers["x-request-id"] + "$")
        self.assertNotIn("secret", log)

    def test_presets_and_names(self):
        server = self.serve("--served-model-name", "my/model", "--preset", "few=divprune(keep=0.05)+glimpse", "--cors-origin", "*")
        ids = [model["id"] for model in server.get("/v1/models")[1]["data"]]
        self.assertEqual(ids, ["my/model", "few", "my/model+glimpse", "my/model+none"])
        self.assertEqual([p["method"] for p in server.chat(asked(model="few"))[1]["glimpse"]["pruning"]], ["divprune", "glimpse"])
        status, headers, _ = server.request("OPTIONS", "/v1/chat/completions")
        self.assertEqual((status, headers["access-control-allow-origin"]), (204, "*"))

    def test_a_full_queue(self):
        server = self.serve("--parallel", 1, "--queue", 1)
        body = asked(max_tokens=1500, ignore_eos=True)
        statuses = []
        def ask():
            with contextlib.closing(server.connect(3)) as connection, contextlib.suppress(TimeoutError):
                connection.request("POST", "/v1/chat/completions", json.dumps(body))
                answer = connection.getresponse()
                statuses.append((answer.status, answer.getheader("retry-after")))
        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertIn((429, "1"), statuses)

    def test_the_end(self):
        """Running answers end, new requests are told; then it exits."""
        for how in (signal.SIGTERM, signal.SIGINT):
            server = self.serve("--grace", 30)
            with contextlib.closing(server.connect()) as connection:
                connection.request("POST", "/v1/chat/completions", json.dumps(asked(stream=True, max_tokens=200, ignore_eos=True)))
                answer = connection.getresponse()
                answer.read(10)
                server.tell(how)
                text = answer.read().decode()
                self.assertTrue(text.endswith("data: [DONE]\n\n"))
                self.assertIn('"finish_reason":"length"', text)
            self.assertEqual(server.stop(), 0)
        server = self.serve("--grace", 0.2)
        with contextlib.closing(server.connect()) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps(asked(max_tokens=3900, ignore_eos=True)))
            time.sleep(0.3)
            server.tell(signal.SIGTERM)
            answer = connection.getresponse()
            self.assertEqual((answer.status, json.load(answer)["error"]["type"]), (503, "unavailable_error"))
        self.assertEqual(server.stop(), 0)

    def test_the_end_waits_for_slow_readers(self):
        """An answer that is being written when the server is told to end arrives whole, however large."""
        noise = random.Random(1)
        rows = b"".join(b"\0" + noise.randbytes(1200 * 3) for _ in range(1200))
        picture = "data:image/png;base64," + base64.b64encode(png(1200, 1200, 8, 2, rows)).decode()
        server = self.serve("--grace", 30)
        body = json.dumps(asked(picture=picture, pruning={"return": ["overlay"]}, max_tokens=2)).encode()
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            slow.connect(("127.0.0.1", server.port))
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            head, _, rest = slow.recv(2000).partition(b"\r\n\r\n")
            whole = int(re.search(rb"Content-Length: (\d+)", head)[1])
            self.assertGreater(whole, 3 << 20)
            server.tell(signal.SIGTERM)
            got = len(rest)
            while piece := slow.recv(1 << 16):
                got += len(piece)
                time.sleep(0.002)
        self.assertEqual(got, whole)
        self.assertEqual(server.stop(), 0)

    def test_pictures_are_known_after_a_restart(self):
        flags = ("--cache-dir", self.dir / "cache", "--cache-disk-gb", 0.1)
        for known in (False, True):
            server = self.serve(*flags)
            status, answer = server.chat(asked())
            self.assertEqual(answer["choices"][0]["message"]["content"], ANSWER)
            self.assertEqual(answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, known)
            self.assertEqual(server.stop(), 0)
        file = next((self.dir / "cache").glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:5000])
        server = self.serve(*flags)
        answer = server.chat(asked())[1]
        self.assertEqual((answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]), (ANSWER, 0))

    def test_what_it_does_not_start_with(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            result = run("serve", "--port", taken.getsockname()[1], "--threads", 1)
        self.assertEqual(result.returncode, 1)
        self.assertIn("another program uses it", result.stderr)
        for flags, words in ((["--model", "/nowhere"], "/nowhere"), (["--preset", "x=nothing"], "--preset x"), (["--preset", "x"], "NAME=COMPOSITION"),
                             (["--api-key-file", "/nowhere"], "cannot be read"), (["--media-path", "/nowhere"], "no folder"),
                             (["--cache-dir", MODEL / "config.json"], "no folder"), (["--cache-dir", self.dir, "--cache-mb", 0], "cache_mb"),
                             (["--ssl-cert-file", "/nowhere"], "one of the two is missing")):
            result = run("serve", "--port", 0, "--threads", 1, *flags)
            self.assertEqual(result.returncode, 1, flags)
            self.assertIn(words, result.stderr)

    def test_tls(self):
        cert, key = self.dir / "cert.pem", self.dir / "key.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
        server = self.serve("--ssl-cert-file", cert, "--ssl-key-file", key, wait=False)
        context = ssl.create_default_context(cafile=cert)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=60)) as connection:
                connection.request("POST", "/v1/chat/completions", json.dumps(asked()))
                answer = connection.getresponse()
                body = json.load(answer)
            if answer.status != 503 or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        self.assertEqual(body["choices"][0]["message"]["content"], ANSWER)

    def test_idle_connections_cost_little(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))  # which the server raises for itself
        server = self.serve()
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

        def used():
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            return [int(re.search(rf"(?m)^{name}:\s*(\d+)", status)[1]) for name in ("VmRSS", "Threads")]
        self.assertEqual(server.chat(asked())[0], 200)
        before, _ = used()
        with contextlib.ExitStack() as stack:
            for i in range(1000):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
                if i % 2:  # these have begun a request and do not go on
                    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            self.assertEqual(server.chat(asked())[1]["choices"][0]["message"]["content"], ANSWER)
            after, threads = used()
        self.assertLess(threads, 32)
        self.assertLess(after - before, 100 << 10)


if __name__ == "__main__":
    unittest.main()
