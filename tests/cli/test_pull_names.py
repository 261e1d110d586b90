"""Models by name: asked for, listed and removed, and in one cache with huggingface_hub."""
import json
import os
import pty
import subprocess
import threading
import unittest
from pathlib import Path

from program import ANSWER, IMAGE, KEEP, MODEL, MODULES, PROGRAM, QUESTION, ROOT, TEST
from pulling import ADDED, BASE, CONTENT, PYTHON, Pull, files_of, small


@unittest.skipUnless(PYTHON.exists(), "no .venv with huggingface_hub")
class BesideHuggingfaceHub(Pull):
    """The hub's own client and this program read and write one cache."""

    def test_it_finds_what_was_pulled(self):
        repo = self.add()
        self.add(ADDED, {**files_of(MODULES), "README.md": f"---\nbase_model: {BASE}\n---\n".encode()})
        snapshots = self.pull(ADDED)
        del self.hub.requests[:]
        found = self.python(f"""if True:
            from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
            for repo in ("{ADDED}", "{BASE}"): print(snapshot_download(repo, local_files_only=True))
            print(hf_hub_download("{BASE}", "model.safetensors", local_files_only=True))
            print(hf_hub_download("{BASE}", "model.safetensors", revision="{repo.refs['main']}", local_files_only=True))
            cache = scan_cache_dir()
            print(len(cache.repos), cache.size_on_disk, len(cache.warnings), sorted(ref for r in cache.repos for ref in r.refs))""").splitlines()
        self.assertEqual(found[:4], [str(path) for path in snapshots] + [str(snapshots[1] / "model.safetensors")] * 2)
        listed = json.loads(self.ok("models", "--json", env=self.env))
        self.assertEqual(found[4], f"2 {sum(model['bytes'] for model in listed)} 0 ['main', 'main']")
        self.assertEqual(self.hub.requests, [])

    def test_what_it_fetched_is_found(self):
        self.add(files=files_of(MODEL))
        path = self.python(f"from huggingface_hub import snapshot_download; print(snapshot_download('{BASE}'))")
        [snapshot] = self.pull()
        self.assertEqual(str(snapshot), path)
        self.assertEqual(len(self.hub.asked("/model.safetensors")), 1 + 0)  # it asks the other host at once, and nobody asks again
        got = json.loads(self.ok("ask", "--json", "-m", BASE, "--new-modules", MODULES, "-i", IMAGE, QUESTION, env={**self.env, "HF_HUB_OFFLINE": "1"}))
        self.assertEqual(got["answer"], ANSWER)

    def test_either_goes_on_with_what_the_other_began(self):
        self.add()
        process = self.start_stalling(2_000_000)
        process.kill()
        process.communicate()
        begun = self.incomplete().stat().st_size
        path = self.python(f"from huggingface_hub import snapshot_download; print(snapshot_download('{BASE}'))")
        self.assertEqual((Path(path) / "model.safetensors").read_bytes(), CONTENT)
        self.assertEqual(self.hub.asked("/model.safetensors")[-1]["range"], f"bytes={begun}-")

    def test_it_is_waited_for(self):
        self.add()
        self.hub.faults["model.safetensors"] = [("slow", 40_000)]
        other = threading.Thread(target=lambda: self.python(f"from huggingface_hub import hf_hub_download; hf_hub_download('{BASE}', 'model.safetensors')"))
        other.start()
        self.until(lambda: self.hub.asked("/model.safetensors"))
        process = self.start()
        _, error = process.communicate(timeout=60)
        other.join()
        self.assertEqual(process.returncode, 0, error)
        self.assertIn("model.safetensors: another process is fetching it", error)
        self.check_whole()


