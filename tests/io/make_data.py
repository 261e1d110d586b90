"""Writes tests/io/data with PyTorch and PEFT, the programs whose files are read. Needs torch, safetensors, peft.

python tests/io/make_data.py
"""

import pathlib

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).parent / "data"


def torch_files():
    base = torch.arange(24, dtype=torch.float32)
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(3))  # its state dict has _metadata and an int64 scalar
    contents = {
        "whole": base.view(4, 6),
        "part": {"transposed": base.view(4, 6)[1:, ::2].t(), "deep": {"x.y": base[5:7].clone()}},
        "list": [torch.tensor([True, False]), 3, torch.tensor([-1, 2], dtype=torch.int16)],
        "module": module.state_dict(),
        "parameter": torch.nn.Parameter(torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)),
        "empty": torch.zeros(0, 3),
        "double": torch.tensor(3.25, dtype=torch.float64),
        "ignored": {"step": 7, "big": 1 << 40, "lr": 1e-4, "name": "x", "none": None, "flag": True, "pair": (1, -2)},
    }
    for protocol in (2, 4):
        torch.save(contents, DATA / f"torch_protocol{protocol}.pt", pickle_protocol=protocol)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = torch.nn.Linear(6, 4)
        self.up_proj = torch.nn.Linear(4, 8, bias=False)
        self.down_proj = torch.nn.Linear(8, 6, bias=False)

    def forward(self, x):
        return self.down_proj(self.up_proj(self.q_proj(x)))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Block(), Block()])
        self.head = torch.nn.Linear(6, 3, bias=False)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def adapters():
    torch.manual_seed(0)
    configs = {
        "plain": dict(r=2, lora_alpha=4),
        "rich": dict(
            r=2,
            lora_alpha=3,
            use_rslora=True,
            rank_pattern={"layers.1.q_proj": 3},
            alpha_pattern={r"layers\.\d+\.up_proj": 8, "layers.1.q_proj": 5},
            modules_to_save=["head"],
            bias="all",
        ),
    }
    for name, options in configs.items():
        model = Model()
        folder = DATA / f"adapter_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / "base.safetensors")
        config = LoraConfig(target_modules=["q_proj", "up_proj", "down_proj"], **options)
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for p in adapted.parameters():
                if p.requires_grad:
                    p.normal_(0, 0.5)
        adapted.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        merged = adapted.merge_and_unload().state_dict()
        save_file({k: v.contiguous() for k, v in merged.items()}, folder / "merged.safetensors")


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    torch_files()
    adapters()
