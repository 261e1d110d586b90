#include "glimpse/io/rows.h"

#include <algorithm>
#include <fstream>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"

namespace glimpse {
namespace fs = std::filesystem;
using nlohmann::json;

void visit_lines(const fs::path& file,
                 const std::function<bool(const std::string& text, size_t line)>& visit) {
  check_is_file(file);
  std::ifstream in(file);
  check(in.good(), file.string(), ": cannot be read");
  size_t line = 0;
  for (std::string text; std::getline(in, text);) {
    ++line;
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
  row.object = json::parse(text, nullptr, false);
  check(!row.object.is_discarded(), "not valid JSON");
  check(row.object.is_object(), "expected a JSON object");
  row.question = text_member(row.object, "question");
  const json& dataset = member(row.object, "dataset");
  if (dataset.is_string()) row.dataset = dataset.get<std::string>();
  try {
    const json& image = member(row.object, "image");
    if (image.is_string())
      row.images = {image.get<std::string>()};
    else if (!image.is_null())
      row.images = image.get<std::vector<std::string>>();
  } catch (const json::exception&) {
    fail("\"image\" must be a file name or a list of them");
  }
  const json& boxes = member(row.object, "bboxs");
  check(boxes.is_null() || boxes.is_array(), "\"bboxs\" must be a list of [x1, y1, x2, y2]");
  for (const json& box : boxes) {
    check(box.is_array() && std::all_of(box.begin(), box.end(), [](const json& x) { return x.is_number(); }),
          "\"bboxs\" must be a list of [x1, y1, x2, y2]");
    check(box.size() == 4, "a box has ", box.size(), " numbers, expected 4");
    row.boxes.push_back(box.get<std::array<double, 4>>());
  }
  return row;
}

fs::path find_image(const fs::path& root, const std::string& dataset, const std::string& name) {
  std::vector<fs::path> places = {root / name};
  if (!dataset.empty()) places.insert(places.begin(), root / "cot" / dataset / name);
  if (const size_t slash = name.find('/', 4); name.starts_with("cot/") && slash != name.npos)
    places.push_back(root / name.substr(0, slash) / "val" / name.substr(slash + 1));
  std::string looked;
  for (const fs::path& place : places) {
    std::error_code ignored;
    if (fs::exists(place, ignored) && !fs::is_directory(place, ignored)) return place;
    looked += (looked.empty() ? "" : ", ") + place.string();
  }
  fail("image not found; looked at ", looked, " (set --image-root)");
}

}  // namespace glimpse
