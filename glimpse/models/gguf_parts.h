#pragma once

#include <filesystem>
#include <string>

#include "glimpse/base/check.h"
#include "glimpse/io/gguf.h"

namespace glimpse {

/// A text of the file's metadata; "" when there is none.
std::string text_of(const Gguf& gguf, const char* key);
/// A count of blocks, which lists are made from.
int64_t block_count(const Gguf& gguf, const char* key);
/// How the language model of this architecture scales its rotary embedding, as rope_scaling of a config.json
/// says it; an empty object where it does not. What llama.cpp's converter makes of a config comes back as
/// that config: so yarn_attn_factor is attention_factor, the whole of it, and the yarn_* keys count, where
/// llama.cpp multiplies the former with its own and takes no notice of them in these architectures. As there,
/// a factor without a type, also by its older name rope.scale_linear, is linear, and 0 means none. Error
/// naming the key or tensor for anything else.
nlohmann::json rope_scaling_of(const Gguf& gguf, const std::string& architecture);
/// Error unless the file holds a vision encoder whose features go through this projector.
void check_projector(const Gguf& vision, const std::string& known);
/// Writes a text file and a line break.
void write_text(const std::filesystem::path& path, const std::string& text);

/// f(metadata); what is wrong there is named with the file.
template <class Function>
auto with_metadata(const Gguf& gguf, Function f) {
  return named(gguf.file(), [&] {
    try {
      return f(gguf.metadata());
    } catch (const nlohmann::json::exception& error) {
      fail(error.what());
    }
  });
}

}  // namespace glimpse
