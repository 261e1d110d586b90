#include <sentencepiece_processor.h>

#include <algorithm>
#include <memory>

#include "glimpse/text/metaspace.h"
#include "glimpse/text/tokenizer_json.h"

namespace glimpse {

using nlohmann::json;
using sentencepiece::SentencePieceProcessor;

namespace {

// Field 3 (normalizer_spec) with its field 3 (add_dummy_prefix) false: protobuf merges a message that occurs
// again into the first. The space in front is put there by MetaspaceTokenizer, which knows when.
constexpr std::string_view no_dummy_prefix("\x1a\x02\x18\x00", 4);

std::shared_ptr<const SentencePieceProcessor> load(const std::string& model) {
  auto processor = std::make_shared<SentencePieceProcessor>();
  const auto status = processor->LoadFromSerializedProto(model + std::string(no_dummy_prefix));
  check(status.ok(), "no SentencePiece model: ", status.ToString());
  const int size = processor->GetPieceSize();
  check(size > 0 && size <= Vocabulary::max_size, "a vocabulary of ", size, " tokens, expected 1 to ",
        Vocabulary::max_size);
  const auto pieces = [&](const char* text) { return processor->EncodeAsPieces(text); };
  check(pieces("  a") != pieces(" a"), "the model drops spaces, which is not supported");
  return processor;
}

void fill(const SentencePieceProcessor& processor, MetaspaceData& data) {
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    const std::string& piece = processor.IdToPiece(id);
    data.vocabulary.add(piece, id);
    if (!processor.IsControl(id) && !processor.IsUnknown(id)) continue;
    const auto same = [&](const AddedToken& token) { return token.id == id; };
    if (std::ranges::none_of(data.added, same)) data.added.push_back({piece, id, true, false});
  }
}

}  // namespace

MetaspaceData read_sentencepiece(const std::filesystem::path& directory) {
  const auto file = directory / "tokenizer.model";
  MetaspaceData data;
  data.added = read_added_files(directory);
  std::shared_ptr<const SentencePieceProcessor> processor;
  try {
    processor = load(read_text(file));
    fill(*processor, data);
  } catch (const Error& error) {
    fail(file.string(), ": ", error.what());
  }
  with_json(directory / "tokenizer_config.json", [&](const json& root) {
    const json& prefix = member(root, "add_prefix_space");
    if (member(root, "legacy") == false) data.prefix = MetaspaceData::Prefix::first;
    if (prefix == false) data.prefix = MetaspaceData::Prefix::never;
  });
  data.drops_space = data.prefix != MetaspaceData::Prefix::never;
  data.encode = [processor](const Vocabulary&, std::string_view text, std::vector<int64_t>& ids) {
    std::vector<int> own;
    const auto status = processor->Encode(text, &own);
    check(status.ok(), "SentencePiece: ", status.ToString());
    ids.insert(ids.end(), own.begin(), own.end());
  };
  return data;
}

}  // namespace glimpse
