"""Videos in requests to glimpse serve."""
import base64
import io
import json
import socket
import sys
import threading
import time
import unittest
from pathlib import Path

import av
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
from program import ANSWER, ROOT, CliTest, read_png  # noqa: E402
from serving import PICTURE, Served, Server, asked  # noqa: E402
from test_llava import GOLDEN as LLAVA, tokenizer  # noqa: E402

CLIPS = ROOT / "tests/data/videos"
CLIP = CLIPS / "h264.mp4"  # 60 frames of 64 x 48, 24 a second
ROWS, COLS = 10, 14  # tokens of a frame of 4:3 at the least size, 128 tokens


def url_of(data, kind="video/mp4"):
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def shown(url, question="What is shown?", **more):
    """A request with a video."""
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8, **more}


def jpegs(count, size=(64, 48)):
    """Frames as vLLM's clients send them."""
    out = []
    for i in range(count):
        file = io.BytesIO()
        Image.new("RGB", size, (20 * i, 90, 200 - 20 * i)).save(file, "JPEG", quality=95)
        out.append(base64.b64encode(file.getvalue()).decode())
    return "data:video/jpeg;base64," + ",".join(out)


def slices(indices, fps):
    """When pairs of frames are shown."""
    return [(a + b) / 2 / fps for a, b in zip(indices[::2], indices[1::2])]


