"""Runs a Python program where qwen_vl_utils finds a torchvision that can be imported.

Usage: beside_torchvision.py SCRIPT ...

tools/setup puts PyPI's torchvision into .venv/torchvision, out of everybody else's way: its operators are built for CUDA's torch and do not load
beside the CPU's, and then it cannot be imported, as two of them are missing. qwen_vl_utils uses none, so declaring these two is enough.
"""
import importlib.util
import runpy
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(sys.prefix) / "torchvision"))
found = importlib.util.find_spec("torchvision")
if found is None:
    sys.exit("no torchvision: run tools/setup")
try:
    torch.ops.load_library(str(Path(found.origin).with_name("_C.so")))
except OSError:
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
