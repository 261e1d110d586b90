#include "rows.h"

#include <unistd.h>

#include <chrono>
#include <iomanip>
#include <iostream>
#include <set>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"

namespace glimpse::app {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Adds the image to the row, or what went wrong.
void find_image(Row& row, const std::string& name, const std::string& dataset, const fs::path& root) {
  std::vector<fs::path> places = {root / name};
  if (!dataset.empty()) places.push_back(root / "cot" / dataset / name);
  std::string looked;
  for (const fs::path& place : places) {
    std::error_code ignored;
    if (fs::exists(place, ignored)) return row.images.push_back(place);
    looked += (looked.empty() ? "" : ", ") + place.string();
  }
  row.problem = concat("image not found; looked at ", looked, " (set --image-root)");
}

Row parse_row(const json& object, size_t line, const fs::path& root, const std::string& where) {
  check(object.is_object(), where, ": expected a JSON object");
  Row row;
  row.line = line;
  row.id = object.contains("id") ? object["id"] : json(line - 1);
  check(row.id.is_string() || row.id.is_number(), where, ": \"id\" must be text or a number");
  const json& question = member(object, "question");
  check(question.is_string(), where, ": \"question\" is missing or no text");
  row.question = question.get<std::string>();
  const json& dataset = member(object, "dataset");
  const json& image = member(object, "image");
  const json names = image.is_null() ? json::array() : image.is_array() ? image : json::array({image});
  for (const json& name : names) {
    check(name.is_string(), where, ": \"image\" must be a file name or a list of them");
    find_image(row, name.get<std::string>(), dataset.is_string() ? dataset.get<std::string>() : "", root);
  }
  if (const json& boxes = member(object, "bboxs"); !boxes.is_null()) {
    try {
      row.boxes = boxes.get<std::vector<std::vector<double>>>();
    } catch (const json::exception&) {
      fail(where, ": \"bboxs\" must be a list of [x1, y1, x2, y2]");
    }
    for (const auto& box : row.boxes)
      check(box.size() == 4, where, ": a box has ", box.size(), " numbers, expected 4");
  }
  return row;
}

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

std::vector<Row> read_rows(const fs::path& file, const fs::path& root, size_t limit) {
  check_is_file(file);
  std::ifstream in(file);
  std::vector<Row> rows;
  std::set<std::string> ids;
  size_t line = 0;
  for (std::string text; (limit == 0 || rows.size() < limit) && std::getline(in, text);) {
    ++line;
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = concat(file.string(), ":", line);
    const json object = json::parse(text, nullptr, false);
    check(!object.is_discarded(), where, ": not valid JSON");
    rows.push_back(parse_row(object, line, root, where));
    check(ids.insert(rows.back().id.dump()).second, where, ": id ", rows.back().id.dump(), " occurs twice");
  }
  check(!rows.empty(), file.string(), ": no rows");
  return rows;
}

ResumableLines::ResumableLines(const fs::path& file, const json& settings, bool overwrite)
    : name_(file.string()) {
  const fs::path beside = file.string() + ".settings.json";
  // Paths and texts of the command line need not be UTF-8.
  const std::string note_text = settings.dump(2, ' ', false, json::error_handler_t::replace);
  std::error_code ignored;
  check(!fs::exists(file, ignored) || fs::is_regular_file(file, ignored), name_,
        ": exists and is not a regular file");
  if (overwrite) {
    fs::remove(file);
    fs::remove(beside);
  }
  uintmax_t whole = 0;
  if (fs::exists(file) && fs::file_size(file) > 0) {
    const char* advice = "; name another --out, or start again with --overwrite";
    check(fs::exists(beside), name_, " exists and is no output of this command: there is no ",
          beside.string(), advice);
    check(read_json(beside) == json::parse(note_text), name_, " was made with other settings (",
          beside.string(), ")", advice);
    std::ifstream in(file);
    for (std::string text; std::getline(in, text) && !in.eof();) {
      const json row = json::parse(text, nullptr, false);
      check(row.is_object() && member(row, "id").is_primitive(), name_,
            " exists and is no output of this command", advice);
      ids_[row["id"].dump()] = true;
      whole += text.size() + 1;
    }
    // A line without its end was torn when the program was killed.
    if (fs::file_size(file) != whole) fs::resize_file(file, whole);
  }
  AtomicFile note(beside);
  note.stream() << note_text << "\n";
  note.commit();
  out_.open(file, std::ios::app);
  check(out_.good(), name_, ": cannot be written");
}

void ResumableLines::write(const json& row) {
  out_ << row.dump() << std::endl;
  check(out_.good(), name_, ": writing failed (disk full?)");
  ids_[row["id"].dump()] = true;
}

Progress::Progress(size_t total, size_t done, std::string unit)
    : total_(total),
      done_(done),
      first_(done),
      unit_(std::move(unit)),
      start_s_(now_s()),
      shown_(isatty(STDERR_FILENO)) {}

Progress::~Progress() {
  if (shown_) std::cerr << "\n";
}

void Progress::step(const std::string& note) {
  ++done_;
  if (!shown_) return;
  const double elapsed = now_s() - start_s_;
  const double rate = static_cast<double>(done_ - first_) / std::max(elapsed, 1e-9);
  const int width = 24, full = static_cast<int>(width * done_ / std::max<size_t>(total_, 1));
  std::ostringstream line;
  line << "\r" << std::string(full, '#') << std::string(width - full, '.') << " " << done_ << "/" << total_
       << " " << std::fixed << std::setprecision(1) << rate << " " << unit_ << "/s, "
       << static_cast<double>(total_ - done_) / std::max(rate, 1e-9) << " s left  " << note << "\x1b[K";
  std::cerr << line.str() << std::flush;
}

}  // namespace glimpse::app
