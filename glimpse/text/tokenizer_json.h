#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/text/added_tokens.h"
#include "glimpse/text/bpe.h"

namespace glimpse {

/// Pieces of tokenizer files that all kinds of tokenizers have. Malformed ones throw Error or
/// json::exception; with_json() adds the file's name to both.

/// "type" of a part of tokenizer.json; "null" where the part is missing.
std::string type_of(const nlohmann::json& part);

/// Whether the member is missing, null, false or "": not asked for.
bool is_off(const nlohmann::json& object, const char* key);

int64_t read_id(const nlohmann::json& id, std::string_view token);

AddedToken read_added(const nlohmann::json& token, int64_t id);

/// "added_tokens" of a tokenizer.json.
std::vector<AddedToken> read_added_list(const nlohmann::json& root);

/// The added tokens of a directory without tokenizer.json: from tokenizer_config.json, else from
/// added_tokens.json.
std::vector<AddedToken> read_added_files(const std::filesystem::path& directory);

/// "merges" of a tokenizer.json, each "left right" or ["left", "right"]. `spelling` turns what stands there
/// into the vocabulary's bytes.
std::vector<Merge> read_merges(const nlohmann::json& merges, const Vocabulary& vocabulary,
                               std::string (*spelling)(std::string_view));
/// The same for one "left right".
Merge read_merge(std::string_view line, const Vocabulary& vocabulary,
                 std::string (*spelling)(std::string_view));

/// Calls `parse(json)` if the file is there; errors get the file's name.
template <class Parse>
void with_json(const std::filesystem::path& path, Parse parse) {
  if (!std::filesystem::exists(path)) return;
  const nlohmann::json root = read_json(path);
  try {
    check(root.is_object(), "expected an object");
    parse(root);
  } catch (const nlohmann::json::exception& error) {
    fail(path.string(), ": ", error.what());
  } catch (const Error& error) {
    fail(path.string(), ": ", error.what());
  }
}

}  // namespace glimpse
