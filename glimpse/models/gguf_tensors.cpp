#include "glimpse/models/gguf_tensors.h"

#include <string_view>
#include <vector>

#include "glimpse/base/check.h"
#include "glimpse/models/config.h"

namespace glimpse {
namespace {

// Module names: those of the GGUF file, those of the published checkpoint.
constexpr std::pair<std::string_view, std::string_view> kTextModules[] = {
    {"attn_norm", "input_layernorm"},    {"ffn_norm", "post_attention_layernorm"},
    {"attn_q", "self_attn.q_proj"},      {"attn_k", "self_attn.k_proj"},
    {"attn_q_norm", "self_attn.q_norm"}, {"attn_k_norm", "self_attn.k_norm"},
    {"attn_v", "self_attn.v_proj"},      {"attn_output", "self_attn.o_proj"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"}};
constexpr std::pair<std::string_view, std::string_view> kVisionModules[] = {{"ln1", "norm1"},
                                                                            {"ln2", "norm2"},
                                                                            {"attn_qkv", "attn.qkv"},
                                                                            {"attn_out", "attn.proj"},
                                                                            {"ffn_gate", "mlp.gate_proj"},
                                                                            {"ffn_up", "mlp.up_proj"},
                                                                            {"ffn_down", "mlp.down_proj"}};
constexpr std::pair<std::string_view, std::string_view> kClipModules[] = {
    {"ln1", "layer_norm1"},         {"ln2", "layer_norm2"},         {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"}, {"attn_v", "self_attn.v_proj"}, {"attn_out", "self_attn.out_proj"}};
constexpr std::pair<std::string_view, std::string_view> kClipOther[] = {
    {"v.class_embd", "visual.vision_model.embeddings.class_embedding"},
    {"v.patch_embd.", "visual.vision_model.embeddings.patch_embedding."},
    {"v.position_embd.", "visual.vision_model.embeddings.position_embedding."},
    {"v.pre_ln.", "visual.vision_model.pre_layrnorm."},
    {"v.post_ln.", "visual.vision_model.post_layernorm."},
    {"mm.0.", "visual.projector.0."},
    {"mm.2.", "visual.projector.2."}};
constexpr std::pair<std::string_view, std::string_view> kTextOther[] = {
    {"token_embd.", "model.embed_tokens."}, {"output_norm.", "model.norm."}, {"output.", "lm_head."}};
constexpr std::pair<std::string_view, std::string_view> kVisionOther[] = {
    {"v.post_ln.", "visual.merger.ln_q."},
    {"mm.0.", "visual.merger.mlp.0."},
    {"mm.2.", "visual.merger.mlp.2."}};
constexpr std::pair<std::string_view, std::string_view> kQwen3Modules[] = {{"ln1", "norm1"},
                                                                           {"ln2", "norm2"},
                                                                           {"attn_qkv", "attn.qkv"},
                                                                           {"attn_out", "attn.proj"},
                                                                           {"ffn_up", "mlp.linear_fc1"},
                                                                           {"ffn_down", "mlp.linear_fc2"}};
constexpr std::pair<std::string_view, std::string_view> kQwen3Other[] = {
    {"v.patch_embd.bias", "visual.patch_embed.proj.bias"},
    {"v.position_embd.", "visual.pos_embed."},
    {"v.post_ln.", "visual.merger.norm."},
    {"mm.0.", "visual.merger.linear_fc1."},
    {"mm.2.", "visual.merger.linear_fc2."}};
constexpr std::pair<std::string_view, std::string_view> kDeepstack[] = {
    {"norm", "norm"}, {"fc1", "linear_fc1"}, {"fc2", "linear_fc2"}};

// "PREFIX12.attn_q.weight" -> "TO12.self_attn.q_proj.weight"; "" when it is nothing of the kind.
template <class Modules>
std::string block_tensor(std::string_view name, std::string_view prefix, std::string_view to,
                         const Modules& modules) {
  if (!name.starts_with(prefix)) return "";
  const std::string_view rest = name.substr(prefix.size());
  const size_t dot = rest.find('.'), end = rest.rfind('.');
  if (dot == rest.npos || dot == end) return "";
  for (const auto& [from, module] : modules)
    if (rest.substr(dot + 1, end - dot - 1) == from)
      return concat(to, rest.substr(0, dot + 1), module, rest.substr(end));
  return "";
}

template <class Pairs>
std::string other_tensor(std::string_view name, const Pairs& pairs) {
  for (const auto& [from, to] : pairs)
    if (name.starts_with(from)) return concat(to, name.substr(from.size()));
  return "";
}

// The published checkpoint's name; an unknown one stays as it is, and loading says that nobody took it.
std::string either(const std::string& name, const std::string& one, const std::string& other) {
  return !one.empty() ? one : !other.empty() ? other : name;
}

std::string text_name(const std::string& name) {
  return either(name, block_tensor(name, "blk.", "model.layers.", kTextModules),
                other_tensor(name, kTextOther));
}

std::string vision_name(const std::string& name) {
  return either(name, block_tensor(name, "v.blk.", "visual.blocks.", kVisionModules),
                other_tensor(name, kVisionOther));
}

std::string qwen3_vision_name(const std::string& name) {
  return either(name, block_tensor(name, "v.blk.", "visual.blocks.", kQwen3Modules),
                other_tensor(name, kQwen3Other));
}

std::string clip_name(const std::string& name) {
  return either(name, block_tensor(name, "v.blk.", "visual.vision_model.encoder.layers.", kClipModules),
                other_tensor(name, kClipOther));
}

Weights::Lazy lazy_tensor(const Gguf& gguf, const std::string& name) {
  const Gguf::Entry& entry = entry_of(gguf, name);
  return {entry.shape,
          entry.type->dtype,
          entry.type->name,
          entry.bytes,
          gguf.file(),
          name,
          [gguf, name](at::ScalarType dtype) { return gguf.read(name, dtype); },
          [gguf, name] { gguf.release(name); },
          gguf.few_bits(name)};
}

// One tensor of several of the same shape: `join`ed, after which they have `shape`.
Weights::Lazy joined(const Gguf& gguf, const std::vector<std::string>& names, std::vector<int64_t> shape,
                     at::Tensor (*join)(const std::vector<at::Tensor>&)) {
  Weights::Lazy whole = lazy_tensor(gguf, names[0]);
  for (size_t i = 1; i < names.size(); ++i) {
    const Gguf::Entry& entry = entry_of(gguf, names[i]);
    check(entry.shape == entry_of(gguf, names[0]).shape, gguf.file(), ": the tensors '", names[0], "' and '",
          names[i], "' have different shapes");
    if (entry.type->dtype != whole.dtype) whole.dtype = at::kFloat;
    if (entry.type->name != whole.stored_as) whole.stored_as += concat(", ", entry.type->name);
    whole.bytes += entry.bytes;
  }
  whole.shape = std::move(shape);
  whole.read = [gguf, names, join](at::ScalarType dtype) {
    std::vector<at::Tensor> parts;
    for (const std::string& name : names) parts.push_back(gguf.read(name, dtype));
    return join(parts);
  };
  std::vector<FewBits> few;
  for (const std::string& name : names)
    if (auto part = gguf.few_bits(name)) few.push_back(*part);
  whole.few_bits.reset();
  if (few.size() == names.size()) whole.few_bits = stacked(few, entry_of(gguf, names[0]).shape[0]);
  whole.release = [gguf, names] {
    for (const std::string& name : names) gguf.release(name);
  };
  return whole;
}

using Tensors = std::map<std::string, Weights::Lazy>;

void add(Tensors& tensors, const std::string& name, Weights::Lazy tensor) {
  const auto [old, added] = tensors.emplace(name, tensor);
  check(added, tensor.file, ": tensor '", tensor.name_in_file, "' is a second '", name, "' (the first is in ",
        old->second.file, ")");
}

Tensors text_tensors(const Gguf& gguf) {
  Tensors tensors;
  for (const auto& [name, entry] : gguf.entries()) add(tensors, text_name(name), lazy_tensor(gguf, name));
  return tensors;
}

// The converter splits the encoder's patch embedding by frame and its qkv by kind; here they are whole again.
void add_vision(const Gguf& gguf, Tensors& tensors, std::string (*published)(const std::string&)) {
  constexpr const char* kPatch = "v.patch_embd.weight";
  const auto patch_shape = entry_of(gguf, kPatch).shape;
  check(patch_shape.size() == 4, gguf.file(), ": tensor '", kPatch, "' has ", patch_shape.size(),
        " dimensions, expected 4");
  add(tensors, "visual.patch_embed.proj.weight",
      joined(gguf, {kPatch, concat(kPatch, ".1")},
             {patch_shape[0], patch_shape[1], 2, patch_shape[2], patch_shape[3]},
             [](const std::vector<at::Tensor>& frames) { return at::stack(frames, 2); }));
  for (const auto& [name, entry] : gguf.entries()) {
    const size_t at = name.find(".attn_q.");
    if (name.starts_with(kPatch) || name.find(".attn_k.") != name.npos || name.find(".attn_v.") != name.npos)
      continue;
    if (at == name.npos) {
      add(tensors, published(name), lazy_tensor(gguf, name));
      continue;
    }
    const auto kind = [&](const char* letters) {
      return concat(name.substr(0, at), ".attn_", letters, name.substr(at + 7));
    };
    std::vector<int64_t> shape = entry.shape;
    shape[0] *= 3;
    add(tensors, published(kind("qkv")),
        joined(gguf, {name, kind("k"), kind("v")}, shape,
               [](const std::vector<at::Tensor>& parts) { return at::cat(parts); }));
  }
}

// The converter puts the rows of each head of q and k in another order, in which pairs that turn together lie
// side by side; here they are half a head apart again.
Weights::Lazy with_halves(Weights::Lazy tensor, int64_t heads) {
  const int64_t rows = tensor.shape.empty() ? 0 : tensor.shape[0];
  check(heads > 0 && rows % (2 * heads) == 0, tensor.file, ": tensor '", tensor.name_in_file, "' has ", rows,
        " rows, which are no ", heads, " heads");
  const int64_t half = rows / heads / 2;
  const auto place = [half](int64_t row) {
    const int64_t within = row % (2 * half);
    return row - within + 2 * (within % half) + within / half;
  };
  at::Tensor order = at::empty({rows}, at::kLong);
  for (int64_t row = 0; row < rows; ++row) order.data_ptr<int64_t>()[row] = place(row);
  tensor.read = [read = std::move(tensor.read), order](at::ScalarType dtype) {
    return read(dtype).index_select(0, order);
  };
  if (tensor.few_bits) tensor.few_bits = reordered(*tensor.few_bits, place);
  return tensor;
}

// Some converters call the encoder's first layer of an MLP ffn_down, others ffn_up: the first has more rows.
std::string clip_mlp_name(const Gguf& gguf, const std::string& name, int64_t intermediate) {
  const size_t at = name.find(".ffn_");
  if (!name.starts_with("v.blk.") || at == name.npos) return "";
  const size_t dot = name.find('.', at + 1);
  if (dot == name.npos) return "";
  const bool first = entry_of(gguf, name.substr(0, dot) + ".weight").shape[0] == intermediate;
  return concat("visual.vision_model.encoder.layers.", name.substr(6, at - 6),
                first ? ".mlp.fc1" : ".mlp.fc2", name.substr(dot));
}

}  // namespace

const Gguf::Entry& entry_of(const Gguf& gguf, const std::string& name) {
  const auto found = gguf.entries().find(name);
  check(found != gguf.entries().end(), gguf.file(), ": tensor '", name, "' is missing");
  return found->second;
}

Tensors published_tensors(const Gguf& text, const Gguf& vision) {
  Tensors tensors = text_tensors(text);
  add_vision(vision, tensors, vision_name);
  return tensors;
}

std::vector<int64_t> deepstack_blocks(const Gguf& vision) {
  constexpr const char* key = "clip.vision.is_deepstack_layers";
  const auto is_one = need<std::vector<bool>>(vision.metadata(), key, vision.file());
  std::vector<int64_t> blocks;
  for (size_t block = 0; block < is_one.size(); ++block)
    if (is_one[block]) blocks.push_back(static_cast<int64_t>(block));
  return blocks;
}

Tensors qwen3_tensors(const Gguf& text, const Gguf& vision) {
  Tensors tensors = text_tensors(text), encoder;
  add_vision(vision, encoder, qwen3_vision_name);
  // Mergers are listed by the blocks that they follow.
  const std::vector<int64_t> blocks = deepstack_blocks(vision);
  for (auto& [name, tensor] : encoder) {
    std::string published = name;
    for (size_t i = 0; i < blocks.size(); ++i)
      if (const std::string from = concat("v.deepstack.", blocks[i], "."); name.starts_with(from))
        if (const std::string to = block_tensor(concat("v.deepstack.", i, ".", name.substr(from.size())),
                                                "v.deepstack.", "visual.deepstack_merger_list.", kDeepstack);
            !to.empty())
          published = to;
    add(tensors, published, std::move(tensor));
  }
  return tensors;
}

Tensors llava_tensors(const Gguf& text, const Gguf& vision, const nlohmann::json& config) {
  Tensors tensors;
  const auto heads = config.at("num_attention_heads").get<int64_t>();
  for (const auto& [name, entry] : text.entries()) {
    const std::string published = text_name(name);
    const bool is_q = published.ends_with(".q_proj.weight"), is_k = published.ends_with(".k_proj.weight");
    Weights::Lazy tensor = lazy_tensor(text, name);
    if (is_q || is_k)
      tensor = with_halves(std::move(tensor), is_q ? heads : config.value("num_key_value_heads", heads));
    add(tensors, published, std::move(tensor));
  }
  const auto intermediate = config.at("vision_config").at("intermediate_size").get<int64_t>();
  for (const auto& [name, entry] : vision.entries()) {
    const std::string mlp = clip_mlp_name(vision, name, intermediate);
    add(tensors, mlp.empty() ? clip_name(name) : mlp, lazy_tensor(vision, name));
  }
  return tensors;
}

}  // namespace glimpse
