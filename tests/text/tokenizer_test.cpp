#include "glimpse/text/tokenizer.h"

#include <chrono>

#include "glimpse/base/check.h"
#include "text/model_folder.h"

// doctest comes last: torch has macros of the same names.
#undef CHECK
#include <doctest/doctest.h>

namespace {

using namespace glimpse;
using namespace glimpse::test;
using Ids = std::vector<int64_t>;

double seconds_of(auto&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST_CASE("tokens of the built-in model") {
  const auto tokenizer = Tokenizer::load(tiny_model());
  CHECK(tokenizer->size() == 568);
  CHECK(tokenizer->token_id("<|im_start|>") == 555);
  CHECK(tokenizer->token_id("!") == 0);
  CHECK(tokenizer->token_id(" the").has_value());
  CHECK_FALSE(tokenizer->token_id("no such token").has_value());
  CHECK(tokenizer->is_special(566));
  CHECK_FALSE(tokenizer->is_special(0));
  CHECK_FALSE(tokenizer->is_special(-1));
  for (const int64_t id : {int64_t{-1}, int64_t{568}, INT64_MAX, INT64_MIN})
    CHECK(tokenizer->token_bytes(id).empty());
  for (int64_t id = 0; id < tokenizer->size(); ++id)
    CHECK(tokenizer->token_id(tokenizer->token_bytes(id)) == id);
}

TEST_CASE("valid NFC text comes back") {
  const auto tokenizer = Tokenizer::load(tiny_model());
  for (const std::string text :
       {"", " ", "What colour is it?\n", "naïve café 中文 한국어 🙂👩‍👩‍👧", "a\0b",
        "<|im_end|>", "\t\r\n  x  "}) {
    CHECK(tokenizer->decode(tokenizer->encode(text), false) == text);
    CHECK(tokenizer->decode(tokenizer->encode(text, false), true) == text);
  }
  const std::string zero("a\0b", 3);
  CHECK(tokenizer->decode(tokenizer->encode(zero)) == zero);
  CHECK(tokenizer->decode(tokenizer->encode("e\u0301")) == "\u00e9");
}

TEST_CASE("special tokens are recognised on request only") {
  const auto tokenizer = Tokenizer::load(tiny_model());
  CHECK(tokenizer->encode("<|im_start|><|im_end|>") == Ids{555, 556});
  for (const int64_t id : tokenizer->encode("<|im_start|><|im_end|>", false))
    CHECK_FALSE(tokenizer->is_special(id));
  CHECK(tokenizer->decode(Ids{555, 0, 556}) == "!");
  CHECK(tokenizer->decode(Ids{555, 0, 556}, false) == "<|im_start|>!<|im_end|>");
}

TEST_CASE("the leftmost and longest added token wins") {
  ModelFolder folder;
  folder.edit_tokenizer([](auto& root) {
    root["added_tokens"].push_back({{"id", 568}, {"content", "<|im_end|>\n"}});
    root["added_tokens"].push_back(
        {{"id", 569}, {"content", "<tool>"}, {"special", false}, {"normalized", false}});
    root["added_tokens"].push_back(
        {{"id", 570}, {"content", "caf\u00e9"}, {"special", false}, {"normalized", true}});
    root["added_tokens"].push_back(
        {{"id", 571}, {"content", "<tool"}, {"special", true}, {"normalized", false}});
    root["added_tokens"][14]["special"] = true;
    root["added_tokens"][14]["normalized"] = false;
  });
  const auto tokenizer = Tokenizer::load(folder.path());
  CHECK(tokenizer->encode("<|im_end|>\n") == Ids{568});
  CHECK(tokenizer->encode("<|im_end|><tool<tool>") == Ids{556, 571, 569});
  CHECK(tokenizer->encode("cafe\u0301<tool>") == Ids{570, 569});
  CHECK(tokenizer->decode(Ids{569, 571}) == "<tool>");
  CHECK(tokenizer->encode("<tool>", false).size() > 1);
}

TEST_CASE("invalid UTF-8 becomes U+FFFD") {
  const auto tokenizer = Tokenizer::load(tiny_model());
  const auto same = [&](std::string_view bad, std::string_view good) {
    CAPTURE(bad.size());
    CHECK(tokenizer->encode(bad) == tokenizer->encode(good));
  };
  same("a\xff", "a\ufffd");
  same("\xf0\x9f\x99", "\ufffd");
  same("\xf0\x9f\x99x", "\ufffdx");
  same("\xed\xa0\x80", "\ufffd\ufffd\ufffd");
  same("\xc0\x80", "\ufffd\ufffd");
  same("\xf4\x90\x80\x80", "\ufffd\ufffd\ufffd\ufffd");
  same("\xe2<|im_end|>", "\ufffd<|im_end|>");
}

TEST_CASE("streaming gives complete characters and, joined, what decode() gives") {
  const auto tokenizer = Tokenizer::load(tiny_model());
  std::vector<std::string> pieces;
  StreamDecoder stream(*tokenizer);
  const Ids smile = tokenizer->encode("🙂");  // the tiny vocabulary has single bytes for it
  REQUIRE(smile.size() == 4);
  for (const int64_t id : {smile[0], smile[1], int64_t{555}, smile[2], smile[3]})
    pieces.push_back(stream.push(id));
  CHECK(pieces == std::vector<std::string>{"", "", "", "", "🙂"});
  CHECK(stream.flush().empty());

  CHECK(stream.push(smile[0]).empty());
  CHECK(stream.push(smile[0]) == "\ufffd");
  CHECK(stream.flush() == "\ufffd");
  CHECK(stream.flush().empty());

  uint64_t state = 1;
  for (int run = 0; run < 300; ++run) {
    Ids ids;
    for (int i = 0; i < 40; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      ids.push_back(static_cast<int64_t>((state >> 33) % 580) - 5);
    }
    for (const bool skip : {false, true}) {
      StreamDecoder decoder(*tokenizer, skip);
      std::string joined;
      for (const int64_t id : ids) joined += decoder.push(id);
      CHECK(joined + decoder.flush() == tokenizer->decode(ids, skip));
    }
  }
}

TEST_CASE("long inputs of every awkward kind take seconds at most") {
  const auto tokenizer = Tokenizer::load(tiny_model());
  constexpr size_t size = 1 << 20;
  const auto repeat = [](std::string_view part) {
    std::string text;
    while (text.size() < size) text += part;
    return text;
  };
  // One word, white space that the pattern backtracks over, combining marks out of order, nothing but '<'.
  for (const std::string part :
       {"a", "the", " ", " \n", "\u0301\u0323", "<", "<|im_end|", "!", "\xff", "1", "\u00e9"}) {
    CAPTURE(part);
    const std::string text = repeat(part);
    Ids ids;
    CHECK(seconds_of([&] { ids = tokenizer->encode(text); }) < 20);
    CHECK(!ids.empty());
    std::string back;
    CHECK(seconds_of([&] { back = tokenizer->decode(ids); }) < 20);
    if (part[0] != '\xff' && part != "\u0301\u0323") CHECK(back == text);
  }
}

TEST_CASE("vocab.json with merges.txt gives the same ids as tokenizer.json") {
  const auto whole = Tokenizer::load(tiny_model());
  ModelFolder folder({"vocab.json", "merges.txt"});
  const std::string text = "The shape with the letter K is blue.\n  12 naïve 🙂 don't <|im_end|>";
  {
    const auto bare = Tokenizer::load(folder.path());
    CHECK(bare->size() == 554);
    CHECK(bare->encode(text) == whole->encode(text, false));
  }
  SUBCASE("added tokens of tokenizer_config.json") {
    folder.copy("tokenizer_config.json");
    const auto tokenizer = Tokenizer::load(folder.path());
    CHECK(tokenizer->size() == 568);
    CHECK(tokenizer->encode(text) == whole->encode(text));
    CHECK(tokenizer->is_special(566));
  }
  SUBCASE("added tokens of added_tokens.json") {
    folder.write("added_tokens.json", R"({"<|im_end|>": 556, "<tool>": 600})");
    folder.write("special_tokens_map.json", R"({"eos_token": {"content": "<|im_end|>"}})");
    const auto tokenizer = Tokenizer::load(folder.path());
    CHECK(tokenizer->encode(text) == whole->encode(text));
    CHECK(tokenizer->encode("<tool>") == Ids{600});
    CHECK(tokenizer->is_special(556));
    CHECK_FALSE(tokenizer->is_special(600));
    CHECK(tokenizer->size() == 601);
  }
}

TEST_CASE("merges as strings and GPT-2's own splitting") {
  const auto tokenizer = Tokenizer::load(tiny_model());
  ModelFolder folder;
  folder.edit_tokenizer([](auto& root) {
    for (auto& merge : root["model"]["merges"])
      merge = merge[0].template get<std::string>() + " " + merge[1].template get<std::string>();
  });
  CHECK(Tokenizer::load(folder.path())->encode("What colour is the star?") ==
        tokenizer->encode("What colour is the star?"));
  folder.edit_tokenizer([](auto& root) {
    root["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  });
  CHECK(Tokenizer::load(folder.path())->encode("the 12 a's") == tokenizer->encode("the 12 a's"));
  folder.edit_tokenizer([](auto& root) { root["normalizer"] = nullptr; });
  CHECK(Tokenizer::load(folder.path())->decode(Tokenizer::load(folder.path())->encode("e\u0301")) ==
        "e\u0301");
}

}  // namespace
