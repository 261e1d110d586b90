#include "glimpse/train/rows.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <random>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/rows.h"

namespace glimpse {
namespace {

using nlohmann::json;

int64_t size_member(const json& object, const char* key) {
  constexpr int64_t most = 1'000'000;
  const json& value = member(object, key);
  check(value.is_number_integer(), "\"", key, "\" is missing or no whole number");
  const double size = value.get<double>();
  check(size >= 1 && size <= most, "\"", key, "\" is ", value.dump(), ", expected 1 to ", most, " pixels");
  return value.get<int64_t>();
}

// A row without a size has boxes that are in its video wherever they are.
void check_boxes(const TrainRow& row) {
  for (const auto& [x1, y1, x2, y2, from, to] : row.boxes) {
    const std::string box = concat("box [", x1, ", ", y1, ", ", x2, ", ", y2, "]");
    check(std::isfinite(x1) && std::isfinite(y1) && std::isfinite(x2) && std::isfinite(y2), box,
          " is not finite");
    check(x1 < x2 && y1 < y2, box, " is empty or inverted; expected x1 < x2 and y1 < y2");
    check(x2 > 0 && y2 > 0 && (row.width == 0 || (x1 < row.width && y1 < row.height)), box,
          " lies outside the picture of ", row.width, " x ", row.height);
  }
}

/// The row without its path, or none when it is of another set than `dataset`.
std::optional<TrainRow> parse_row(const std::string& text, const std::string& dataset, bool boxes_needed) {
  QuestionRow parsed = parse_question_row(text);
  if (!dataset.empty() && parsed.dataset != dataset) return std::nullopt;
  TrainRow row;
  row.id = member(parsed.object, "id");
  row.question = std::move(parsed.question);
  row.answer = text_member(parsed.object, "answer");
  row.dataset = text_member(parsed.object, "dataset");
  check(!row.question.empty() && !row.answer.empty(), "the question or the answer is empty");
  row.video = parsed.images.empty() && !parsed.videos.empty();
  const std::vector<std::string>& shown = row.video ? parsed.videos : parsed.images;
  check(shown.size() == 1, "expected one ", row.video ? "\"video\"" : "\"image\"", ", got ", shown.size());
  check(row.video || parsed.videos.empty(), "it has an \"image\" and a \"video\"; expected one of them");
  row.image = shown[0];
  row.boxes = std::move(parsed.boxes);
  if (!row.video || parsed.object.contains("width") || parsed.object.contains("height")) {
    row.width = size_member(parsed.object, "width");
    row.height = size_member(parsed.object, "height");
  }
  if (const json& score = member(parsed.object, "score"); !score.is_null())
    for (const json& name : score.is_array() ? score : json::array({score})) {
      check(name.is_string(), "\"score\": expected a name or a list of names, got ", score.dump());
      row.scores.push_back(name.get<std::string>());
    }
  check(!boxes_needed || !row.boxes.empty(), "\"bboxs\" is missing or empty");
  check_boxes(row);
  return row;
}

/// Error when the problems from `first` on are too many of `of` rows.
void check_share(const std::vector<std::string>& problems, size_t first, size_t of,
                 const RowOptions& options) {
  constexpr size_t shown = 5;
  const size_t bad = problems.size() - first;
  if (static_cast<double>(bad) <= options.max_bad_share * static_cast<double>(of)) return;
  std::string list;
  for (size_t i = first; i < std::min(first + shown, problems.size()); ++i) list += "\n  " + problems[i];
  fail(bad, " of ", of, " rows are broken, more than max_bad_share ", options.max_bad_share, " allows:", list,
       bad > shown ? "\n  ..." : "");
}

void read_source(const DataSource& source, const RowOptions& options, TrainRows& out) {
  const std::string file = source.file.string();
  check(source.samples >= 0, file, ": samples is ", source.samples, ", expected 0 (all) or more");
  std::vector<TrainRow> rows;
  const size_t first_problem = out.problems.size();
  const auto attempt = [&](size_t line, const auto& action) {
    try {
      action();
    } catch (const Error& error) {
      out.problems.push_back(concat(file, ":", line, ": ", error.what()));
    }
  };
  visit_lines(source.file, [&](const std::string& text, size_t line) {
    attempt(line, [&] {
      if (std::optional<TrainRow> row = parse_row(text, source.dataset, options.boxes_needed)) {
        row->file = file;
        row->line = line;
        if (row->id.is_null()) row->id = line;
        rows.push_back(*std::move(row));
      }
    });
    return true;
  });
  check_share(out.problems, first_problem, rows.size() + out.problems.size() - first_problem, options);
  check(!rows.empty(), file, ": no rows", source.dataset.empty() ? "" : " of the set " + source.dataset);

  const size_t wanted = source.samples == 0 ? rows.size() : static_cast<size_t>(source.samples);
  const std::vector<size_t> drawn = sample_rows(rows.size(), wanted, options.seed);
  const size_t first_missing = out.problems.size();
  for (const size_t i : drawn)
    attempt(rows[i].line, [&] {
      const auto find = rows[i].video ? find_video : find_image;
      rows[i].path = find(options.image_root, rows[i].dataset, rows[i].image);
      out.rows.push_back(std::move(rows[i]));
    });
  check_share(out.problems, first_missing, drawn.size(), options);
  check(out.problems.size() - first_missing < drawn.size(), file, ": no row's image or video can be found");
}

/// The first `chosen` numbers of a shuffled 0..count-1.
std::vector<size_t> shuffled(size_t count, size_t chosen, std::mt19937_64 random) {
  std::vector<size_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), size_t{0});
  constexpr uint64_t most = std::mt19937_64::max();
  for (size_t i = 0; i < chosen; ++i) {
    const uint64_t left = count - i;
    const uint64_t whole_rounds = most - (most % left + 1) % left;
    uint64_t value = random();
    while (value > whole_rounds) value = random();
    std::swap(numbers[i], numbers[i + value % left]);
  }
  numbers.resize(chosen);
  return numbers;
}

}  // namespace

Fields DataSource::fields() {
  Fields all;
  all.add("dataset", dataset, "train only on rows of this set");
  all.add("samples", samples, "rows drawn at random from a file (0: all)", {0, 1e15});
  return all;
}

Fields RowOptions::fields() {
  Fields all;
  all.add("image_root", image_root, "folder of the images: <root>/cot/<dataset>/<image> or <root>/<image>");
  all.add("seed", seed, "seed of which rows are drawn", {0, 1e15});
  all.add("max_bad_share", max_bad_share, "stop when a greater share of the rows is broken", {0, 1});
  return all;
}

TrainRows read_train_rows(const std::vector<DataSource>& sources, const RowOptions& options) {
  TrainRows out;
  for (const DataSource& source : sources) read_source(source, options, out);
  check(!out.rows.empty(), "no data to train on");
  return out;
}

std::vector<size_t> sample_rows(size_t count, size_t samples, uint64_t seed) {
  std::vector<size_t> rows = shuffled(count, std::min(samples, count), std::mt19937_64(seed));
  std::sort(rows.begin(), rows.end());
  return rows;
}

std::vector<size_t> epoch_order(size_t rows, uint64_t seed, int64_t epoch) {
  const auto half = [](uint64_t number, int shift) { return static_cast<uint32_t>(number >> shift); };
  std::seed_seq words{half(seed, 0), half(seed, 32), half(epoch, 0), half(epoch, 32)};
  return shuffled(rows, rows, std::mt19937_64(words));
}

}  // namespace glimpse
