"""What stands beside a checkpoint's weights."""
import json
import os
from pathlib import Path
from typing import Any

import torch

from glimpse import Error, _engine


class Config:
    """Settings by name, from a JSON file: config.hidden_size; what is set may be changed and added to."""

    def __init__(self, /, **settings: Any):
        self.__dict__.update({name: Config(**value) if isinstance(value, dict) else value for name, value in settings.items()})

    def __getattr__(self, name: str) -> Any:  # only of what is not there
        raise AttributeError(f"no setting {name!r}")

    def to_dict(self) -> dict[str, Any]:
        return {name: value.to_dict() if isinstance(value, Config) else value for name, value in self.__dict__.items()}

    def __repr__(self) -> str:
        return f"Config {json.dumps(self.to_dict(), indent=2, default=str)}"


def model_dir(name: str | os.PathLike) -> Path:
    """Folder of a model: the name itself, or a hub id's in the local cache. Raises Error where there is none."""
    return Path(_engine.model_dir(os.fspath(name)))


def settings(folder: Path, name: str, *, needed: bool = False) -> dict[str, Any]:
    """A JSON file's object; {} for a file that is not there and not needed. Raises Error naming the file."""
    file = folder / name
    if not file.exists():
        if needed:
            raise Error(f"{file}: no such file")
        return {}
    try:
        out = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Error(f"{file}: no JSON: {error}") from None
    if not isinstance(out, dict):
        raise Error(f"{file}: expected a JSON object")
    return out


def dtype_name(dtype: Any) -> str:
    """What the engine calls a torch dtype ("auto" and None: as the checkpoint says)."""
    known = {None: "auto", "auto": "auto", torch.bfloat16: "bf16", "bfloat16": "bf16", torch.float32: "fp32", "float32": "fp32"}
    if dtype not in known:
        raise TypeError(f"torch_dtype={dtype} is not supported; take torch.bfloat16, torch.float32 or 'auto'")
    return known[dtype]


def device_name(device_map: Any) -> str:
    """One device for the whole model, from what device_map may be."""
    if isinstance(device_map, dict):
        places = set(map(str, device_map.values()))
        if len(places) != 1:
            raise TypeError(f"device_map={device_map}: the whole model goes to one device")
        device_map = places.pop()
    if device_map in (None, "auto"):
        return "cpu" if device_map is None or not torch.cuda.is_available() else "cuda"
    text = f"cuda:{device_map}" if str(device_map).isdigit() else str(device_map)
    if text not in ("cpu", "cuda") and not text.removeprefix("cuda:").isdigit():
        raise TypeError(f"device_map={device_map} is not supported; take 'cpu', 'cuda', 'cuda:0', ... or 'auto'")
    return text


class Tokenizer:
    """A checkpoint's tokenizer, as far as scripts around generate() use one."""

    def __init__(self, folder: Path, padding_side: str | None = None):
        self._tokenizer = _engine.Tokenizer(str(folder))
        about = settings(folder, "tokenizer_config.json")
        self.padding_side = padding_side or about.get("padding_side", "right")
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is 'left' or 'right', not {self.padding_side!r}")
        #: bos_token, eos_token and so on: their texts
        self.special_tokens_map: dict[str, str] = {}
        for name, token in about.items():
            token = token.get("content") if isinstance(token, dict) else token
            if name.endswith("_token") and isinstance(token, str):
                self.special_tokens_map[name] = token
        self.chat_template = about.get("chat_template")
        if isinstance(self.chat_template, list):  # several with names
            named = [each for each in self.chat_template if isinstance(each, dict) and each.get("name") == "default"]
            self.chat_template = named[0].get("template") if named else None

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_token_id"):
            token = self.special_tokens_map.get(name[:-3])
            return None if token is None else self._tokenizer.token_id(token)
        if name.endswith("_token"):
            return self.__dict__.get("special_tokens_map", {}).get(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __len__(self) -> int:
        return len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens count."""
        return self._tokenizer.encode(text, True)

    def decode(self, ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None) -> str:
        """The text of ids; clean_up_tokenization_spaces is for tokenizers of words and changes nothing here."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        return self._tokenizer.decode([ids] if isinstance(ids, int) else list(map(int, ids)), skip_special_tokens)

    def batch_decode(self, sequences: Any, **how: Any) -> list[str]:
        """The texts of several sequences of ids."""
        return [self.decode(ids, **how) for ids in sequences]

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        """The id of a token, None for one that is not known; of a list: a list."""
        return self._tokenizer.token_id(tokens) if isinstance(tokens, str) else [self._tokenizer.token_id(each) for each in tokens]
