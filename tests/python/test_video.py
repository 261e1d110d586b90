"""Videos in Python: questions about them, and the reference's classes against its numbers and Hugging Face's."""
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]
from reference_classes import END, GOLDEN, PAD, Scratch, own_model  # noqa: E402
from make_checkpoints import SHAPES, random_weights  # noqa: E402
from program import IMAGE, MODEL, ROOT  # noqa: E402

import glimpse  # noqa: E402
from transformers_gp.models.qwen2_5_vl import Qwen2_5_VL_GP_Processor  # noqa: E402

CLIPS, FAMILY = ROOT / "tests/data/videos", GOLDEN / "qwen_tiny_video"
CLIP = str(CLIPS / "h264.mp4")  # 60 frames of 64 x 48, 24 a second
QUESTION = "What is shown?"


def decoded(path=CLIP):
    with av.open(path) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


class Ask(Scratch):
    @classmethod
    def setUpClass(cls):
        cls.engine = glimpse.Engine(threads=1, dtype="fp32")
        cls.addClassCleanup(cls.engine.close)

    def asked(self, video=None, images=None, **more):
        answer = self.engine.ask(images, **{"question": QUESTION, "video": video, "max_new_tokens": 8, **more})
        return answer.ids, [(grid.picture, grid.rows, grid.cols, grid.seconds, grid.keep.tolist()) for grid in answer.images]

    def test_sources(self):
        """However a clip is given, it is the same; `seconds` are those of the frames that qwen-vl-utils chooses."""
        ids, grids = self.asked(CLIP)
        self.assertEqual([(picture, round(seconds, 6)) for picture, _, _, seconds, _ in grids], [(0, 0.416667), (0, 2.041667)])
        data = Path(CLIP).read_bytes()
        messages = lambda **part: {"messages": [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}], "question": None}
        for video in (Path(CLIP), data, glimpse.Video(CLIP), [CLIP], glimpse.Video(data, fps=2), glimpse.Video(CLIP, frames=4)):
            self.assertEqual(self.asked(video), (ids, grids))
        self.assertEqual(self.asked(images=glimpse.Video(CLIP)), (ids, grids))
        self.assertEqual(self.asked(**messages(type="video", video=CLIP)), (ids, grids))
        self.assertEqual(self.asked(**messages(type="video", video="file://" + CLIP, nframes=4)), (ids, grids))
        self.assertEqual(self.asked(**messages(type="video_url", video_url={"url": CLIP}, fps=2.0)), (ids, grids))
        self.assertEqual(len(self.asked(**messages(type="video", video=CLIP, fps=4.0, video_end=1.5))[1]), 3)

    def test_frames(self):
        frames = noise(5, 48, 64, 3)
        ids, grids = self.asked([Image.fromarray(frame) for frame in frames])
        self.assertEqual([seconds for *_, seconds, _ in grids], [0.25, 1.25, 2.0])
        for i, frame in enumerate(frames):
            Image.fromarray(frame).save(self.dir / f"{i}.png")
        tensor = torch.from_numpy(frames).movedim(3, 1)
        for video in (frames, list(frames), tensor, tensor.float(), list(tensor), self.dir, glimpse.Video([self.dir / f"{i}.png" for i in range(5)]),
                      [tensor], glimpse.Video(frames, fps=2)):
            self.assertEqual(self.asked(video), (ids, grids))
        self.assertEqual([seconds for *_, seconds, _ in self.asked(glimpse.Video(frames, fps=4))[1]], [0.125, 0.625, 1.0])

    def test_beside_pictures(self):
        for images, video, pictures in (([IMAGE], CLIP, [0, 1, 1]), ([glimpse.Video(CLIP), IMAGE], None, [0, 0, 1]),
                                        ([IMAGE, glimpse.Video(CLIP)], [CLIP, CLIP], [0, 1, 1, 2, 2, 3, 3])):
            grids = self.asked(video, images)[1]
            self.assertEqual([picture for picture, *_ in grids], pictures)
            self.assertEqual([seconds is None for *_, seconds, _ in grids], [cols == 16 for _, _, cols, *_ in grids])

    def test_boxes(self):
        """In a video a box is there for a while."""
        def kept(*box):
            return [len(keep) for *_, keep in self.asked(CLIP, prune="reference", boxes=[[box]])[1]]
        self.assertEqual(kept(0, 0, 1, 1), [140, 140])
        self.assertEqual(kept(0, 0, 1, 1, 0, 1), [140, 0])
        self.assertEqual(kept(0, 0, 1, 1, 1, 9), [0, 140])
        with self.assertRaisesRegex(glimpse.Error, "a box has 5 numbers"):
            kept(0, 0, 1, 1, 1)

    def test_checkpoint(self):
        """Frames as the checkpoint's own file says, where nothing else is asked for; also those that are drawn."""
        model = self.dir / "model"
        model.mkdir()
        for file in MODEL.iterdir():
            (model / file.name).symlink_to(file)
        (model / "video_preprocessor_config.json").write_text('{"fps": 4, "max_frames": 6}')
        with glimpse.Engine(model, threads=1) as engine:
            def slices(video):
                answer = engine.ask(video=video, question=QUESTION, max_new_tokens=1)
                self.assertEqual(answer.overlay().width, len(answer.images) * 66 - 2)
                return len(answer.images)
            self.assertEqual([slices(video) for video in (CLIP, glimpse.Video(CLIP, max_frames=768), glimpse.Video(CLIP, frames=4))], [3, 5, 2])

    def test_shown(self):
        answer = self.engine.ask(video=CLIP, question=QUESTION, prune="reference", boxes=[[(0, 0, 1, 1, 0, 1)]], max_new_tokens=2)
        sheet = np.asarray(answer.overlay().convert("RGB"), int)
        self.assertEqual(sheet.shape, (48, 2 * 64 + 2, 3))
        frames = np.stack([decoded()[i] for i in (0, 39)]).astype(int)
        # All of the first frame is kept, and so tinted green; nothing of the second, which is darkened.
        first, second = sheet[:, :64] - frames[0], sheet[:, 66:] - frames[1]
        self.assertGreater((first[..., 1] - first[..., 0]).mean(), 10)
        self.assertLess(second.mean(), -20)
        self.assertIn("140 of 280", answer._repr_html_())
        self.assertEqual(repr(answer.pictures[0]), f"glimpse.Video({CLIP!r}, {{}})")

    def test_known_clip(self):
        with glimpse.Engine(threads=1) as engine:
            first, second = (engine.ask(video=CLIP, question=text, max_new_tokens=2) for text in ("What is it?", "And where?"))
        self.assertEqual(first.cached_tokens, 0)
        self.assertGreater(second.cached_tokens, 280)

    def test_errors(self):
        frames = noise(4, 48, 64, 3)
        other = self.dir / "clip.mp4"
        other.write_bytes(Path(CLIP).read_bytes()[:2000])
        for words, video in (("no such file", "/nowhere.mp4"), ("clip.mp4", other), ("MP4, MOV", b"nonsense"), ("no video file", Path(IMAGE).read_bytes()),
                             ("of one size", [Image.new("RGB", (9, 9)), Image.new("RGB", (8, 9))]), ("0 to 255", frames / 256.0),
                             ("0 to 255", torch.full((2, 3, 8, 8), -1.0)), ("without frames", np.zeros((0, 8, 8, 3), np.uint8)),
                             ("both given", glimpse.Video(CLIP, fps=2, frames=4)), ("frames", glimpse.Video(CLIP, frames=1)),
                             ("no two frames", glimpse.Video(CLIP, start=9)), ("shape", glimpse.Video(np.zeros((2, 8, 8, 4), np.uint8)))):
            with self.subTest(words=words), self.assertRaisesRegex(ValueError, words):
                self.asked(video)
        for words, video in (("4 dimensions", glimpse.Video(np.zeros((8, 8, 3), np.uint8))), ("4 dimensions", 3),
                             ("uint8", glimpse.Video(np.zeros((2, 8, 8, 3), np.int64))), ("uint8", glimpse.Video(torch.zeros(2, 3, 8, 8).long()))):
            with self.subTest(words=words), self.assertRaisesRegex(TypeError, words):
                self.asked(video)
        with self.assertRaisesRegex(TypeError, "name their pictures and videos"):
            self.asked(CLIP, messages=[], question=None)


