#include "rows.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <iomanip>
#include <iostream>
#include <set>

#include "flags.h"
#include "glimpse/base/atomic_file.h"
#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/rows.h"
#include "glimpse/io/run_identity.h"

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
  for (const std::string& name : parsed.videos) row.videos.push_back(find_video(root, parsed.dataset, name));
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

std::string Row::fingerprint() const {
  return question_fingerprint(question, boxes, images, videos);
}

constexpr const char* kAdvice = "; name another --out, or start again with --overwrite";

ResumableLines::ResumableLines(const fs::path& file, const json& settings, bool overwrite)
    : name_(file.string()) {
  const fs::path beside = file.string() + ".settings.json";
  std::error_code ignored;
  const bool goes_on = !overwrite && fs::is_regular_file(file, ignored) && fs::file_size(file) > 0;
  check(!goes_on || fs::exists(beside), name_, " exists and is no output of this command: there is no ",
        beside.string(), kAdvice);
  out_.emplace(file, overwrite);
  const json now = stored(settings);
  if (goes_on) {
    const std::string other = differences(read_json(beside), now, kModelPlaces);
    check(other.empty(), name_, " was made with other settings (", other, ")", kAdvice);
  }
  visit_whole_lines(file, [&](const json& line) {
    check(line.is_object() && member(line, "id").is_primitive(), name_,
          " exists and is no output of this command", kAdvice);
    fingerprints_[line["id"].dump()] = member(line, "row");
  });
  AtomicFile note(beside);
  note.stream() << now.dump(2) << "\n";
  note.commit();
}

bool ResumableLines::done(const Row& row) const {
  const auto found = fingerprints_.find(row.id.dump());
  if (found == fingerprints_.end()) return false;
  check(found->second == row.fingerprint(), name_, " has an answer to id ", row.id.dump(),
        ", asked with another question, box or picture than now", kAdvice);
  return true;
}

void show_progress(bool terminal, uint64_t done, uint64_t total, const std::string& text,
                   const std::string& note) {
  constexpr uint64_t width = 24;
  const uint64_t full = std::min(width, width * done / std::max<uint64_t>(total, 1));
  std::ostringstream line;
  if (terminal)
    line << "\r" << std::string(full, '#') << std::string(width - full, '.') << " " << text << "  " << note
         << "\x1b[K";
  else
    line << "glimpse: " << text << "\n";
  std::cerr << line.str() << std::flush;
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
  std::ostringstream text;
  text << done_ << "/" << total_ << " " << std::fixed << std::setprecision(1) << rate << " " << unit_
       << "/s, " << static_cast<double>(total_ - done_) / std::max(rate, 1e-9) << " s left";
  show_progress(terminal_, done_, total_, text.str(), note);
}

}  // namespace glimpse::app
