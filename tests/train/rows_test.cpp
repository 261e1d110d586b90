#include "glimpse/train/rows.h"

#include <algorithm>
#include <numeric>

#include "builtin.h"
#include "io/scratch.h"

using namespace glimpse;
using glimpse::test::error_of;
using glimpse::test::Scratch;
using nlohmann::json;

namespace {

json good_row() {
  return {{"question", "What?"},
          {"answer", "A."},
          {"image", "a.jpg"},
          {"dataset", "gqa"},
          {"width", 40},
          {"height", 30},
          {"bboxs", {{-2, 3, 10, 31.5}}}};
}

json with(const char* key, const json& value) {
  json row = good_row();
  row[key] = value;
  return row;
}

/// A folder with the picture of good_row() and files of rows.
struct Folder : Scratch {
  Folder() { write("cot/gqa/a.jpg", "x"); }
  std::filesystem::path rows(const std::vector<json>& all) const {
    std::string text;
    for (const json& row : all) text += (row.is_string() ? row.get<std::string>() : row.dump()) + "\n";
    return write("rows.jsonl", text);
  }
  TrainRows read(const DataSource& source, double max_bad_share = 0.01) const {
    return read_train_rows({source},
                           {.image_root = (*this / "").string(), .seed = 42, .max_bad_share = max_bad_share});
  }
};

}  // namespace

TEST_CASE("the built-in set reads as it is written") {
  const auto all =
      read_train_rows({{test::tiny_dir() / "test/rows.jsonl"}}, {.image_root = test::tiny_dir() / "test"});
  const std::vector<json> rows = test::tiny_rows("rows.jsonl");
  CHECK(all.problems.empty());
  REQUIRE(all.rows.size() == rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const TrainRow& row = all.rows[i];
    CHECK(json{row.question, row.answer, row.dataset, row.image, row.boxes, row.width, row.height} ==
          json{rows[i]["question"], rows[i]["answer"], rows[i]["dataset"], rows[i]["image"], rows[i]["bboxs"],
               rows[i]["width"], rows[i]["height"]});
    CHECK(row.path == test::tiny_dir() / "test/cot" / row.dataset / row.image);
    CHECK(row.line == i + 1);
    CHECK(row.file == (test::tiny_dir() / "test/rows.jsonl").string());
  }
  const auto exist = read_train_rows({{test::tiny_dir() / "test/rows.jsonl", "exist"}},
                                     {.image_root = test::tiny_dir() / "test"});
  const auto of_set = [](const TrainRow& row) { return row.dataset == "exist"; };
  CHECK(std::all_of(exist.rows.begin(), exist.rows.end(), of_set));
  CHECK(std::ssize(exist.rows) == std::count_if(all.rows.begin(), all.rows.end(), of_set));
}

TEST_CASE("images lie below cot/<dataset> or directly below the root") {
  const Folder folder;
  CHECK(folder.read({folder.rows({good_row()})}).rows[0].path == folder / "cot/gqa/a.jpg");
  folder.write("b.jpg", "x");
  const auto rows = folder.rows({with("image", {"b.jpg"})});
  CHECK(folder.read({rows}).rows[0].path == folder / "b.jpg");
}

TEST_CASE("broken rows are told by file and line") {
  const Folder folder;
  const double largest = 1e308;
  const std::vector<std::pair<json, std::string>> broken = {
      {"{\"question\":", "not valid JSON"},
      {"[1]", "expected a JSON object"},
      {with("question", 3), "\"question\" is missing or no text"},
      {with("answer", nullptr), "\"answer\" is missing or no text"},
      {with("answer", ""), "the question or the answer is empty"},
      {with("dataset", 1), "\"dataset\" is missing or no text"},
      {with("image", nullptr), "expected one \"image\", got 0"},
      {with("image", {"a.jpg", "a.jpg"}), "expected one \"image\", got 2"},
      {with("image", 7), "\"image\" must be a file name"},
      {with("video", "a.mp4"), "an \"image\" and a \"video\""},
      {with("image", ""), "image not found"},
      {with("image", "none.jpg"), "image not found; looked at"},
      {with("image", std::string(5000, 'x')), "image not found; looked at"},
      {with("width", 0), "\"width\" is 0, expected 1 to"},
      {with("width", 1e9), "\"width\" is missing or no whole number"},
      {with("height", uint64_t{1} << 63), "\"height\" is 9223372036854775808"},
      {with("bboxs", nullptr), "\"bboxs\" is missing or empty"},
      {with("bboxs", json::array()), "\"bboxs\" is missing or empty"},
      {with("bboxs", {{1, 2, 3}}), "a box has 3 numbers"},
      {with("bboxs", {{"1", 2, 3, 4}}), "must be a list of"},
      {with("bboxs", {{10, 0, 10, 5}}), "box [10, 0, 10, 5] is empty or inverted"},
      {with("bboxs", {{0, 5, 10, 4}}), "is empty or inverted"},
      {with("bboxs", {{40, 0, 50, 5}}), "lies outside the picture of 40 x 30"},
      {with("bboxs", {{largest, 0, 2 * largest, 5}}), "must be a list of"},  // infinity is written as null
      {"{\"question\": \"a\", \"bboxs\": [[1e999]]}", "not valid JSON"},
      {concat("{\"question\": ", std::string(100000, '[')), "not valid JSON"},
  };
  std::vector<json> rows = {good_row()};
  for (const auto& [row, what] : broken) rows.push_back(row);
  const auto file = folder.rows(rows);
  const TrainRows read = folder.read({file}, 1);
  CHECK(read.rows.size() == 1);
  CHECK(read.rows[0].boxes[0].y2 == 31.5);  // what reaches over the edge stays for the mask to clip
  REQUIRE(read.problems.size() == broken.size());
  for (size_t i = 0; i < broken.size(); ++i) {
    // Missing pictures are looked for after the whole file was read.
    const std::string where = concat(file.string(), ":", i + 2, ": ");
    const auto problem =
        std::find_if(read.problems.begin(), read.problems.end(), [&](const std::string& text) {
          return text.starts_with(where) && text.find(broken[i].second) != std::string::npos;
        });
    CHECK_MESSAGE(problem != read.problems.end(), where, broken[i].second);
  }
}

