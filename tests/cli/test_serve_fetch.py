"""Pictures that glimpse serve fetches: from whom it does, and from whom it never does."""
import contextlib
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from program import ANSWER, IMAGE, ROOT, CliTest
from serving import Server, asked

FILE, CLIP = Path(IMAGE).read_bytes(), (ROOT / "tests/data/videos/h264.mp4").read_bytes()


class Pictures(BaseHTTPRequestHandler):
    """A host of pictures; what it does depends on the path."""
    protocol_version = "HTTP/1.1"
    asked_for = []  # paths and headers

    def log_message(self, *args):
        pass

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def do_GET(self):
        self.asked_for.append((self.path, dict(self.headers)))
        if self.path.startswith("/picture"):
            self.reply(200, FILE, Content_Type="text/html")
        elif self.path == "/clip":
            self.reply(200, CLIP, Content_Type="video/mp4")
        elif self.path.startswith("/to?"):
            self.reply(302, Location=self.path[4:])
        elif self.path == "/loop":
            self.reply(301, Location="/loop")
        elif self.path == "/html":
            self.reply(200, b"<html>no picture</html>", Content_Type="image/png")
        elif self.path == "/large":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(80):
                    self.wfile.write(bytes(1 << 20))
            self.close_connection = True
        elif self.path == "/slow":
            self.send_response(200)
            self.send_header("Content-Length", str(len(FILE)))
            self.end_headers()
            with contextlib.suppress(OSError):
                for byte in FILE:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", str(len(FILE) + 1))
            self.end_headers()
            self.wfile.write(FILE)
            self.close_connection = True
        else:
            self.reply(404, b"none")


