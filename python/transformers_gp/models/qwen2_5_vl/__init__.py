"""Qwen2.5-VL with GlimpsePrune."""
from typing import Any

from ...generation import Prompt, PrunedModel
from ...processing import Processor


class Qwen2_5_VL_GP_Processor(Processor):
    """See Processor."""


class Qwen2_5_VL_GP_ForConditionalGeneration(PrunedModel):
    """See PrunedModel. Takes pixel_values [patches, values of a patch] and image_grid_thw [images, 3], all images of a batch together."""

    def _token_grid(self, grid: tuple[int, int, int]) -> tuple[int, int]:
        merge = getattr(self.config.vision_config, "spatial_merge_size", 2)
        return grid[0] * grid[1] // merge, grid[2] // merge

    def _prompts(self, inputs: dict[str, Any]) -> list[Prompt]:
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask").bool()
        pixels, grids = inputs.pop("pixel_values", None), inputs.pop("image_grid_thw", None)
        if (pixels is None) != (grids is None):
            raise ValueError("pixel_values and image_grid_thw belong together")
        left = [] if grids is None else [tuple(map(int, grid)) for grid in grids]
        if pixels is not None and len(pixels) != sum(t * h * w for t, h, w in left):
            raise ValueError(f"pixel_values has {len(pixels)} rows, but image_grid_thw counts {sum(t * h * w for t, h, w in left)} patches")
        place = getattr(self.config, "image_token_id", 151655)
        prompts, row_of_pixels = [], 0
        for row, counts in zip(ids, mask):
            prompt = Prompt(row[counts].tolist(), [])
            tokens = prompt.ids.count(place)
            while tokens > 0 and left:
                grid = left.pop(0)
                patches = grid[0] * grid[1] * grid[2]
                prompt.patches.append((pixels[row_of_pixels:row_of_pixels + patches], grid))
                row_of_pixels += patches
                rows, cols = self._token_grid(grid)
                tokens -= rows * cols
            if tokens:
                raise ValueError("the places for images in input_ids do not fit image_grid_thw")
            prompts.append(prompt)
        if left:
            raise ValueError(f"input_ids have no places for {len(left)} of the images")
        return prompts


__all__ = ["Qwen2_5_VL_GP_ForConditionalGeneration", "Qwen2_5_VL_GP_Processor"]
