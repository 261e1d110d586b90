// Scores of answers: the reference's own results, the places where ours are better, and hostile text.
#include "glimpse/score/scores.h"

#include <map>

#include "golden_case.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using nlohmann::json;

namespace {

const json& golden(const char* part) {
  static const json all = read_json(test::golden_dir() / "misc/scores.json");
  return all[part];
}

// Texts that the reference reads wrongly, with our score. An error of the reference counts as 0 there.
const std::map<std::string, double> kJudgeDiffers = {
    {"score:0.7", 0.7},      {"score:  0.7", 0.7},  // exactly one space is no part of the contract
    {"score: 0.5.", 0.5},                           // the sentence's full stop raises an error there
    {"Score: <0.6>", 0.6},                          // the prompt's own notation
    {"score: 1e-3", 0.001},                         // reads as 1
    {"score\uff1a0.9", 0.9},                        // full-width colon
};
const std::map<std::string, bool> kChoiceDiffers = {
    {"the correct option is: (C)", true},  // reads the i of "is"
    {"It shows a dog", false},             // reads the article
    {"The answer cannot be seen", false},  // reads the c of "cannot"
};
struct BoxScores {
  double iou, format;
};
const std::map<std::string, BoxScores> kBoxDiffers = {
    {"[1.5, 2, 3, 4]", {0.75, 1}},          // decimals
    {"[ 1, 2, 3, 4]", {1, 1}},              // a space after the bracket
    {"[-5, 0, 10, 10]", {100.0 / 150, 1}},  // a sign
};

}  // namespace

TEST_CASE("judge's text") {
  size_t differing = 0;
  for (const json& row : golden("judge")) {
    const std::string text = row["text"];
    CAPTURE(text);
    const double reference = row["score"].is_number() ? row["score"].get<double>() : 0.0;
    const auto known = kJudgeDiffers.find(text);
    differing += known != kJudgeDiffers.end();
    CHECK(judge_score(text).value_or(0) == (known == kJudgeDiffers.end() ? reference : known->second));
    if (known != kJudgeDiffers.end()) CHECK(known->second != reference);
  }
  CHECK(differing == kJudgeDiffers.size());
}

TEST_CASE("judge's text: what is no score") {
  for (const char* text : {"", "score", "score:", "score: .", "score: -", "score: 1.2.3", "score: e5",
                           "score: nan", "score: inf", "score: 1e999", "score: 0.1 score: 0.1", "scores 0.5"})
    CHECK_MESSAGE(!judge_score(text), text);
  CHECK(judge_score("**Score:** 0.5") == 0.5);
  CHECK(judge_score("**Score**: [0.25]") == 0.25);
  CHECK(judge_score("scores matter; score: +1e+0.") == 1.0);
  CHECK(judge_score("score: -3") == 0.0);
}

TEST_CASE("single choice") {
  size_t differing = 0;
  for (const json& row : golden("single_choice")) {
    const std::string text = row["text"];
    CAPTURE(text);
    const auto known = kChoiceDiffers.find(text);
    differing += known != kChoiceDiffers.end();
    const bool reference = row["eval_score"].get<double>() > 0;
    CHECK(single_choice(text, row["answer"].get<std::string>()) ==
          (known == kChoiceDiffers.end() ? reference : known->second));
    if (known != kChoiceDiffers.end()) CHECK(known->second != reference);
  }
  CHECK(differing == kChoiceDiffers.size());
  CHECK(chosen_option("I think d") == 'd');
  CHECK(chosen_option("**Answer:** C.") == 'c');
  CHECK(chosen_option("'B'") == 'b');
  CHECK_FALSE(chosen_option("It's a dog"));
  CHECK_FALSE(chosen_option("I'd say so"));
  CHECK_FALSE(single_choice("", ""));
}

