#!/usr/bin/env python3
"""Times one training step of GlimpsePrune in Hugging Face transformers with autograd, the way glimpse_bench times glimpse.

Usage: peer_training.py --model DIR --new-modules DIR [--threads 2] [--visual 1024] [--text 30] [--answer 20] [--rounds 1]
           [--json OUT]

The base is frozen, as in the published method: a glimpse token follows the prompt, a vector is added to it before every layer, its
attention at layer K goes through a linear predictor (the published one is larger; leaving it out favours this program), the
answer follows, and losses are back-propagated through the language model. Vision encoding needs no gradient.
"""
import argparse
import json
import math
import resource
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_multimodal_rotary_pos_emb

from peer_transformers import grid_of


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--new-modules", type=Path, required=True)
    for name, value in [("threads", 2), ("visual", 1024), ("text", 30), ("answer", 20), ("rounds", 1)]:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", help="write [{name, value, unit}] here")
    return parser.parse_args()


class GlimpseToken(torch.nn.Module):
    """The trained token, and the attention of it that the predictor reads."""

    def __init__(self, model, layer):
        super().__init__()
        config = model.config
        self.heads, self.layer = config.num_attention_heads, layer
        self.embeddings = torch.nn.Parameter(0.02 * torch.randn(config.num_hidden_layers, config.hidden_size))
        self.proj = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = torch.nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.predictor = torch.nn.Linear(self.heads, 1)
        for number, block in enumerate(model.model.layers):
            block.register_forward_pre_hook(self.adder(number), with_kwargs=True)
        model.model.layers[layer].self_attn.register_forward_pre_hook(self.reader(), with_kwargs=True)

    def vectors(self):
        return self.norm(self.proj(self.embeddings))

    def adder(self, number):
        def add(_, args, kwargs):
            if number == 0:
                return None
            hidden = args[0] if args else kwargs.pop("hidden_states")
            row = torch.zeros_like(hidden)
            row = row.index_fill(1, torch.tensor([self.place]), 1.0)
            return (hidden + row * self.added[number].to(hidden.dtype),), kwargs

        return add

    def reader(self):
        def read(attention, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            cos, sin = kwargs["position_embeddings"]
            split = lambda x: x.view(1, x.shape[1], -1, attention.head_dim).transpose(1, 2)  # noqa: E731
            q, k = apply_multimodal_rotary_pos_emb(split(attention.q_proj(hidden)), split(attention.k_proj(hidden)), cos, sin,
                                                   attention.rope_scaling["mrope_section"])  # fmt: skip
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
            scores = q[0, :, self.place : self.place + 1] @ k[0].transpose(1, 2) / math.sqrt(attention.head_dim)
            self.scores = scores[:, 0, self.visual].float().T  # [N, H]

        return read


def step(model, token, ids, pixels, grid, answer, reference):
    with torch.no_grad():
        images = model.visual(pixels, grid_thw=grid)
        whole = torch.cat([ids, torch.zeros(1, 1, dtype=ids.dtype), answer], 1)
        positions, _ = model.get_rope_index(whole, image_grid_thw=grid)
        embeds = model.model.embed_tokens(whole)
        embeds = embeds.masked_scatter((whole == model.config.image_token_id).unsqueeze(-1), images.to(embeds.dtype))
    token.added, token.place = token.vectors(), ids.shape[1]
    embeds = torch.cat([embeds[:, : token.place], token.added[None, :1].to(embeds.dtype), embeds[:, token.place + 1 :]], 1)
    hidden = model.model(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, token.place : -1]).float()
    importance = token.predictor(token.scores)[:, 0]
    p = importance.sigmoid()
    dice = 1 - (2 * (p * reference).sum() + 1e-6) / (p.sum() + reference.sum() + 1e-6)
    loss = F.cross_entropy(logits[0], answer[0]) + dice + 0.1 * F.binary_cross_entropy_with_logits(importance, reference)
    loss.backward()


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        options.model, torch_dtype=torch.bfloat16, attn_implementation="sdpa", low_cpu_mem_usage=True
    ).requires_grad_(False)  # fmt: skip
    layer = json.loads((options.new_modules / "config.json").read_text())["reduce_layer"]
    vision = model.config.vision_config
    grid = grid_of(options.visual, vision.spatial_merge_size)
    torch.manual_seed(0)
    pixels = torch.randn(int(grid.prod()), 3 * vision.temporal_patch_size * vision.patch_size**2).bfloat16()
    text = torch.randint(0, 500, (options.text - 2,)).tolist()
    special = [model.config.vision_start_token_id, model.config.vision_end_token_id]
    image = special[:1] + [model.config.image_token_id] * options.visual + special[1:]
    ids = torch.tensor([text[:10] + image + text[10:]])
    token = GlimpseToken(model, layer)
    token.visual = torch.arange(11, 11 + options.visual)
    adamw = torch.optim.AdamW(token.parameters(), lr=0.0)
    answer = torch.randint(0, 500, (1, options.answer))
    reference = (torch.rand(options.visual) < 0.05).float()

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    weights = sum(t.nbytes for t in {t.data_ptr(): t for t in model.parameters()}.values()) / 2**20
    seconds = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        step(model, token, ids, pixels, grid, answer, reference)
        adamw.step()
        adamw.zero_grad()
        seconds.append(time.perf_counter() - start)
        print(f"training step: {1e3 * seconds[-1]:.0f} ms", flush=True)
    rows = [
        {"name": "training_step_ms", "value": 1e3 * min(seconds), "unit": "ms"},
        {"name": "training_step_ms_median", "value": 1e3 * statistics.median(seconds), "unit": "ms"},
        {"name": "training_memory_mib", "value": peak() - weights, "unit": "MiB"},
    ]
    for row in rows:
        print(f"{row['name']:26}{row['value']:12.0f} {row['unit']}")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
