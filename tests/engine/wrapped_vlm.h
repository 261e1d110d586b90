#pragma once

#include "glimpse/models/vlm.h"

namespace glimpse::test {

/// A model whose encoder gives what a test says; all else is another model's.
class WrappedVlm : public Vlm {
 public:
  explicit WrappedVlm(const Vlm& inner) : inner_(inner) {}
  /// What the encoder gives; without `embeds`, the inner model's own with these additions.
  VisionOutput given;

  Prompt prompt(const std::vector<Message>& messages, const std::vector<Medium>& media,
                const ImageBounds& bounds) const override {
    return inner_.prompt(messages, media, bounds);
  }
  std::vector<int64_t> chat_ids(const std::vector<Message>& messages, bool add_generation_prompt,
                                std::vector<int64_t>* question) const override {
    return inner_.chat_ids(messages, add_generation_prompt, question);
  }
  Prompt prompt(const std::vector<int64_t>& ids, std::vector<Patches> patches) const override {
    return inner_.prompt(ids, std::move(patches));
  }
  std::unique_ptr<Encoding> encoding(const std::vector<Patches>& patches,
                                     const VisionTaps& taps) const override {
    VisionOutput out = given;
    if (!out.embeds.defined()) {
      out = inner_.encode(patches, taps);
      out.additions = given.additions;
    }
    return std::make_unique<Ready>(std::move(out));
  }
  at::Tensor project(const at::Tensor& embeds) const override { return inner_.project(embeds); }
  Rope rope(const at::Tensor& position_ids) const override { return inner_.rope(position_ids); }
  const Decoder& decoder() const override { return inner_.decoder(); }
  const Tokenizer& tokenizer() const override { return inner_.tokenizer(); }
  int64_t vision_depth() const override { return inner_.vision_depth(); }
  int64_t vision_width() const override { return inner_.vision_width(); }
  int64_t shallow_block() const override { return inner_.shallow_block(); }
  bool has_class_token() const override { return inner_.has_class_token(); }
  int64_t max_positions() const override { return inner_.max_positions(); }
  std::optional<PixelRange> pixel_range(const ImageBounds& bounds) const override {
    return inner_.pixel_range(bounds);
  }

 private:
  class Ready : public Encoding {
   public:
    explicit Ready(VisionOutput out) : out_(std::move(out)) {}
    int64_t steps() const override { return 0; }
    void step() override {}
    VisionOutput finish() override { return std::move(out_); }

   private:
    VisionOutput out_;
  };
  const Vlm& inner_;
};

}  // namespace glimpse::test
