"""Vision-language models that drop the visual tokens which a question does not need (GlimpsePrune, arXiv 2508.01548).

    import glimpse
    print(glimpse.ask("photo.jpg", "What letter is on the orange square?"))   # with the built-in model

    engine = glimpse.Engine("Qwen2.5-VL-3B-Instruct", new_modules="GlimpsePrune_Qwen2.5-VL-3B-Instruct", weights="int8")
    answer = engine.ask("photo.jpg", "What is in the basket?")
    answer.text, answer.kept_tokens, answer.visual_tokens, answer.images[0].keep
"""
import torch  # noqa: F401  its libraries are those that the engine runs on

from ._engine import Error
from .commands import evaluate, train, tune
from .engine import Answer, Engine, Image, Stream, ask
from .media import Video
from .pruning import Budget, Cut, ModelInfo, Pruner, Segment, Selection, Taps, View, methods, prune, register

Error.__module__ = __name__
__all__ = ["Answer", "Budget", "Cut", "Engine", "Error", "Image", "ModelInfo", "Pruner", "Segment", "Selection", "Stream", "Taps", "Video",
           "View", "ask", "evaluate", "methods", "prune", "register", "train", "tune"]
