// Compares with transformers: the cases come from text_cases.py, in the file that GLIMPSE_TEXT_CASES names.
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "glimpse/text/chat.h"

// doctest comes last: torch has macros of the same names.
#undef CHECK
#include <doctest/doctest.h>

namespace {

using namespace glimpse;
using nlohmann::json;
using Ids = std::vector<int64_t>;

json sets() {
  const char* path = std::getenv("GLIMPSE_TEXT_CASES");
  REQUIRE_MESSAGE(path != nullptr, "GLIMPSE_TEXT_CASES must name the file that text_cases.py wrote");
  std::ifstream file(path);
  REQUIRE_MESSAGE(file.good(), "cannot read ", path);
  return json::parse(file);
}

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file.good(), "cannot read ", path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<Message> messages_of(const json& list) {
  std::vector<Message> messages;
  for (const json& entry : list) {
    Message& message = messages.emplace_back(Message{entry[0], {}});
    for (const json& part : entry[1]) {
      if (part.is_null())
        message.parts.push_back({Part::Kind::image, ""});
      else
        message.parts.push_back({Part::Kind::text, part});
    }
  }
  return messages;
}

TEST_CASE("ids and texts equal those of transformers") {
  for (const json& set : sets()) {
    const std::string folder = set["folder"];
    CAPTURE(folder);
    const auto tokenizer = Tokenizer::load(folder);
    CHECK(tokenizer->size() == set["size"]);
    CHECK(set["texts"].size() > 900);
    for (const json& entry : set["texts"]) {
      const std::string text = entry["text"];
      CAPTURE(text);
      CHECK(tokenizer->encode(text) == entry["ids"].get<Ids>());
    }
    for (const json& entry : set["decoded"]) {
      const Ids ids = entry["ids"];
      CHECK(tokenizer->decode(ids, false) == entry["text"]);
      CHECK(tokenizer->decode(ids, true) == entry["shown"]);
      StreamDecoder stream(*tokenizer);
      std::string shown;
      for (const int64_t id : ids) shown += stream.push(id);
      CHECK(shown + stream.flush() == entry["shown"]);
    }
  }
}

TEST_CASE("conversations equal those of transformers") {
  for (const json& set : sets()) {
    const auto tokenizer = Tokenizer::load(set["folder"].get<std::string>());
    CHECK(set["chats"].size() > 100);
    for (const json& entry : set["chats"]) {
      const auto messages = messages_of(entry["messages"]);
      const bool generation = entry["generation"];
      const QwenChat format(entry["vision_id"]);
      CHECK(format.render(messages, generation) == entry["prompt"]);
      CHECK(encode_chat(*tokenizer, messages, generation, format) == entry["ids"].get<Ids>());
    }
  }
}

TEST_CASE("the published vectors of Qwen2's vocabulary") {
  bool found = false;
  for (const json& set : sets()) {
    const std::filesystem::path folder = set["folder"];
    if (!std::filesystem::exists(folder / "vectors.inp")) continue;
    found = true;
    const auto tokenizer = Tokenizer::load(folder);
    CHECK(tokenizer->size() == 151657);
    CHECK(tokenizer->token_id("<|image_pad|>") == 151655);

    const std::string separator = "\n__ggml_vocab_test__\n";
    std::string inputs = read(folder / "vectors.inp");
    std::istringstream outputs(read(folder / "vectors.out"));
    int count = 0;
    for (std::string line; std::getline(outputs, line); ++count) {
      std::istringstream numbers(line);
      const Ids expected{std::istream_iterator<int64_t>(numbers), {}};
      const std::string text = inputs.substr(0, inputs.find(separator));
      inputs.erase(0, text.size() + separator.size());
      CAPTURE(text);
      CHECK(tokenizer->encode(text) == expected);
    }
    CHECK(count > 40);
    CHECK(inputs.empty());
  }
  CHECK_MESSAGE(found, "no folder with vectors.inp among the cases");
}

}  // namespace
