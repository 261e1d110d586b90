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

std::unique_ptr<ChatFormat> format_of(const json& chat) {
  const std::string name = chat["format"];
  if (name == "vicuna") return std::make_unique<VicunaChat>(-200);
  if (name == "llava_v1") return std::make_unique<VicunaChat>(-200, "human");
  if (name == "mistral") return std::make_unique<MistralChat>(-200);
  if (name == "mistral_hf") return std::make_unique<MistralChat>();
  if (name == "llava_hf") return std::make_unique<LlavaHfChat>();
  return std::make_unique<QwenChat>();
}

// Whether all bytes of the text were characters; how many replacements stand for others is a matter of taste.
bool is_whole(const std::string& text) {
  return text.find("\uFFFD") == std::string::npos;
}

void compare_texts(const Tokenizer& tokenizer, const json& set) {
  CHECK(set["texts"].size() > 900);
  for (const json& entry : set["texts"]) {
    const std::string text = entry["text"];
    CAPTURE(text);
    CHECK(tokenizer.encode(text) == entry["ids"].get<Ids>());
  }
}

TEST_CASE("ids and texts equal those of transformers") {
  for (const json& set : sets()) {
    const std::string folder = set["folder"];
    CAPTURE(folder);
    const auto tokenizer = Tokenizer::load(folder);
    CHECK(tokenizer->size() == set["size"]);
    compare_texts(*tokenizer, set);
    const bool byte_tokens = tokenizer->token_id("<0x0A>").has_value();
    for (const json& entry : set["decoded"]) {
      const Ids ids = entry["ids"];
      CAPTURE(ids);
      if (byte_tokens && !is_whole(entry["text"])) continue;
      CHECK(tokenizer->decode(ids, false) == entry["text"]);
      CHECK(tokenizer->decode(ids, true) == entry["shown"]);
      StreamDecoder stream(*tokenizer);
      std::string shown;
      for (const int64_t id : ids) shown += stream.push(id);
      CHECK(shown + stream.flush() == entry["shown"]);
    }
  }
}

TEST_CASE("other files of the same tokenizer give the same ids") {
  int twins = 0;
  for (const json& set : sets())
    for (const std::string folder : set["twins"]) {
      const auto tokenizer = Tokenizer::load(folder);
      compare_texts(*tokenizer, set);
      for (const json& entry : set["chats"])
        if (entry["format"] == "vicuna") {
          const auto messages = messages_of(entry["messages"]);
          CHECK(encode_chat(*tokenizer, messages, entry["generation"], VicunaChat(-200)) ==
                entry["ids"].get<Ids>());
        }
      ++twins;
    }
  CHECK(twins == 2);
}

TEST_CASE("conversations equal those of transformers") {
  for (const json& set : sets()) {
    const auto tokenizer = Tokenizer::load(set["folder"].get<std::string>());
    CHECK((set["chats"].empty() || set["chats"].size() > 60));  // CLIP has none
    for (const json& entry : set["chats"]) {
      const auto messages = messages_of(entry["messages"]);
      const bool generation = entry["generation"];
      const auto format = format_of(entry);
      CHECK(format->render(messages, generation) == entry["prompt"]);
      CHECK(encode_chat(*tokenizer, messages, generation, *format) == entry["ids"].get<Ids>());
    }
  }
}

void check_vectors(const std::filesystem::path& folder) {
  const auto tokenizer = Tokenizer::load(folder);
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

TEST_CASE("the published vectors of Qwen2's and LLaMA's vocabularies") {
  int found = 0;
  for (const json& set : sets()) {
    std::vector<std::string> folders = set["twins"];
    folders.push_back(set["folder"]);
    for (const std::filesystem::path folder : folders) {
      // The newer form of the tokenizer.json puts no second space before a text, other than the vectors.
      if (!std::filesystem::exists(folder / "vectors.inp") || folder.filename() == "llama_metaspace")
        continue;
      CAPTURE(folder.string());
      check_vectors(folder);
      ++found;
    }
  }
  CHECK_MESSAGE(found == 3, "folders with vectors.inp among the cases");
}

}  // namespace
