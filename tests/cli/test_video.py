"""Videos in glimpse ask, infer and chat: small clips, and folders of pictures. The built-in model was never trained on any; models/tiny-video was."""
import json
import shutil
import struct
import unittest

from program import IMAGE, MODEL, MODULES, ROOT, CliTest, png, read_png, run
from terminal import Terminal
from test_llava import tokenizer

CLIP = ROOT / "tests/data/videos/h264.mp4"  # 60 frames of 64 x 48, 24 per second
LLAVA = ROOT / "tests/data/golden/llava_tiny"
WIDTH, HEIGHT, FRAMES = 64, 48, 8
SMALL = ["--min-pixels", "3136", "--max-pixels", "12544"]  # frames of 56 x 56: 2 x 2 tokens
QUESTION = "What letter is on the orange square?"
GAP = 2  # between the frames of a sheet


def pixels(frame):
    """The rows of a frame: a bright square that goes to the right over a ramp."""
    def colour(x, y):
        return (250, 130, 10) if 4 * frame <= x < 4 * frame + 16 and 16 <= y < 32 else (3 * x, 5 * y, 40 + frame)
    return [[colour(x, y) for x in range(WIDTH)] for y in range(HEIGHT)]


def write_folder(folder, frames=FRAMES):
    """Pictures whose order by number is not that by letters."""
    folder.mkdir()
    for frame in range(frames):
        rows = b"".join(b"\0" + bytes(sum(row, ())) for row in pixels(frame))
        (folder / f"frame-{frame + 5}.png").write_bytes(png(WIDTH, HEIGHT, 8, 2, rows))
    return folder


def write_avi(path, frames=FRAMES, fps=2):
    """The same frames without compression: AVI with rows of blue, green and red from the bottom up."""
    chunk = lambda kind, body: kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    part = lambda kind, body: chunk(b"LIST", kind + body)
    size = WIDTH * HEIGHT * 3
    bodies = [bytes(value for row in reversed(pixels(frame)) for red, green, blue in row for value in (blue, green, red)) for frame in range(frames)]
    header = struct.pack("<14I", 1000000 // fps, size * fps, 0, 0x10, frames, 0, 1, size, WIDTH, HEIGHT, 0, 0, 0, 0)
    stream = b"vids" + struct.pack("<I4x2H8I4H", 0, 0, 0, 0, 1, fps, 0, frames, size, 0xFFFFFFFF, 0, 0, 0, WIDTH, HEIGHT)
    bitmap = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 24, 0, size, 0, 0, 0, 0)
    lists = part(b"hdrl", chunk(b"avih", header) + part(b"strl", chunk(b"strh", stream) + chunk(b"strf", bitmap)))
    index = b"".join(b"00db" + struct.pack("<III", 0x10, 4 + i * (size + 8), size) for i in range(frames))
    body = b"AVI " + lists + part(b"movi", b"".join(chunk(b"00db", one) for one in bodies)) + chunk(b"idx1", index)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


class VideoTest(CliTest):
    def setUp(self):
        super().setUp()
        self.folder = write_folder(self.dir / "frames")
        self.other = self.dir / "clip.mp4"
        shutil.copy(CLIP, self.other)

    def asked(self, *args, question=QUESTION):
        return json.loads(self.ok("ask", "--json", "-n", "4", *args, question))