class Video(Served):
    FLAGS = ("--media-path", CLIPS)

    def answered(self, *args, **more):
        status, answer = self.server.chat(shown(*args, **more))
        self.assertEqual(status, 200, answer)
        return answer

    def grids(self, *args, **more):
        return self.answered(*args, **more)["glimpse"]["images"]

    def test_answer(self):
        answer = self.answered(url_of(CLIP.read_bytes()), pruning={"return": ["keep", "scores", "overlay"]})
        kept = answer["glimpse"]
        grids = kept["images"]
        # As qwen-vl-utils chooses 4 of 60 frames.
        times = slices(np.linspace(0, 59, 4, dtype=np.float32).round().tolist(), 24)
        self.assertEqual([(grid["rows"], grid["cols"], grid["image"]) for grid in grids], [(ROWS, COLS, 0)] * 2)
        np.testing.assert_allclose([grid["seconds"] for grid in grids], times, atol=1e-6)
        self.assertEqual(kept["visual_tokens"], 2 * ROWS * COLS)
        self.assertEqual(kept["kept_tokens"], sum(len(grid["keep"]) for grid in grids))
        self.assertTrue(all(len(grid["scores"]) == ROWS * COLS for grid in grids))
        self.assertEqual(answer["usage"]["prompt_tokens"] - kept["visual_tokens"],
                         self.answered(url_of(CLIP.read_bytes()), mm_processor_kwargs={"num_frames": 2})["usage"]["prompt_tokens"] - ROWS * COLS)
        # One picture of both, beside each other.
        self.assertEqual([("overlay" in grid) for grid in grids], [True, False])
        (self.dir / "sheet.png").write_bytes(base64.b64decode(grids[0]["overlay"].removeprefix("data:image/png;base64,")))
        width, height = read_png(self.dir / "sheet.png")[:2]
        self.assertEqual((width, height), (2 * 64 + 2, 48))

    def test_ways_to_send_it(self):
        """The same bytes, and so the same answer; a stream and the newer interface say the same."""
        url, want = url_of(CLIP.read_bytes()), {"pruning": {"prune": "none", "return": ["keep"]}}
        whole = self.answered(url, **want)
        text, images = whole["choices"][0]["message"]["content"], whole["glimpse"]["images"]
        self.assertEqual(self.answered("file:///h264.mp4", **want)["choices"][0]["message"]["content"], text)
        chunks = self.server.stream(shown("DATA" + url[4:], **want))
        self.assertEqual("".join(c["choices"][0]["delta"].get("content", "") for c in chunks), text)
        self.assertEqual(chunks[0]["glimpse"]["images"], images)
        body = shown(url, **want)
        status, _, answer = self.server.request("POST", "/v1/responses", {"input": body["messages"], "max_output_tokens": 8, **want})
        self.assertEqual((status, answer["output"][0]["content"][0]["text"], answer["glimpse"]["images"]), (200, text, images))
        again = shown(url)
        again["messages"][0]["content"][0]["uuid"] = "clip"
        self.assertEqual(self.server.chat(again)[0], 200)
        again["messages"][0]["content"][0] = {"type": "video_url", "uuid": "clip"}
        self.assertEqual(self.server.chat(again)[1]["choices"], self.server.chat(shown(url))[1]["choices"])

    def test_frames(self):
        grids = self.grids(jpegs(5), mm_processor_kwargs={"fps": 4})
        self.assertEqual([grid["seconds"] for grid in grids], [0.125, 0.625, 1.0])  # the last stands for the sixth, too
        self.assertEqual([grid["seconds"] for grid in self.grids(jpegs(4))], [0.25, 1.25])
        two = shown(jpegs(2))
        two["messages"][0]["content"] *= 2
        for fps, seconds in (([1, 4], [0.5, 0.125]), ([1], [0.5, 0.5]), (1, [0.5, 0.5])):
            grids = self.server.chat({**two, "mm_processor_kwargs": {"fps": fps}})[1]["glimpse"]["images"]
            self.assertEqual([(grid["image"], grid["seconds"]) for grid in grids], list(enumerate(seconds)))

    def test_sampling(self):
        def count(**settings):
            return len(self.grids("file:///h264.mp4", mm_processor_kwargs=settings))
        self.assertEqual([count(), count(fps=4), count(num_frames=12), count(fps=24, max_frames=6), count(min_frames=8)], [2, 5, 6, 3, 4])
        self.assertEqual(len(self.grids("file:///h264.mp4", media_io_kwargs={"video": {"num_frames": 6, "fps": -1}})), 3)
        part = self.grids("file:///h264.mp4", mm_processor_kwargs={"fps": 24, "video_start": 1, "video_end": 1.25})
        np.testing.assert_allclose([grid["seconds"] for grid in part], slices(np.linspace(24, 30, 6).round(), 24), atol=1e-6)
        large = self.grids("file:///h264.mp4", mm_processor_kwargs={"num_frames": 2, "min_pixels": 784 * 500, "max_pixels": 784 * 600})
        self.assertTrue(500 <= large[0]["rows"] * large[0]["cols"] <= 600)

    def test_beside_pictures(self):
        body = asked()
        body["messages"][0]["content"].insert(1, {"type": "video_url", "video_url": {"url": "file:///vp9.webm"}})
        images = self.server.chat({**body, "pruning": {"return": ["keep"]}})[1]["glimpse"]["images"]
        self.assertEqual([grid["image"] for grid in images], [0, 1, 1])
        self.assertEqual(["seconds" in grid for grid in images], [False, True, True])

    def test_second_question(self):
        url = url_of((CLIPS / "hevc.mkv").read_bytes(), "video/x-matroska")
        first = self.answered(url, "What is it?")
        again = self.answered(url, "And which colour has it?")
        self.assertEqual(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        self.assertGreater(again["usage"]["prompt_tokens_details"]["cached_tokens"], 2 * ROWS * COLS)
        self.assertEqual(self.answered(url, "And?", mm_processor_kwargs={"num_frames": 2})["usage"]["prompt_tokens_details"]["cached_tokens"], 0)

    def test_what_is_refused(self):
        clip = url_of(CLIP.read_bytes())
        with open(CLIP, "rb") as file:
            cut = url_of(file.read(2000))
        for body, words, param in [
            (shown(""), "video_url", "messages[0].content[0].video_url"),
            (shown(PICTURE), "video", None),
            (shown(url_of(b"")), "empty", None),
            (shown(url_of(b"\0" * 100)), "MP4, MOV, MKV", None),
            (shown(cut), "video", None),
            (shown("data:video/mp4,x"), "base64", None),
            (shown("http://127.0.0.1/x.mp4"), "fetches no videos", None),
            (shown("file:///../x.mp4"), "'..'", None),
            (shown("ftp://x"), "begins with", None),
            (shown("data:video/jpeg;base64,AAAA"), "frame 0", None),
            (shown("data:video/jpeg;base64,"), "frame 0", None),
            (shown("data:video/jpeg;base64," + "," * 10**6), "at most 10000 frames", None),
            (shown(jpegs(2) + "," + jpegs(1, (64, 64)).split(",")[1]), "of one size", None),
            (shown(clip, mm_processor_kwargs={"fps": 0}), "outside", "mm_processor_kwargs.fps"),
            (shown(clip, mm_processor_kwargs={"fps": []}), "each of the 1 videos", "mm_processor_kwargs.fps"),
            (shown(clip, mm_processor_kwargs={"fps": [1, 2]}), "each of the 1 videos", "mm_processor_kwargs.fps"),
            (shown(clip, mm_processor_kwargs={"max_frames": 769}), "at most 768", "mm_processor_kwargs.max_frames"),
            (shown(clip, mm_processor_kwargs={"num_frames": 10**6}), "at most 768", "mm_processor_kwargs.num_frames"),
            (shown(clip, mm_processor_kwargs={"num_frames": 1}), "outside", "mm_processor_kwargs.num_frames"),
            (shown(clip, mm_processor_kwargs={"num_frames": 62}), "60 frames", None),
            (shown(clip, mm_processor_kwargs={"num_frames": 4, "fps": 2}), "both given", None),
            (shown(clip, mm_processor_kwargs={"video_start": 7}), "no two frames", None),
            (shown(clip, mm_processor_kwargs={"max_pixels": 784}), "max_pixels", None),
            # Refused before anything is decoded, or so much memory asked for.
            (shown(clip, mm_processor_kwargs={"num_frames": 60, "min_pixels": 2**24, "max_pixels": 2**24}), "do not fit", None),
            (shown(clip, media_io_kwargs=3), "object", "media_io_kwargs"),
            (shown(clip, media_io_kwargs={"video": 3}), "object", "media_io_kwargs.video"),
        ]:
            with self.subTest(words=words, param=param):
                self.refused(body, 400, words, param)
        many = shown(clip)
        many["messages"][0]["content"] *= 5
        self.refused(many, 400, "more than 4 videos")
        assistant = {"messages": [{"role": "assistant", "content": shown(clip)["messages"][0]["content"]}]}
        self.refused(assistant, 400, "only the user")
        status, answer = self.server.chat(shown("http://127.0.0.1/x.mp4"))
        self.assertEqual((status, answer["error"]["code"]), (400, "url_not_allowed"))
        self.assertEqual(self.server.chat(shown(cut))[1]["error"]["code"], "invalid_video")
        self.server.idle()

    def test_props(self):
        props = self.server.get("/props")[1]
        self.assertEqual((props["modalities"], props["max_videos"], props["max_frames"]), ({"vision": True, "video": True}, 4, 768))


def endless(seconds=4):
    """A stream whose frames take many minutes to decode, in a few megabytes: one that repeats itself."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 1920, 1088, "yuv420p", {"preset": "ultrafast", "crf": "51"}
        for i in range(int(25 * seconds)):
            picture = np.full((1088, 1920, 3), 90, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    data = bytearray(file.getvalue() * (8_000_000 // len(file.getvalue())))
    counts = {}  # packets are numbered, by what they belong to
    for at in range(0, len(data), 188):
        kind = data[at + 1] & 31, data[at + 2]
        if data[at + 3] & 16:
            counts[kind] = (counts.get(kind, -1) + 1) & 15
        data[at + 3] = data[at + 3] & 240 | counts.get(kind, 0)
    return bytes(data)


class Hostile(CliTest):
    def serve(self, *flags):
        server = Server(*flags)
        self.addCleanup(server.stop)
        return server

    def test_endless(self):
        """Nothing else waits for a video that takes for ever; it is given up, or stopped with its client."""
        server, url = self.serve("--video-seconds", 4), url_of(endless())
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(server.chat(shown(url)))) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        begin = time.monotonic()
        self.assertEqual(server.chat(asked())[1]["choices"][0]["message"]["content"], ANSWER)
        self.assertLess(time.monotonic() - begin, 3)
        self.assertEqual(answers, [])
        for thread in threads:
            thread.join()
        for status, answer in answers:
            self.assertEqual(status, 400, answer)
            self.assertIn("longer than 4 seconds", answer["error"]["message"])
        self.assertLess(time.monotonic() - begin, 30)

    def test_clients_that_leave(self):
        server, body = self.serve("--video-seconds", 600), json.dumps(shown(url_of(endless()))).encode()
        with socket.create_connection(("127.0.0.1", server.port), 10) as s:
            s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            time.sleep(1)
        begin = time.monotonic()
        self.assertEqual(server.idle(), 0)
        self.assertLess(time.monotonic() - begin, 10)

    def test_limits(self):
        server = self.serve("--max-videos", 1, "--max-frames", 2, "--max-video-mb", 1, "--media-path", self.dir)
        url = url_of(CLIP.read_bytes())
        status, answer = server.chat(shown(url))
        self.assertEqual((status, len(answer["glimpse"]["images"])), (200, 1))
        for data, where in ((bytes((1 << 20) + 10), "data"), (None, "file")):
            (self.dir / "large.mp4").write_bytes(bytes((1 << 20) + 10))
            status, answer = server.chat(shown(url_of(data) if where == "data" else "file:///large.mp4"))
            self.assertEqual((status, answer["error"]["code"]), (400, "video_too_large"))
            self.assertIn("a video's file may have at most 1048576 bytes", answer["error"]["message"])
        for body, words in ((shown(url, mm_processor_kwargs={"num_frames": 4}), "at most 2 frames"), (shown(url), "more than 1 videos")):
            if "more" in words:
                body["messages"][0]["content"] *= 2
            status, answer = server.chat(body)
            self.assertEqual(status, 400)
            self.assertIn(words, answer["error"]["message"])

    def test_a_model_without_videos(self):
        model = self.model_copy("model", source=LLAVA / "base")
        (model / "tokenizer.json").write_text(tokenizer())
        (self.dir / "clip-vit-tiny-patch14-112").symlink_to(LLAVA / "vision_tower")
        server = self.serve("--model", model, "--no-memory-check")
        status, answer = server.chat(shown(url_of(CLIP.read_bytes())))
        self.assertEqual((status, answer["error"]["param"]), (400, "messages[0].content[0]"))
        self.assertIn("knows no videos", answer["error"]["message"])
        props = server.get("/props")[1]
        self.assertEqual((props["modalities"]["video"], props["max_videos"]), (False, 0))


if __name__ == "__main__":
    unittest.main()
