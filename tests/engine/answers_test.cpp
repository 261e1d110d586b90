// The recorded answers of the built-in model: transformers' without pruning, the method step by step with it.
#include "builtin.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;

namespace {

void check_recorded(const Engine& engine, const std::string& file) {
  const auto answers = test::tiny_rows(file);
  REQUIRE(answers.size() >= 40);
  int different = 0;
  for (int row = 0; row < 40; ++row) {
    const auto& expected = answers[row];
    const std::vector<Request> requests = {test::row_request(row, "none"), test::row_request(row)};
    const std::vector<Answer> got = engine.ask(std::span(requests));
    const auto keep = expected["keep"].get<std::vector<int64_t>>();
    const bool same = got[0].text == expected["answer_full"] && got[1].text == expected["answer_pruned"] &&
                      got[1].keep[0] == keep && got[1].visual_tokens == expected["visual"];
    if (same) continue;
    ++different;
    MESSAGE("row " << row << ": full '" << got[0].text << "', pruned '" << got[1].text << "', kept "
                   << got[1].kept_tokens << "; recorded " << expected.dump());
  }
  CHECK(different == 0);
}

}  // namespace

TEST_CASE("the first 40 answers recorded with tools/tiny/evaluate.py") {
  check_recorded(test::tiny_engine(), "answers.jsonl");
}

TEST_CASE("the first 40 answers recorded with the public implementation, on the modules that came before") {
  const auto engine = Engine::load({.model = test::tiny_dir() / "model",
                                    .new_modules = {(test::tiny_dir() / "new_modules_reference").string()},
                                    .dtype = "fp32",
                                    .device = test::device_name()});
  check_recorded(*engine, "answers_reference.jsonl");
}
