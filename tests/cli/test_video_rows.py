"""Rows about videos in glimpse train, tune and eval: a clip in whose halves two pictures stand, each with its box."""
import json
import shutil
import unittest
from pathlib import Path

from evaluation import ROWS, EvalTest, answer_rows
from program import MODULES, TEST, run
from tensor_files import read_safetensors
from training import TrainingTest

CONFIGS = Path(__file__).parents[2] / "configs"
FRAMES = 8  # two a second: four slices, at 0.25, 1.25, 2.25 and 3.25 s
# Frames as large as the pictures are: 16 x 16 tokens a slice.
SIZE = ["--min-pixels", "3136"]


def clip_rows(folder):
    """Writes the clip as a folder of pictures and gives a row about each half."""
    first = next(row for row in ROWS if row["dataset"] == "read")
    second = next(row for row in ROWS if row["dataset"] == "read" and row["image"] != first["image"]
                  and (row["width"], row["height"]) == (first["width"], first["height"]))
    (folder / "clip").mkdir()
    rows = []
    for half, row in enumerate((first, second)):
        for frame in range(FRAMES // 2):
            shutil.copy(TEST / "cot/read" / row["image"], folder / "clip" / f"frame-{half * FRAMES // 2 + frame}.jpg")
        box = [*row["bboxs"][0], 2 * half, 2 * half + 1.9]
        rows.append({"id": half, "question": row["question"], "answer": row["answer"], "dataset": "read", "video": "clip",
                     "bboxs": [box]})
    return rows


class TrainOnVideos(TrainingTest):
    def setUp(self):
        super().setUp()
        self.write(clip_rows(self.dir))

    def write(self, rows):
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def command(self, what, out, config, *flags, steps):
        return [what, "--config", CONFIGS / what / config, "--data", self.rows, "--image-root", self.dir, "--out", self.dir / out,
                "--batch", 1, "--accumulation", 1, "--epochs", 50, "--max-steps", steps, "--log-every", 1, "--threads", 1, *SIZE, *flags]

    def train(self, out, *flags, steps=6, overlays=0):
        return self.command("train", out, "tiny.yaml", "--overlay-every", overlays, "--save-dtype", "fp32", "--warmup-ratio", 0, *flags,
                            steps=steps)

    def final(self, out, name="new_modules_gp"):
        return read_safetensors(self.dir / out / "final" / f"{name}.safetensors")

    def metrics(self, out):
        return [json.loads(line) for line in (self.dir / out / "metrics.jsonl").read_text().splitlines()]

    def test_glimpse(self):
        """The loss falls, overlays are drawn, and a run that was stopped ends as one that was not."""
        self.ok(*self.train("whole", "--save-every", 1, "--overlay-rows", 1, steps=10, overlays=10))
        losses = [line["loc_loss"] for line in self.metrics("whole")]
        self.assertLess(sum(losses[-2:]), 0.8 * sum(losses[:2]))
        self.assertTrue(list((self.dir / "whole/overlays").glob("step-000010-row-0.png")))
        settings = json.loads((self.dir / "whole/train.json").read_text())
        self.assertIsNone(settings["video"]["max_frames"])  # as usual

        stopped = self.train("stopped", "--save-every", 1, "--overlay-rows", 1, steps=10, overlays=10)
        done = self.stop_after("stopped", 3, [self.start(stopped)])
        self.assertLess(done, 10)
        resume = ["train", "--resume", self.dir / "stopped"]
        self.fails([*resume, "--max-frames", 4], "--resume goes on with the run's own max_frames")
        self.ok(*resume)
        self.assertEqual(self.final("whole"), self.final("stopped"))

    def test_frames(self):
        """Settings of videos, in the file and as flags; rows that cannot be used."""
        config = self.dir / "four.yaml"
        config.write_text((CONFIGS / "train/tiny.yaml").read_text() + "\nvideo:\n  max_frames: 4\n  max_pixels: 50176\n")
        command = self.train("four", steps=1)
        command[2] = config
        self.ok(*command)
        video = json.loads((self.dir / "four/train.json").read_text())["video"]
        self.assertEqual((video["max_frames"], video["max_pixels"]), (4, 50176))
        command[command.index(self.dir / "four")] = self.dir / "two"
        self.ok(*command, "--max-frames", 2)
        self.assertEqual(json.loads((self.dir / "two/train.json").read_text())["video"]["max_frames"], 2)
        config.write_text("video:\n  max_frame: 4\n")
        command[command.index(self.dir / "two")] = self.dir / "none"
        self.fails(command, "four.yaml: video: unknown setting 'max_frame'")

        first, second = [json.loads(line) for line in self.rows.read_text().splitlines()]
        self.write([first | {"video": "none.mp4"}, second])
        self.fails(self.train("x", steps=1), "rows.jsonl:1", "video not found")
        (self.dir / "bad.mp4").write_bytes(b"no video")
        self.write([first | {"video": "bad.mp4"}] * 2)
        self.fails(self.train("y", steps=1), "rows.jsonl:", "bad.mp4")
        self.write([first | {"image": "a.png", "bboxs": [[0, 0, 5, 5]]}] * 2)
        self.fails(self.train("z", steps=1), "an \"image\" and a \"video\"")

    def test_without_videos(self):
        """Flags for videos that there are none of are noted, but settings that a file has for many runs stop none."""
        for row in (rows := [json.loads(line) for line in self.rows.read_text().splitlines()]):
            del row["video"]
            row.update(image="clip/frame-0.jpg", bboxs=[[0, 0, 50, 50]], width=448, height=448)
        self.write(rows)
        note = "there is no video in the rows"
        self.assertIn(note, run(*self.train("noted", "--max-frames", 4, steps=1)).stderr)
        self.assertNotIn(note, run(*self.train("plain", steps=1)).stderr)

    def test_scout(self):
        """A scout learns from boxes and from its teacher, in files that are found again."""
        cache = self.dir / "lessons"
        flags = ["--cache-dir", cache, "--overlay-every", 0]
        self.ok(*self.command("train", "scout", "tiny_scout.yaml", *flags, steps=4))
        files = sorted(file.name for file in cache.iterdir())
        self.assertEqual(len([name for name in files if name.startswith("picture-")]), 1)
        self.assertEqual(len([name for name in files if name.startswith("row-")]), 2)
        self.ok(*self.command("train", "again", "tiny_scout.yaml", *flags, steps=4))
        self.assertEqual(self.final("scout", "scout"), self.final("again", "scout"))
        self.assertEqual(files, sorted(file.name for file in cache.iterdir()))

    def tune(self, out, config, *flags, steps=4):
        return self.command("tune", out, config, "--lora-dropout", 0, "--held-out", 0, "--max-seq-length", 4000, "--max-pruned-prompt",
                            4000, "--cache-dir", self.dir / "encoded", *flags, steps=steps)

    def test_tune(self):
        """Of a prompt stays what is in the boxes at their times; without boxes, what the predictor keeps."""
        self.ok(*self.tune("timed", "tiny_sft.yaml", "--lr", 2e-3, "--warmup-ratio", 0, steps=8))
        losses = [line["answer_loss"] for line in self.metrics("timed")]
        self.assertLess(min(losses[-2:]), losses[0])
        timed = {line["kept"] for line in self.metrics("timed")}
        rows = [json.loads(line) for line in self.rows.read_text().splitlines()]
        self.write([row | {"bboxs": [row["bboxs"][0][:4]]} for row in rows])
        self.ok(*self.tune("always", "tiny_sft.yaml", steps=2))
        always = {line["kept"] for line in self.metrics("always")}
        # Two of four slices.
        self.assertEqual({round(2 * share, 6) for share in timed}, {round(share, 6) for share in always})

        self.write([{name: value for name, value in row.items() if name != "bboxs"} for row in rows])
        self.ok(*self.tune("predicted", "tiny_sft.yaml", "--new-modules", MODULES, steps=1))
        self.write(rows)
        self.ok(*self.tune("drawn", "tiny_rl.yaml", "--max-new-tokens", 6, "--completions", 2, "--scores", "precision_match", steps=1))
        self.assertLess(self.metrics("drawn")[0]["kept"], 0.5)


class EvalOnVideos(EvalTest):
    def setUp(self):
        super().setUp()
        rows = clip_rows(self.dir)
        self.picture = {"id": "still", "question": rows[0]["question"], "answer": rows[0]["answer"], "image": "clip/frame-0.jpg",
                        "dataset": "read", "bboxs": [rows[0]["bboxs"][0][:4]]}
        self.write([*rows, self.picture])

    def write(self, rows):
        (self.dir / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (self.dir / "clips.yaml").write_text("rows: clips.jsonl\nimages: .\nscore: normal_match\nmax_new_tokens: 6\n")

    def run_eval(self, out, *flags, **how):
        return self.eval(out, "--task", self.dir / "clips.yaml", *SIZE, *flags, limit=0, **how)

    def lines(self, out):
        return {(way, line["id"]): line for way, line in answer_rows(self.dir / out / "answers/clips")}

    def test_masks_and_costs(self):
        self.ok(*self.run_eval("run", "--masks-out", self.dir / "masks", methods="none,reference,glimpse@0.1"))
        lines = self.lines("run")
        self.assertEqual(len(lines), 9)
        still = lines["none@own", "still"]
        self.assertNotIn("seconds", still)
        for half in (0, 1):
            whole = lines["none@own", half]
            self.assertEqual(whole["seconds"], [0.25, 1.25, 2.25, 3.25])
            self.assertEqual(whole["medium"], [0] * 4)
            self.assertEqual([image["grid"] for image in whole["images"]], [still["images"][0]["grid"]] * 4)
            self.assertEqual(whole["images"][0]["size"], still["images"][0]["size"])
            self.assertEqual(whole["visual_tokens"], 4 * still["visual_tokens"])
            # A slice of a video is encoded as a picture is.
            self.assertAlmostEqual(whole["gflop"]["vision"], 4 * still["gflop"]["vision"], places=5)
            boxed = lines["reference@own", half]["keep"]
            inside = lines["reference@own", "still"]["keep"][0] if half == 0 else boxed[2]
            self.assertEqual(boxed, [inside, inside, [], []] if half == 0 else [[], [], inside, inside])
            self.assertTrue(inside)
        cells = self.cells("run")
        self.assertEqual(cells["reference@own"]["all"]["mask"]["f1"], 1)
        self.assertLess(cells["none@own"]["all"]["mask"]["precision"], 0.1)
        self.assertIn("figure class='wide'", (self.dir / "run/report.html").read_text())
        self.assertEqual(len(list((self.dir / "masks/clips/none@own/read").iterdir())), 4 + 4 + 1)
        self.assertIsNone(json.loads((self.dir / "run/eval.json").read_text())["video"]["max_frames"])

        # The run goes on with the same frames only, and counts of a clip serve another run.
        self.ok(*self.run_eval("run", methods="none,reference,glimpse@0.1"))
        self.fails(self.run_eval("run", "--max-frames", 4, methods="none,reference,glimpse@0.1"), "video.max_frames null, now 4")
        self.ok(*self.run_eval("from", "--budget-from", self.dir / "run/reference@own", methods="random"))
        kept = {row: line["kept_tokens"] for (way, row), line in self.lines("run").items() if way == "reference@own"}
        self.assertEqual({row: line["kept_tokens"] for (_, row), line in self.lines("from").items()}, kept)

    def test_without_videos(self):
        """The record of a run is that of before there were videos, so that such runs go on."""
        self.write([self.picture])
        self.ok(*self.run_eval("run", methods="none"))
        record = json.loads((self.dir / "run/eval.json").read_text())
        self.assertFalse("video" in record or "video" in record["tasks"][0])
        self.fails(self.run_eval("other", "--fps", 1, methods="none"), "there is no video in the rows")

    def test_only_the_beginning_is_read_first(self):
        """A video of a terabyte that has nothing in it is no video at once."""
        with open(self.dir / "clip.mp4", "wb") as file:
            file.truncate(1 << 40)
        self.write([{**json.loads(line), "video": "clip.mp4"} for line in (self.dir / "clips.jsonl").read_text().splitlines()[:2]])
        result = run(*self.run_eval("run", "--keep-going", methods="none"), timeout=120)
        self.assertIn("no video file that is known", result.stderr)

    def test_masks_only(self):
        """The score is the overlap over all slices."""
        self.write([json.loads(line) for line in (self.dir / "clips.jsonl").read_text().splitlines()][:2])
        self.ok(*self.run_eval("masks", "--masks-only", "--max-frames", 4, methods="none,reference"))
        cells = self.cells("masks")
        self.assertEqual(cells["reference@own"]["all"]["score"], 1)
        lines = self.lines("masks")
        for half in (0, 1):
            inside = sum(map(len, lines["reference@own", half]["keep"]))
            self.assertEqual(len(lines["reference@own", half]["keep"]), 2)
            self.assertGreater(inside, 0)
        share = sum(sum(map(len, lines["reference@own", half]["keep"])) / lines["none@own", half]["visual_tokens"] for half in (0, 1)) / 2
        self.assertAlmostEqual(cells["none@own"]["all"]["score"], share, places=4)

    def test_what_is_refused(self):
        self.fails(self.run_eval("x", methods="none,downsample@0.5"), "downsample makes pictures smaller, but the rows have videos")
        self.fails(self.run_eval("y", "--keep-going", methods="none,downsample@0.5"), "downsample: makes pictures smaller, no videos",
                   status=0)
        rows = [json.loads(line) for line in (self.dir / "clips.jsonl").read_text().splitlines()]
        self.write([rows[0] | {"video": "gone"}])
        self.fails(self.run_eval("z"), "clips.jsonl:1: video not found")
        self.write([rows[2] | {"bboxs": rows[0]["bboxs"]}])
        self.fails(self.run_eval("z"), "clips.jsonl:1: ", "has seconds, but")


if __name__ == "__main__":
    unittest.main()
