#include "glimpse/text/tokenizer.h"

#include "glimpse/base/check.h"
#include "glimpse/text/byte_level.h"
#include "glimpse/text/utf8.h"

namespace glimpse {

std::unique_ptr<Tokenizer> Tokenizer::load(const std::filesystem::path& directory) {
  ByteLevelData data = read_byte_level(directory);
  const std::string source = data.source.string();
  try {
    return std::make_unique<ByteLevelTokenizer>(std::move(data));
  } catch (const Error& error) {
    fail(source, ": ", error.what());
  }
}

std::string Tokenizer::decode(std::span<const int64_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int64_t id : ids)
    if (!skip_special || !is_special(id)) bytes += token_bytes(id);
  return repair_utf8(bytes);
}

std::string StreamDecoder::push(int64_t id) {
  if (!skip_special_ || !tokenizer_.is_special(id)) pending_ += tokenizer_.token_bytes(id);
  return take_complete(pending_);
}

std::string StreamDecoder::flush() {
  const std::string rest = repair_utf8(pending_);
  pending_.clear();
  return rest;
}

}  // namespace glimpse
