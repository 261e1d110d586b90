#include "glimpse/text/tokenizer_json.h"

#include <set>

namespace glimpse {

using nlohmann::json;
using Path = std::filesystem::path;

namespace {

/// Contents of the tokens that special_tokens_map.json, or tokenizer_config.json in the same form, calls
/// special.
void collect_special(const json& map, std::set<std::string>& special) {
  for (const auto& [name, value] : map.items()) {
    if (name != "additional_special_tokens" && !name.ends_with("_token")) continue;
    for (const json& token : value.is_array() ? value : json::array({value})) {
      if (token.is_string()) special.insert(token.get<std::string>());
      if (token.is_object()) special.insert(token.at("content").get<std::string>());
    }
  }
}

Merge make_merge(const Vocabulary& vocabulary, std::string_view left, std::string_view right,
                 std::string (*spelling)(std::string_view)) {
  const auto id_of = [&](const char* what, const std::string& bytes) {
    const auto id = vocabulary.find(bytes);
    check(id.has_value(), "merge \"", left, " ", right, "\": its ", what, " is no token of the vocabulary");
    return static_cast<int32_t>(*id);
  };
  const std::string left_bytes = spelling(left), right_bytes = spelling(right);
  return {id_of("left part", left_bytes), id_of("right part", right_bytes),
          id_of("result", left_bytes + right_bytes)};
}

}  // namespace

std::string type_of(const json& part) {
  return part.is_null() ? "null" : part.at("type").get<std::string>();
}

bool is_off(const json& object, const char* key) {
  const json& value = member(object, key);
  return value.is_null() || value == false || value == "";
}

int64_t read_id(const json& id, std::string_view token) {
  check(id.is_number_integer(), "the id of token \"", token, "\" is no integer");
  return id.get<int64_t>();
}

AddedToken read_added(const json& token, int64_t id) {
  AddedToken added{token.at("content").get<std::string>(), id, false, true};
  added.special = token.value("special", false);
  added.normalized = token.value("normalized", !added.special);
  for (const char* flag : {"lstrip", "rstrip", "single_word"})
    check(is_off(token, flag), "added token \"", added.content, "\" sets ", flag, ", which is not supported");
  return added;
}

std::vector<AddedToken> read_added_list(const json& root) {
  std::vector<AddedToken> added;
  for (const json& token : member(root, "added_tokens"))
    added.push_back(read_added(token, read_id(token.at("id"), "in added_tokens")));
  return added;
}

std::vector<AddedToken> read_added_files(const Path& directory) {
  std::vector<AddedToken> added;
  std::set<std::string> special;
  with_json(directory / "special_tokens_map.json", [&](const json& root) { collect_special(root, special); });
  with_json(directory / "tokenizer_config.json", [&](const json& root) {
    collect_special(root, special);
    for (const auto& [id, token] : member(root, "added_tokens_decoder").items()) {
      check(!id.empty() && id.size() <= 9 && id.find_first_not_of("0123456789") == id.npos,
            "added_tokens_decoder: \"", id, "\" is no token id");
      added.push_back(read_added(token, std::stoll(id)));
    }
  });
  if (!added.empty()) return added;
  with_json(directory / "added_tokens.json", [&](const json& root) {
    for (const auto& [content, id] : root.items()) {
      const bool is_special = special.contains(content);
      added.push_back({content, read_id(id, content), is_special, !is_special});
    }
  });
  return added;
}

Merge read_merge(std::string_view line, const Vocabulary& vocabulary,
                 std::string (*spelling)(std::string_view)) {
  const size_t space = line.find(' ');
  check(space != line.npos && line.find(' ', space + 1) == line.npos, "merge \"", line,
        "\": expected two tokens with a space between");
  return make_merge(vocabulary, line.substr(0, space), line.substr(space + 1), spelling);
}

std::vector<Merge> read_merges(const json& merges, const Vocabulary& vocabulary,
                               std::string (*spelling)(std::string_view)) {
  check(merges.is_array(), "the merges are no array");
  std::vector<Merge> out;
  out.reserve(merges.size());
  for (const json& merge : merges) {
    if (merge.is_string()) {
      out.push_back(read_merge(merge.get_ref<const std::string&>(), vocabulary, spelling));
      continue;
    }
    check(merge.is_array() && merge.size() == 2,
          "a merge is neither \"left right\" nor [\"left\", \"right\"]");
    out.push_back(make_merge(vocabulary, merge[0].get_ref<const std::string&>(),
                             merge[1].get_ref<const std::string&>(), spelling));
  }
  return out;
}

}  // namespace glimpse