TEST_CASE("one box") {
  size_t differing = 0;
  for (const json& row : golden("one_box")) {
    const std::string text = row["text"];
    CAPTURE(text);
    const auto& corners = row["answer_box"];
    const Box answer{corners[0], corners[1], corners[2], corners[3]};
    BoxScores expected{row["iou"], row["format"]};
    if (const auto known = kBoxDiffers.find(text); known != kBoxDiffers.end()) {
      CHECK(expected.iou == 0);
      expected = known->second;
      ++differing;
    }
    const std::vector<Box> boxes = boxes_in(text);
    // The reference adds 1e-6 to the union.
    CHECK(std::abs((boxes.empty() ? 0.0 : box_iou(boxes[0], answer)) - expected.iou) < 1e-6);
    CHECK(one_box_score(text, answer) == (expected.iou > 0.5 ? 1.0 : 0.0));
    CHECK(one_box_format(text) == expected.format);
  }
  CHECK(differing == kBoxDiffers.size());
  for (const char* text :
       {"[", "[1,2,3]", "[1,2,3,4", "[1,2,3,4,5]", "[a,b,c,d]", "[1,2,,4]", "[nan,0,1,1]", "[1e999,0,1,1]"})
    CHECK_MESSAGE(boxes_in(text).empty(), text);
  CHECK(boxes_in("[[1,2,3,4],[5,6,7,8]]").size() == 2);
}

TEST_CASE("matching") {
  for (const json& row : golden("precision_match"))
    CHECK(precision_match(row["text"].get<std::string>(), row["answer"].get<std::string>()) ==
          (row["score"].get<double>() > 0));
  CHECK(precision_match("\u00a0\u00c9T\u00c9\n", "\u00e9t\u00e9"));
  CHECK(normal_form("The  U.S.A., it's Two-fold!") == "usa its 2 fold");
  CHECK(normal_form("1,000.50 dollars.") == "1000.50 dollars");
  CHECK(normal_match("dont", "Don't"));
  CHECK_FALSE(normal_match("cat", "cats"));
}

TEST_CASE("VQA accuracy is the mean over the people left out") {
  const auto accuracy = [](int equal) {
    std::vector<std::string> answers(10, "cat");
    std::fill(answers.begin(), answers.begin() + equal, "dog");
    return vqa_accuracy("A dog.", answers);
  };
  // Of the definition: equal answers 0, 1, 2, 3, 4 of ten give 0, 0.3, 0.6, 0.9, 1.
  for (int equal = 0; equal <= 10; ++equal)
    CHECK(accuracy(equal) == doctest::Approx(std::min(1.0, 0.3 * equal)));
  CHECK(vqa_accuracy("dog", std::vector<std::string>{"dog"}) == 1);
  // Of two or three people all must agree for 1.
  CHECK(vqa_accuracy("dog", std::vector<std::string>{"dog", "a dog"}) == 1);
  CHECK(vqa_accuracy("dog", std::vector<std::string>{"dog", "cat"}) == 0.5);
  CHECK(vqa_accuracy("dog", std::vector<std::string>{"dog", "dog", "dog"}) == 1);
  CHECK(vqa_accuracy("dog", std::vector<std::string>{"dog", "dog", "cat"}) == doctest::Approx(2.0 / 3));
  CHECK(vqa_accuracy("dog", std::vector<std::string>{"dog", "dog", "dog", "dog"}) == 1);
  CHECK(vqa_accuracy("dog", std::vector<std::string>{}) == 0);
}

TEST_CASE("ANLS") {
  const auto score = [](const char* text, std::vector<std::string> answers) { return anls(text, answers); };
  CHECK(score("Kitten", {"sitting", "kitten "}) == 1);
  CHECK(score("kitten", {"sitting"}) == doctest::Approx(1 - 3.0 / 7));
  CHECK(score("abcd", {"abxy"}) == 0);  // one half is not enough
  CHECK(score("\u00e4\u00f6\u00fc", {"\u00e4\u00f6u"}) ==
        doctest::Approx(2.0 / 3));                    // code points, not bytes
  CHECK(score(" New \t York\n", {"new york"}) == 1);  // as the official script joins words
  CHECK(score("", {""}) == 1);
  CHECK(score("x", {}) == 0);
}

TEST_CASE("hostile text is read in linear time") {
  const auto repeated = [](const std::string& part) {
    std::string text;
    while (text.size() < (1u << 20)) text += part;
    return text;
  };
  for (const char* part : {"score", "score: ", "score: 1", "score:1.", "[", "[1,", "[1,2,3,4", "answer ",
                           "answer is (", "(", "a ", " ", "1", "e", "-", "\xff", "\xf0\x9f", "."}) {
    const std::string text = repeated(part);
    judge_score(text);
    chosen_option(text);
    boxes_in(text);
    normal_form(text);
    CHECK(precision_match(text, text));
    CHECK(anls(text, std::vector<std::string>{"a"}) == 0);
  }
}
