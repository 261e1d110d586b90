#pragma once

#include <map>
#include <string>
#include <vector>

#include "glimpse/io/checkpoint.h"
#include "glimpse/io/gguf.h"
#include "glimpse/models/source.h"

namespace glimpse {

/// Error unless the file holds a language model of a known architecture.
void check_holds_language_model(const Gguf& gguf);

/// The pair of files that llama.cpp's converter writes for Qwen2.5-VL, Qwen3-VL or LLaVA-1.5: the language
/// model with its tokenizer, and the vision encoder ("mmproj"). Error naming the file and what it lacks.
std::unique_ptr<ModelSource> open_gguf_pair(const Gguf& text, const std::filesystem::path& mmproj);
/// The same for LLaVA-1.5.
std::unique_ptr<ModelSource> open_gguf_llava(const Gguf& text, const std::filesystem::path& mmproj);

/// The tensor called `name`. Error naming the file when there is none.
const Gguf::Entry& entry_of(const Gguf& gguf, const std::string& name);

/// The tensors of Qwen2.5-VL's language model and vision encoder (llama.cpp's "mmproj") by the names of the
/// published checkpoint and in its shapes. Tensors of no known name keep theirs.
std::map<std::string, Weights::Lazy> published_tensors(const Gguf& text, const Gguf& vision);
/// The same of Qwen3-VL.
std::map<std::string, Weights::Lazy> qwen3_tensors(const Gguf& text, const Gguf& vision);
/// The blocks of Qwen3-VL's encoder whose output goes to the language model's first layers.
std::vector<int64_t> deepstack_blocks(const Gguf& vision);
/// The same of LLaVA-1.5, by canonical names. `config` has the numbers of heads.
std::map<std::string, Weights::Lazy> llava_tensors(const Gguf& text, const Gguf& vision,
                                                   const nlohmann::json& config);

}  // namespace glimpse
