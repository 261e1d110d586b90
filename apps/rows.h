#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "glimpse/io/line_file.h"
#include "glimpse/io/row_box.h"

namespace glimpse::app {

/// One question of a JSONL file (Visual-CoT rows: question, image or video, dataset, bboxs; an id if there is
/// one).
struct Row {
  nlohmann::json id;                  ///< as written, else the line's index
  std::string set = "all", question;  ///< its dataset, if it names one
  std::vector<std::filesystem::path> images, videos;
  std::vector<Box> boxes;  ///< of the first image, else of the first video
  size_t line = 0;         ///< 1-based, for messages
  std::string problem;     ///< why it cannot be asked, or ""

  /// Of what is asked.
  std::string fingerprint() const;
};

/// Reads the first `limit` rows (0: all) before any work; what is wrong with one is its `problem`. Images are
/// looked for as find_image() does. Error when there is none.
std::vector<Row> read_rows(const std::filesystem::path& file, const std::filesystem::path& image_root,
                           size_t limit);

/// An output of one JSON object per line that survives being killed: what is already there is kept, a torn
/// last line is removed, and finished ids are known. Nobody else may write it meanwhile.
class ResumableLines {
 public:
  /// `settings` are stored beside the file; one made with others, but for where the model lies, is an Error
  /// unless `overwrite`.
  ResumableLines(const std::filesystem::path& file, const nlohmann::json& settings, bool overwrite);
  /// Whether the row has its answer. Error when that is one to another question, box or picture.
  bool done(const Row& row) const;
  void write(const nlohmann::json& line) { out_->write(line); }

 private:
  std::map<std::string, nlohmann::json> fingerprints_;  // of the rows that were answered, by id
  std::string name_;
  std::optional<LineFile> out_;
};

/// How far a work is, on standard error: on a terminal a bar in place of the last one, then `text` and
/// `note`; elsewhere a line of `text`.
void show_progress(bool terminal, uint64_t done, uint64_t total, const std::string& text,
                   const std::string& note);

/// A progress line on a terminal; elsewhere (a log) a line now and then.
class Progress {
 public:
  Progress(size_t total, size_t done, std::string unit = "rows");
  ~Progress();
  void step(const std::string& note);

 private:
  size_t total_, done_, first_;
  std::string unit_;
  double start_s_, next_line_s_;
  bool terminal_;
};

}  // namespace glimpse::app
