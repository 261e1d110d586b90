"""Shared by the tests of training commands: runs that are started, stopped, and several processes of one."""
import array
import json
import os
import signal
import socket
import subprocess
import time

from program import PROGRAM, TEST, CliTest
from tensor_files import read_safetensors

ROWS = TEST / "rows.jsonl"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class TrainingTest(CliTest):
    """self.rows: rows about small pictures. A test has final(out): the tensors that a run wrote."""

    def setUp(self):
        super().setUp()
        # Small pictures keep it short.
        lines = [line for line in ROWS.read_text().splitlines() if json.loads(line)["width"] <= 280]
        self.rows = self.dir / "rows.jsonl"
        self.rows.write_text("\n".join(lines[:24]) + "\n")

    def start(self, command, **environment):
        return subprocess.Popen([PROGRAM, *map(str, command)], env={**os.environ, **environment}, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def pair(self, command, second=None):
        """Two processes of one run, started as a launcher does; `second` is run by the second of them."""
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [self.start(each, RANK=str(rank), LOCAL_RANK=str(rank), **world)
                for rank, each in enumerate([command, second or command])]

    def errors_of(self, processes, status=0):
        """What they said, once all have ended so."""
        said = [process.communicate(timeout=300)[1] for process in processes]
        self.assertEqual([process.returncode for process in processes], [status] * len(processes), said)
        return said

    def largest_difference(self, one, two):
        one, two = self.floats(one), self.floats(two)
        self.assertEqual(one.keys(), two.keys())
        return max(abs(a - b) for name in one for a, b in zip(one[name], two[name]))

    def stop_after(self, out, step, processes):
        """Stops them by hand once the run has taken this many steps."""
        metrics = self.dir / out / "metrics.jsonl"
        deadline = time.time() + 120
        while time.time() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= step):
            time.sleep(0.01)
        processes[0].send_signal(signal.SIGINT)
        self.errors_of(processes, status=130)
        return len(metrics.read_text().splitlines())

    def floats(self, out, part="final"):
        if part == "final":
            tensors = self.final(out)
        else:
            newest = max((self.dir / out / "checkpoints").iterdir())
            tensors = {name.removeprefix("parameter/"): value for name, value in read_safetensors(newest).items()
                       if name.startswith("parameter/")}
        return {name: array.array("f", data).tolist() for name, (_, _, data) in tensors.items()}
