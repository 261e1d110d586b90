"""A hub of our own and a cache for one test. Shared by test_pull.py and test_pull_names.py."""
import os
import random
import subprocess
import time
from pathlib import Path

from program import PROGRAM, ROOT, CliTest
from stub_hub import Hub, Repo, etag

PYTHON = ROOT / ".venv/bin/python"
BASE, ADDED = "org/base", "org/modules"
CONTENT = random.Random(7).randbytes(3_000_000)


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def small(weights=CONTENT):
    """The files of a model that only looks like one."""
    return {"config.json": b"{}", "model.safetensors": weights, "empty.txt": b"", ".gitattributes": b"*.bin"}


class Pull(CliTest):
    def setUp(self):
        super().setUp()
        self.hub = Hub()
        self.addCleanup(self.hub.stop)
        self.cache = self.dir / "home/hub"
        self.env = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.dir / "home"), "HF_TOKEN": "hf_secret", "HF_HUB_DOWNLOAD_TIMEOUT": "2",
                    "no_proxy": "*", **{name: "" for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
                                                              "HF_TOKEN_PATH", "GLIMPSE_DOWNLOAD", "http_proxy", "HF_HUB_DISABLE_IMPLICIT_TOKEN")}}

    def add(self, name=BASE, files=None, **about):
        self.hub.repos[name] = Repo(small() if files is None else files, **about)
        return self.hub.repos[name]

    def pull(self, *args, **env):
        """The folders that it printed."""
        return [Path(line) for line in self.ok("pull", *(args or [BASE]), env={**self.env, **env}).splitlines()]

    def refused(self, *says, args=(BASE,), status=1, **env):
        return self.fails(["pull", *args], *says, status=status, env={**self.env, **env})

    def start_stalling(self, bytes):
        """A process whose fetch of the weights came so far, and waits."""
        self.hub.faults["model.safetensors"] = [("stall", bytes)]
        self.env["HF_HUB_DOWNLOAD_TIMEOUT"] = "60"
        process = self.start()
        self.assertTrue(self.hub.stalled.wait(30))
        self.env["HF_HUB_DOWNLOAD_TIMEOUT"] = "2"
        self.until(lambda: self.incomplete().exists() and self.incomplete().stat().st_size > bytes - 100_000)
        return process

    def incomplete(self):
        return self.folder() / "blobs" / (etag("model.safetensors", CONTENT) + ".incomplete")

    def start(self, *args):
        return subprocess.Popen([PROGRAM, "pull", *(args or [BASE])], env={**os.environ, **self.env}, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def until(self, happened):
        end = time.monotonic() + 30
        while not happened():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)

    def folder(self, name=BASE):
        return self.cache / ("models--" + name.replace("/", "--"))

    def check_whole(self, name=BASE, files=("config.json", "model.safetensors", "empty.txt")):
        """The cache holds these files of main, as the layout has them, and nothing half done."""
        repo, folder = self.hub.repos[name], self.folder(name)
        commit = repo.refs["main"]
        self.assertEqual((folder / "refs/main").read_text(), commit)
        snapshot = folder / "snapshots" / commit
        self.assertEqual({file.name for file in snapshot.iterdir()}, set(files))
        for file in files:
            content = repo.commits[commit][file]
            self.assertEqual(os.readlink(snapshot / file), f"../../blobs/{etag(file, content)}")
            self.assertEqual((snapshot / file).read_bytes(), content)
        self.assertEqual([blob.name for blob in (folder / "blobs").iterdir() if blob.suffix], [])
        return snapshot

    def python(self, code, **env):
        env = {**os.environ, **self.env, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **env}
        result = subprocess.run([PYTHON, "-B", "-c", code], env={name: value for name, value in env.items() if value},  # to it "" is a value
                                text=True, capture_output=True, timeout=120)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.strip()