class Golden(unittest.TestCase):
    """tests/data/golden/qwen_tiny_video."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        base = Path(folder.name)
        tokenizer = [MODEL / name for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.json")]
        for file in (*(FAMILY / "base").iterdir(), *tokenizer):
            (base / file.name).symlink_to(file)
        cls.model = own_model(base, FAMILY / "nm_main")
        cls.processor = Qwen2_5_VL_GP_Processor.from_pretrained(base)

    def test_cases(self):
        count = 0
        for file in sorted(FAMILY.glob("[pg]*/*.safetensors")):
            info, arrays = json.loads(file.with_suffix(".json").read_text()), load_file(file)
            media = load_file(FAMILY / f"{info['inputs']}.safetensors")
            parts = json.loads((FAMILY / f"{info['inputs']}.json").read_text())["parts"]
            with self.subTest(case=file.stem, what=info["what"]):
                # From the prompt's text, pictures and frames.
                pictures = [Image.open(FAMILY / f"{info['inputs']}.{i}.png") for i in range(sum(part["kind"] == "image" for part in parts))]
                frames = [media[f"frames.{i}"] for i in range(sum(part["kind"] == "video" for part in parts))]
                given = self.processor(text=info["prompt"], images=pictures or None, videos=[each.movedim(3, 1).float() for each in frames],
                                       fps=[part["fps"] for part in parts if part["kind"] == "video"], return_tensors="pt")
                self.assertEqual(given.input_ids[0].tolist(), arrays["input_ids"].tolist())
                self.assertEqual(given.video_grid_thw.tolist(), media["video_grid_thw"].tolist())
                self.assertLess((given.pixel_values_videos - media["pixel_values_videos"]).abs().max(), 1e-5)
                torch.testing.assert_close(given.second_per_grid_ts, media["second_per_grid_ts"])
                before = dict(vars(self.model.config))
                self.addCleanup(lambda: (vars(self.model.config).clear(), vars(self.model.config).update(before)))
                vars(self.model.config).update(info.get("overrides", {}))
                selects = info.get("do_selection", False)
                out = self.model.generate(**given, do_selection=selects, max_new_tokens=16, eos_token_id=None, return_dict_in_generate=True,
                                          output_logits=True)
                length = given.input_ids.shape[1]
                self.assertEqual(out.sequences[0, length:].tolist(), arrays["generated_ids"].tolist())
                self.assertLess((out.logits[0] - arrays["first_logits"]).abs().max(), 5e-4)
                self.assertLess((torch.cat(out.logits).topk(2).values - arrays["step_top2"]).abs().max(), 5e-4)
                masks = out.image_token_bool_masks
                self.assertEqual([len(mask) for mask in masks], [int(np.prod(grid)) // 4 for _, *grid in
                                                                 json.loads((FAMILY / f"{info['inputs']}.json").read_text())["grids_in_prompt_order"]])
                if selects:
                    self.assertEqual(torch.cat(masks).tolist(), arrays["keep_mask"].bool().tolist())
                    self.assertLess((torch.cat(out.image_token_mask_logits, 1)[0] - arrays["vip_logits"][-1]).abs().max(), 2e-3)
                    # The same masks given back: slice by slice.
                    vars(self.model.config).update({"max_remain_ratio": None, "min_remain_num": None, "anchor_positions": []})
                    again = self.model.generate(**given, use_ref_masks=True, ref_masks=masks, max_new_tokens=16, eos_token_id=None)
                    self.assertEqual(again.tolist(), out.sequences.tolist())
                vars(self.model.config).update(before)
            count += 1
        self.assertEqual(count, 7)

    def test_together(self):
        """Rows with videos, with pictures, with both and with nothing in one batch."""
        rows = [(file.stem, json.loads(file.with_suffix(".json").read_text()), load_file(file)) for file in sorted((FAMILY / "plain").glob("*.safetensors"))]
        rows = [row for row in rows if row[0][:3] in ("p01", "p02", "p05")]
        media = [load_file(FAMILY / f"{info['inputs']}.safetensors") for _, info, _ in rows]
        length = max(len(arrays["input_ids"]) for *_, arrays in rows)
        pad = lambda row, value: torch.nn.functional.pad(row, (length - len(row), 0), value=value)
        all_of = lambda name: torch.cat([of[name] for of in media if name in of])
        out = self.model.generate(input_ids=torch.stack([pad(arrays["input_ids"].long(), 5) for *_, arrays in rows]),
                                  attention_mask=torch.stack([pad(torch.ones(len(arrays["input_ids"])), 0) for *_, arrays in rows]),
                                  pixel_values=all_of("pixel_values"), image_grid_thw=all_of("image_grid_thw").long(),
                                  pixel_values_videos=all_of("pixel_values_videos"), video_grid_thw=all_of("video_grid_thw").long(),
                                  second_per_grid_ts=all_of("second_per_grid_ts"), do_selection=False, max_new_tokens=16, eos_token_id=None)
        self.assertEqual(out[:, length:].tolist(), [arrays["generated_ids"].tolist() for *_, arrays in rows])


#: Videos of all kinds and their rates.
VIDEOS = {"even": (noise(4, 84, 112, 3), 2.0), "odd": (noise(3, 56, 84, 3, seed=1), 3.0), "one": (noise(1, 84, 56, 3, seed=2), 1.0),
          "resized": (noise(4, 100, 61, 3, seed=3), 2.0), "large": (noise(2, 600, 700, 3, seed=4), 0.5), "small": (noise(2, 30, 40, 3, seed=5), 4.0)}
PLACE = "<|vision_start|><|video_pad|><|vision_end|>"
LATER = """
import sys
import numpy as np
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor
model, given, out = sys.argv[1:]
processor = AutoProcessor.from_pretrained(model, use_fast=False)
made = {}
for name, frames in load_file(given).items():
    rate = float(name.split(":")[1])
    of = processor(text=[sys.stdin.readline().strip()], videos=[frames.movedim(3, 1).float()], fps=rate, do_sample_frames=False, return_tensors="pt")
    made.update({f"{name}/{key}": value.contiguous() for key, value in of.items()})
