"""The golden data's tiny Qwen3-VL as a pair of GGUF files, named and typed as llama.cpp's converter writes it."""
import json
import shutil

import gguf
from gguf import GGMLQuantizationType as Type
from gguf_sizes import add_text_sizes, add_vision_sizes
from gguf_tokenizer import add_tokenizer
from make_gguf import MODEL, ROOT, Writer, add_patches, add_scaling
from safetensors.torch import load_file, save_file

GOLDEN = ROOT / "tests/data/golden/qwen3_vl_tiny"
MERGER = {"norm": "v.post_ln", "linear_fc1": "mm.0", "linear_fc2": "mm.2"}
BLOCK = {"norm1": "ln1", "norm2": "ln2", "attn.qkv": "attn_qkv", "attn.proj": "attn_out", "mlp.linear_fc1": "ffn_up", "mlp.linear_fc2": "ffn_down"}


def write_text(path, tensors, config, kind, rope):
    text = config["text_config"]
    writer = Writer(path, gguf.MODEL_ARCH.QWEN3VL, text["num_hidden_layers"], kind)
    add_text_sizes(writer, text)
    writer.add_key_length(text["head_dim"])
    writer.add_value_length(text["head_dim"])
    writer.add_rope_dimension_sections(text["rope_scaling"]["mrope_section"] + [0])
    writer.add_rope_freq_base(text["rope_theta"])
    add_scaling(writer, rope)
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_num_deepstack_layers(len(config["vision_config"]["deepstack_visual_indexes"]))
    add_tokenizer(writer, MODEL, text)
    for name, tensor in tensors.items():
        if not name.startswith("model.visual."):
            short = name.replace("model.language_model.", "model.")
            writer.add(name, tensor, writer.names.get_name(short, try_suffixes=(".weight", ".bias")))
    writer.finish()
    return writer.read


def vision_name(name, taps):
    part, end = name.rsplit(".", 1)
    if part == "pos_embed":
        return f"v.position_embd.{end}"
    kind, rest = part.split(".", 1)
    if kind == "merger":
        return f"{MERGER[rest]}.{end}"
    index, rest = rest.split(".", 1)
    if kind == "deepstack_merger_list":
        return f"v.deepstack.{taps[int(index)]}.{rest.removeprefix('linear_')}.{end}"
    return f"v.blk.{index}.{BLOCK[rest]}.{end}"


def write_vision(path, tensors, config, kind):
    vision, preprocessor = config["vision_config"], json.loads((GOLDEN / "base/preprocessor_config.json").read_text())
    writer, taps = Writer(path, gguf.MODEL_ARCH.MMPROJ, vision["depth"], kind), vision["deepstack_visual_indexes"]
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.QWEN3VL)
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_image_size(round(vision["num_position_embeddings"] ** 0.5) * vision["patch_size"])
    add_vision_sizes(writer, vision)
    writer.add_vision_image_mean(preprocessor["image_mean"])
    writer.add_vision_image_std(preprocessor["image_std"])
    writer.add_vision_use_gelu(True)
    writer.add_vision_spatial_merge_size(vision["spatial_merge_size"])
    writer.add_vision_attention_layernorm_eps(config["text_config"]["rms_norm_eps"])
    writer.add_vision_is_deepstack_layers([block in taps for block in range(vision["depth"])])
    for key, name in (("min", "shortest_edge"), ("max", "longest_edge")):
        writer.add_uint32(f"clip.vision.image_{key}_pixels", preprocessor["size"][name])
    for full, tensor in tensors.items():
        if not full.startswith("model.visual."):
            continue
        name = full.removeprefix("model.visual.")
        if name == "patch_embed.proj.weight":
            add_patches(writer, full, tensor, Type.F16 if kind != Type.F32 else kind)
        else:
            to = "v.patch_embd.bias" if name.startswith("patch_embed.") else vision_name(name, taps)
            writer.add(full, tensor, to, Type.F32 if "pos_embed" in name else kind)
    writer.finish()
    return writer.read


def write_qwen3(out, base, kind, rope={}):
    """`out`/model.gguf and `out`/mmproj-model.gguf, and in `out`/expected a checkpoint with what the package reads out of them."""
    expected = out / "expected"
    shutil.copytree(GOLDEN / base, expected, ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, expected)
    tensors, config = load_file(GOLDEN / base / "model.safetensors"), json.loads((GOLDEN / base / "config.json").read_text())
    if rope:
        config["text_config"]["rope_scaling"] |= {**rope, "rope_type": rope["type"]}
        (expected / "config.json").write_text(json.dumps(config))
    read = write_text(out / "model.gguf", tensors, config, kind, rope) | write_vision(out / "mmproj-model.gguf", tensors, config, kind)
    assert read.keys() == tensors.keys(), read.keys() ^ tensors.keys()
    save_file(read, expected / "model.safetensors")
