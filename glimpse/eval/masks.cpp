#include "glimpse/eval/masks.h"

#include "glimpse/eval/row_score.h"
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

}  // namespace

TokenMask kept_mask(const json& line, size_t image) {
  const json& grid = line.at("images").at(image).at("grid");
  TokenMask mask{grid.at(0), grid.at(1), {}};
  mask.tokens.resize(static_cast<size_t>(mask.rows) * mask.cols);
  for (const int64_t token : line.at("keep").at(image).get<std::vector<int64_t>>()) mask.tokens.at(token) = 1;
  return mask;
}

std::optional<TokenMask> boxed_mask(const TaskRow& row, const json& line) {
  if (row.boxes.empty() || line.at("images").empty()) return {};
  const SeenImage seen = seen_image(line);
  TokenMask mask = kept_mask(line, 0);
  std::vector<Box> boxes;
  for (const auto& box : row.boxes)
    boxes.push_back(normalise_box({box[0], box[1], box[2], box[3]}, seen.width, seen.height));
  mask.tokens = boxes_to_mask(boxes, mask.rows, mask.cols, seen.area);
  return mask;
}

double mask_iou(const TokenMask& a, const TokenMask& b) {
  int64_t both = 0, either = 0;
  for (size_t i = 0; i < a.tokens.size(); ++i) {
    both += a.tokens[i] && b.tokens[i];
    either += a.tokens[i] || b.tokens[i];
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
