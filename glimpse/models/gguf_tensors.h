#pragma once

#include <map>
#include <string>

#include "glimpse/io/checkpoint.h"
#include "glimpse/io/gguf.h"

namespace glimpse {

/// Error unless the file holds a language model of a known architecture.
void check_holds_language_model(const Gguf& gguf);

/// The tensor called `name`. Error naming the file when there is none.
const Gguf::Entry& entry_of(const Gguf& gguf, const std::string& name);

/// The tensors of Qwen2.5-VL's language model and vision encoder (llama.cpp's "mmproj") by the names of the
/// published checkpoint and in its shapes. Tensors of no known name keep theirs.
std::map<std::string, Weights::Lazy> published_tensors(const Gguf& text, const Gguf& vision);

}  // namespace glimpse
