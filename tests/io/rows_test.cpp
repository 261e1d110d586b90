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

TEST_CASE("a name with a NUL is not cut at it") {
  const Scratch scratch;
  scratch.write("cot/gqa/a.jpg", "x");
  using namespace std::string_literals;
  for (const auto& [set, name] :
       {std::pair{"gqa"s, "a.jpg\0.png"s}, {""s, "cot/gqa/a.jpg\0"s}, {"gqa\0x"s, "a.jpg"s}})
    check_mentions(error_of([&] { find_image(scratch / "", set, name); }), "image not found");
  CHECK(find_image(scratch / "", "gqa", "a.jpg") == scratch / "cot/gqa/a.jpg");
}
