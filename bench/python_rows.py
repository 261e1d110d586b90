"""The rows of the built-in model's test set, by `glimpse infer` and by the Python package: whole processes, in turns.

usage: PYTHONPATH=build/release/python .venv/bin/python bench/python_rows.py [--rounds 3] [--batch 8] [--threads 0]
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS, IMAGES = ROOT / "models/tiny/test/rows.jsonl", ROOT / "models/tiny/test"
ASK = """
import json, sys, time
begin = time.perf_counter()
import torch
torch_is_there = time.perf_counter()
import glimpse
imported = time.perf_counter()
rows = [json.loads(line) for line in open({rows!r}, encoding="utf-8")]
if {threads} == 0:
    import psutil
    torch.set_num_threads(psutil.cpu_count(logical=False))
engine = glimpse.Engine(threads={threads} or None, max_sequences={batch}, cache_mb=0)
answers = engine.ask_many([{{"images": "{images}/cot/" + row["dataset"] + "/" + row["image"], "question": row["question"]}} for row in rows])
print(json.dumps({{"torch_s": torch_is_there - begin, "import_s": imported - torch_is_there, "texts": [answer.text for answer in answers]}}))
"""


def timed(command):
    begin = time.perf_counter()
    out = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "GOMP_SPINCOUNT": "20000"}).stdout
    return time.perf_counter() - begin, out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="rows answered at the same time")
    parser.add_argument("--threads", type=int, default=0, help="0: a thread per core")
    options = parser.parse_args()
    program = ROOT / "build/release/bin/glimpse"
    times = {"glimpse infer": [], "python": [], "import torch": [], "import glimpse": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "answers.jsonl"
            seconds, _ = timed([program, "infer", ROWS, "--image-root", IMAGES, "--out", out, "--batch", str(options.batch), "--threads", str(options.threads),
                                "--cache-mb", "0"])
            times["glimpse infer"].append(seconds)
            expected = {line["id"]: line for line in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
        seconds, text = timed([sys.executable, "-c", ASK.format(rows=str(ROWS), images=IMAGES, batch=options.batch, threads=options.threads)])
        said = json.loads(text)
        times["python"].append(seconds)
        times["import torch"].append(said["torch_s"])
        times["import glimpse"].append(said["import_s"])
        same = sum(a["answer"] == b for a, b in zip(expected.values(), said["texts"]))
        print(f"{same} of {len(expected)} answers are equal", file=sys.stderr)
    for name, own in times.items():
        print(f"{name:15} best {min(own):7.3f} s  median {statistics.median(own):7.3f} s")
    own = statistics.median(times["python"]) - statistics.median(times["import torch"])
    print(f"python, torch's import left out: {own / statistics.median(times['glimpse infer']):.3f} of the program's time")


if __name__ == "__main__":
    main()
