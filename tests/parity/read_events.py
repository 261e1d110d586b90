"""Runs that test_train writes ($GLIMPSE_TEST_TRAIN), as TensorBoard itself reads them."""
import math
import os
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROGRAM = os.environ.get("GLIMPSE_TEST_TRAIN", "build/release/bin/test_train")


def float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


class Events(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="glimpse-events-")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        command = [PROGRAM, "--test-case=a run for TensorBoard"]
        subprocess.run(command, check=True, capture_output=True, timeout=120,
                       env={**os.environ, "GLIMPSE_EVENTS_DIR": folder.name})
        # All events, not a sample of them.
        cls.events = EventAccumulator(folder.name, size_guidance={"scalars": 0})
        cls.events.Reload()

    def test_files(self):
        self.assertEqual(len(list(self.folder.glob("events.out.tfevents.*"))), 2)
        self.assertEqual(self.events.file_version, 2)

    def test_scalars(self):
        self.assertEqual(set(self.events.Tags()["scalars"]), {"train/epoch", "train/loss", "train/lr", "val/f1"})
        # The first file's step 30 is taken back by the second.
        loss = {0: 1, 10: 0.9, 20: 0.8, 30: -0.03, 40: -0.04}
        read = self.events.Scalars("train/loss")
        self.assertEqual([(event.step, event.value) for event in read],
                         [(step, float32(value)) for step, value in loss.items()])
        self.assertEqual([event.wall_time for event in read], sorted(event.wall_time for event in read))
        self.assertEqual([event.value for event in self.events.Scalars("train/lr")], [float32(1e-4)] * 5)
        self.assertEqual([event.value for event in self.events.Scalars("train/epoch")], [0, 0.25, 0.5, 0.75, 1])
        f1 = [event.value for event in self.events.Scalars("val/f1")]
        self.assertEqual(f1[:4], [math.inf, float32(0.1), float32(0.05), float32(1 / 30)])
        self.assertTrue(math.isnan(f1[4]))


if __name__ == "__main__":
    unittest.main()