class ByName(Pull):
    def setUp(self):
        super().setUp()
        self.add(files=files_of(MODEL))
        self.add(ADDED, {**files_of(MODULES), "README.md": f"---\nlicense: mit\nbase_model:\n- {BASE}\n---\n# Modules\n".encode()},
                 card={"base_model": [BASE]})
        self.question = ["ask", "--json", "-i", IMAGE, QUESTION]

    def test_download(self):
        self.fails([*self.question, "--new-modules", ADDED], f"model '{ADDED}' not found", f"glimpse pull {ADDED}", "--download", env=self.env)
        self.assertEqual(self.hub.requests, [])
        got = json.loads(self.ok(*self.question, "--new-modules", ADDED, "--download", env=self.env))
        self.assertEqual((got["answer"], got["images"][0]["keep"]), (ANSWER, KEEP))
        # From here on nobody is asked.
        del self.hub.requests[:]
        for args in ([], ["--model", BASE], ["--model", f"{BASE}@{self.hub.repos[BASE].refs['main'][:9]}"]):
            got = json.loads(self.ok(*self.question, "--new-modules", ADDED, *args, env=self.env))
            self.assertEqual((got["answer"], got["images"][0]["keep"]), (ANSWER, KEEP))
        self.assertEqual(json.loads(self.ok("inspect", "--json", "-m", BASE, env=self.env))["model_type"], "qwen2_5_vl")
        self.ok("quantize", BASE, self.dir / "int8", env=self.env)
        self.assertEqual(self.hub.requests, [])

    def test_every_command(self):
        """None of them fetches anything unasked, all say how to allow it."""
        rows, out = TEST / "rows.jsonl", self.dir / "out"
        commands = {"ask": ["-m", BASE, "x"], "chat": ["-m", BASE], "infer": [rows, "--image-root", TEST, "--out", out, "-m", BASE], "inspect": ["-m", BASE],
                    "methods": ["-m", BASE], "serve": ["-m", BASE], "eval": ["-m", BASE, "--out", out], "merge": ["-m", BASE, "--adapter", ADDED, "--out", out],
                    "quantize": [BASE, out], "train": ["--model", BASE, "--data", rows, "--out", out], "tune": ["--model", BASE, "--data", rows, "--out", out]}
        for command, args in commands.items():
            with self.subTest(command=command):
                self.fails([command, *args], "not found", "glimpse pull org/", "--download", env=self.env)
        self.fails(["ask", "--new-modules", "coarse=" + ADDED, "x"], f"glimpse pull {ADDED}", "--download", env=self.env)
        self.assertEqual(self.hub.requests, [])
        train = ["train", "--model", BASE, "--data", rows, "--image-root", TEST, "--out", self.dir / "run", "--max-steps", 1, "--threads", 1]
        self.ok(*train, "--config", ROOT / "configs/train/tiny.yaml", "--download", env=self.env)
        # Modules name the base that they are trained on with; a run remembers its model.
        train[2:3] = [BASE, "--revision", self.hub.repos[BASE].refs["main"][:10]]
        self.ok(*train, "--config", ROOT / "configs/train/tiny.yaml", "--overwrite", env=self.env)
        train[1:5] = ["--new-modules", ADDED]
        self.ok(*train, "--config", ROOT / "configs/train/tiny.yaml", "--download", "--overwrite", env=self.env)
        self.assertEqual(json.loads((self.dir / "run/train.json").read_text())["model"], BASE)
        self.fails(["train", "--resume", self.dir / "run", "--revision", "v1"], "--resume goes on with the run's own model", env=self.env)

    def test_gguf_that_is_not_there(self):
        """The quantisation that is meant has to be in the cache, not just another one."""
        self.add("org/gguf", {"net-Q4_K_M.gguf": b"GGUF", "net-Q8_0.gguf": b"GGUF", "mmproj-F16.gguf": b"GGUF"})
        [snapshot] = self.pull("org/gguf")
        self.fails(["ask", "-m", "org/gguf", "x"], str(snapshot / "net-Q4_K_M.gguf"), env=self.env)  # which is cut off
        self.fails(["ask", "-m", "org/gguf:Q8_0", "x"], "lacks *Q8_0.gguf", "`glimpse pull org/gguf:Q8_0`", env=self.env)
        self.fails(["ask", "-m", "org/gguf:Q8_0", "--download", "x"], str(snapshot / "net-Q8_0.gguf"), env=self.env)
        self.fails(["ask", "-m", f"{BASE}:Q8_0", "--download", "x"], f"model '{BASE}:Q8_0' has no weights that this program fetches (*.gguf)", env=self.env)

    def test_mistyped_path(self):
        """What looks like a hub id may have been meant as a path: neither is there."""
        self.fails(["ask", "-m", "build/tinny", "x"], "Looked for", "build/tinny", env=self.env)
        self.fails(["ask", "-m", "build/tinny", "--download", "x"], "build/tinny", "there is no such repository", "There is no file or folder ", "/build/tinny either",
                   env=self.env)

    def test_tower_apart(self):
        """A LLaVA in its original layout names its encoder."""
        self.add("org/llava", {**small(), "config.json": b'{"mm_vision_tower": "org/tower"}'})
        self.add("org/tower", {"config.json": b"{}", "pytorch_model.bin": b"w", "tf_model.h5": b"w"})
        self.assertEqual([path.parts[-3] for path in self.pull("org/llava")], ["models--org--llava", "models--org--tower"])
        self.ok("models", "rm", "org/tower", env=self.env)
        self.fails(["ask", "-m", "org/llava", "x"], "glimpse pull org/tower", "--download", env=self.env)

    def test_allowed_by_the_environment(self):
        self.ok("ask", "-m", BASE, "-n", 1, "x", env={**self.env, "GLIMPSE_DOWNLOAD": "1"})
        self.fails(["ask", "-m", "org/other", "x"], "HF_HUB_OFFLINE is set", env={**self.env, "GLIMPSE_DOWNLOAD": "1", "HF_HUB_OFFLINE": "1"})

    def test_revision(self):
        self.hub.repos[BASE].push({**files_of(MODEL), "generation_config.json": b'{"eos_token_id": 575}'}, "endless")
        self.ok("ask", "-m", BASE, "--revision", "endless", "--download", "-n", 1, "x", env=self.env)
        self.fails(["ask", "-m", BASE, "x"], "revision main in the cache", env=self.env)
        self.fails(["ask", "-m", MODEL, "--revision", "v1", "x"], "belongs to a model that is a hub id", env=self.env)
        self.fails(["ask", "--revision", "v1", "x"], "belongs to a model that is a hub id", env=self.env)

    def test_in_part(self):
        """A fetch that was cut short is no model, whoever began it."""
        [snapshot] = self.pull()
        (snapshot / "model.safetensors").resolve().unlink()
        self.fails(["ask", "-m", BASE, "x"], "in the cache only in part", "lacks model.safetensors", f"glimpse pull {BASE}", env=self.env)
        self.ok("ask", "-m", BASE, "-n", 1, "--download", "x", env=self.env)

    def on_terminal(self, answer, *args):
        """Status and what was shown."""
        terminal, end = pty.openpty()
        process = subprocess.Popen([PROGRAM, *map(str, args)], stdin=end, stdout=subprocess.PIPE, stderr=end, env={**os.environ, **self.env})
        os.close(end)
        shown = b""
        while b"[y/N]" not in shown:
            shown += os.read(terminal, 4096)
        os.write(terminal, answer)
        try:
            while part := os.read(terminal, 4096):
                shown += part
        except OSError:
            pass  # its other end is closed
        os.close(terminal)
        out, _ = process.communicate(timeout=60)
        return process.returncode, shown.decode(), out.decode()

    def test_asks_on_a_terminal(self):
        question = ["ask", "-t", 1, "-i", IMAGE, QUESTION, "--new-modules", ADDED]
        status, shown, _ = self.on_terminal(b"\n", *question)
        self.assertEqual(status, 1, shown)
        self.assertIn("nothing was fetched", shown)
        self.assertEqual(list(self.cache.rglob("blobs")), [])
        status, shown, out = self.on_terminal(b"y\n", *question)
        self.assertEqual((status, out.strip()), (0, ANSWER), shown)
        for words in (f"{ADDED} is not in the cache: 5 files", f"{BASE} is not in the cache: 9 files", "11.1 MB to fetch", "fetch them to", "files  "):
            self.assertIn(words, shown)

    def test_pull_with_and_without_base(self):
        self.assertEqual([path.parts[-3] for path in self.pull(ADDED, "--no-base")], ["models--org--modules"])
        self.assertEqual([path.parts[-3] for path in self.pull(ADDED)], ["models--org--modules", "models--org--base"])

    def test_base_named_by_the_config(self):
        config = json.loads((MODULES / "config.json").read_text())
        for name, files in (("a", {"config.json": json.dumps({**config, "_name_or_path": BASE}).encode()}),
                            ("b", {"README.md": b"---\nbase_model: [&x \n---\n", "config.json": json.dumps({**config, "_name_or_path": BASE}).encode()})):
            self.add(f"org/{name}", {**files_of(MODULES), **files})
            self.assertEqual(len(self.pull(f"org/{name}")), 2)
        self.add("org/c", {**files_of(MODULES), "config.json": json.dumps({**config, "_name_or_path": "/mnt/models/net"}).encode()})
        self.assertEqual(len(self.pull("org/c")), 1)

    def test_models(self):
        self.assertIn("0 models", self.ok("models", env=self.env))
        self.pull(ADDED)
        repo = self.hub.repos[BASE]
        first, second = repo.refs["main"], repo.push({**files_of(MODEL), "merges.txt": b"#"}, "v2")
        self.pull(f"{BASE}@v2")
        text = self.ok("models", env=self.env)
        for words in (BASE, ADDED, first[:12], second[:12], "main", "v2", "2 models", str(self.folder() / "snapshots" / first)):
            self.assertIn(words, text)
        [base, modules] = json.loads(self.ok("models", "--json", env=self.env))
        self.assertEqual((base["id"], modules["id"]), (BASE, ADDED))
        self.assertEqual({revision["commit"]: revision["refs"] for revision in base["revisions"]}, {first: ["main"], second: ["v2"]})
        size = sum(len(content) for content in repo.commits[first].values())
        self.assertEqual((base["revisions"][0 if first < second else 1]["bytes"], base["bytes"]), (size, size + 1))
        self.ok("models", "rm", f"{BASE}@v2", env=self.env)
        self.check_whole(files=files_of(MODEL))
        [base, _] = json.loads(self.ok("models", "--json", env=self.env))
        self.assertEqual((len(base["revisions"]), base["bytes"]), (1, size))
        self.ok("models", "rm", BASE, env=self.env)
        self.assertFalse(self.folder().exists())
        self.assertEqual(len(json.loads(self.ok("models", "--json", env=self.env))), 1)
        self.fails(["models", "rm", BASE], "is not in the cache", env=self.env)
        self.fails(["models", "rm", "../x"], "is no hub id", env=self.env)


if __name__ == "__main__":
    unittest.main()
