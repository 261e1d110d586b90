// Lines of JSON as people's tools write them, and which pictures a row names.
#include "glimpse/io/rows.h"

#include "io/scratch.h"

using namespace glimpse;
using glimpse::test::check_mentions;
using glimpse::test::error_of;
using glimpse::test::Scratch;
using nlohmann::json;

TEST_CASE("what Python's json module writes beyond JSON") {
  CHECK(parse_json_line(R"({"a": NaN, "b": [Infinity, -Infinity], "c": "NaN, \"Infinity"})") ==
        json({{"a", nullptr}, {"b", {nullptr, nullptr}}, {"c", "NaN, \"Infinity"}}));
  // Whole numbers beyond 64 bits keep their digits; all others are numbers as before.
  const std::string digits = "123456789012345678901234567890";
  CHECK(parse_json_line("[" + digits + ", -" + digits + "]") == json({digits, "-" + digits}));
  CHECK(parse_json_line("[18446744073709551615, -9223372036854775808, 1e30, 0.5, -0, 1E-3, true]") ==
        json({18446744073709551615u, INT64_MIN, 1e30, 0.5, 0, 1e-3, true}));
  CHECK(parse_json_line("{\"" + digits + "\": \"" + digits + "\"}") == json({{digits, digits}}));
  // What is no JSON to Python either is still none, and is told by its column.
  for (const char* bad : {"NaNs", "-NaN", "nan", "Infinity2", "{\"a\": 01}", "\"", "\"\\", "[1", "", "+1"})
    check_mentions(error_of([&] { parse_json_line(bad); }), "not valid JSON: ");
  const std::string lone = error_of([] { parse_json_line(R"({"question": "\ud83d"})"); });
  check_mentions(lone, "column 21");
  check_mentions(lone, "surrogate");
  CHECK(error_of([] { parse_json_line('"' + std::string(100000, 'x')); }).size() < 250);
}

TEST_CASE("a byte order mark and blank lines are no rows") {
  const Scratch scratch;
  const auto lines = [&](const std::string& text) {
    std::vector<std::pair<size_t, std::string>> seen;
    visit_lines(scratch.write("rows", text), [&](const std::string& line, size_t number) {
      seen.emplace_back(number, line);
      return true;
    });
    return seen;
  };
  using Lines = std::vector<std::pair<size_t, std::string>>;
  CHECK(lines("\xEF\xBB\xBF\n{}\n") == Lines{{2, "{}"}});
  CHECK(lines("\xEF\xBB\xBF{}\n\r\n[]") == Lines{{1, "{}"}, {3, "[]"}});
}

TEST_CASE("every picture that a row names is read, or the row is refused") {
  const auto images = [](json row) {
    row["question"] = "What is in photo.png?";
    return parse_question_row(row.dump()).images;
  };
  using Names = std::vector<std::string>;
  CHECK(images({{"image", "a.jpg"}}) == Names{"a.jpg"});
  CHECK(images({{"images", {"a.jpg", "b"}}}) == Names{"a.jpg", "b"});
  CHECK(images({{"images", "a.jpg"}, {"image", "a.jpg"}}) == Names{"a.jpg"});
  CHECK(images({{"images", json::array()}, {"image", "a.jpg"}}) == Names{"a.jpg"});
  CHECK(images({{"image", "a.jpg"}, {"thumbnail", "b.jpg"}}) == Names{"a.jpg"});
  for (const json& none :
       {json{{"id", "a.jpg"}, {"answer", "b.jpg"}}, json{{"image", nullptr}, {"path", "a.jpg"}},
        json{{"images", json::array()}, {"path", "a.jpg"}}, json{{"source", "a.txt"}, {"image_id", 7}}})
    CHECK(images(none).empty());
  const auto problem = [&](const json& row) { return error_of([&] { images(row); }); };
  check_mentions(problem({{"image", "a.jpg"}, {"images", {"b.jpg"}}}), "name different pictures");
  check_mentions(problem({{"image_path", "x/a.JPEG"}}), "\"image_path\" names a picture");
  check_mentions(problem({{"pictures", {"a.png"}}}), "\"pictures\" names a picture");
  check_mentions(problem({{"images", {{{"path", "a.png"}}}}}), "\"images\" must be a file name");
}

TEST_CASE("videos, and boxes with the seconds that they are there") {
  const auto parsed = [](json row) {
    row["question"] = "What?";
    return parse_question_row(row.dump());
  };
  using Names = std::vector<std::string>;
  CHECK(parsed({{"video", "a.mp4"}}).videos == Names{"a.mp4"});
  CHECK(parsed({{"videos", {"a", "b.mkv"}}, {"image", "c.png"}}).videos == Names{"a", "b.mkv"});
  const std::vector<Box> boxes =
      parsed({{"video", "a.mp4"}, {"bboxs", {{1, 2, 3, 4}, {1, 2, 3, 4, 0.5, 2}}}}).boxes;
  CHECK((boxes == std::vector<Box>{{1, 2, 3, 4}, {1, 2, 3, 4, 0.5, 2}}));
  CHECK(json(boxes) == json({{1, 2, 3, 4}, {1, 2, 3, 4, 0.5, 2}}));

  const auto problem = [&](const json& row) { return error_of([&] { parsed(row); }); };
  check_mentions(problem({{"video", "a.mp4"}, {"videos", "b.mp4"}}), "name different videos");
  check_mentions(problem({{"video", {1}}}), "\"video\" must be a file name");
  check_mentions(problem({{"clip", "x/a.MP4"}}),
                 "\"clip\" names a video, but videos are read from \"video\"");
  const auto box = [&](const json& one) { return problem({{"video", "a.mp4"}, {"bboxs", {one}}}); };
  check_mentions(box({1, 2, 3, 4, 5}), "a box has 5 numbers, expected 4, or 6");
  check_mentions(box({1, 2, 3, 4, 2, 1}), "up to a second before");
  check_mentions(box({1, 2, 3, 4, "0", 1}), "must be a list of numbers");
  const json timed = {{1, 2, 3, 4, 0, 1}};
  check_mentions(problem({{"image", "a.png"}, {"bboxs", timed}}), "has seconds, but");
  check_mentions(problem({{"image", "a.png"}, {"video", "a.mp4"}, {"bboxs", timed}}), "has seconds, but");

  const Scratch scratch;
  scratch.write("cot/set/frames/1.png", "x");
  CHECK(find_video(scratch / "", "set", "frames") == scratch / "cot/set/frames");
  check_mentions(error_of([&] { find_image(scratch / "", "set", "frames"); }), "image not found");
  check_mentions(error_of([&] { find_video(scratch / "", "set", "clip.mp4"); }),
                 "video not found; looked at");
}

TEST_CASE("a name with a NUL is not cut at it") {
  const Scratch scratch;
  scratch.write("cot/gqa/a.jpg", "x");
  using namespace std::string_literals;
  for (const auto& [set, name] :
       {std::pair{"gqa"s, "a.jpg\0.png"s}, {""s, "cot/gqa/a.jpg\0"s}, {"gqa\0x"s, "a.jpg"s}})
    check_mentions(error_of([&] { find_image(scratch / "", set, name); }), "image not found");
  CHECK(find_image(scratch / "", "gqa", "a.jpg") == scratch / "cot/gqa/a.jpg");
}
