"""From messages and pictures to what generate() takes."""
import json
import math
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import torch

from glimpse import Error, _engine
from glimpse.media import frames, picture

from .checkpoint import Config, Tokenizer, model_dir, settings


class Inputs(dict):
    """Tensors by name: inputs["input_ids"], inputs.input_ids, generate(**inputs)."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, *where: Any, **how: Any) -> Self:
        """The same on another device; a dtype is for what is floating-point."""
        dtypes = [each for each in (*where, how.get("dtype")) if isinstance(each, torch.dtype)]
        device = [each for each in (*where, how.get("device")) if each is not None and not isinstance(each, torch.dtype)]
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                value = value.to(device[0]) if device else value
                self[name] = value.to(dtypes[0]) if dtypes and value.is_floating_point() else value
        return self


def chat_renderer(template: str, special_tokens: dict[str, str]) -> Callable[..., str]:
    """Renders messages by a checkpoint's own Jinja template, which is a stranger's program: it runs in jinja2's sandbox. Raises Error."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = as_json
    environment.globals.update(raise_exception=refuse, strftime_now=lambda form: datetime.now().strftime(form))

    def render(**values: Any) -> str:
        try:
            return environment.from_string(template).render(**{"tools": None, "documents": None, **special_tokens, **values})
        except Exception as error:  # whatever such a program does wrong
            raise Error(f"chat template: {type(error).__name__}: {error}") from error
    return render


def is_batch(conversation: Any) -> bool:
    return bool(conversation) and isinstance(conversation[0], (list, tuple))


def shown_in(conversation: list[dict[str, Any]], kind: str) -> list[Any]:
    """The images or videos that messages name, in order."""
    parts = [part for message in conversation if isinstance(message.get("content"), (list, tuple)) for part in message["content"]]
    return [part[key] for part in parts if part.get("type") == kind for key in (kind, "url", "path") if key in part]


