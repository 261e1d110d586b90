"""The golden data's tiny LLaVA-1.5 as a pair of GGUF files, named and typed as llama.cpp's converters write them.

They are two programs: one writes the language model, whose q and k it reorders within heads, one the encoder without its last block, whose
MLP it names the other way round.
"""
import json
import shutil

import gguf
from gguf import GGMLQuantizationType as Type
from gguf import TokenType
from gguf_sizes import add_text_sizes
from make_gguf import ROOT, Writer, add_scaling, read_back, stored
from safetensors.torch import load_file, save_file

GOLDEN = ROOT / "tests/data/golden/llava_tiny"
TOWER = "clip-vit-tiny-patch14-112"
SPACE = "\u2581"
VISION = {"embeddings.class_embedding": "v.class_embd", "embeddings.patch_embedding": "v.patch_embd", "embeddings.position_embedding": "v.position_embd",
          "pre_layrnorm": "v.pre_ln", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
          "self_attn.out_proj": "attn_out", "layer_norm1": "ln1", "layer_norm2": "ln2", "mlp.fc1": "ffn_down", "mlp.fc2": "ffn_up"}  # fmt: skip


def pieces():
    """Of LLaMA's kind of tokenizer: (text, type, score)."""
    yield "<unk>", TokenType.UNKNOWN, 0
    yield "<s>", TokenType.CONTROL, 0
    yield "</s>", TokenType.CONTROL, 0
    yield from ((f"<0x{byte:02X}>", TokenType.BYTE, 0) for byte in range(256))
    for i, text in enumerate(["he", "re", "Wh", SPACE + "t", "here", "ere", SPACE, *map(chr, range(33, 127))]):
        yield text, TokenType.NORMAL, -i


def add_tokenizer(writer, size):
    listed = list(pieces())
    listed += [(f"[PAD{i}]", TokenType.UNUSED, 0) for i in range(len(listed), size)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _, _ in listed])
    writer.add_token_scores([float(score) for _, _, score in listed])
    writer.add_token_types([kind for _, kind, _ in listed])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def tokenizer_json():
    """The same as tokenizer.json; merges by the score of what they make, as SentencePiece takes them."""
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    merges = ["h e", "r e", "W h", f"{SPACE} t", "he re", "e re"]
    special = [text for text, kind, _ in pieces() if kind in (TokenType.UNKNOWN, TokenType.CONTROL)]
    return json.dumps({
        "model": {"type": "BPE", "byte_fallback": True, "vocab": {text: i for i, (text, _, _) in enumerate(pieces())}, "merges": merges},
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replaced]},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "added_tokens": [{"id": i, "content": token, "special": True, "normalized": False} for i, token in enumerate(special)],
    })  # fmt: skip


def permuted(rows, heads):
    """As the converter turns q and k, so that what is rotated together lies side by side."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape).contiguous()


def write_text(path, tensors, config, kind):
    writer = Writer(path, gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"], kind)
    add_text_sizes(writer, config)
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    add_scaling(writer, config["rope_scaling"] or {})
    add_tokenizer(writer, config["vocab_size"])
    for name, tensor in tensors.items():
        if "mm_projector" in name:
            continue
        heads = next((config[key] for part, key in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")) if part in name), 0)
        writer.add(name, permuted(tensor, heads) if heads else tensor)
        # Whole rows are stored, so what they read as does not depend on their order.
        writer.read[name] = read_back(*stored(tensor, kind), tensor.shape)
    writer.finish()
    return writer.read


def write_vision(path, tower, projector, config, kind):
    kept = config["num_hidden_layers"] - 1
    writer = Writer(path, gguf.MODEL_ARCH.MMPROJ, kept, kind)
    preprocessor = json.loads((GOLDEN / "vision_tower/preprocessor_config.json").read_text())
    writer.add_bool("clip.has_text_encoder", False)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", config["hidden_act"] == "gelu")
    for key, value in [("image_size", config["image_size"]), ("patch_size", config["patch_size"]), ("embedding_length", config["hidden_size"]),
                       ("feed_forward_length", config["intermediate_size"]), ("projection_dim", config["projection_dim"]),
                       ("attention.head_count", config["num_attention_heads"]), ("block_count", kept)]:  # fmt: skip
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", config["layer_norm_eps"])
    writer.add_array("clip.vision.image_mean", preprocessor["image_mean"])
    writer.add_array("clip.vision.image_std", preprocessor["image_std"])
    for name, tensor in projector.items():
        writer.add(name, tensor, name.replace("model.mm_projector.", "mm."))
    for name, tensor in tower.items():
        parts = name.removeprefix("vision_model.").removesuffix(".weight").removesuffix(".bias")
        end = name.removeprefix("vision_model." + parts)
        block = ""
        if parts.startswith("encoder.layers."):
            index, parts = parts.removeprefix("encoder.layers.").split(".", 1)
            block = f"v.blk.{index}."
        if parts not in VISION or (block and int(index) >= kept):
            writer.read[name] = tensor  # what LLaVA does not use
            continue
        writer.add(name, tensor, block + VISION[parts] + end, Type.F16 if parts.startswith("embeddings.") and kind != Type.F32 else kind)
    writer.finish()
    return writer.read


def write_llava(out, kind, rope=None):
    """`out`/model.gguf and `out`/mmproj-model.gguf, and in `out`/expected what the package reads out of them, in the original layout."""
    expected, tower_out = out / "expected/model", out / "expected" / TOWER
    for folder, source in ((expected, GOLDEN / "base"), (tower_out, GOLDEN / "vision_tower")):
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (expected / "tokenizer.json").write_text(tokenizer_json())
    tensors, tower = (load_file(GOLDEN / part / "model.safetensors") for part in ("base", "vision_tower"))
    config, vision = (json.loads((GOLDEN / part / "config.json").read_text()) for part in ("base", "vision_tower"))
    config["rope_scaling"] = rope
    (expected / "config.json").write_text(json.dumps(config))
    read = write_text(out / "model.gguf", tensors, config, kind)
    projector = {name: tensor for name, tensor in tensors.items() if "mm_projector" in name}
    read_vision = write_vision(out / "mmproj-model.gguf", tower, projector, vision, kind)
    read |= {name: read_vision.pop(name) for name in projector}
    assert read.keys() == tensors.keys() and read_vision.keys() == tower.keys()
    save_file(read, expected / "model.safetensors", {"format": "pt"})
    save_file(read_vision, tower_out / "model.safetensors", {"format": "pt"})
