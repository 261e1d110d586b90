#include "glimpse/models/qwen_vl.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "glimpse/models/config.h"

namespace glimpse {

using nlohmann::json;

std::string QwenVl::canonical_name(std::string_view name) {
  const auto swap = [&](std::string_view from, std::string_view to) {
    return std::string(to) + std::string(name.substr(from.size()));
  };
  for (const auto& [from, to] : {std::pair<std::string_view, std::string_view>{"model.visual.", "visual."},
                                 {"model.language_model.", "model."},
                                 {"language_model.", "model."}})
    if (name.starts_with(from)) return swap(from, to);
  return std::string(name);
}

Weights QwenVl::open_weights(const ModelSource& source, const json&) {
  return source.weights(canonical_name);
}

VisionShape QwenVl::vision_shape(const json& config, const std::filesystem::path&) {
  const json& c = config.at("vision_config");
  const auto number = [&](const char* key) { return c.at(key).get<int64_t>(); };
  VisionShape shape;
  shape.depth = number("depth");
  shape.hidden = number("hidden_size");
  shape.heads = number("num_heads");
  shape.intermediate = number("intermediate_size");
  shape.patch = number("patch_size");
  const int64_t channels = c.value("in_channels", c.value("in_chans", int64_t{3}));
  shape.patch_values = channels * c.value("temporal_patch_size", int64_t{2}) * shape.patch * shape.patch;
  shape.merge = number("spatial_merge_size");
  const auto unit = static_cast<double>(shape.merge * shape.merge * shape.hidden);
  shape.projector = unit * (unit + static_cast<double>(number("out_hidden_size")));
  return shape;
}

void QwenVl::read_positions(const json& text, const json& config, DecoderConfig& shape,
                            const ModelSource& source, at::Device device) {
  const std::string where = source.where("config.json");
  const json rope = rope_settings(text, config, where);
  check(!rope.empty(), where, ": rope_scaling is missing");
  mrope_section_ = need<std::vector<int64_t>>(rope, "mrope_section", where);
  check(setting(rope, "mrope_interleaved", defaults_.interleaved, where) == defaults_.interleaved, where,
        ": mrope_interleaved is not supported as it is");
  rope_ = RopeScaling(text, config, {shape.head_dim, defaults_.rope_theta, defaults_.max_positions}, where,
                      device);
  const int64_t pairs = std::accumulate(mrope_section_.begin(), mrope_section_.end(), int64_t{0});
  check(pairs == shape.head_dim / 2, where, ": mrope_section sums to ", pairs,
        ", expected half of the head size ", shape.head_dim);
  for (const int64_t section : mrope_section_) check(section >= 0, where, ": mrope_section holds ", section);
  shape.windows = sliding_windows(text, shape.layers, max_positions(), where);
  const json vision = need<json>(config, "vision_config", where);
  mrope_ = {config.value("image_token_id", int64_t{151655}), config.value("video_token_id", int64_t{151656}),
            vision.value("spatial_merge_size", int64_t{2}), vision.value("tokens_per_second", 2.0)};
}

void QwenVl::read_parts(const ModelSource& source, const json& vision) {
  const auto read = [&](const char* file, std::optional<QwenImageOptions>& options) {
    const json settings = source.settings(file);
    if (settings.is_null()) return;
    const QwenImageOptions image = named(source.where(file), [&] {
      return QwenImageOptions::from_json(settings, options.value_or(defaults_.image));
    });
    const auto same = [&](const char* key, int64_t here, int64_t encoder) {
      check(here == encoder, source.where(file), ": ", key, " is ", here, " but the encoder's is ", encoder);
    };
    same("patch_size", image.patch_size, vision.value("patch_size", int64_t{defaults_.image.patch_size}));
    same("merge_size", image.merge_size, mrope_.merge);
    same("temporal_patch_size", image.temporal_patch_size, vision.value("temporal_patch_size", int64_t{2}));
    options = image;
  };
  read("preprocessor_config.json", image_options_);
  video_options_ = image_options_;
  read("video_preprocessor_config.json", video_options_);
  tokenizer_ = source.tokenizer();
}

namespace {

void check_patches(const Patches& medium, int64_t merge) {
  const auto [t, h, w] = medium.grid;
  check(t > 0 && h > 0 && w > 0 && h % merge == 0 && w % merge == 0, "prompt: an image has a grid of ", t,
        " x ", h, " x ", w, " patches, expected multiples of ", merge);
  check(medium.pixel_values.dim() == 2 && medium.pixel_values.size(0) == int64_t{t} * h * w,
        "prompt: an image with a grid of ", t, " x ", h, " x ", w, " has pixel values of the shape ",
        medium.pixel_values.sizes());
  if (!medium.clip) return;
  const auto& [step, seconds] = *medium.clip;
  const auto is_time = [](double value) { return value >= 0 && value < 1e6; };  // positions stay numbers
  check(is_time(step) && std::ranges::all_of(seconds, is_time), "prompt: a video's slices are ", step,
        " seconds apart; this and its times must lie from 0 to a million");
  check(seconds.empty() || std::ssize(seconds) == t, "prompt: a video has ", t, " temporal slices but ",
        seconds.size(), " times");
}

// Messages whose videos have the times of what is shown of them.
std::vector<Message> timed(std::vector<Message> messages, const std::vector<Patches>& media) {
  size_t next = 0;
  for (Message& message : messages)
    for (Part& part : message.parts) {
      if (part.kind == Part::Kind::text) continue;
      check(next < media.size(), "prompt: more image places than the ", media.size(), " images given");
      const auto& clip = media[next++].clip;
      check((part.kind == Part::Kind::video) == clip.has_value(), "prompt: part ", next,
            " that is no text is a",
            clip ? " video, but its message calls it an image" : "n image, but its message calls it a video");
      if (clip) part.seconds = clip->seconds;
    }
  return messages;
}

}  // namespace

const Tokenizer& QwenVl::tokenizer() const {
  check(tokenizer_ != nullptr, dir_.string(), ": no tokenizer.json and no vocab.json with merges.txt");
  return *tokenizer_;
}

bool QwenVl::takes_videos() const {
  return image_options_ && tokenizer_ && mrope_.video_token < decoder_.config().vocab_size &&
         tokenizer_->token_id("<|video_pad|>") == mrope_.video_token;
}

QwenImageOptions QwenVl::image_options(const ImageBounds& bounds) const {
  check(defaults_.evaluated || !bounds.reference(),
        "image bounds: the published evaluation knows no model of this kind; leave out the reference "
        "preprocessing");
  QwenImageOptions options = image_options_.value_or(defaults_.image);
  options.reference = bounds.reference();
  if (bounds.min_pixels) options.min_pixels = *bounds.min_pixels;
  if (bounds.max_pixels) options.max_pixels = *bounds.max_pixels;
  check(options.min_pixels > 0 && options.min_pixels <= options.max_pixels, "image bounds: min-pixels ",
        options.min_pixels, " must be positive and at most max-pixels ", options.max_pixels);
  return options;
}

std::optional<PixelRange> QwenVl::pixel_range(const ImageBounds& bounds) const {
  const QwenImageOptions options = image_options(bounds);
  if (!image_options_) return std::nullopt;
  return PixelRange{options.min_pixels, options.max_pixels};
}

Prompt QwenVl::prompt(const std::vector<Message>& messages, const std::vector<Medium>& media,
                      const ImageBounds& bounds) const {
  check(media.empty() || image_options_, dir_.string(), no_preprocessor);
  const QwenImageOptions options = image_options(bounds);
  std::vector<Patches> patches;
  for (const Medium& medium : media)
    patches.push_back(is_video(medium) ? qwen_patches(std::get<Video>(medium), *video_options_)
                                       : qwen_patches(std::get<Image>(medium), options));
  std::vector<int64_t> question;
  const std::vector<int64_t> ids = chat_ids(timed(messages, patches), true, &question);
  Prompt out = prompt(ids, std::move(patches));
  set_question(out, ids, question, std::array{mrope_.image_token, mrope_.video_token});
  return out;
}

Prompt QwenVl::prompt(const std::vector<int64_t>& ids, std::vector<Patches> patches) const {
  struct Place {  // of an image, a video or one of its slices
    size_t medium;
    int64_t first_slice;
  };
  std::vector<Place> places;
  std::vector<std::vector<TokenGrid>> grids;  // of the places
  for (size_t i = 0; i < patches.size(); ++i) {
    check_patches(patches[i], mrope_.merge);
    const Grid grid = patches[i].grid;
    for (int slice = 0; slice < grid.t; ++slice) {
      if (slice == 0 || defaults_.slices_apart) {
        places.push_back({i, slice});
        grids.emplace_back();
      }
      grids.back().push_back({grid.h / mrope_.merge, grid.w / mrope_.merge, patches[i].area});
    }
  }
  const int64_t mark = mrope_.image_token, video_mark = mrope_.video_token,
                vocabulary = decoder_.config().vocab_size;
  std::vector<int64_t> marks = ids;  // whichever of the two a place has
  std::replace(marks.begin(), marks.end(), video_mark, mark);
  check(marks == ids || (video_mark >= 0 && video_mark < vocabulary), "prompt: the video token ", video_mark,
        " is outside the vocabulary of ", vocabulary);
  Prompt out = widen(marks, std::move(patches), grids, {mark, mark, true}, vocabulary, max_positions());

  std::vector<Grid> images, videos;  // of the places
  std::vector<double> seconds_per_grid;
  auto segment = out.segments.begin();
  size_t at = 0;  // in the ids
  for (size_t i = 0; i < places.size(); ++i) {
    const Patches& medium = out.patches[places[i].medium];
    const auto [t, h, w] = medium.grid;
    while (marks[at] != mark) ++at;
    const bool is_video = ids[at] == video_mark;
    check(is_video || t == 1, "prompt: image ", places[i].medium + 1, " has ", t,
          " temporal slices, which only videos have");
    check(!is_video || medium.clip || defaults_.slices_apart, "prompt: video ", places[i].medium + 1,
          " comes without the seconds between its slices");
    (is_video ? videos : images).push_back({defaults_.slices_apart ? 1 : t, h, w});
    if (is_video) seconds_per_grid.push_back(defaults_.slices_apart ? 0 : medium.clip->seconds_per_grid);
    int64_t tokens = 0;
    for (int64_t slice = 0; slice < std::ssize(grids[i]); ++slice, ++segment) {
      segment->medium = static_cast<int64_t>(places[i].medium);
      if (medium.clip) segment->seconds = medium.clip->at(places[i].first_slice + slice);
      for (int64_t token = 0; token < segment->count(); ++token)
        out.ids[out.visual_rows[segment->first + token]] = ids[at];
      tokens += segment->count();
    }
    const bool widened = at + 1 < marks.size() && marks[at + 1] == mark;
    at += widened ? tokens : 1;
  }
  const MropePositions positions = mrope_positions(out.ids, images, videos, seconds_per_grid, mrope_);
  out.position_ids = positions.ids;
  out.next_position = positions.next;
  return out;
}

std::vector<int64_t> QwenVl::chat_ids(const std::vector<Message>& messages, bool add_generation_prompt,
                                      std::vector<int64_t>* question) const {
  return encode_chat(tokenizer(), messages, add_generation_prompt, chat_, question);
}

}  // namespace glimpse
