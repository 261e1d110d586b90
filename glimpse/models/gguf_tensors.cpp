#include "glimpse/models/gguf_tensors.h"

#include <string_view>
#include <vector>

#include "glimpse/base/check.h"

namespace glimpse {
namespace {

// Module names: those of the GGUF file, those of the published checkpoint.
constexpr std::pair<std::string_view, std::string_view> kTextModules[] = {
    {"attn_norm", "input_layernorm"}, {"ffn_norm", "post_attention_layernorm"},
    {"attn_q", "self_attn.q_proj"},   {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},   {"attn_output", "self_attn.o_proj"},
    {"ffn_gate", "mlp.gate_proj"},    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"}};
constexpr std::pair<std::string_view, std::string_view> kVisionModules[] = {{"ln1", "norm1"},
                                                                            {"ln2", "norm2"},
                                                                            {"attn_qkv", "attn.qkv"},
                                                                            {"attn_out", "attn.proj"},
                                                                            {"ffn_gate", "mlp.gate_proj"},
                                                                            {"ffn_up", "mlp.up_proj"},
                                                                            {"ffn_down", "mlp.down_proj"}};
constexpr std::pair<std::string_view, std::string_view> kOther[] = {{"token_embd.", "model.embed_tokens."},
                                                                    {"output_norm.", "model.norm."},
                                                                    {"output.", "lm_head."},
                                                                    {"v.post_ln.", "visual.merger.ln_q."},
                                                                    {"mm.0.", "visual.merger.mlp.0."},
                                                                    {"mm.2.", "visual.merger.mlp.2."}};

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

// The published checkpoint's name; an unknown one stays as it is, and loading says that nobody took it.
std::string published_name(std::string_view name) {
  if (const std::string text = block_tensor(name, "blk.", "model.layers.", kTextModules); !text.empty())
    return text;
  if (const std::string vision = block_tensor(name, "v.blk.", "visual.blocks.", kVisionModules);
      !vision.empty())
    return vision;
  for (const auto& [from, to] : kOther)
    if (name.starts_with(from)) return concat(to, name.substr(from.size()));
  return std::string(name);
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
          [gguf, name] { gguf.release(name); }};
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

// The converter splits the encoder's patch embedding by frame and its qkv by kind; here they are whole again.
void add_vision(const Gguf& gguf, Tensors& tensors) {
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
      add(tensors, published_name(name), lazy_tensor(gguf, name));
      continue;
    }
    const auto kind = [&](const char* letters) {
      return concat(name.substr(0, at), ".attn_", letters, name.substr(at + 7));
    };
    std::vector<int64_t> shape = entry.shape;
    shape[0] *= 3;
    add(tensors, published_name(kind("qkv")),
        joined(gguf, {name, kind("k"), kind("v")}, shape,
               [](const std::vector<at::Tensor>& parts) { return at::cat(parts); }));
  }
}

}  // namespace

const Gguf::Entry& entry_of(const Gguf& gguf, const std::string& name) {
  const auto found = gguf.entries().find(name);
  check(found != gguf.entries().end(), gguf.file(), ": tensor '", name, "' is missing");
  return found->second;
}

Tensors published_tensors(const Gguf& text, const Gguf& vision) {
  Tensors tensors;
  for (const auto& [name, entry] : text.entries())
    add(tensors, published_name(name), lazy_tensor(text, name));
  add_vision(vision, tensors);
  return tensors;
}

}  // namespace glimpse