def padded(rows: list[list[int]], pad: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T] int64 ids and which of them count, from rows of several lengths."""
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        more = longest - len(row)
        ids.append([pad] * more + row if side == "left" else row + [pad] * more)
        mask.append([0] * more + [1] * len(row) if side == "left" else [1] * len(row) + [0] * more)
    return torch.tensor(ids), torch.tensor(mask)


def listed_videos(videos: Any) -> list[Any]:
    """One or several videos, or a list of them for each text, as a list."""
    def rank(of: Any) -> int:
        return 1 + max(map(rank, of), default=0) if isinstance(of, (list, tuple)) else getattr(of, "ndim", 3)  # of a path or PIL.Image: 3

    if isinstance(videos, (str, bytes)):
        raise TypeError("a video is given as its frames, as process_vision_info() of qwen_vl_utils reads them")
    if rank(videos) <= 4 and not (isinstance(videos, (list, tuple)) and len(videos) == 0):
        return [videos]
    return [each for of in videos for each in (listed_videos(of) if rank(of) > 4 else [of])]


class ImageProcessor(Config):
    """Settings of a checkpoint's preprocessor_config.json; called with pictures it gives pixel_values and image_grid_thw, with videos
    pixel_values_videos and video_grid_thw."""

    def __call__(self, images: Any = None, videos: Any = None) -> Inputs:
        """images: one or several of path, bytes, PIL.Image, array [height, width, 3] uint8. videos: one or several of a list of frames, an array
        [T, height, width, 3] or a tensor [T, 3, height, width] with values from 0 to 255. Gives pixel_values [patches, values of a patch] float32
        and image_grid_thw [images, 3] int64, in patches, and the same of videos."""
        described = json.dumps(self.to_dict())
        out = Inputs()
        if images is not None:
            images = images if isinstance(images, (list, tuple)) else [images]
            made = [_engine.qwen_pixels(picture(image), described) for image in images]
            out.update(pixel_values=torch.cat([pixels for pixels, _ in made]), image_grid_thw=torch.tensor([grid for _, grid in made]))
        if videos is not None:
            made = [_engine.qwen_video_pixels(frames(video), described) for video in listed_videos(videos)]
            out.update(pixel_values_videos=torch.cat([pixels for pixels, _ in made]), video_grid_thw=torch.tensor([grid for _, grid in made]))
        return out


class Processor:
    """Qwen2.5-VL's processor: chat template, tokenizer and image processor of a checkpoint, and the reference's masks."""

    def __init__(self, folder: Path, *, padding_side: str | None = None, min_pixels: int | None = None, max_pixels: int | None = None):
        image = settings(folder, "preprocessor_config.json", needed=True)
        image.update({name: value for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)) if value is not None})
        self.image_processor = ImageProcessor(**image)
        self.tokenizer = Tokenizer(folder, padding_side)
        jinja = folder / "chat_template.jinja"
        self.chat_template = (jinja.read_text(encoding="utf-8") if jinja.exists() else
                              settings(folder, "chat_template.json").get("chat_template") or self.tokenizer.chat_template)
        config = settings(folder, "config.json", needed=True)
        self._image_token_id: int = config.get("image_token_id", 151655)
        self._video_token_id: int = config.get("video_token_id", 151656)
        self.image_token = self.tokenizer.decode([self._image_token_id])
        self.video_token = self.tokenizer.decode([self._video_token_id])

    @classmethod
    def from_pretrained(cls, name: Any, *, padding_side: str | None = None, min_pixels: int | None = None, max_pixels: int | None = None,
                        use_fast: bool | None = None, trust_remote_code: bool | None = None) -> Self:
        """name: a model's folder, or its hub id in the local cache. min_pixels, max_pixels: bounds on a picture's size in place of the
        checkpoint's. use_fast and trust_remote_code change nothing: there is one processor and no code of others is run. Raises Error."""
        return cls(model_dir(name), padding_side=padding_side, min_pixels=min_pixels, max_pixels=max_pixels)

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, *, tokenize: bool = False, return_dict: bool = False,
                            add_generation_prompt: bool = False, padding: bool = False, return_tensors: str | None = None, **values: Any) -> Any:
        """The prompt of messages (of a list of conversations: a list), by the checkpoint's own template. tokenize: its ids [B, T] instead,
        or with return_dict all that generate() takes, pictures included. values: further variables of the template."""
        template = chat_template or self.chat_template
        if template is None:
            raise ValueError("this checkpoint has no chat template (chat_template.jinja, chat_template.json, tokenizer_config.json); give one")
        several = is_batch(conversation)
        conversations = conversation if several else [conversation]
        render = chat_renderer(template, self.tokenizer.special_tokens_map)
        texts = [render(messages=each, add_generation_prompt=add_generation_prompt, **values) for each in conversations]
        if not tokenize:
            return texts if several else texts[0]
        images = [image for each in conversations for image in shown_in(each, "image")]
        videos = [video for each in conversations for video in shown_in(each, "video")]
        out = self(text=texts, images=images, videos=videos or None, padding=padding or len(texts) > 1, return_tensors=return_tensors)
        return out if return_dict else out["input_ids"]

    def __call__(self, images: Any = None, text: Any = None, normed_bboxes: list | None = None, ref_image_masks: list | None = None,
                 videos: Any = None, *, fps: Any = 2.0, do_sample_frames: bool | None = None, padding: bool | str = False, return_tensors: str | None = None, padding_side: str | None = None) -> Inputs:
        """What generate() takes.

        images, videos: see ImageProcessor, in the order of their places in the texts. fps: of the videos' frames, one number or one of each:
        gives second_per_grid_ts. do_sample_frames: frames were chosen before. text: one or several prompts. normed_bboxes: for each image
        its boxes (x1, y1, x2, y2 from 0 to 1) or None; ref_image_masks: for each its mask as a picture, or None: either gives
        ref_token_masks, for each image [rows, cols] bool or None. padding: to the longest. return_tensors: "pt", or None for lists of ids.
        """
        if do_sample_frames:
            raise TypeError("do_sample_frames=True is not supported; process_vision_info() of qwen_vl_utils chooses frames")
        if return_tensors not in (None, "pt"):
            raise TypeError(f"return_tensors={return_tensors!r} is not supported; take 'pt'")
        if padding not in (True, False, "longest", "do_not_pad"):
            raise TypeError(f"padding={padding!r} is not supported; take True, which is to the longest text, or False")
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(each, str) for each in texts):
            raise TypeError(f"text is one or several texts, not {text!r}")
        images = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
        images = [each for of in images for each in (of if isinstance(of, (list, tuple)) else [of])]  # also a list for each text
        videos = listed_videos(videos) if videos is not None else []
        out = self.image_processor(images or None, videos or None)
        none = torch.empty(0, 3, dtype=torch.long)
        grids, clips = out.get("image_grid_thw", none), out.get("video_grid_thw", none)
        merge = getattr(self.image_processor, "merge_size", 2)
        if videos:
            out["second_per_grid_ts"] = self._seconds(fps, len(videos))
        out["ref_token_masks"] = self._masks([(int(h) // merge, int(w) // merge) for _, h, w in grids], normed_bboxes, ref_image_masks)
        counts = {token: [int(t * h * w) // merge**2 for t, h, w in of]
                  for token, of in ((self._image_token_id, grids), (self._video_token_id, clips))}
        rows = [self._widened(each, counts) for each in texts]
        for token, of, kind in ((self._image_token_id, grids, "images"), (self._video_token_id, clips, "videos")):
            if left := len(counts[token]):
                raise ValueError(f"{len(of)} {kind} but {len(of) - left} places for them in the text")
        if videos and return_tensors:
            out["second_per_grid_ts"] = torch.tensor(out["second_per_grid_ts"])
        if return_tensors is None:
            out.update(input_ids=rows, attention_mask=[[1] * len(row) for row in rows])
            return out
        if padding in (False, "do_not_pad") and len({len(row) for row in rows}) > 1:
            raise ValueError("the texts have several lengths: give padding=True")
        pad = self.tokenizer.pad_token_id
        out["input_ids"], out["attention_mask"] = padded(rows, 0 if pad is None else pad, padding_side or self.tokenizer.padding_side)
        return out

    def _widened(self, text: str, counts: dict[int, list[int]]) -> list[int]:
        """Ids in which the place of an image or video stands once per visual token; takes these off `counts`."""
        ids = []
        for token in self.tokenizer.encode(text):
            if token not in counts:
                ids.append(token)
                continue
            if not counts[token]:
                kind = "images" if token == self._image_token_id else "videos"
                raise ValueError(f"the text has more places for {kind} than there are {kind}")
            ids += [token] * counts[token].pop(0)
        return ids

    def _seconds(self, fps: Any, count: int) -> list[float]:
        """Between two temporal slices of each video."""
        rates = fps.tolist() if hasattr(fps, "tolist") else fps
        rates = list(rates) if isinstance(rates, (list, tuple)) else [rates] * count
        if len(rates) != count or not all(isinstance(each, (int, float)) and 0 < each < math.inf for each in rates):
            raise ValueError(f"fps is a number above 0, or one for each of the {count} videos, not {fps!r}")
        return [getattr(self.image_processor, "temporal_patch_size", 2) / each for each in rates]

    @staticmethod
    def _masks(grids: list[tuple[int, int]], boxes: list | None, pictures: list | None) -> list[torch.Tensor | None] | None:
        given = boxes if boxes is not None else pictures
        if given is None:
            return None
        if len(given) != len(grids):
            raise ValueError(f"{len(given)} masks for {len(grids)} images")
        if boxes is not None:
            return [None if each is None else mask_of_boxes(each, grid) for each, grid in zip(boxes, grids)]
        return [None if each is None else mask_of_picture(each, grid) for each, grid in zip(given, grids)]

    def batch_decode(self, sequences: Any, **how: Any) -> list[str]:
        """See Tokenizer.batch_decode."""
        return self.tokenizer.batch_decode(sequences, **how)

    post_process_image_text_to_text = batch_decode

    def decode(self, ids: Any, **how: Any) -> str:
        """See Tokenizer.decode."""
        return self.tokenizer.decode(ids, **how)


def mask_of_boxes(boxes: list, grid: tuple[int, int]) -> torch.Tensor:
    """[rows, cols] bool: the tokens that boxes (x1, y1, x2, y2 from 0 to 1) touch (method.md section 4); what reaches outside is clipped."""
    def touched(first: float, last: float, count: int) -> slice:
        return slice(max(int(first * count), 0), min(int(last * count), count - 1) + 1 if last >= 0 else 0)

    mask = torch.zeros(grid, dtype=torch.bool)
    for box in boxes:
        box = box.tolist() if hasattr(box, "tolist") else box
        if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(math.isfinite, box)):
            raise ValueError(f"a box is (x1, y1, x2, y2) from 0 to 1, not {box!r}")
        mask[touched(box[1], box[3], grid[0]), touched(box[0], box[2], grid[1])] = True
    return mask


def mask_of_picture(picture: Any, grid: tuple[int, int]) -> torch.Tensor:
    """[rows, cols] bool: where a mask as a PIL.Image or array is bright."""
    import numpy as np
    from PIL import Image
    picture = picture if hasattr(picture, "convert") else Image.fromarray(np.asarray(picture))
    return torch.from_numpy(np.asarray(picture.convert("L").resize(grid[::-1], Image.Resampling.NEAREST)) > 127)
