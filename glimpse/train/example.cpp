#include "glimpse/train/example.h"

#include "glimpse/base/ascii.h"
#include "glimpse/base/check.h"
#include "glimpse/engine/row_media.h"
#include "glimpse/prune/box_masks.h"

namespace glimpse {

namespace {

// What the conversation has after the place where the answer begins, its end included.
std::vector<int64_t> answer_ids(const Vlm& model, std::vector<Message> messages, const std::string& answer) {
  const std::vector<int64_t> before = model.chat_ids(messages, true, nullptr);
  messages.push_back({"assistant", {{Part::Kind::text, answer}}});
  const std::vector<int64_t> whole = model.chat_ids(messages, false, nullptr);
  check(whole.size() > before.size() && std::equal(before.begin(), before.end(), whole.begin()),
        "the answer '", answer, "' changes the tokens of its prompt");
  return {whole.begin() + static_cast<int64_t>(before.size()), whole.end()};
}

at::Tensor reference_mask(const TrainRow& row, Size size, std::span<const Segment> segments) {
  const bool given = row.width > 0 && row.height > 0;
  if (given) size = {static_cast<int>(row.height), static_cast<int>(row.width)};
  const std::vector<Box> boxes = normalised(row.boxes, size);
  for (const Box& box : boxes)  // of a size that the row does not know
    check(box.x1 < 1 && box.y1 < 1, "a box lies outside the video of ", size.width, " x ", size.height);
  std::vector<uint8_t> mask;
  for (const std::vector<uint8_t>& own : box_masks(segments, std::span(&boxes, 1)))
    mask.insert(mask.end(), own.begin(), own.end());
  return at::tensor(mask, at::kByte).to(at::kFloat);
}

}  // namespace

LoadedRow load_row(const Vlm& model, const TrainRow& row, const MediaOptions& options) {
  try {
    LoadedRow out;
    out.medium = load_medium(row.path, row.video, options.bounds, options.video);
    const Size size = size_of(out.medium);
    const std::vector<Message> messages = {{"user", {part_of(out.medium), {Part::Kind::text, row.question}}}};
    out.example.prompt = model.prompt(messages, {out.medium}, options.bounds);
    out.example.answer = answer_ids(model, messages, trimmed(row.answer));
    out.example.row = &row;
    const Segment& first = out.example.prompt.segments[0];
    constexpr double token_side = 28;  // pixels, of Qwen2.5-VL, whose answers may name boxes
    out.example.seen = {size.width, size.height, token_side * static_cast<double>(first.cols),
                        token_side * static_cast<double>(first.rows), first.area};
    if (!row.boxes.empty()) out.example.reference = reference_mask(row, size, out.example.prompt.segments);
    return out;
  } catch (const Error& error) {
    fail(row.file, ":", row.line, ": ", error.what());
  }
}

}  // namespace glimpse
