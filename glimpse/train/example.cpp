#include "glimpse/train/example.h"

#include "glimpse/base/ascii.h"
#include "glimpse/base/check.h"
#include "glimpse/image/decode.h"

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

at::Tensor reference_mask(const TrainRow& row, const Image& image, std::span<const Segment> segments) {
  const auto width = static_cast<int>(row.width > 0 ? row.width : image.width);
  const auto height = static_cast<int>(row.height > 0 ? row.height : image.height);
  std::vector<Box> boxes;
  for (const auto& box : row.boxes)
    boxes.push_back(normalise_box({box[0], box[1], box[2], box[3]}, width, height));
  std::vector<uint8_t> mask;
  for (const Segment& grid : segments) {
    const auto own =
        boxes_to_mask(boxes, static_cast<int>(grid.rows), static_cast<int>(grid.cols), grid.area);
    mask.insert(mask.end(), own.begin(), own.end());
  }
  return at::tensor(mask, at::kByte).to(at::kFloat);
}

}  // namespace

LoadedRow load_row(const Vlm& model, const TrainRow& row, const ImageBounds& bounds) {
  try {
    LoadedRow out;
    out.image = load_image(row.path);
    const std::vector<Message> messages = {
        {"user", {{Part::Kind::image, {}}, {Part::Kind::text, row.question}}}};
    out.example.prompt = model.prompt(messages, {out.image}, bounds);
    out.example.answer = answer_ids(model, messages, trimmed(row.answer));
    out.example.row = &row;
    const Segment& first = out.example.prompt.segments[0];
    constexpr double token_side = 28;  // pixels, of Qwen2.5-VL, whose answers may name boxes
    out.example.seen = {out.image.width, out.image.height, token_side * static_cast<double>(first.cols),
                        token_side * static_cast<double>(first.rows), first.area};
    if (!row.boxes.empty())
      out.example.reference = reference_mask(row, out.image, out.example.prompt.segments);
    return out;
  } catch (const Error& error) {
    fail(row.file, ":", row.line, ": ", error.what());
  }
}

}  // namespace glimpse