class Fetch(CliTest):
    @classmethod
    def setUpClass(cls):
        cls.host = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
        cls.at = cls.host.server_address[1]
        threading.Thread(target=cls.host.serve_forever, daemon=True).start()
        cls.addClassCleanup(cls.host.server_close)
        cls.addClassCleanup(cls.host.shutdown)
        cls.server = Server("--allow-domain", f"127.0.0.1:{cls.at}", "--allow-domain", "169.254.169.254", "--allow-private-addresses",
                            "--fetch-seconds", 1)
        cls.addClassCleanup(cls.server.stop)
        cls.url = f"http://127.0.0.1:{cls.at}"

    def refused(self, url, words, code=None, server=None):
        status, body = (server or self.server).chat(asked(picture=url))
        self.assertEqual(status, 400, body)
        self.assertIn(words, body["error"]["message"])
        if code:
            self.assertEqual(body["error"]["code"], code, body)

    def test_fetched(self):
        for url in ("/picture", "/picture?a=b#part", "/to?/picture", f"/to?/to?{self.url}/picture"):
            with self.subTest(url=url):
                status, body = self.server.chat(asked(picture=self.url + url))
                self.assertEqual(status, 200, body)
                self.assertEqual(body["choices"][0]["message"]["content"], ANSWER)
        # Nothing of the client's request goes on to the host, and no fragment does.
        headers = {name.lower() for path, of in Pictures.asked_for for name in of}
        self.assertLessEqual(headers, {"host", "user-agent", "accept"})
        self.assertIn("/picture?a=b", [path for path, _ in Pictures.asked_for])

    def test_videos(self):
        """Fetched as pictures are, up to a size of their own."""
        def ask(*paths):
            content = [*({"type": "video_url", "video_url": {"url": self.url + path}} for path in paths), {"type": "text", "text": "What?"}]
            return self.server.chat({"messages": [{"role": "user", "content": content}], "max_tokens": 2})
        status, body = ask("/clip", "/to?/clip")
        self.assertEqual((status, [grid["image"] for grid in body["glimpse"]["images"]]), (200, [0, 0, 1, 1]))
        for path, words, code in (("/none", "fetching the video: 127.0.0.1 answered 404", "video_fetch_failed"),
                                  ("/loop", "fetching the video", "video_fetch_failed"), ("/large", "no video file", "invalid_video"),
                                  ("/to?http://169.254.169.254/latest/meta-data", "does not connect", "url_not_allowed"),
                                  (":1/x", "fetches no videos from", "url_not_allowed")):
            with self.subTest(path=path):
                status, body = ask(path) if path[0] == "/" else self.server.chat({"messages": [{"role": "user", "content": [
                    {"type": "video_url", "video_url": {"url": "http://127.0.0.1" + path}}]}]})
                self.assertEqual((status, body["error"]["code"]), (400, code), body)
                self.assertIn(words, body["error"]["message"])

    def test_several_and_again_by_uuid(self):
        content = [{"type": "image_url", "image_url": {"url": self.url + "/picture"}, "uuid": "mine"},
                   {"type": "image_url", "image_url": {"url": self.url + "/picture2"}}, {"type": "text", "text": "What?"}]
        status, body = self.server.chat({"messages": [{"role": "user", "content": content}], "max_tokens": 2})
        self.assertEqual(status, 200, body)
        self.assertEqual(len(body["glimpse"]["images"]), 2)
        again = asked()
        again["messages"][0]["content"][0] = {"type": "image_url", "uuid": "mine"}
        self.assertEqual(self.server.chat(again)[1]["choices"][0]["message"]["content"], ANSWER)

    def test_what_cannot_be_had(self):
        for path, words, code in (("/none", "answered 404", "image_fetch_failed"), ("/loop", "too many redirects", "image_fetch_failed"),
                                  ("/html", "image", None), ("/large", "67108864 bytes", "image_too_large"),
                                  ("/slow", "imeout", "image_fetch_failed"), ("/short", "fetching the picture", "image_fetch_failed"),
                                  (f"/to?http://localhost:{self.at}/picture", "no pictures from localhost", "url_not_allowed"),
                                  ("/to?file:///etc/hostname", "begins with", "url_not_allowed"),
                                  ("/to?http://169.254.169.254/latest/meta-data", "does not connect", "url_not_allowed"),
                                  ("/to?gopher://127.0.0.1/", "begins with", "url_not_allowed")):
            with self.subTest(path=path):
                self.refused(self.url + path, words, code)
        self.refused(f"http://user:secret@127.0.0.1:{self.at}/picture", "no user", "url_not_allowed")
        self.refused("http://127.0.0.1/picture", "no pictures from 127.0.0.1:80", "url_not_allowed")
        self.refused("https://127.0.0.1:1", "no pictures from", "url_not_allowed")
        self.refused("http://[::1", "no URL")
        self.refused("http://" + "a" * 10000, "8192")
        self.refused(f"{self.url}/picture\r\nX: y", "no URL")

    def test_private_addresses(self):
        """Every host is allowed, none of these addresses is; nothing connects to the listener."""
        listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.addCleanup(listener.close)
        port = listener.getsockname()[1]
        server = Server("--allow-domain", f"*:{port}", "--fetch-seconds", 2)
        self.addCleanup(server.stop)
        for host in ("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "017700000001", "localhost", "LOCALHOST",
                     "0.0.0.0", "0", "10.1", "172.16.1", "172.31.65534", "192.168.257", "100.64.0.1", "169.254.169.254",
                     "0xa9fea9fe", "2852039166", "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "[::1]", "[::]",
                     "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:a9fe:a9fe]", "[::127.0.0.1]",
                     "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1]", "[fd00:ec2::254]", "[fc00::1]", "[ff02::1]", "[2001:db8::1]"):
            with self.subTest(host=host):
                self.refused(f"http://{host}:{port}/", "does not connect", "url_not_allowed", server)
        listener.setblocking(False)
        with self.assertRaises(BlockingIOError):
            listener.accept()

    def test_names(self):
        server = Server("--allow-domain", "*.Example.org", "--allow-domain", "pictures.example.com:8000", "--fetch-seconds", 0.5)
        self.addCleanup(server.stop)
        for url, allowed in (("http://a.example.org/", True), ("https://A.B.Example.org./", True), ("http://example.org/", False),
                             ("http://badexample.org/", False), ("http://a.example.org:8000/", False), ("http://a.example.org.evil/", False),
                             ("http://pictures.example.com:8000/", True), ("http://pictures.example.com/", False),
                             ("http://a.example.org@evil.test/", False), ("http://evil.test/a.example.org", False),
                             ("http://evil.test#a.example.org", False), ("http://evil.test\\.example.org/", False)):
            with self.subTest(url=url):
                status, body = server.chat(asked(picture=url))
                self.assertEqual(status, 400)
                # Allowed names are looked up, and are not there or lead nowhere.
                self.assertEqual(body["error"]["code"] in ("image_fetch_failed",), allowed, body)

    def test_off_by_default(self):
        server = Server(env={"http_proxy": self.url})
        self.addCleanup(server.stop)
        self.refused(self.url + "/picture", "fetches no pictures", "url_not_allowed", server)

    def test_certificates(self):
        cert, key = self.dir / "cert.pem", self.dir / "key.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert,
                        "-subj", "/CN=localhost", "-days", "2"], check=True, capture_output=True)
        host = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        host.socket = context.wrap_socket(host.socket, server_side=True)
        host.handle_error = lambda *_: None
        threading.Thread(target=host.serve_forever, daemon=True).start()
        self.addCleanup(host.server_close)
        self.addCleanup(host.shutdown)
        port = host.server_address[1]
        server = Server("--allow-domain", f"localhost:{port}", "--allow-private-addresses")
        self.addCleanup(server.stop)
        self.refused(f"https://localhost:{port}/picture", "ertificate", "image_fetch_failed", server)

    def test_slow_hosts_hold_nobody_up(self):
        """More slow pictures than workers; others are answered meanwhile, and nothing stays behind."""
        slow = [threading.Thread(target=lambda: self.server.chat(asked(picture=self.url + "/slow"))) for _ in range(8)]
        for thread in slow:
            thread.start()
        time.sleep(0.2)
        waiting = re.search(r"num_requests_waiting\{.*\} (\d+)", self.server.get("/metrics")[1].decode())
        self.assertEqual(waiting[1], "8")
        begin = time.monotonic()
        self.assertEqual(self.server.chat(asked())[0], 200)
        self.assertLess(time.monotonic() - begin, 0.7)
        for thread in slow:
            thread.join()
        self.server.idle()

    def test_a_client_that_leaves(self):
        connection = self.server.connect()
        connection.request("POST", "/v1/chat/completions", json.dumps(asked(picture=self.url + "/slow")))
        time.sleep(0.1)
        connection.close()
        self.server.idle(0.7)  # before the time for fetching is over
