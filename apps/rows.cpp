#include "rows.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <iomanip>
#include <iostream>
#include <set>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/rows.h"

namespace glimpse::app {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

void parse_row(const std::string& text, const fs::path& root, Row& row) {
  QuestionRow parsed = parse_question_row(text);
  row.id = parsed.object.contains("id") ? parsed.object["id"] : json(row.line - 1);
  check(row.id.is_string() || row.id.is_number(), "\"id\" must be text or a number");
  if (!parsed.dataset.empty()) row.set = parsed.dataset;
  row.question = std::move(parsed.question);
  row.boxes = std::move(parsed.boxes);
  for (const std::string& name : parsed.images) row.images.push_back(find_image(root, parsed.dataset, name));
}

// A log gets its first line soon, later ones more rarely.
constexpr double kFirstLineAfter_s = 5, kMostBetweenLines_s = 60;

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

std::vector<Row> read_rows(const fs::path& file, const fs::path& root, size_t limit) {
  std::vector<Row> rows;
  std::set<std::string> ids;
  visit_lines(file, [&](const std::string& text, size_t line) {
    Row& row = rows.emplace_back();
    row.line = line;
    try {
      parse_row(text, root, row);
      check(ids.insert(row.id.dump()).second, "id ", row.id.dump(), " occurs twice");
    } catch (const Error& error) {
      row.problem = error.what();
    }
    return limit == 0 || rows.size() < limit;
  });
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
      next_line_s_(kFirstLineAfter_s),
      terminal_(isatty(STDERR_FILENO)) {}

Progress::~Progress() {
  if (terminal_) std::cerr << "\n";
}

void Progress::step(const std::string& note) {
  ++done_;
  const double elapsed = now_s() - start_s_;
  if (!terminal_ && (elapsed < next_line_s_ || done_ == total_)) return;
  next_line_s_ = elapsed + std::clamp(elapsed, kFirstLineAfter_s, kMostBetweenLines_s);
  const double rate = static_cast<double>(done_ - first_) / std::max(elapsed, 1e-9);
  const int width = 24, full = static_cast<int>(width * done_ / std::max<size_t>(total_, 1));
  std::ostringstream line;
  if (terminal_)
    line << "\r" << std::string(full, '#') << std::string(width - full, '.') << " ";
  else
    line << "glimpse: ";
  line << done_ << "/" << total_ << " " << std::fixed << std::setprecision(1) << rate << " " << unit_
       << "/s, " << static_cast<double>(total_ - done_) / std::max(rate, 1e-9) << " s left";
  if (terminal_) line << "  " << note << "\x1b[K";
  if (!terminal_) line << "\n";
  std::cerr << line.str() << std::flush;
}

}  // namespace glimpse::app
