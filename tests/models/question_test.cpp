// Which rows of a prompt hold the question.
#include "builtin.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using Ids = std::vector<int64_t>;

namespace {

const Part kImage{Part::Kind::image, ""};

Part words(std::string text) {
  return {Part::Kind::text, std::move(text)};
}

// The ids of those rows.
Ids asked(const std::vector<Message>& messages) {
  static const Medium image = test::row_request(2).media[0];
  int64_t images = 0;
  for (const Message& message : messages)
    images += std::ranges::count(message.parts, Part::Kind::image, &Part::kind);
  const Prompt prompt =
      test::tiny_engine().model().prompt(messages, std::vector<Medium>(images, image), {.max_pixels = 20000});
  Ids text, out;
  for (int64_t row = 0; row < std::ssize(prompt.ids); ++row)
    if (!std::ranges::binary_search(prompt.visual_rows, row)) text.push_back(prompt.ids[row]);
  for (const int64_t row : prompt.question_rows) out.push_back(text.at(row));
  return out;
}

Ids encoded(const char* text) {
  return test::tiny_engine().model().tokenizer().encode(text);
}

}  // namespace

TEST_CASE("the question's rows, wherever its image stands") {
  const char* const text = "What letter is on the red square?";
  const Part question = words(text);
  const Message answer{"assistant", {words("A dog.")}};
  for (const std::vector<Message>& talk :
       {std::vector<Message>{{"user", {kImage, question}}},
        {{"user", {question, kImage}}},
        {{"user", {kImage, question, kImage}}},
        {{"system", {words("Be brief.")}}, {"user", {question, kImage}}},
        {{"user", {kImage, words("What is it?")}}, answer, {"user", {question}}},
        {{"user", {kImage}}, answer, {"user", {question}}},
        {{"user", {question}}}})
    CHECK(asked(talk) == encoded(text));
  Ids both = encoded("Look");
  for (const int64_t id : encoded(" here")) both.push_back(id);
  CHECK(asked({{"user", {words("Look"), kImage, words(" here")}}}) == both);
}

TEST_CASE("the line that asks for a short answer is not the question's") {
  const Ids ids = asked(
      {{"user", {kImage, words("Why is it red?\nAnswer the question using a single word or phrase.")}}});
  CHECK(ids.size() == encoded("Why is it red?").size());
  CHECK(Ids(ids.begin(), ids.end() - 1) == encoded("Why is it red"));  // "?\n" is one token
}

TEST_CASE("without a question: what follows the image, else all text") {
  CHECK(asked({{"user", {kImage}}}).size() > 1);
  const Vlm& model = test::tiny_engine().model();
  const Prompt prompt =
      model.prompt({{"user", {words("Where?"), kImage}}}, {test::row_request(2).media[0]}, {});
  const Ids bare(prompt.ids.begin(), prompt.ids.begin() + prompt.visual_rows.back() + 1);
  const Prompt from_ids = model.prompt(bare, prompt.patches);
  CHECK(from_ids.question_rows.size() == bare.size() - prompt.visual_rows.size());
}
