#include <functional>

#include "glimpse/base/check.h"
#include "glimpse/text/tokenizer.h"
#include "text/model_folder.h"

// doctest comes last: torch has macros of the same names.
#undef CHECK
#include <doctest/doctest.h>

namespace {

using namespace glimpse;
using namespace glimpse::test;
using nlohmann::json;

/// The error of loading the folder; "" when there is none.
std::string error_of(const ModelFolder& folder) {
  try {
    Tokenizer::load(folder.path());
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

void check_error(const ModelFolder& folder, const std::string& file, const std::string& what) {
  const std::string error = error_of(folder);
  CAPTURE(error);
  CAPTURE(what);
  CHECK(error.find(file) != error.npos);
  CHECK(error.find(what) != error.npos);
}

TEST_CASE("a tokenizer.json that asks for something else is refused by name") {
  const std::vector<std::pair<std::function<void(json&)>, std::string>> cases = {
      {[](json& r) { r["model"]["type"] = "Unigram"; }, "Unigram"},
      {[](json& r) { r["model"] = nullptr; }, "expected BPE"},
      {[](json& r) { r.erase("model"); }, "model"},
      {[](json& r) { r["model"]["byte_fallback"] = true; }, "normalizer"},
      {[](json& r) { r["model"]["dropout"] = 0.1; }, "dropout"},
      {[](json& r) { r["model"]["ignore_merges"] = true; }, "ignore_merges"},
      {[](json& r) { r["model"]["end_of_word_suffix"] = "@@"; }, "sets end_of_word_suffix"},
      {[](json& r) { r["model"]["end_of_word_suffix"] = "</w>"; }, "only supported with CLIP's normalizer"},
      {[](json& r) { r["model"]["vocab"] = json::array({1}); }, "no object"},
      {[](json& r) { r["model"]["vocab"]["!"] = -1; }, "has id -1"},
      {[](json& r) { r["model"]["vocab"]["!"] = int64_t{1} << 40; }, "expected 0 to"},
      {[](json& r) { r["model"]["vocab"]["!"] = 1.5; }, "no integer"},
      {[](json& r) { r["model"]["vocab"]["!"] = 1; }, "two tokens"},
      {[](json& r) { r["model"]["vocab"][""] = 2000; }, "empty"},
      {[](json& r) { r["model"]["vocab"].erase("!"); }, "byte 33"},
      {[](json& r) { r["model"]["merges"].push_back("a b c"); }, "a b c"},
      {[](json& r) { r["model"]["merges"].push_back("abc"); }, "abc"},
      {[](json& r) { r["model"]["merges"].push_back(json::array({"a"})); }, "merge"},
      {[](json& r) {
         r["model"]["merges"].push_back(json::array({1, 2}));
       },
       "is number"},
      {[](json& r) { r["model"]["merges"].push_back("! !"); }, "its result is no token"},
      {[](json& r) { r["model"]["merges"] = "a b"; }, "no array"},
      {[](json& r) {
         r["normalizer"] = {{"type", "Lowercase"}};
       },
       "Lowercase"},
      {[](json& r) { r["normalizer"] = 3; }, "number"},
      {[](json& r) { r["pre_tokenizer"] = nullptr; }, "pre-tokenizer null"},
      {[](json& r) {
         r["pre_tokenizer"] = {{"type", "Metaspace"}};
       },
       "Metaspace"},
      {[](json& r) { r["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = true; }, "Sequence"},
      {[](json& r) { r["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; },
       "add_prefix_space"},
      {[](json& r) { r["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; }, "Isolated"},
      {[](json& r) { r["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a"; },
       "regular expression"},
      {[](json& r) { r["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\C"; },
       "regular expression"},
      {[](json& r) {
         r["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = std::string(1 << 20, 'a');
       },
       "bytes"},
      {[](json& r) {
         r["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"String", " "}};
       },
       "Regex"},
      {[](json& r) {
         r["post_processor"] = {{"type", "TemplateProcessing"}};
       },
       "TemplateProcessing"},
      {[](json& r) { r["decoder"] = nullptr; }, "decoder null"},
      {[](json& r) { r["added_tokens"][0]["lstrip"] = true; }, "lstrip"},
      {[](json& r) { r["added_tokens"][0]["id"] = 0; }, "another token"},
      {[](json& r) { r["added_tokens"][0]["id"] = 555; }, "two added tokens"},
      {[](json& r) { r["added_tokens"][0]["id"] = -7; }, "id -7"},
      {[](json& r) { r["added_tokens"][0]["id"] = "x"; }, "no integer"},
      {[](json& r) { r["added_tokens"][0]["content"] = ""; }, "bytes"},
      {[](json& r) { r["added_tokens"][1]["content"] = "<|endoftext|>"; }, "twice"},
      {[](json& r) { r["added_tokens"][1].erase("content"); }, "content"},
      {[](json& r) { r["added_tokens"] = 5; }, "tokenizer.json"},
  };
  for (const auto& [edit, what] : cases) {
    ModelFolder folder;
    folder.edit_tokenizer(edit);
    check_error(folder, "tokenizer.json", what);
  }
}

TEST_CASE("malformed files give errors that name them") {
  ModelFolder folder;
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("null"),
        std::string("{\"a\": \"\xff\"}"), std::string(1 << 20, '['), std::string(1000, '\0')}) {
    folder.write("tokenizer.json", text);
    check_error(folder, "tokenizer.json", "");
    CHECK(!error_of(folder).empty());
  }
  std::filesystem::remove(folder.path() / "tokenizer.json");
  check_error(folder, folder.path().string(), "neither tokenizer.json nor tokenizer.model nor vocab.json");
  std::filesystem::create_directory(folder.path() / "tokenizer.json");
  check_error(folder, "tokenizer.json", "not a regular file");
  CHECK_THROWS_AS(Tokenizer::load(folder.path() / "missing"), Error);
}

TEST_CASE("every cut of a good file loads or gives an error") {
  ModelFolder folder;
  std::ifstream file(tiny_model() / "tokenizer.json");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  for (size_t length = 0; length < text.size(); length += 997) {
    folder.write("tokenizer.json", text.substr(0, length));
    check_error(folder, "tokenizer.json", "");
    CHECK(!error_of(folder).empty());
  }
}

TEST_CASE("a folder of vocab.json and merges.txt is checked too") {
  ModelFolder folder({"vocab.json", "merges.txt"});
  CHECK(error_of(folder).empty());
  SUBCASE("merge") {
    folder.write("merges.txt", "#version: 0.2\nh e\nnospace\n");
    check_error(folder, "merges.txt", "nospace");
  }
  SUBCASE("no merges") {
    std::filesystem::remove(folder.path() / "merges.txt");
    check_error(folder, "merges.txt", "no such file");
  }
  SUBCASE("no vocabulary") {
    folder.write("vocab.json", "{}");
    check_error(folder, "merges.txt", "no token of the vocabulary");
  }
  SUBCASE("another tokenizer") {
    folder.write("tokenizer_config.json", R"({"tokenizer_class": "GPT2Tokenizer"})");
    check_error(folder, "tokenizer_config.json", "GPT2Tokenizer");
  }
  SUBCASE("CLIP's, but of words without ends") {
    folder.write("tokenizer_config.json", R"({"tokenizer_class": "CLIPTokenizer"})");
    check_error(folder, "vocab.json", "no token for the byte 0 at the end of a word");
  }
  SUBCASE("bad id") {
    for (const char* id : {"", "x", "-1", "99999999999999999999"}) {
      folder.write("tokenizer_config.json",
                   json{{"added_tokens_decoder", {{id, {{"content", "<a>"}}}}}}.dump());
      check_error(folder, "tokenizer_config.json", "is no token id");
    }
    folder.write("tokenizer_config.json", R"({"added_tokens_decoder": {"99999999": {"content": "<a>"}}})");
    check_error(folder, folder.path().string(), "99999999");
  }
}

TEST_CASE("a hostile pattern ends with an error") {
  ModelFolder folder;
  folder.edit_tokenizer([](json& root) {
    root["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(?:a+)+b|(?:(?:x+x+)+y)*z";
  });
  const auto tokenizer = Tokenizer::load(folder.path());
  CHECK_THROWS_AS(tokenizer->encode(std::string(64, 'x')), Error);
  CHECK(tokenizer->decode(tokenizer->encode("aab--")) == "aab--");
}

TEST_CASE("patterns with empty and missing matches keep all of the text") {
  for (const char* pattern : {"x*", "", "(?=a)", "a\\Kb", "q"}) {
    ModelFolder folder;
    folder.edit_tokenizer(
        [&](json& root) { root["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern; });
    const auto tokenizer = Tokenizer::load(folder.path());
    for (const std::string text : {"", "x", "axxb\u00e9ab", "\u00e9", "qq"})
      CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  }
}

}  // namespace
