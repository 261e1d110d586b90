"""Pictures and videos as they are given, and as the library reads them."""
import base64
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from . import _engine


@dataclass(frozen=True)
class Video:
    """A video, and which of its frames are shown, as qwen-vl-utils chooses them.

    source: path of a file or of a folder of pictures, bytes of a file, data:, http: or https: URL; or frames that were chosen already: a list
    of pictures, or their values from 0 to 255 [T, height, width, 3] or [T, 3, height, width]."""
    source: Any
    fps: float | None = None  #: frames per second to take, 2 if nothing is said; of a folder or frames: what these are
    frames: int | None = None  #: so many instead
    min_frames: int | None = None
    max_frames: int | None = None
    start: float | None = None  #: seconds of the part to take
    end: float | None = None
    min_pixels: int | None = None  #: of a frame
    max_pixels: int | None = None
    total_pixels: int | None = None  #: of all frames

    def or_else(self, defaults: dict[str, Any]) -> "Video":
        """With what is left out here as in `defaults`; a rate only where no number of frames is asked for."""
        return replace(self, **{name: value for name, value in defaults.items()
                                if getattr(self, name) is None and (name != "fps" or self.frames is None)})

    def crossing(self) -> tuple[Any, str]:
        """As the library takes it. Raises TypeError, ValueError."""
        chosen = {each.name: getattr(self, each.name) for each in fields(self)[1:] if getattr(self, each.name) is not None}
        return self.source, json.dumps(chosen)

    def __repr__(self) -> str:
        shown = self.source if isinstance(self.source, str) else f"<{type(self.source).__name__}>"
        return f"glimpse.Video({shown!r}, {self.crossing()[1]})"


def media(of: Any, videos: Any = None) -> list[Any]:
    """Pictures, among which may be Videos, and behind them videos, as the library reads them."""
    out = [medium(each) for each in _several(of)]
    return out + [video(each) for each in (_several(videos) if not _is_video(videos) else [videos])]


def _several(of: Any) -> list[Any]:
    return [] if of is None else list(of) if isinstance(of, (list, tuple)) else [of]


def _is_video(of: Any) -> bool:
    """Whether a list is that of one video's frames: pictures with pixels. Paths and bytes are of files."""
    return isinstance(of, (list, tuple)) and len(of) > 0 and all(hasattr(each, "convert") or getattr(each, "ndim", 0) in (2, 3) for each in of)


def medium(of: Any) -> Any:
    """What the library reads: a Video, or a picture."""
    return video(of) if isinstance(of, Video) else picture(of)


def picture(of: Any) -> Any:
    """What the library reads: a path, a file's bytes, or pixels [height, width, 3] uint8."""
    if isinstance(of, (str, os.PathLike)):
        return _file(of, "image/png")
    if isinstance(of, (bytes, bytearray, memoryview)):
        return bytes(of)
    if hasattr(of, "convert"):  # a PIL.Image
        return np.asarray(of.convert("RGB"))
    pixels = np.asarray(of)
    if pixels.dtype != np.uint8:
        raise TypeError(f"a picture as an array has the dtype uint8, not {pixels.dtype}")
    if pixels.ndim == 2:  # grey
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return pixels


def video(of: Any) -> Video:
    """A Video whose source is a path, a file's bytes or a list of pictures."""
    if not isinstance(of, Video):
        of = Video(of)
    source = of.source
    if isinstance(source, (str, os.PathLike)):
        return replace(of, source=_file(source, "video/mp4", most=1 << 30))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return replace(of, source=bytes(source))
    return replace(of, source=frames(source))


def frames(of: Any) -> list[Any]:
    """A video's frames, each as picture() gives it. Raises TypeError, ValueError."""
    if isinstance(of, (list, tuple)):
        return [picture(_pixels(each)) if hasattr(each, "ndim") else picture(each) for each in of]
    if getattr(of, "ndim", 0) != 4:
        raise TypeError(f"a video is a path, bytes, a list of frames, or their pixels with 4 dimensions, not {type(of).__name__}")
    return list(_pixels(of))


def _pixels(of: Any) -> np.ndarray:
    """[..., height, width, 3] uint8, from arrays and tensors with the channels before or behind."""
    of = of.detach().cpu() if isinstance(of, torch.Tensor) else torch.from_numpy(np.asarray(of))
    if of.ndim > 2 and of.shape[-1] != 3 and of.shape[-3] == 3:
        of = of.movedim(-3, -1)
    if of.is_floating_point():
        low, high = (float(of.min()), float(of.max())) if of.numel() else (0.0, 0.0)
        if not (low >= -0.5 and high < 255.5) or 0 < high <= 1:  # nor nan
            raise ValueError(f"frames have values from 0 to 255; these go from {low:g} to {high:g}")
        of = of.float().round().clamp(0, 255).to(torch.uint8)
    if of.dtype != torch.uint8:
        raise TypeError(f"frames as arrays have the dtype uint8, or are floats, not {of.dtype}")
    return of.contiguous().numpy()


def _file(of: str | os.PathLike, kind: str, most: int = 64 << 20) -> Any:
    """A path as it is, of a URL the file's bytes."""
    text = os.fspath(of)
    if not isinstance(text, str):
        return text
    if text.startswith("data:"):
        head, comma, data = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise _engine.Error(f"a data: URL is like data:{kind};base64,...")
        return base64.b64decode(data)
    return _fetched(text, most) if text.startswith(("http://", "https://")) else text


def _fetched(url: str, most: int) -> bytes:
    """The file at a URL; of `most` bytes at most."""
    from urllib.request import Request, urlopen
    try:
        with urlopen(Request(url, headers={"User-Agent": "glimpse"}), timeout=30) as response:
            data = response.read(most + 1)
    except (OSError, ValueError) as error:
        raise _engine.Error(f"{url}: {error}") from error
    if len(data) > most:
        raise _engine.Error(f"{url}: more than {most >> 20} MiB")
    return data


#: What qwen-vl-utils calls the settings of a video in a message.
SETTINGS = {"fps": "fps", "sample_fps": "fps", "nframes": "frames", "min_frames": "min_frames", "max_frames": "max_frames", "video_start": "start",
            "video_end": "end", "min_pixels": "min_pixels", "max_pixels": "max_pixels", "total_pixels": "total_pixels"}


def messages(of: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """OpenAI's messages as the library has them: parts that are texts, or None for a picture or video; and these."""
    out, shown = [], []
    for message in of:
        content = message["content"]
        parts: list[str | None] = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part.get("type")
            if kind in ("text", "input_text", "output_text"):
                parts.append(part["text"])
                continue
            if kind in ("image", "image_url", "input_image"):
                source = part["image"] if kind == "image" else part["image_url"]
                shown.append(picture(source["url"] if isinstance(source, dict) else source))
            elif kind in ("video", "video_url"):
                source = part[str(kind)]
                source = source["url"] if isinstance(source, dict) else source
                if isinstance(source, str):
                    source = source.removeprefix("file://")
                given = source if isinstance(source, Video) else Video(source)
                settings: dict[str, Any] = {own: part[name] for name, own in SETTINGS.items() if part.get(name) is not None}
                shown.append(video(replace(given, **settings)))
            else:
                raise TypeError(f"a part of a message is of type 'text', 'image', 'image_url', 'video' or 'video_url', not {kind!r}")
            parts.append(None)
        out.append({"role": message["role"], "parts": parts})
    return out, shown
