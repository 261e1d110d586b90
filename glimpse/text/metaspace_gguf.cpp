#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "glimpse/base/check.h"
#include "glimpse/text/metaspace.h"

namespace glimpse {

using nlohmann::json;

namespace {

constexpr const char* kSpace = "\u2581";
constexpr size_t kLongest = 1024;  // bytes of a token that is merged from others

struct Pair {
  std::string left, right;
  double score;
};

// Every pair of tokens that makes a token, that of the highest score first: what SentencePiece would merge.
json merges_of(const std::unordered_map<std::string, double>& scores) {
  std::vector<Pair> pairs;
  for (const auto& [token, score] : scores) {
    check(token.size() <= kLongest, "tokenizer.ggml.tokens: a token has ", token.size(), " bytes, at most ",
          kLongest, " are accepted");
    for (size_t at = 1; at < token.size(); ++at)
      if (scores.contains(token.substr(0, at)) && scores.contains(token.substr(at)))
        pairs.push_back({token.substr(0, at), token.substr(at), score});
  }
  std::sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.left.size() != b.left.size() ? a.left.size() > b.left.size()
                                          : a.left + a.right < b.left + b.right;
  });
  json merges = json::array();
  for (const Pair& pair : pairs) merges.push_back({pair.left, pair.right});
  return merges;
}

}  // namespace

json gguf_metaspace(const json& metadata) {
  enum Kind { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
  const json& model = metadata.at("tokenizer.ggml.model");
  check(model == "llama", "tokenizer.ggml.model is ", model.dump(), ", expected llama");
  const json &tokens = metadata.at("tokenizer.ggml.tokens"),
             &kinds = metadata.at("tokenizer.ggml.token_type"),
             &scores = metadata.at("tokenizer.ggml.scores");
  check(
      tokens.is_array() && kinds.is_array() && scores.is_array() && tokens.size() == kinds.size() &&
          tokens.size() == scores.size(),
      "tokenizer.ggml.tokens, tokenizer.ggml.token_type and tokenizer.ggml.scores are not three lists of the "
      "same length");
  json vocabulary = json::object(), added = json::array();
  std::unordered_map<std::string, double> words;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const auto& token = tokens[id].get_ref<const std::string&>();
    const auto kind = kinds[id].get<int64_t>();
    check(kind >= normal && kind <= byte, "token ", id, " has the type ", kind, ", which is not supported");
    if (kind == unused) continue;
    if (kind == normal) words.emplace(token, scores[id].get<double>());
    if (kind != user_defined) vocabulary[token] = id;
    if (kind == unknown || kind == control || kind == user_defined)
      added.push_back({{"id", id},
                       {"content", token},
                       {"special", kind != user_defined},
                       {"normalized", false},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false}});
  }
  const json to_space = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}},
             to_blank = {{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer",
           {{"type", "Sequence"},
            {"normalizers", json::array({{{"type", "Prepend"}, {"prepend", kSpace}}, to_space})}}},
          {"pre_tokenizer", nullptr},
          {"post_processor", nullptr},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders", json::array({to_blank,
                                      {{"type", "ByteFallback"}},
                                      {{"type", "Fuse"}},
                                      {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}})}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocabulary},
            {"merges", merges_of(words)}}}};
}

}  // namespace glimpse
