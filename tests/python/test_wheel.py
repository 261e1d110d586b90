"""The wheel: what is built here, packed as pip packs it, in an environment that knows nothing of the build tree."""
import os
import subprocess
import sys
import sysconfig
import tempfile
import unittest
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
from program import ANSWER, IMAGE, QUESTION  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ["GLIMPSE"]).parents[1]
BARE = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG")} | {"PATH": "/usr/bin:/bin"}


def run(*command, **how):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, **how)
    if result.returncode:
        raise AssertionError(f"{command}: status {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


class Wheel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        place = Path(cls.folder.name)
        tools = {**BARE, "PATH": f"{Path(sys.executable).parent}:{BARE['PATH']}", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        run(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "-C", f"prebuilt={BUILD}", "-w", place / "wheels", env=tools)
        (cls.wheel,) = (place / "wheels").glob("*.whl")
        run(sys.executable, "-m", "venv", "--without-pip", place / "venv")
        cls.python = place / "venv" / "bin" / "python"
        # torch and the like are those that are here; they cannot be downloaded again for each test.
        site = Path(run(cls.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (site / "others.pth").write_text(sysconfig.get_path("purelib"))
        (site / "torch").symlink_to(Path(sysconfig.get_path("purelib")) / "torch")
        run(sys.executable, "-m", "pip", "--python", cls.python, "install", "--no-deps", "--no-index", cls.wheel, env=tools)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_what_is_in_it(self):
        self.assertRegex(self.wheel.name, r"glimpse-[\d.]+-cp3\d+-cp3\d+-manylinux_2_\d+_x86_64\.whl")
        names = zipfile.ZipFile(self.wheel).namelist()
        for word in ("glimpse/engine.py", "glimpse/py.typed", "glimpse/_engine.pyi", "glimpse/bin/glimpse", "transformers_gp/generation.py", "glimpse_program.py", "glimpse/libglimpse_video.so",
                     "glimpse/share/glimpse/models/tiny/model/model.safetensors", "glimpse.libs/libheif", "glimpse.libs/libjpeg"):
            self.assertTrue(any(name.startswith(word) for name in names), word)
        for word in ("libtorch", "libc10", "libgomp", "libc.so", "libstdc++", "libavcodec"):
            self.assertFalse(any(word in name for name in names), word)
        metadata = zipfile.ZipFile(self.wheel).read(next(name for name in names if name.endswith("/METADATA"))).decode()
        import torch
        self.assertIn(f"Requires-Dist: torch=={torch.__version__.split('+')[0]}\n", metadata)
        shown = " ".join(run(sys.executable, "-m", "auditwheel", "show", self.wheel).split())
        self.assertIn('This constrains the platform tag to "manylinux_2_', shown)

    def test_it_answers(self):
        code = (f"import glimpse; print(glimpse.ask({IMAGE!r}, {QUESTION!r})); print(glimpse.__file__)\n"
                "print({line.split()[-1] for line in open('/proc/self/maps') if 'libglimpse' in line or '/build/' in line or 'libheif' in line})")
        answer, file, maps = run(self.python, "-I", "-c", code, env=BARE, cwd="/").splitlines()
        self.assertEqual(answer, ANSWER)
        venv = str(Path(self.python).parents[1])
        self.assertTrue(file.startswith(venv), file)
        maps = eval(maps)
        self.assertEqual(len(maps), 2, maps)
        self.assertTrue(all(name.startswith(venv) for name in maps), maps)

    def test_the_program(self):
        program = self.python.parent / "glimpse"
        self.assertIn("glimpse 0.", run(program, "--version", env=BARE))
        self.assertEqual(run(program, "ask", "--image", IMAGE, QUESTION, env=BARE, cwd="/").strip(), ANSWER)


if __name__ == "__main__":
    unittest.main()