class Ask(VideoTest):
    def test_summary(self):
        result = run("ask", "--video", CLIP, "-n", "4", QUESTION)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, r"(?m)^video of 4 frames at 1\.6 per second, 64 x 48: (\d+) visual tokens, kept (\d+)$")
        self.assertRegex(result.stderr, r"(?m)^visual tokens kept: \d+ of \d+ ")

    def test_json(self):
        got = self.asked("--video", self.folder)
        self.assertEqual(len(got["images"]), FRAMES // 2)
        for i, grid in enumerate(got["images"]):
            self.assertEqual(set(grid), {"rows", "cols", "visual_tokens", "kept_tokens", "keep", "video", "seconds"})
            self.assertEqual((grid["video"], grid["seconds"]), (0, i + 0.25))
            self.assertEqual((len(grid["keep"]), grid["rows"] * grid["cols"]), (grid["kept_tokens"], grid["visual_tokens"]))
            self.assertGreaterEqual(grid["visual_tokens"], 128)
        self.assertEqual(got["media"], [{"video": 0, "frames": list(range(FRAMES)), "frames_per_second": 2.0,
                                         "visual_tokens": got["visual_tokens"], "kept_tokens": got["kept_tokens"]}])
        self.assertEqual(sum(grid["visual_tokens"] for grid in got["images"]), got["visual_tokens"])
        self.assertEqual(sum(grid["kept_tokens"] for grid in got["images"]), got["kept_tokens"])

    def test_folder_is_the_video_of_its_pictures(self):
        """Without loss and at the same rate: the same prompt, so the same answer and the same tokens."""
        avi = write_avi(self.dir / "raw.avi")
        for flags in ([], SMALL, ["--frames", "4"], ["--start", "0.9", "--end", "3.6"]):
            one, two = self.asked("--video", self.folder, *flags), self.asked("--video", avi, *flags)
            for key in ("token_ids", "images", "media", "prompt_tokens"):
                self.assertEqual(one[key], two[key], (flags, key))
        self.assertNotEqual(self.asked("--video", self.folder, *SMALL)["prompt_tokens"], self.asked(*SMALL, "--frames", "4", "--video", avi)["prompt_tokens"])

    def test_frames(self):
        """How many, and of which part."""
        def taken(*flags, of=CLIP):
            medium, = self.asked("--video", of, *SMALL, *flags)["media"]
            return medium["frames"], round(medium["frames_per_second"], 6)
        self.assertEqual(taken(), ([0, 20, 39, 59], 1.6))
        self.assertEqual(taken("--frames", "6"), ([0, 12, 24, 35, 47, 59], 2.4))
        self.assertEqual(len(taken("--fps", "6")[0]), 14)  # 15, and an even number
        self.assertEqual(len(taken("--fps", "6", "--max-frames", "8")[0]), 8)
        self.assertEqual(len(taken("--fps", "0.1", "--min-frames", "6")[0]), 6)
        part = taken("--start", "1", "--end", "2")
        self.assertEqual((part[0][0], part[0][-1]), (24, 48))
        self.assertEqual(taken("--start", "0:01", "--end", "00:00:02.0"), part)
        self.assertEqual(taken("--fps", "4", of=self.folder), (list(range(FRAMES)), 4.0))
        self.assertEqual(self.asked("--video", self.folder, "--fps", "4", *SMALL)["images"][1]["seconds"], 0.625)
        grids = self.asked("--video", CLIP, "--start", "1", "--end", "2", *SMALL)["images"]
        self.assertTrue(all(1 <= grid["seconds"] <= 2 for grid in grids), grids)

    def test_checkpoint(self):
        """How many frames, and how large, as the checkpoint says; flags win."""
        model = self.dir / "model"
        model.mkdir()
        for file in MODEL.iterdir():
            (model / file.name).symlink_to(file)
        settings = model / "video_preprocessor_config.json"
        settings.write_text(json.dumps({"fps": 4, "min_frames": 2, "max_frames": 6, "size": {"shortest_edge": 3136, "longest_edge": 12544},
                                        "video_processor_type": "Qwen2VLVideoProcessor"}))
        command = ["ask", "--json", "-n", "4", "-m", model, "--new-modules", MODULES, "--overlay-out", self.dir / "sheet.png", "--video"]
        def shown(*flags, of=CLIP):
            got = json.loads(self.ok(*command, of, *flags, QUESTION))
            return len(got["media"][0]["frames"]), got["images"][0]["rows"] * got["images"][0]["cols"]
        self.assertEqual(shown(), (6, 4))
        self.assertEqual(read_png(self.dir / "sheet.png")[:2], (2 * WIDTH + GAP, 2 * HEIGHT + GAP))  # of three slices
        self.assertEqual(shown(of=self.folder), (6, 4))
        self.assertEqual(shown("--max-frames", 768), (10, 4))
        self.assertEqual(shown("--frames", 4, "--min-pixels", 12544, "--max-pixels", 20000), (4, 20))
        rows = self.dir / "rows.jsonl"
        rows.write_text(json.dumps({"question": QUESTION, "video": CLIP.name}))
        infer = ["infer", rows, "-m", model, "--new-modules", MODULES, "--image-root", CLIP.parent, "--out", self.dir / "out.jsonl", "-n", "4"]
        self.ok(*infer)
        self.assertEqual(len(json.loads((self.dir / "out.jsonl").read_text())["keep"]), 3)
        memory = json.loads(self.ok("inspect", "--json", "-m", model))["memory"]
        self.assertEqual(memory["minute_of_video"]["frames"], 6)
        settings.write_text('{"fps": "fast"}')
        self.fails([*command, CLIP, QUESTION], "video_preprocessor_config.json: fps: expected a number")

    def test_pixels(self):
        """Bounds of pictures hold for frames; what all frames may have comes on top."""
        got = self.asked("--video", CLIP, *SMALL)
        self.assertEqual([(grid["rows"], grid["cols"]) for grid in got["images"]], [(2, 2)] * 2)
        large = lambda *flags: self.asked("--video", CLIP, "--min-pixels", "200000", *flags)["images"][0]["visual_tokens"]
        self.assertGreaterEqual(large(), 200000 // 784)
        self.assertLess(large("--max-pixels", "210000"), 210000 // 784 + 1)

    def test_order(self):
        """Media stand in the prompt as the flags do on the command line."""
        flags = {"i": ["-i", IMAGE], "v": ["--video", str(self.folder)], "c": [f"--video={CLIP}"]}
        seen = {}
        for order in ("iv", "vi", "civ", "vic"):
            got = self.asked(*SMALL, *(flag for one in order for flag in flags[one]))
            kinds = ["image" if one == "i" else "video" for one in order]
            self.assertEqual([next(kind for kind in ("image", "video") if kind in medium) for medium in got["media"]], kinds)
            self.assertEqual([medium.get(kind) for kind, medium in zip(kinds, got["media"])], list(range(len(order))))
            self.assertEqual([grid.get("image", grid.get("video")) for grid in got["images"]],
                             [i for i, one in enumerate(order) for _ in range({"i": 1, "v": 4, "c": 2}[one])])
            self.assertTrue(all(("seconds" in grid) == ("video" in grid) for grid in got["images"]))
            seen[order] = got
        self.assertEqual(seen["iv"]["prompt_tokens"], seen["vi"]["prompt_tokens"])

    def test_pictures_of_what_is_kept(self):
        overlay, mask, scores = self.dir / "overlay.png", self.dir / "mask.png", self.dir / "scores.json"
        got = self.asked("--video", self.folder, "--overlay-out", overlay, "--mask-out", mask, "--scores-out", scores)
        sheet = (2 * WIDTH + GAP, 2 * HEIGHT + GAP, 3)  # of four slices
        self.assertEqual(read_png(overlay)[:3], sheet)
        width, height, channels, rows = read_png(mask)
        self.assertEqual((width, height, channels), sheet)
        for i, grid in enumerate(got["images"]):
            left, top = i % 2 * (WIDTH + GAP), i // 2 * (HEIGHT + GAP)
            white = set()
            for y in range(HEIGHT):
                for x in range(WIDTH):
                    value = rows[top + y][3 * (left + x):][:3]
                    self.assertIn(value, (b"\0\0\0", b"\xff\xff\xff"))
                    if value[0]:
                        white.add(y * grid["rows"] // HEIGHT * grid["cols"] + x * grid["cols"] // WIDTH)
            self.assertEqual(sorted(white), grid["keep"], i)
        written = json.loads(scores.read_text())
        self.assertEqual(written["media"], got["media"])
        for grid, entry in zip(got["images"], written["images"]):
            self.assertEqual(len(entry.pop("probability")), grid["visual_tokens"])
            self.assertEqual(entry, grid)

    def test_videos_of_what_is_kept(self):
        overlay, mask = self.dir / "overlay.mp4", self.dir / "mask.mkv"
        self.asked("--video", self.folder, "--overlay-out", overlay, "--mask-out", mask)
        for file in (overlay, mask):
            again, = self.asked("--video", file, *SMALL)["media"]
            self.assertEqual((again["frames"], again["frames_per_second"]), (list(range(FRAMES)), 2.0), file)
        both = ["--video", self.folder, "-i", IMAGE, "--overlay-out"]
        self.fails(["ask", *both, overlay, QUESTION], "--overlay-out ", "overlay.mp4: ", " is a picture, which is not drawn into a video; name a .png")
        self.asked(*both, self.dir / "both.png")
        self.assertEqual(read_png(self.dir / "both.1.png")[:2], (2 * WIDTH + GAP, 2 * HEIGHT + GAP))
        self.assertEqual(read_png(self.dir / "both.2.png")[:2], (448, 448))

    def test_boxes(self):
        """A box with times keeps tokens of the slices then, at 0.25, 1.25, 2.25 and 3.25 seconds."""
        kept = lambda boxes, *more: [grid["keep"] for grid in self.asked("--video", self.folder, *SMALL, "--reference-boxes", boxes, *more)["images"]]
        self.assertEqual(kept("0,0,20,10"), [[0]] * 4)
        self.assertEqual(kept("0,0,20,10,1,2.25"), [[], [0], [0], []])
        self.assertEqual(kept("0,0,20,10,0,1;40,30,60,40,3,9"), [[0], [], [], [3]])
        self.assertEqual(kept("0,0,20,10,0,1", "-i", IMAGE, "--reference-boxes", "0,0,1,1")[:4], [[0], [], [], []])
        fails = lambda boxes, *says, medium=("--video", self.folder): self.fails(["ask", *medium, "--reference-boxes", boxes, QUESTION], "--reference-boxes", *says)
        fails("0,0,20,10,1", "expected x1,y1,x2,y2[,from,to] in pixels and seconds")
        fails("0,0,20,10,2,1", "a box ends before it begins")
        fails("0,0,20,10,1,2", "expected x1,y1,x2,y2 in pixels, boxes", medium=("-i", IMAGE))
        fails("0,0,20,10", "once per image and video: 2 of them, 1 lists", medium=("-i", IMAGE, "--video", self.folder))


class Infer(VideoTest):
    def infer(self, rows, *flags, out="out.jsonl"):
        (self.dir / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ["infer", self.dir / "rows.jsonl", "--image-root", self.dir, "--out", self.dir / out, "-n", "4", *flags]

    def lines(self, out="out.jsonl"):
        return [json.loads(line) for line in (self.dir / out).read_text().splitlines()]

    def test_rows(self):
        rows = [{"id": "folder", "question": QUESTION, "video": "frames"}, {"id": "text", "question": "Hello"},
                {"id": "both", "question": QUESTION, "image": IMAGE, "videos": ["clip.mp4", "frames"]},
                {"id": "image", "question": QUESTION, "image": IMAGE}, {"id": "again", "question": "What number?", "video": "frames"}]
        self.ok(*self.infer(rows, *SMALL))
        folder, text, both, image, again = self.lines()
        asked = self.asked("--video", self.folder, *SMALL, "--prune", "glimpse")
        self.assertEqual((folder["token_ids"], folder["keep"]), (asked["token_ids"], [grid["keep"] for grid in asked["images"]]))
        self.assertEqual((folder["medium"], folder["seconds"]), ([0] * 4, [0.25, 1.25, 2.25, 3.25]))
        self.assertEqual(both["medium"], [0] + [1] * 2 + [2] * 4)
        self.assertEqual((both["seconds"][0], len(both["keep"])), (None, 7))
        self.assertNotIn("seconds", image)
        self.assertNotIn("medium", text)
        self.assertGreater(again["cached_tokens"], 16)  # asked next to the first row about the folder
        self.ok(*self.infer(rows, *SMALL, "--batch", "4", out="batch.jsonl"))
        same = lambda line: {key: value for key, value in line.items() if key not in ("times_ms", "cached_tokens")}
        self.assertEqual([same(line) for line in self.lines("batch.jsonl")], [same(line) for line in self.lines()])

    def test_goes_on_with_the_same_videos_only(self):
        rows = [{"id": 1, "question": QUESTION, "video": "frames"}, {"id": 2, "question": QUESTION, "video": "clip.mp4"}]
        infer = self.infer(rows, *SMALL)
        self.ok(*infer)
        before = (self.dir / "out.jsonl").read_bytes()
        self.fails(infer, "2 rows are already answered", status=0)
        self.fails([*infer, "--fps", "1"], "was made with other settings", "fps")
        picture, other = self.folder / "frame-7.png", self.folder / "frame-8.png"
        whole = picture.read_bytes()
        picture.write_bytes(other.read_bytes())
        self.fails(infer, "has an answer to id 1, asked with another question")
        picture.write_bytes(whole)
        shutil.copy(ROOT / "tests/data/videos/hevc.mkv", self.other)
        self.fails(infer, "has an answer to id 2, asked with another question")
        self.assertEqual((self.dir / "out.jsonl").read_bytes(), before)

    def test_boxes_and_budgets(self):
        rows = [{"id": 1, "question": QUESTION, "video": "frames", "bboxs": [[0, 0, 20, 10, 1, 2.25]]}]
        self.ok(*self.infer(rows, *SMALL, "--prune", "reference"))
        self.assertEqual(self.lines()[0]["keep"], [[], [0], [0], []])
        # As many of each video as that run kept, whichever of its frames have them.
        rows = [{"id": 1, "question": QUESTION, "image": IMAGE, "video": "frames"}]
        self.ok(*self.infer(rows, *SMALL, "--prune", "divprune", "--keep", "0.5", out="half.jsonl"))
        self.ok(*self.infer(rows, *SMALL, "--prune", "random", "--budget-from", self.dir / "half.jsonl", out="same.jsonl"))
        half, same = self.lines("half.jsonl")[0], self.lines("same.jsonl")[0]
        count = lambda line, medium: sum(len(keep) for keep, of in zip(line["keep"], line["medium"]) if of == medium)
        self.assertEqual([count(half, medium) for medium in (0, 1)], [count(same, medium) for medium in (0, 1)])

    def test_errors(self):
        good = {"question": QUESTION, "video": "frames"}
        self.fails(self.infer([{**good, "video": "missing.mp4"}]), "rows.jsonl:1: ", "not found; looked at")
        (self.dir / "text.mp4").write_text("no video\n")
        rows = [{**good, "id": 1}, {**good, "id": 2, "video": "text.mp4"}, {**good, "id": 3, "video": IMAGE}]
        self.fails(self.infer(rows, *SMALL, "--keep-going"), "rows.jsonl:2: ", "is no video file", "rows.jsonl:3: ", "is a picture, not a video", "2 of 3 rows")
        self.assertEqual([line["id"] for line in self.lines()], [1])
        self.fails(self.infer([{"question": "Hello"}], "--fps", "1", out="b.jsonl"), "--fps: there is no video")


class TaughtFromClips(CliTest):
    def test_its_clips(self):
        folder = ROOT / "models/tiny-video"
        taught = ["--adapter", folder / "adapter", "--new-modules", folder / "new_modules", "--min-pixels", "1", "--max-pixels", "50176"]
        rows = [json.loads(line) for line in (folder / "test/rows.jsonl").read_text().splitlines()]
        self.ok("infer", folder / "test/rows.jsonl", "--image-root", folder / "test", "--out", self.dir / "out.jsonl", *taught)
        answers = [json.loads(line) for line in (self.dir / "out.jsonl").read_text().splitlines()]
        self.assertEqual([answer["answer"] for answer in answers], [row["answer"] for row in rows])
        for row, answer in zip(rows, answers):
            *_, start, end = row["bboxs"][0]
            kept = [len(grid) for grid in answer["keep"]]
            there = [start <= seconds <= end for seconds in answer["seconds"]]
            self.assertEqual([tokens > 0 for tokens in kept], there)  # the other seconds are dropped as a whole
            self.assertLess(sum(kept), 16)


class Chat(VideoTest):
    def test_pipe(self):
        kept, film = self.dir / "kept.png", self.dir / "kept.mp4"
        result = run("chat", *SMALL, "-n", "4", "--video", self.folder, input=f"{QUESTION}\n/show {kept}\n/show {film}\n/clear\n/video '{self.other}'\n{QUESTION}\n/show {kept}\n")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout.splitlines(), [self.asked("--video", video, *SMALL)["answer"] for video in (self.folder, self.other)])
        first, second, third = [line for line in result.stderr.splitlines() if not line.startswith("glimpse: the answer was cut")]
        self.assertRegex(first, rf"^{kept}: \d+ of 16 visual tokens kept$")
        self.assertRegex(second, rf"^{film}: \d+ of 16 visual tokens kept$")
        self.assertRegex(third, rf"^{kept}: \d+ of 8 visual tokens kept$")
        self.assertEqual(read_png(kept)[:2], (2 * WIDTH + GAP, HEIGHT))
        self.assertEqual(film.read_bytes()[4:8], b"ftyp")
        mistake = run("chat", input="/video /nowhere.mp4\n")
        self.assertEqual(mistake.returncode, 1)
        self.assertIn("/nowhere.mp4", mistake.stderr)
        self.assertIn("holds the questions", run("chat", input="/video -\n").stderr)

    def test_terminal(self):
        """The second question about a clip begins behind it."""
        terminal = Terminal("chat", "-t", "1", "--no-history", "--pictures", "none", *SMALL, "-n", "4", env={"TMPDIR": str(self.dir)})
        self.addCleanup(terminal.close)
        terminal.expect("/video FILE", "> ")
        terminal.send(f"/vid\t{self.other}\r")
        terminal.expect("video of 4 frames at 1.6 per second, 64 x 48 pixels, for the next question", "> ")
        terminal.send(QUESTION + "\r")
        first = terminal.expect("video of 4 frames at 1.6 per second, 64 x 48: 8 visual tokens, kept ", "visual tokens kept: ", " tokens (", "> ")
        self.assertNotIn("cached", first)
        terminal.send("What number is it?\r")
        terminal.expect("visual tokens kept: ", " of them cached", "> ")
        terminal.send("/show\r")
        terminal.expect("kept-1.png", " of 8 visual tokens kept", "> ")


class Inspect(CliTest):
    def test_a_minute_of_video(self):
        """As many tokens as asking about it would have: 120 frames, 60 times 20 x 36."""
        minute = json.loads(self.ok("inspect", "--json"))["memory"]["minute_of_video"]
        self.assertEqual((minute["frames"], minute["visual_tokens"]), (120, 60 * 20 * 36))
        self.assertIn("  a video         120 frames, a minute, of 1280 x 720 pixels: 43200 visual tokens", self.ok("inspect"))


class Errors(VideoTest):
    def refused(self, *args, says, status=1):
        result = self.fails(["ask", *args, QUESTION], *says, status=status)
        self.assertEqual(result.stdout, "")

    def test_files(self):
        text, empty, cut = self.dir / "text.mp4", self.dir / "empty.mp4", self.dir / "cut.mp4"
        text.write_text("no video\n" * 100)
        empty.touch()
        cut.write_bytes(CLIP.read_bytes()[:-1500])
        self.refused("--video", text, says=["text.mp4: is no video file"])
        self.refused("--video", empty, says=["empty.mp4: the video is empty"])
        self.refused("--video", cut, says=["cut.mp4: "])
        self.refused("--video", self.dir / "none.mp4", says=["none.mp4: no such file"])
        self.refused("--video", "-", says=["-: no such file"])
        self.refused("--video", IMAGE, says=["read_000.jpg: is a picture, not a video; name it as an image (--image)"])
        self.refused("--image", CLIP, says=["h264.mp4: is a video, not a picture; name it as a video (--video)"])
        (self.dir / "nothing").mkdir()
        self.refused("--video", self.dir / "nothing", says=["nothing: there are no pictures in the folder"])
        (self.folder / "frame-9.png").write_bytes(png(8, 8, 8, 0, bytes(72)))
        self.refused("--video", self.folder, says=["frame-9.png: is 8 x 8 pixels"])

    def test_damaged_within(self):
        """Frames that cannot be decoded are an error that names the clip, or the decoder repairs them; never a crash."""
        whole = CLIP.read_bytes()
        for at in range(100, len(whole) - 200, len(whole) // 12):
            broken = self.dir / "broken.mp4"
            broken.write_bytes(whole[:at] + bytes(value ^ 0x5A for value in whole[at:at + 120]) + whole[at + 120:])
            result = run("ask", "-n", "1", *SMALL, "--video", broken, QUESTION)
            self.assertIn(result.returncode, (0, 1), (at, result.stderr))
            if result.returncode:
                self.assertIn("broken.mp4", result.stderr)
            self.assertNotIn("internal error", result.stderr)

    def test_settings(self):
        self.refused("--video", CLIP, "--start", "100", says=["h264.mp4: no two frames lie between second 100 and 2.5"])
        self.refused("--video", CLIP, "--start", "2", "--end", "1", says=["h264.mp4: no two frames lie between second 2 and 1"])
        self.refused("--video", CLIP, "--fps", "1", "--frames", "4", says=["h264.mp4: ", "fps and frames were both given"])
        self.refused("--video", CLIP, "--frames", "100", says=["h264.mp4: ", "60 frames", "cannot give 100"])
        for flag, value in (("--fps", "2"), ("--frames", "4"), ("--start", "1"), ("--total-pixels", "100000")):
            self.refused("-i", IMAGE, flag, value, says=[flag + ": there is no video; name one with --video"])
        for flag, value in (("--fps", "0"), ("--frames", "1"), ("--start", "-1"), ("--start", "1:2:3:4"), ("--end", "1:x"), ("--max-frames", "1.5")):
            self.refused("--video", CLIP, f"{flag}={value}", says=[flag[2:].replace("-", "_")], status=2)
        self.assertIn("there is no image to draw", run("ask", "--overlay-out", self.dir / "o.mp4", "x").stderr)

    def test_models_without_videos(self):
        model = self.model_copy("llava", source=LLAVA / "base")
        (model / "tokenizer.json").write_text(tokenizer())
        (self.dir / "clip-vit-tiny-patch14-112").symlink_to(LLAVA / "vision_tower")
        self.assertNotIn("  a video", self.ok("inspect", "-m", model))
        self.refused("-m", model, "--new-modules", LLAVA / "nm_main", "--video", CLIP, says=["this model knows no videos; give it pictures of one"])


if __name__ == "__main__":
    unittest.main()