save_file(made, out)
"""


class Parity(unittest.TestCase):
    """The processor and plain answers against Hugging Face's."""

    @classmethod
    def setUpClass(cls):
        torch.set_num_threads(1)
        cls.theirs, cls.ours = AutoProcessor.from_pretrained(MODEL, use_fast=False), Qwen2_5_VL_GP_Processor.from_pretrained(MODEL)

    def compare(self, theirs, ours, tolerance=1e-5):
        self.assertEqual(set(theirs), set(ours) - {"ref_token_masks"})
        for name, tensor in theirs.items():
            tensor = torch.as_tensor(tensor)  # a list of seconds, of transformers 4.51
            self.assertEqual((tensor.dtype, tensor.shape), (ours[name].dtype, ours[name].shape), name)
            self.assertLessEqual((tensor - ours[name]).abs().max(), tolerance if name.startswith("pixel_values") else 1e-7, name)

    def test_processor(self):
        """Of the transformers that the reference runs on: also where frames are resized."""
        for name, (frames, fps) in VIDEOS.items():
            with self.subTest(name):
                for video in (frames, torch.from_numpy(frames).movedim(3, 1), torch.from_numpy(frames).movedim(3, 1).float(),
                              [Image.fromarray(frame) for frame in frames]):
                    theirs, ours = (processor(text=[f"a {PLACE} b"], videos=[video], fps=fps, return_tensors="pt")
                                    for processor in (self.theirs, self.ours))
                    self.compare(theirs, ours)
        clips = [torch.from_numpy(VIDEOS[name][0]).movedim(3, 1).float() for name in ("odd", "even")]
        for fps in ([3.0, 2.0], 4.0):
            texts = [f"{PLACE} and", f"two: {PLACE} <|vision_start|><|image_pad|><|vision_end|>"]
            theirs, ours = (processor(text=list(texts), images=[Image.open(IMAGE)], videos=clips, fps=fps, padding=True, return_tensors="pt")
                            for processor in (self.theirs, self.ours))
            self.compare(theirs, ours)
        theirs, ours = (processor(text=[PLACE], videos=[clips[0]]) for processor in (self.theirs, self.ours))
        self.assertEqual((theirs["input_ids"], theirs["second_per_grid_ts"]), (ours["input_ids"], ours["second_per_grid_ts"]))
        self.assertEqual(self.ours(text=[PLACE], videos=clips[0])["input_ids"], ours["input_ids"])
        self.assertEqual(self.ours(text=[PLACE], videos=[[clips[0]]])["input_ids"], ours["input_ids"])

    def test_later_processor(self):
        """transformers 4.57 has a processor of its own for videos; frames that qwen-vl-utils sized it leaves as they are."""
        later = Path(sys.prefix) / "transformers"
        self.assertTrue(later.exists(), "run tools/setup")
        some = {f"{name}:{fps}": torch.from_numpy(frames) for name, (frames, fps) in VIDEOS.items() if name in ("even", "odd", "one")}
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "later.py").write_text(LATER)
            save_file(some, folder / "given")
            result = subprocess.run([sys.executable, "-B", HERE / "beside_torchvision.py", folder / "later.py", MODEL, folder / "given", folder / "out"],
                                    input=f"a {PLACE} b\n" * len(some), capture_output=True, text=True, timeout=300,
                                    env={**os.environ, "PYTHONPATH": str(later)})
            self.assertEqual(result.returncode, 0, result.stderr)
            made = load_file(folder / "out")
        for name, frames in some.items():
            ours = self.ours(text=[f"a {PLACE} b"], videos=[frames.movedim(3, 1).float()], fps=float(name.split(":")[1]), return_tensors="pt")
            self.compare({key.split("/")[1]: value for key, value in made.items() if key.startswith(name + "/")}, ours)

    def test_generate(self):
        """A random checkpoint, with pictures and videos in any order."""
        with tempfile.TemporaryDirectory() as folder:
            tiny = json.loads((MODEL / "config.json").read_text())
            ids = {key: value for key, value in tiny.items() if key.endswith("_token_id") or key == "vocab_size"}
            config = Qwen2_5_VLConfig(**{**json.loads(json.dumps(SHAPES["gqa"]["config"])), **ids}, torch_dtype="float32")
            theirs = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
            random_weights(theirs, torch.Generator().manual_seed(7))
            theirs.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD)
            theirs.save_pretrained(folder)
            for file in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.json"):
                (Path(folder) / file).symlink_to(MODEL / file)
            model = own_model(folder, None)
            clips = [torch.from_numpy(VIDEOS[name][0]).movedim(3, 1).float() for name in ("odd", "even")]
            picture = Image.open(IMAGE).resize((56, 84))
            video, image = {"type": "video", "video": "clip"}, {"type": "image", "image": "picture"}
            for parts in ([video], [image, video], [video, image, video], [video, video]):
                with self.subTest([part["type"] for part in parts]):
                    conversation = [{"role": "user", "content": [*parts, {"type": "text", "text": "What moves?"}]}]
                    text, same = (processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
                                  for processor in (self.ours, self.theirs))
                    self.assertEqual((text.count("<|video_pad|>"), text), (parts.count(video), same))
                    inputs = self.ours(text=[text], images=[picture] if image in parts else None, videos=clips[:parts.count(video)],
                                       fps=[3.0, 2.0][:parts.count(video)], return_tensors="pt")
                    full = {"max_new_tokens": 12, "return_dict_in_generate": True, "output_logits": True}
                    a = theirs.generate(**{name: value for name, value in inputs.items() if name != "ref_token_masks"}, **full)
                    b = model.generate(**inputs, **full)
                    self.assertEqual(a.sequences.tolist(), b.sequences.tolist())
                    for one, other in zip(a.logits, b.logits):
                        torch.testing.assert_close(other, one, atol=1e-3, rtol=0)


