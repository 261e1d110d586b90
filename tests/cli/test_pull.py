"""glimpse pull against a hub of our own (stub_hub.py): what it fetches, and what may go wrong."""
import json
import os
import signal
import ssl
import subprocess
import time
import unittest
from pathlib import Path

from pulling import BASE, CONTENT, Pull, small
from stub_hub import Hub, etag


class Fetching(Pull):
    def test_model(self):
        self.add(files={**small(), "pytorch_model.bin": b"w", "pytorch_model.bin.index.json": b"{}", "consolidated.safetensors": b"w", "README.md": b"#",
                        "sub/config.json": b"{}", "trainer_state.json": b"{}", "flax_model.msgpack": b"w", "chat_template.jinja": b"{{ x }}"})
        printed = self.pull()
        self.assertEqual(printed, [self.check_whole(files=("config.json", "model.safetensors", "empty.txt", "chat_template.jinja"))])
        # The token went to the hub only, and what lies there needs no second request.
        self.assertEqual({headers.get("authorization") for _, port, _, headers in self.hub.requests if port == self.hub.main.server_address[1]},
                         {"Bearer hf_secret"})
        large = self.hub.asked("/model.safetensors")
        self.assertEqual([headers.get("authorization") for headers in large], ["Bearer hf_secret", None])
        del self.hub.requests[:]
        self.assertEqual(self.pull(), printed)
        self.assertEqual([path for _, _, path, _ in self.hub.requests], [f"/api/models/{BASE}/revision/main"])

    def test_torch_weights_where_there_are_no_others(self):
        self.add(files={"config.json": b"{}", "pytorch_model-00001-of-00001.bin": b"w", "pytorch_model.bin.index.json": b"{}", "tf_model.h5": b"w",
                        "training_args.bin": b"w", "model.msgpack": b"w"})
        self.pull()
        self.check_whole(files=("config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"))
        self.add(files={"config.json": b"{}", "model.onnx": b"w"})
        self.refused("has no weights")

    def test_gguf(self):
        """A quantisation behind a colon, with its parts and the vision encoder; of several the usual one."""
        files = {"README.md": b"#", "net-Q4_K_M.gguf": b"GGUF4", "net-Q8_0.gguf": b"GGUF8", "mmproj-net-F16.gguf": b"GGUFm", "mmproj-net-F32.gguf": b"GGUFM",
                 "F16/net-F16-00001-of-00002.gguf": b"GGUFa", "F16/net-F16-00002-of-00002.gguf": b"GGUFb"}
        repo = self.add(files=files)
        eyes = "mmproj-net-F16.gguf"
        self.pull()
        self.check_whole(files=("net-Q4_K_M.gguf", eyes))
        [snapshot] = self.pull(f"{BASE}:q8_0")
        self.check_whole(files=("net-Q4_K_M.gguf", "net-Q8_0.gguf", eyes))
        self.assertEqual(self.pull(f"{BASE}:F16@main"), [snapshot])
        for part in ("1", "2"):
            name = f"F16/net-F16-0000{part}-of-00002.gguf"
            self.assertEqual((snapshot / name).read_bytes(), files[name])
            self.assertEqual(os.readlink(snapshot / name), f"../../../blobs/{etag(name, files[name])}")
        old = repo.refs["main"]
        repo.push({**files, "net-Q8_0.gguf": b"GGUF9"})
        self.assertEqual((self.pull(f"{BASE}:Q8_0", "--revision", old)[0] / "net-Q8_0.gguf").read_bytes(), b"GGUF8")
        self.refused(f"model '{BASE}:Q5_0'", "none of its .gguf files is of Q5_0; there are: F16, Q4_K_M, Q8_0", args=(f"{BASE}:Q5_0",))
        self.refused("is no hub id", args=(f"{BASE}:",))
        self.assertEqual([model["bytes"] for model in json.loads(self.ok("models", "--json", env=self.env))], [25])

    def test_revisions(self):
        repo = self.add()
        old = repo.refs["main"]
        repo.push({**small(), "config.json": b'{"a": 1}'}, "refs/pr/1")
        new = repo.push({**small(), "config.json": b'{"b": 2}'})
        self.assertEqual(self.pull(BASE, "--revision", "refs/pr/1")[0].name, repo.refs["refs/pr/1"])
        self.assertEqual((self.folder() / "refs/refs/pr/1").read_text(), repo.refs["refs/pr/1"])
        self.assertFalse((self.folder() / "refs/main").exists())
        self.assertEqual(self.pull(f"{BASE}@{old}")[0].name, old)
        self.assertFalse((self.folder() / "refs" / old).exists())
        self.assertEqual(self.pull()[0].name, new)
        self.assertEqual(len(self.hub.asked("/model.safetensors")), 2)  # of all revisions: the hub's answer and that of the other host
        self.refused("there is no revision 'v9'", args=(BASE, "--revision", "v9"))
        for wrong in ("../x", "a//b", "", "x y"):
            self.refused("is no hub id" if wrong else "", args=(f"{BASE}@{wrong}",))
        self.refused("both name a revision", args=(f"{BASE}@a", "--revision", "b"))

    def test_renamed(self):
        """Redirects to another path of the hub are followed, of listings and of what is said of files."""
        self.add("org/new")
        self.hub.renamed["org/old"] = "org/new"
        [snapshot] = self.pull("org/old")
        self.assertEqual(snapshot.parts[-3], "models--org--old")
        self.assertEqual((snapshot / "model.safetensors").read_bytes(), CONTENT)

    def test_token(self):
        self.add()
        (self.dir / "home").mkdir()
        (self.dir / "home/token").write_text("hf_file\n")
        self.pull(HF_TOKEN="")
        self.assertEqual(self.hub.requests[0][3]["authorization"], "Bearer hf_file")
        (self.dir / "other").write_text("hf_other")
        self.pull(HF_TOKEN="", HF_TOKEN_PATH=str(self.dir / "other"))
        self.assertEqual(self.hub.requests[-1][3]["authorization"], "Bearer hf_other")
        self.pull(HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
        self.assertNotIn("authorization", self.hub.requests[-1][3])
        count = len(self.hub.requests)
        self.refused("HF_TOKEN has a character", HF_TOKEN="a\r\nX-Other: b")
        self.refused("HF_ENDPOINT: expected an address", HF_ENDPOINT="ftp://hub")
        self.refused("HF_HUB_OFFLINE is set", HF_HUB_OFFLINE="1")
        self.assertEqual(len(self.hub.requests), count)

    def test_proxy(self):
        self.add()
        self.pull(HF_ENDPOINT="http://hub.invalid", http_proxy=self.hub.url, no_proxy="127.0.0.1")
        self.check_whole()

    def test_certificates(self):
        cert, key = self.dir / "cert.pem", self.dir / "key.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert,
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"], check=True, capture_output=True)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(cert, key)
        plain, self.hub = self.hub, Hub(tls)
        self.addCleanup(self.hub.stop)
        self.env["HF_ENDPOINT"] = self.hub.url
        self.add()
        result = self.refused("ertificate")
        self.assertNotIn("trying again", result.stderr)
        self.env["CURL_CA_BUNDLE"] = str(cert)
        secret, self.hub.cdn_url = self.hub.cdn_url, plain.cdn_url
        self.refused("redirected from https to http")
        self.assertEqual(plain.requests, [])
        self.hub.cdn_url = secret
        self.pull()
        self.check_whole()

    def test_room(self):
        self.add()
        self.hub.lies["model.safetensors"] = {"size": 1 << 43}
        self.refused("needs 8796.09 GB", "has room for", "HF_HUB_CACHE")
        self.assertEqual(self.hub.asked("/model.safetensors"), [])


class Trouble(Pull):
    def test_truncated_and_resumed(self):
        self.add()
        self.hub.faults["model.safetensors"] = [("truncate", 1_000_000), ("truncate", 500_000), ("no range",)]
        self.pull()
        self.check_whole()
        self.assertEqual([headers.get("range") for headers in self.hub.asked("/model.safetensors") if "authorization" not in headers],
                         [None, "bytes=1000000-", "bytes=1500000-"])

    def test_truncated_for_ever(self):
        self.add()
        self.hub.faults["model.safetensors"] = [("truncate", 10)] * 9
        self.refused("model.safetensors", "the same command goes on from there")
        self.assertFalse((self.folder() / "refs/main").exists())
        del self.hub.faults["model.safetensors"]
        self.pull()
        self.check_whole()
        self.assertEqual(self.hub.asked("/model.safetensors")[-1]["range"], "bytes=50-")

    def test_killed(self):
        self.add()
        process = self.start_stalling(2_000_000)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        size = self.incomplete().stat().st_size
        self.pull()
        self.check_whole()
        self.assertEqual(self.hub.asked("/model.safetensors")[-1]["range"], f"bytes={size}-")

    def test_interrupted(self):
        self.add()
        process = self.start_stalling(2_000_000)
        self.fails(["models", "rm", BASE], "is writing there; wait until it is done", env=self.env)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=10)
        self.assertEqual(process.returncode, 130, error)
        self.assertIn("the same command goes on", error)
        self.pull()
        self.check_whole()

    def test_stalled(self):
        self.add()
        self.hub.faults["model.safetensors"] = [("stall", 1_000_000)]
        begin = time.monotonic()
        self.pull()
        self.assertLess(time.monotonic() - begin, 15)
        self.check_whole()

    def test_what_is_left_of_something_else(self):
        """An incomplete file that is not the begin of what comes, one that is too long, and one that is whole."""
        self.add()
        blobs = self.folder() / "blobs"
        blobs.mkdir(parents=True)
        for left in (b"z" * 1000, b"z" * 4_000_000, CONTENT):
            with self.subTest(left=len(left)):
                incomplete = blobs / (etag("model.safetensors", CONTENT) + ".incomplete")
                incomplete.write_bytes(left)
                self.pull()
                self.check_whole()
                (blobs / etag("model.safetensors", CONTENT)).unlink()
        # A blob that lost its end.
        (blobs / etag("model.safetensors", CONTENT)).write_bytes(CONTENT[:100])
        self.pull()
        self.check_whole()

    def test_wrong_content(self):
        for file, kind in (("model.safetensors", "SHA-256"), ("config.json", "git's SHA-1")):
            with self.subTest(file=file):
                self.add()
                self.hub.faults[file] = [("corrupt",)]
                self.refused(file, f"has another {kind}", "nothing of it is kept")
                self.assertFalse((self.folder() / "refs/main").exists())
                self.assertFalse((self.folder() / "blobs" / (etag(file, small()[file]) + ".incomplete")).exists())
                self.pull()
                self.check_whole()
                self.ok("models", "rm", BASE, env=self.env)

    def test_wrong_lengths(self):
        self.add()
        self.hub.faults["model.safetensors"] = [("more",)]
        self.refused("more comes than its 3000000 bytes")
        self.hub.faults["model.safetensors"] = [("truncate", 1000), ("wrong range",)]
        self.refused("the server gives the range")

    def test_too_many_requests(self):
        self.add()
        self.hub.faults["model.safetensors"] = [("status", 429, {"Retry-After": "2"})]
        self.hub.faults[f"/api/models/{BASE}/revision/main"] = [("status", 503, {})]
        begin = time.monotonic()
        self.pull()
        self.assertGreater(time.monotonic() - begin, 3)
        self.check_whole()
        self.hub.faults[f"/api/models/{BASE}/revision/main"] = [("status", 429, {"Retry-After": "4000"})]
        self.refused("too many requests", "asks to wait for 4000 s", "Try again later.")

    def test_not_allowed(self):
        hub = self.hub.url.split("//")[1]
        for code, known, unknown in (((401, "RepoNotFound"), ["no such repository", "token of HF_TOKEN"], ["no such repository", "set HF_TOKEN"]),
                                     ((404, "RepoNotFound"), ["no such repository", hub], ["Check its name"]),
                                     ((401, ""), ["does not know the token of HF_TOKEN"], ["or it is private"]),
                                     ((403, "GatedRepo"), [f"Ask for it at {self.hub.url}/{BASE}", "account of the token of HF_TOKEN"], []),
                                     ((401, "GatedRepo"), [], ["access is granted by its authors", "then set HF_TOKEN"]),
                                     ((403, ""), ["does not allow it", "must have the right"], ["Set HF_TOKEN"]),
                                     ((418, ""), ["answered with status 418 (sorry ?[31m)"], [])):
            self.hub.closed[BASE] = code
            with self.subTest(code=code):
                self.refused("org/base", *known)
                self.refused("org/base", *unknown, HF_TOKEN="")
        self.refused("127.0.0.1:1", "https_proxy names a proxy", HF_ENDPOINT="http://127.0.0.1:1")

    def test_changed_meanwhile(self):
        repo = self.add()
        self.hub.headers["model.safetensors"] = {"X-Repo-Commit": "0" * 40}
        self.refused("model.safetensors: it comes from commit " + "0" * 40, "Try again")
        self.hub.headers["model.safetensors"] = {"X-Linked-Etag": '"' + "1" * 64 + '"'}
        self.refused("its hash is not that of the listing")
        self.hub.headers["model.safetensors"] = {"X-Linked-Size": "5"}
        self.refused("5 bytes, not 3000000")
        self.hub.headers.clear()
        # A branch that moves on: what was listed is what is fetched.
        old = repo.refs["main"]
        self.hub.faults["model.safetensors"] = [("stall", 100, 1)]
        process = self.start()
        self.assertTrue(self.hub.stalled.wait(30))
        repo.push(small(b"other"))
        out, error = process.communicate(timeout=60)
        self.assertEqual((process.returncode, Path(out.strip()).name), (0, old), error)
        self.assertEqual((self.folder() / "refs/main").read_text(), old)
        self.assertEqual((Path(out.strip()) / "model.safetensors").read_bytes(), CONTENT)
        self.pull()
        self.check_whole()

    def test_hostile_names(self):
        for name in ("../../escape.json", "/etc/escape.json", "a/../../escape.json", "a//b.json", "\x1b[31m.json", "a" * 300 + ".json", "",
                     "a/" * 600 + "b.json", "..", "a\\b.json", "a\0b.json"):
            with self.subTest(name=name[:30]):
                self.add(files={**small(), name: b"{}"})
                result = self.refused("a file is called '", "nothing is fetched")
                self.assertNotIn("\x1b", result.stderr)
        self.assertEqual(list(self.dir.rglob("*escape*")), [])
        self.add()
        for lie in ({"size": -1}, {"size": 1 << 60}, {"size": "x"}, {"rfilename": 5}):
            self.hub.lies["config.json"] = lie
            self.refused("the listing of org/base")
        self.hub.lies.clear()
        for name in ('"../../../escape"', '"..', "x/y", '"' + "a" * 300 + '"'):
            self.hub.headers["config.json"] = {"ETag": name}
            self.hub.lies["config.json"] = {"blobId": None}
            self.refused("is no name for a file")

    def test_two_at_once(self):
        self.add()
        self.hub.faults["model.safetensors"] = [("slow", 30_000)]
        processes = [self.start() for _ in range(3)]
        errors = []
        for process in processes:
            _, error = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 0, error)
            errors.append(error)
        self.check_whole()
        self.assertEqual(sum("model.safetensors: another process is fetching it" in error for error in errors), 2, errors)
        self.assertEqual(sum("authorization" not in headers for headers in self.hub.asked("/model.safetensors")), 1)


if __name__ == "__main__":
    unittest.main()
