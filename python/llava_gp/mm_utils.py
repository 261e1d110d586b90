"""What stands before a LLaVA: names, pictures, ids, masks."""
import json
import os
from pathlib import PurePath
from typing import Any

import torch

from glimpse import _engine
from glimpse.media import picture
from transformers_gp.checkpoint import Config
from transformers_gp.processing import Inputs
from transformers_gp.processing import mask_of_boxes as process_bboxes

#: The mark of an image in input_ids; no token has it.
IMAGE_TOKEN_INDEX = -200


def get_model_name_from_path(path: str | os.PathLike) -> str:
    """The last part of a name; of "NAME/checkpoint-5": "NAME_checkpoint-5"."""
    *_, parent, name = ("", *PurePath(path).parts)
    return f"{parent}_{name}" if name.startswith("checkpoint-") else name


class ImageProcessor(Config):
    """CLIP's image processor with the settings of a preprocessor_config.json."""

    def preprocess(self, images: Any, return_tensors: str | None = "pt", *, pad: bool = False) -> Inputs:
        """images: one or several of path, bytes, PIL.Image, array [height, width, 3] uint8. pad: to a square of the mean colour first.
        Gives pixel_values [images, 3, side, side] float32. Raises Error."""
        described = json.dumps(self.to_dict())
        several = images if isinstance(images, (list, tuple)) else [images]
        return Inputs(pixel_values=torch.stack([_engine.clip_pixels(picture(each), described, pad) for each in several]))

    __call__ = preprocess


def process_images(images: Any, image_processor: ImageProcessor, model_cfg: Any) -> torch.Tensor:
    """[images, 3, side, side] float32: pictures as the model's image_aspect_ratio ("pad", or "square": cropped) wants them. Raises TypeError
    for another one, Error."""
    ratio = getattr(model_cfg, "image_aspect_ratio", None)
    if ratio not in (None, "pad", "square"):
        raise TypeError(f"image_aspect_ratio={ratio!r} is not supported; take 'pad' or 'square'")
    return image_processor(images, pad=ratio == "pad")["pixel_values"]


def tokenizer_image_token(prompt: str, tokenizer: Any, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None) -> Any:
    """Ids of a prompt, the begin token first and image_token_index for each "<image>", between which texts are encoded one by one: [T] int64
    for return_tensors="pt", else a list."""
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors={return_tensors!r} is not supported; take 'pt'")
    begin = tokenizer.bos_token_id
    ids = [] if begin is None else [begin]
    for number, text in enumerate(prompt.split("<image>")):
        own = tokenizer.encode(text)
        ids += [image_token_index] * (number > 0) + own[int(own[:1] == [begin]):]  # with transformers' tokenizers every text has one
    return torch.tensor(ids) if return_tensors else ids


__all__ = ["IMAGE_TOKEN_INDEX", "ImageProcessor", "get_model_name_from_path", "process_bboxes", "process_images", "tokenizer_image_token"]
