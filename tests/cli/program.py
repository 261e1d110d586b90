"""Runs the built program as a user does: $GLIMPSE is its path. Shared by the test_*.py files beside this one."""
import json
import os
import resource
import shutil
import struct
import subprocess
import tempfile
import unittest
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("GLIMPSE", str(ROOT / "build/release/bin/glimpse"))
TINY = ROOT / "models/tiny"
MODEL, MODULES, TEST = TINY / "model", TINY / "new_modules", TINY / "test"
IMAGES = TEST / "cot/read"

# The first of the recorded rows: what transformers and the reference implementation gave (models/tiny/README.md).
IMAGE = str(IMAGES / "read_000.jpg")
QUESTION = "What letter is on the orange square?"
ANSWER = "The letter on the orange square is A."
KEEP = [46, 47, 62, 63]
LOADS = ("ask", "chat", "infer", "inspect")


def run(*args, input=None, env=None, text=True, timeout=120, memory=None):
    """The finished process; one thread, as the tests share the machine. `memory`: the most bytes that it may ask for."""
    args = [arg if isinstance(arg, bytes) else str(arg) for arg in args]
    if args and args[0] in LOADS and "--threads" not in args:
        args[1:1] = ["--threads", "1"]
    return subprocess.run([PROGRAM, *args], input=input, env={**os.environ, **(env or {})}, text=text,
                          capture_output=True, timeout=timeout,
                          preexec_fn=memory and (lambda: resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))))


class CliTest(unittest.TestCase):
    """A test case with an empty folder, `self.dir`."""

    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(prefix="glimpse-cli-"))
        self.addCleanup(shutil.rmtree, self.dir, True)

    def ok(self, *args, **how):
        """What the program printed; it must succeed."""
        result = run(*args, **how)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def ask(self, *args, **how):
        """The object that `ask --json` prints about the first recorded row."""
        return json.loads(self.ok("ask", "--json", "-i", IMAGE, *args, QUESTION, **how))

    def fails(self, args, *says, status=1, **how):
        """The program must end with `status` and say these things on standard error, in any order."""
        result = run(*args, **how)
        self.assertEqual(result.returncode, status, f"{args}\n{result.stderr}")
        for word in says:
            self.assertIn(word, result.stderr)
        self.assertNotIn("internal error", result.stderr)
        self.assertLess(len(result.stderr), 4000)
        return result

    def model_copy(self, name="model", leave_out=(), source=MODEL):
        """A folder of links to the built-in model's files, some left out."""
        folder = self.dir / name
        folder.mkdir()
        for file in source.iterdir():
            if file.name not in leave_out:
                (folder / file.name).symlink_to(file)
        return folder

    def endless_model(self):
        """The built-in model with an end token that it never chooses."""
        folder = self.model_copy("endless", ["generation_config.json"])
        (folder / "generation_config.json").write_text('{"eos_token_id": 575}')
        return folder


def png(width, height, bits, kind, rows):
    """A PNG file of rows, each with its filter byte."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)) + \
        chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_large_png(path, side=12000):
    """A small file whose pixels take `side` x `side` x 3 bytes."""
    path.write_bytes(png(side, side, 1, 0, bytes(side * (side // 8 + 1))))


def read_png(path):
    """(width, height, channels, rows) of an 8-bit grey or RGB PNG that is not interlaced; checksums are checked."""
    data = Path(path).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n", path
    at, chunks = 8, {}
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + size]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[at + 8 + size:at + 12 + size])[0], path
        chunks[kind] = chunks.get(kind, b"") + body
        at += 12 + size
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert depth == 8 and colour in (0, 2) and not interlaced, (depth, colour)
    channels = 3 if colour == 2 else 1
    raw, stride = zlib.decompress(chunks[b"IDAT"]), width * channels
    rows, above = [], bytes(stride)
    for y in range(height):
        kind, row = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        for x in range(stride if kind else 0):
            a = row[x - channels] if x >= channels else 0
            b, c = above[x], above[x - channels] if x >= channels else 0
            nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            row[x] = (row[x] + (0, a, b, (a + b) // 2, nearest)[kind]) & 255
        rows.append(bytes(row))
        above = row
    return width, height, channels, rows
