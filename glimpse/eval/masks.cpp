#include "glimpse/eval/masks.h"

#include <algorithm>

#include "glimpse/base/json_file.h"
#include "glimpse/engine/row_media.h"
#include "glimpse/eval/row_score.h"
#include "glimpse/image/box_times.h"
#include "glimpse/image/overlay.h"

namespace glimpse {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// As the name of a file, a different one for every text.
std::string file_name(const std::string& text) {
  std::ostringstream out;
  for (const char c : text)
    if (std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-')
      out << c;
    else
      out << '%' << "0123456789ABCDEF"[static_cast<unsigned char>(c) / 16]
          << "0123456789ABCDEF"[static_cast<unsigned char>(c) % 16];
  return out.str();
}

// How many grids boxes are compared with: the first of an image, all of a video.
size_t compared_grids(const json& line) {
  const json& seconds = member(line, "seconds");
  if (!seconds.is_array() || seconds.at(0).is_null()) return 1;
  const json& media = line.at("medium");
  return std::ranges::find_if(media, [&](const json& medium) { return medium != media[0]; }) - media.begin();
}

}  // namespace

TokenMask kept_mask(const json& line, size_t number) {
  const json& grid = line.at("images").at(number).at("grid");
  TokenMask mask{grid.at(0), grid.at(1), {}};
  mask.tokens.resize(static_cast<size_t>(mask.rows) * mask.cols);
  for (const int64_t token : line.at("keep").at(number).get<std::vector<int64_t>>())
    mask.tokens.at(token) = 1;
  return mask;
}

std::optional<ComparedMasks> compared_masks(const TaskRow& row, const json& line) {
  if (row.boxes.empty() || line.at("images").empty()) return {};
  const SeenImage seen = seen_image(line);
  std::vector<Box> boxes = normalised(row.boxes, {seen.height, seen.width});
  const size_t grids = compared_grids(line);
  std::vector<double> times;  // of a video
  if (const json& seconds = member(line, "seconds"); seconds.is_array() && seconds.at(0).is_number())
    times.assign(seconds.begin(), seconds.begin() + static_cast<std::ptrdiff_t>(grids));
  boxes = boxes_in(std::move(boxes), times);
  ComparedMasks out;
  for (size_t i = 0; i < grids; ++i) {
    const TokenMask kept = kept_mask(line, i);
    const std::vector<uint8_t> boxed =
        boxes_to_mask(times.empty() ? boxes : boxes_at(boxes, times[i]), kept.rows, kept.cols, seen.area);
    out.kept.insert(out.kept.end(), kept.tokens.begin(), kept.tokens.end());
    out.boxed.insert(out.boxed.end(), boxed.begin(), boxed.end());
  }
  return out;
}

double mask_iou(const ComparedMasks& masks) {
  int64_t both = 0, either = 0;
  for (size_t i = 0; i < masks.kept.size(); ++i) {
    both += masks.kept[i] && masks.boxed[i];
    either += masks.kept[i] || masks.boxed[i];
  }
  return either ? static_cast<double>(both) / static_cast<double>(either) : 0.0;
}

void write_masks(const EvalPlan& plan, const fs::path& dir) {
  for (const EvalTask& task : plan.tasks)
    for (const GridCell& cell : plan.cells) {
      const Answers answers = read_answers(plan, task, cell);
      for (const TaskRow& row : task.rows) {
        const json& line = answers.at(row.key());
        if (line.contains("problem")) continue;
        const fs::path folder = dir / task.task.name / cell.label() / file_name(row.set);
        std::error_code error;
        fs::create_directories(folder, error);
        check(!error, folder.string(), ": cannot be made: ", error.message());
        const std::string id = file_name(row.id.is_string() ? row.id.get<std::string>() : row.id.dump());
        for (size_t i = 0; i < line.at("images").size(); ++i) {
          const TokenMask mask = kept_mask(line, i);
          const std::string name = i ? concat(id, '+', i + 1, ".png") : concat(id, ".png");
          save_mask_png(mask.tokens, mask.rows, mask.cols, mask.cols, mask.rows, folder / name);
        }
      }
    }
}

}  // namespace glimpse