TEST_CASE("a row about a video needs no size, nor boxes with seconds") {
  const Folder folder;
  folder.write("cot/gqa/clip.mp4", "x");
  json row = good_row();
  for (const char* key : {"image", "width", "height"}) row.erase(key);
  row["video"] = "clip.mp4";
  json timed = row, narrow = row, outside = row;
  timed["bboxs"] = {{0, 0, 5, 5, 1, 2}};
  narrow["width"] = 40;
  outside.update({{"width", 4}, {"height", 3}, {"bboxs", {{5, 0, 6, 2}}}});
  const TrainRows read = folder.read({folder.rows({row, timed, narrow, outside})}, 1);
  REQUIRE(read.rows.size() == 2);
  for (const TrainRow& each : read.rows) {
    CHECK(each.video);
    CHECK(each.path == folder / "cot/gqa/clip.mp4");
    CHECK(each.width == 0);
  }
  CHECK((read.rows[1].boxes == std::vector<Box>{{0, 0, 5, 5, 1, 2}}));
  REQUIRE(read.problems.size() == 2);
  CHECK(read.problems[0].find("\"height\" is missing") != std::string::npos);
  CHECK(read.problems[1].find("lies outside the picture of 4 x 3") != std::string::npos);
}

TEST_CASE("a share of broken rows is allowed") {
  const Folder folder;
  std::vector<json> rows(99, good_row());
  rows.push_back("{");
  CHECK(folder.read({folder.rows(rows)}).problems.size() == 1);
  rows.push_back("{");
  const std::string error = error_of([&] { folder.read({folder.rows(rows)}); });
  CHECK(error.find("2 of 101 rows are broken, more than max_bad_share 0.01 allows") == 0);
  CHECK(error.find("rows.jsonl:100: not valid JSON") != std::string::npos);
  CHECK(error.find("rows.jsonl:101: not valid JSON") != std::string::npos);
  const std::vector<json> many(20, "{");
  CHECK(std::ranges::count(error_of([&] { folder.read({folder.rows(many)}); }), '\n') == 6);
  CHECK(error_of([&] { folder.read({folder.rows(many)}, 1); }).find("no rows") != std::string::npos);
  const auto missing = folder.rows({with("image", "none.jpg")});
  CHECK(error_of([&] { folder.read({missing}); }).find("1 of 1 rows") == 0);
  CHECK(error_of([&] { folder.read({missing}, 1); }).find("no row's image") != std::string::npos);
  CHECK(error_of([&] { folder.read({folder / "nothing.jsonl"}); }).find("no such file") == 0);
  CHECK(error_of([&] {
          folder.read({folder.rows({good_row()}), "vsr"});
        }).find("of the set vsr") != std::string::npos);
  CHECK(error_of([] { read_train_rows({}, {}); }) == "no data to train on");
}

TEST_CASE("drawn rows are those of any machine, in the file's order") {
  // From another implementation of the generator and of the documented shuffle.
  CHECK(sample_rows(1000, 8, 42) == std::vector<size_t>{58, 249, 406, 478, 505, 780, 897, 958});
  CHECK(sample_rows(3, 9, 42) == std::vector<size_t>{0, 1, 2});
  CHECK(sample_rows(0, 9, 42).empty());

  const Folder folder;
  std::vector<json> rows;
  for (int i = 0; i < 1000; ++i) rows.push_back(with("question", std::to_string(i)));
  // What other sets the file holds and which pictures there are does not matter.
  for (int i = 0; i < 500; i += 2) rows.insert(rows.begin() + 2 * i, with("dataset", "vsr"));
  std::vector<std::string> questions;
  for (const TrainRow& row : folder.read({folder.rows(rows), "gqa", 8}).rows)
    questions.push_back(row.question);
  CHECK(questions == std::vector<std::string>{"58", "249", "406", "478", "505", "780", "897", "958"});
}

TEST_CASE("an epoch's order is a shuffle of its own") {
  CHECK(epoch_order(10, 42, 0) == std::vector<size_t>{2, 5, 6, 7, 0, 8, 3, 9, 4, 1});
  CHECK(epoch_order(10, 42, 1) == std::vector<size_t>{6, 0, 2, 4, 1, 5, 3, 8, 9, 7});
  CHECK(epoch_order(10, (uint64_t{1} << 32) + 7, 0) == std::vector<size_t>{7, 5, 4, 0, 8, 9, 3, 6, 1, 2});
  CHECK(epoch_order(0, 42, 0).empty());
  std::vector<size_t> order = epoch_order(20000, 42, 3);
  std::sort(order.begin(), order.end());
  for (size_t i = 0; i < order.size(); ++i) REQUIRE(order[i] == i);
}
