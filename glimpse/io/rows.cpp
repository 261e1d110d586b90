#include "glimpse/io/rows.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <span>

#include "glimpse/base/check.h"
#include "glimpse/base/file_kinds.h"
#include "glimpse/base/json_file.h"

namespace glimpse {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

bool overflows(const std::string& token) {
  const bool negative = token.starts_with('-');
  if (token.find_first_not_of("0123456789", negative) != token.npos || token[negative] == '0') return false;
  int64_t small = 0;
  uint64_t large = 0;
  const char *first = token.data(), *last = first + token.size();
  return negative ? std::from_chars(first, last, small).ec == std::errc::result_out_of_range
                  : std::from_chars(first, last, large).ec == std::errc::result_out_of_range;
}

// The line with what Python writes beyond JSON put into JSON's terms.
std::string strict_json(std::string_view text) {
  const auto in_word = [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '+' || c == '.'; };
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i++;
    if (text[begin] == '"') {
      while (i < text.size() && text[i] != '"') i += text[i] == '\\' ? 2 : 1;
      i = std::min(i + 1, text.size());
    } else if (in_word(text[begin])) {
      while (i < text.size() && in_word(text[i])) ++i;
    }
    std::string token(text.substr(begin, i - begin));
    if (token == "NaN" || token == "Infinity" || token == "-Infinity") token = "null";
    out += in_word(token[0]) && overflows(token) ? '"' + token + '"' : token;
  }
  return out;
}

// The parser's own words, from the column on; a long text that it read last is cut.
std::string reason_of(const json::exception& error) {
  constexpr size_t longest = 160;
  const std::string text = error.what();
  const size_t column = text.find("column ");
  const std::string reason = column == text.npos ? text : text.substr(column);
  return reason.size() <= longest ? reason : reason.substr(0, longest) + "...";
}

bool names_file(const json& value, std::span<const std::string_view> endings) {
  if (value.is_array())
    return std::ranges::any_of(value, [&](const json& each) { return names_file(each, endings); });
  return value.is_string() && has_ending(value.get<std::string>(), endings);
}

std::vector<std::string> names_in(const json& object, const char* key) {
  const json& value = member(object, key);
  if (value.is_null()) return {};
  if (value.is_string()) return {value.get<std::string>()};
  const bool texts = value.is_array() && std::all_of(value.begin(), value.end(),
                                                     [](const json& name) { return name.is_string(); });
  check(texts, "\"", key, "\" must be a file name or a list of them");
  return value.get<std::vector<std::string>>();
}

// "image", or "images" as many data sets call it; videos likewise.
std::vector<std::string> names_in(const json& object, const std::string& key, const char* what) {
  const std::string plural = key + "s";
  std::vector<std::string> one = names_in(object, key.c_str()), several = names_in(object, plural.c_str());
  check(one.empty() || several.empty() || one == several, '"', key, "\" and \"", plural, "\" name different ",
        what, "; keep one of them");
  return one.empty() ? several : one;
}

// Where `is_it` of what there is.
fs::path find_at(const fs::path& root, const std::string& dataset, const std::string& name, const char* what,
                 bool (*is_it)(const fs::path&)) {
  std::vector<fs::path> places = {root / name};
  if (!dataset.empty()) places.insert(places.begin(), root / "cot" / dataset / name);
  if (const size_t slash = name.find('/', 4); name.starts_with("cot/") && slash != name.npos)
    places.push_back(root / name.substr(0, slash) / "val" / name.substr(slash + 1));
  std::string looked;
  for (const fs::path& place : places) {
    // The system would end the name at a NUL, and find another file.
    const bool whole = place.native().find('\0') == fs::path::string_type::npos;
    if (whole && is_it(place)) return place;
    looked += (looked.empty() ? "" : ", ") + place.string();
  }
  fail(what, " not found; looked at ", looked, " (set --image-root)");
}

bool is_there(const fs::path& place) {
  std::error_code ignored;
  return fs::exists(place, ignored);
}

bool is_no_folder(const fs::path& place) {
  std::error_code ignored;
  return is_there(place) && !fs::is_directory(place, ignored);
}

}  // namespace

json parse_json_line(std::string_view text) {
  try {
    return json::parse(strict_json(text));
  } catch (const json::exception& error) {
    fail("not valid JSON: ", reason_of(error));
  }
}

void check_no_unread_media(const json& object, const std::string& image_key, const std::string& video_key,
                           const std::vector<std::string>& read) {
  if (object.contains(image_key) || object.contains(video_key)) return;
  for (const auto& [key, value] : object.items()) {
    if (std::ranges::find(read, key) != read.end()) continue;
    const auto refuse = [&key = key](const std::string& what, const std::string& from) {
      fail('"', key, "\" names a ", what, ", but ", what, "s are read from \"", from,
           "\"; call it so, or add \"", from, "\": null to ask without one");
    };
    if (names_file(value, picture_endings)) refuse("picture", image_key);
    if (names_file(value, video_endings)) refuse("video", video_key);
  }
}

void visit_lines(const fs::path& file,
                 const std::function<bool(const std::string& text, size_t line)>& visit) {
  check_is_file(file);
  std::ifstream in(file);
  check(in.good(), file.string(), ": cannot be read");
  size_t line = 0;
  for (std::string text; std::getline(in, text);) {
    if (++line == 1 && text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
    if (text.find_first_not_of(" \t\r") != std::string::npos && !visit(text, line)) return;
  }
  check(in.eof(), file.string(), ":", line, ": reading failed");
}

std::string text_member(const json& object, const char* key) {
  const json& value = member(object, key);
  check(value.is_string(), "\"", key, "\" is missing or no text");
  return value.get<std::string>();
}

QuestionRow parse_question_row(std::string_view text) {
  QuestionRow row;
  row.object = parse_json_line(text);
  check(row.object.is_object(), "expected a JSON object");
  row.question = text_member(row.object, "question");
  const json& dataset = member(row.object, "dataset");
  if (dataset.is_string()) row.dataset = dataset.get<std::string>();
  row.images = names_in(row.object, "image", "pictures");
  row.videos = names_in(row.object, "video", "videos");
  if (!row.object.contains("images") && !row.object.contains("videos"))
    check_no_unread_media(row.object, "image", "video", {"id", "question", "answer"});
  const json& boxes = member(row.object, "bboxs");
  check(boxes.is_null() || boxes.is_array(), "\"bboxs\" must be a list of boxes [x1, y1, x2, y2]");
  for (const json& box : boxes) row.boxes.push_back(parse_box(box));
  check_box_times(row.boxes, row.images.empty() && !row.videos.empty());
  return row;
}

fs::path find_image(const fs::path& root, const std::string& dataset, const std::string& name) {
  return find_at(root, dataset, name, "image", is_no_folder);
}

fs::path find_video(const fs::path& root, const std::string& dataset, const std::string& name) {
  return find_at(root, dataset, name, "video", is_there);
}

}  // namespace glimpse
