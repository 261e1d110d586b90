"""Qwen2.5-VL with GlimpsePrune."""
import math
from typing import Any

import torch

from ...arguments import shown
from ...generation import Prompt, PrunedModel
from ...processing import Processor


class Qwen2_5_VL_GP_Processor(Processor):
    """See Processor."""


class Qwen2_5_VL_GP_ForConditionalGeneration(PrunedModel):
    """See PrunedModel. Takes pixel_values [patches, values of a patch] and image_grid_thw [images, 3], all images of a batch together."""

    def _token_grid(self, grid: tuple[int, int, int]) -> tuple[int, int]:
        merge = getattr(getattr(self.config, "vision_config", None), "spatial_merge_size", 2)
        return grid[0] * grid[1] // merge, grid[2] // merge

    def _prompts(self, inputs: dict[str, Any]) -> list[Prompt]:
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask").bool()
        pixels, grids = inputs.pop("pixel_values", None), inputs.pop("image_grid_thw", None)
        if (pixels is None) != (grids is None):
            raise ValueError("pixel_values and image_grid_thw belong together")
        pixels, grids = torch.as_tensor([[]] if pixels is None else pixels), torch.as_tensor([] if grids is None else grids)
        if grids.numel() and (grids.ndim != 2 or grids.shape[1] != 3 or grids.is_floating_point() or (grids < 1).any()):
            raise ValueError(f"image_grid_thw is [images, 3], whole numbers above 0; got {grids.tolist()}")
        sizes = [t * h * w for t, h, w in grids.tolist()]
        if sizes and (pixels.ndim != 2 or len(pixels) != sum(sizes) or not pixels.is_floating_point()):
            raise ValueError(f"pixel_values are {shown(pixels)}, but image_grid_thw counts {sum(sizes)} patches; "
                             f"expected floats [{sum(sizes)}, values of a patch]")
        left = [(image, tuple(grid)) for image, grid in zip(pixels.split(sizes) if sizes else (), grids.tolist())]
        place = getattr(self.config, "image_token_id", 151655)
        prompts = []
        for row, counts in zip(ids, mask):
            prompt = Prompt(row[counts].tolist(), [])
            tokens = prompt.ids.count(place)
            while tokens > 0 and left:
                prompt.patches.append(left.pop(0))
                tokens -= math.prod(self._token_grid(prompt.patches[-1][1]))
            if tokens:
                raise ValueError("the places for images in input_ids do not fit image_grid_thw")
            prompts.append(prompt)
        if left:
            raise ValueError(f"input_ids have no places for {len(left)} of the images")
        return prompts


__all__ = ["Qwen2_5_VL_GP_ForConditionalGeneration", "Qwen2_5_VL_GP_Processor"]
