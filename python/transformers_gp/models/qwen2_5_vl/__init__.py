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
    """See PrunedModel. Takes pixel_values [patches, values of a patch] and image_grid_thw [images, 3], all images of a batch together; of its videos
    pixel_values_videos, video_grid_thw and second_per_grid_ts [videos] (1 if it is not given, as in transformers 4.51)."""

    def _token_grid(self, grid: tuple[int, int, int]) -> tuple[int, int]:
        merge = getattr(getattr(self.config, "vision_config", None), "spatial_merge_size", 2)
        return grid[0] * grid[1] // merge, grid[2] // merge

    def _prompts(self, inputs: dict[str, Any]) -> list[Prompt]:
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask").bool()
        images = self._media(inputs, "pixel_values", "image_grid_thw")
        videos = self._media(inputs, "pixel_values_videos", "video_grid_thw")
        seconds = inputs.pop("second_per_grid_ts", None)
        seconds = [1.0] * len(videos) if seconds is None else torch.as_tensor(seconds, dtype=torch.float64).flatten().tolist()
        if len(seconds) != len(videos) or not all(0 < each < math.inf for each in seconds):
            raise ValueError(f"second_per_grid_ts: expected a number above 0 for each of the {len(videos)} videos, got {seconds}")
        media = {getattr(self.config, "image_token_id", 151655): images, getattr(self.config, "video_token_id", 151656): videos}
        prompts = []
        for row, counts in zip(ids, mask):
            prompt = Prompt(row[counts].tolist(), [])
            at = 0
            while at < len(prompt.ids):
                token = prompt.ids[at]
                if token not in media:
                    at += 1
                    continue
                kind = "images" if media[token] is images else "videos"
                if not media[token]:
                    raise ValueError(f"the places for {kind} in input_ids do not fit {'image' if kind == 'images' else 'video'}_grid_thw")
                if kind == "videos":
                    prompt.seconds[len(prompt.patches)] = seconds.pop(0)
                prompt.patches.append(media[token].pop(0))
                tokens = math.prod(self._token_grid(prompt.patches[-1][1]))
                if prompt.ids[at:at + tokens] != [token] * tokens:
                    raise ValueError(f"the places for {kind} in input_ids do not fit {'image' if kind == 'images' else 'video'}_grid_thw")
                at += tokens
            prompts.append(prompt)
        for kind, left in (("images", images), ("videos", videos)):
            if left:
                raise ValueError(f"input_ids have no places for {len(left)} of the {kind}")
        return prompts

    @staticmethod
    def _media(inputs: dict[str, Any], values: str, thw: str) -> list[tuple[torch.Tensor, tuple[int, int, int]]]:
        """Pixel values and grid of each image, or video; takes them off `inputs`."""
        pixels, grids = inputs.pop(values, None), inputs.pop(thw, None)
        if (pixels is None) != (grids is None):
            raise ValueError(f"{values} and {thw} belong together")
        pixels, grids = torch.as_tensor([[]] if pixels is None else pixels), torch.as_tensor([] if grids is None else grids)
        if grids.numel() and (grids.ndim != 2 or grids.shape[1] != 3 or grids.is_floating_point() or (grids < 1).any()):
            raise ValueError(f"{thw} is [{thw.split('_')[0]}s, 3], whole numbers above 0; got {grids.tolist()}")
        sizes = [t * h * w for t, h, w in grids.tolist()]
        if sizes and (pixels.ndim != 2 or len(pixels) != sum(sizes) or not pixels.is_floating_point()):
            raise ValueError(f"{values} are {shown(pixels)}, but {thw} counts {sum(sizes)} patches; "
                             f"expected floats [{sum(sizes)}, values of a patch]")
        return [(each, tuple(grid)) for each, grid in zip(pixels.split(sizes) if sizes else (), grids.tolist())]


__all__ = ["Qwen2_5_VL_GP_ForConditionalGeneration", "Qwen2_5_VL_GP_Processor"]
