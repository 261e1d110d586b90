"""A Qwen model's tokenizer as GGUF files have it; for make_gguf.py here and that of tests/parity."""
import json
from pathlib import Path

import gguf
from gguf import TokenType


def add_tokenizer(writer: gguf.GGUFWriter, model: Path, config: dict) -> None:
    """Of a model's folder. config: its config.json; ids that the tokenizer lacks are unused words."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    by_id = {id: (token, TokenType.NORMAL) for token, id in tokenizer["model"]["vocab"].items()}
    for token in tokenizer["added_tokens"]:
        by_id[token["id"]] = (token["content"], TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    listed = [by_id.get(id, (f"[PAD{id}]", TokenType.UNUSED)) for id in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([token for token, _ in listed])
    writer.add_token_types([kind for _, kind in listed])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(json.loads((model / "chat_template.json").read_text())["chat_template"])
