"""LLaVA-1.5 with GlimpsePrune."""
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from glimpse import Error, _engine
from transformers_gp.arguments import shown
from transformers_gp.checkpoint import Config, model_dir, settings
from transformers_gp.generation import Prompt, PrunedModel

from ...mm_utils import IMAGE_TOKEN_INDEX, ImageProcessor


class VisionTower:
    """The encoder's settings, and how it wants its pictures. Raises Error naming a setting that is missing."""

    def __init__(self, folder: Path, config: Config):
        self._folder = folder
        self.config = config
        self.image_size, self.patch_size = sizes = [getattr(config, name, 0) for name in ("image_size", "patch_size")]  #: in pixels
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise Error(f"{folder / 'config.json'}: no image_size and patch_size of a LLaVA's encoder")
        self.num_patches_per_side: int = self.image_size // self.patch_size
        self.num_patches = self.num_patches_per_side**2  #: visual tokens of a picture

    @cached_property
    def image_processor(self) -> ImageProcessor:
        """Raises Error where there is no preprocessor_config.json."""
        return ImageProcessor(**settings(self._folder, "preprocessor_config.json", needed=True))


def vision_tower(folder: Path, config: Config) -> VisionTower:
    """That of a model in `folder`: in the converted layout its own part, else a checkpoint inside the folder, beside it, or found by name."""
    if hasattr(config, "text_config"):
        return VisionTower(folder, getattr(config, "vision_config", Config()))
    name = getattr(config, "mm_vision_tower", None)
    if not isinstance(name, str):
        raise Error(f"{folder / 'config.json'}: no mm_vision_tower: this is no LLaVA")
    near = [place / Path(name).name for place in (folder, folder.absolute().parent)]
    tower = next((each for each in near if Path(name).name and (each / "config.json").exists()), None) or model_dir(name)
    about = settings(tower, "config.json", needed=True)
    return VisionTower(tower, Config(**about.get("vision_config", about)))


class LlavaLlamaForCausalLM_GP(PrunedModel):
    """See PrunedModel. For checkpoints in the original layout, and in that of Hugging Face's conversion."""

    def __init__(self, folder: os.PathLike, engine: dict[str, Any]):
        super().__init__(folder, engine)
        # Now, as modules may bring the settings of another layout.
        self._tower = vision_tower(Path(folder), self.config)
        converted = getattr(self.config, "image_token_index", getattr(self.config, "image_token_id", 32000))
        self._place: int = converted if hasattr(self.config, "text_config") else IMAGE_TOKEN_INDEX

    def get_vision_tower(self) -> VisionTower:
        return self._tower

    def generate(self, inputs: Any = None, images: Any = None, image_sizes: Any = None, *, input_ids: torch.Tensor | None = None,
                 attention_mask: torch.Tensor | None = None, **more: Any) -> Any:
        """Continues prompts [B, T] that have for each picture one place (IMAGE_TOKEN_INDEX, or in the converted layout the image token), or
        one per visual token. Returns [B, new] int64: the answers alone, which is also what a streamer and stopping_criteria see.

        images, or pixel_values: [images, 3, side, side] or a list of [3, side, side], those of all prompts together and in order. image_sizes
        changes nothing: every picture is seen at one size. For the rest see PrunedModel.generate; max_length counts visual tokens, too.
        Raises as that does."""
        ids = inputs if input_ids is None else input_ids
        # To the outside a prompt is empty, as it is of embeddings in the reference: its pictures have no ids that a streamer could show.
        outside = ids[..., :0] if isinstance(ids, torch.Tensor) else ids
        return super().generate(outside, prompts=(ids, attention_mask), images=images, **more)

    def _token_grid(self, grid: tuple[int, int, int]) -> tuple[int, int]:
        return grid[1:]

    def _prompts(self, inputs: dict[str, Any]) -> list[Prompt]:
        del inputs["input_ids"], inputs["attention_mask"]
        ids, mask = inputs.pop("prompts")
        mask = torch.ones_like(ids) if mask is None else torch.as_tensor(mask)
        if mask.shape != ids.shape:
            raise ValueError(f"attention_mask is {shown(mask)}, but input_ids {shown(ids)}")
        ids = ids.cpu().where(ids.cpu() != IMAGE_TOKEN_INDEX, self._place)
        patches = self._patches(inputs.pop("images"), inputs.pop("pixel_values", None))
        rows = [row[counts] for row, counts in zip(ids, mask.cpu().bool())]
        places = [int((row == self._place).sum()) for row in rows]
        tokens = self._tower.num_patches
        per_image = 1 if sum(places) == len(patches) else tokens
        if sum(places) != len(patches) * per_image or any(count % per_image for count in places):
            raise ValueError(f"input_ids have {places} places for images, but there are {len(patches)} images; expected one each, or {tokens}")
        left = iter(patches)
        return [Prompt(row.repeat_interleave(torch.where(row == self._place, tokens // per_image, 1)).tolist(),
                       [next(left) for _ in range(count // per_image)]) for row, count in zip(rows, places)]

    def _patches(self, images: Any, pixel_values: Any) -> list[tuple[torch.Tensor, tuple[int, int, int]]]:
        """Pixel values and grid of each picture."""
        if images is not None and pixel_values is not None:
            raise TypeError("images and pixel_values are two names for the same: give one of them")
        given = pixel_values if images is None else images
        given = [] if given is None else given if isinstance(given, (list, tuple, torch.Tensor)) else [given]
        side, out = self._tower.image_size, []
        for image in given:
            if not isinstance(image, torch.Tensor) or image.shape != (3, side, side) or not image.is_floating_point():
                raise ValueError(f"images: one is {shown(image)}, expected floats [3, {side}, {side}] as process_images() gives them; "
                                 "tiles of a picture and videos are not supported")
            out.append(_engine.cut_patches(image.cpu().float(), self._tower.patch_size))
        return out


__all__ = ["LlavaLlamaForCausalLM_GP"]