PUBLISHED = """
import sys
import torch
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers_gp.models.qwen2_5_vl import Qwen2_5_VL_GP_ForConditionalGeneration, Qwen2_5_VL_GP_Processor

model = Qwen2_5_VL_GP_ForConditionalGeneration.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16, device_map={"": "cpu"}, threads=1)
processor = Qwen2_5_VL_GP_Processor.from_pretrained(sys.argv[1])
model.load_new_modules(sys.argv[2])
frames = [Image.new("RGB", (112, 84), (40 * i, 90, 200 - 40 * i)) for i in range(4)]
messages = [{"role": "user", "content": [{"type": "video", "video": frames, "sample_fps": 4.0}, {"type": "text", "text": "What is shown?"}]}]
text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
image_inputs, video_inputs, video_kwargs = process_vision_info(messages, return_video_kwargs=True)
inputs = processor(text=[text], images=image_inputs, videos=video_inputs, padding=True, return_tensors="pt", **video_kwargs).to(model.device)
with torch.inference_mode():
    out = model.generate(**inputs, max_new_tokens=8, do_selection=True, return_dict_in_generate=True)
print(inputs.second_per_grid_ts.tolist(), inputs.video_grid_thw.tolist(), [len(mask) for mask in out.image_token_bool_masks],
      out.image_token_bool_masks[0].sum().item() < len(out.image_token_bool_masks[0]))
"""


class Published(unittest.TestCase):
    def test_example_with_a_video(self):
        from program import MODULES
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "example.py"
            script.write_text(PUBLISHED)
            result = subprocess.run([sys.executable, "-B", HERE / "beside_torchvision.py", script, MODEL, MODULES], capture_output=True, text=True,
                                    timeout=300)
        self.assertEqual(result.returncode, 0, result.stderr)
        seconds, rest = result.stdout.split("] ", 1)
        grid, rest = rest.split("]] ")
        _, rows, cols = json.loads(grid + "]]")[0]
        self.assertEqual((seconds, grid.split(",")[0], rest), ("[0.5", "[[2", f"[{2 * rows * cols // 4}] True\n"))


if __name__ == "__main__":
    unittest.main()
