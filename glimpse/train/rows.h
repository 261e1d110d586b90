#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "glimpse/base/options.h"
#include "glimpse/io/row_box.h"

namespace glimpse {

/// One sample to learn from: a picture or a video, a question, its answer, and where the answer is seen.
struct TrainRow {
  nlohmann::json id;  ///< as written, else the row's line
  std::string question, answer, dataset;
  std::string image;           ///< as given in the row
  bool video = false;          ///< whether that is a video
  std::filesystem::path path;  ///< where it was found
  std::vector<Box> boxes;
  int64_t width = 0, height = 0;    ///< what the boxes were measured on; 0: the video's own size
  std::vector<std::string> scores;  ///< score functions that its "score" names, for tuning
  std::string file;                 ///< the JSONL file ...
  size_t line = 0;                  ///< ... and its line, counted from 1, for messages
};

/// A file of rows and what is taken from it.
struct DataSource {
  std::filesystem::path file;
  std::string dataset;  ///< only rows of this set; "": all
  int64_t samples = 0;  ///< this many of them, drawn at random; 0 or more than there are: all

  Fields fields();  ///< dataset, samples
};

struct RowOptions {
  std::string image_root = ".";
  uint64_t seed = 42;
  double max_bad_share = 0.01;
  bool boxes_needed = true;  ///< a row without boxes is broken

  Fields fields();  ///< all but boxes_needed
};

struct TrainRows {
  std::vector<TrainRow> rows;         ///< by source, then in the order of the file
  std::vector<std::string> problems;  ///< "file:line: what is wrong" of each row left out
};

/// Reads the rows of docs/method.md section 5. A row is broken when it is no JSON object, lacks a member, has
/// a box that is empty, not finite or wholly outside the picture (one that reaches over its edge is clipped
/// later), or names an image that does not exist. Images are looked for, as find_image() does, after drawing:
/// which rows are drawn does not depend on the files of this machine. Error when more than `max_bad_share` of
/// the rows of a source are broken or none is left.
TrainRows read_train_rows(const std::vector<DataSource>& sources, const RowOptions& options);

/// `samples` different numbers below `count`, ascending; all of them when there are no more. A Fisher-Yates
/// shuffle driven by std::mt19937_64(seed), which is the same on every machine, stopped after `samples`
/// swaps: swap i exchanges number i with one of i..count-1, chosen as the generator's next value modulo their
/// count (values of the last, incomplete round are skipped).
std::vector<size_t> sample_rows(size_t count, size_t samples, uint64_t seed);

/// The order in which epoch `epoch` (from 0) visits `rows` rows: the same shuffle to its end, with a
/// generator seeded by std::seed_seq of the 32-bit halves of `seed` and `epoch`, low half first.
std::vector<size_t> epoch_order(size_t rows, uint64_t seed, int64_t epoch);

}  // namespace glimpse
