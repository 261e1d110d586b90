#include "glimpse/models/prompt.h"

#include <algorithm>

namespace glimpse {

Fields ImageBounds::fields() {
  Fields fields;
  fields.add("min_pixels", min_pixels, "enlarge images below this many pixels", {1, 1e12})
      .add("max_pixels", max_pixels, "shrink images above this many pixels", {1, 1e12})
      .add("preprocessing", preprocessing,
           "own: as the checkpoint's image processor; reference: as the published evaluation, which resizes "
           "twice and leaves EXIF orientation alone")
      .one_of({"own", "reference"});
  return fields;
}

DecodeOptions ImageBounds::decode_options() const {
  DecodeOptions options;
  options.apply_orientation = !reference();
  return options;
}

Prompt widen(const std::vector<int64_t>& ids, std::vector<Patches> patches, const ImagePlace& place,
             int64_t vocab_size, int64_t max_positions) {
  check(place.stored >= 0 && place.stored < vocab_size, "prompt: the image token ", place.stored,
        " is outside the vocabulary of ", vocab_size);
  for (const Patches& each : patches) {
    const auto [t, h, w] = each.grid;
    check(t > 0 && h > 0 && w > 0 && h % place.merge == 0 && w % place.merge == 0,
          "prompt: an image has a grid of ", t, " x ", h, " x ", w, " patches, expected multiples of ",
          place.merge);
    check(each.pixel_values.dim() == 2 && each.pixel_values.size(0) == int64_t{t} * h * w,
          "prompt: an image with a grid of ", t, " x ", h, " x ", w, " has pixel values of the shape ",
          each.pixel_values.sizes());
  }
  Prompt out;
  int64_t first = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] != place.token) {
      check(ids[i] >= 0 && ids[i] < vocab_size, "prompt: token id ", ids[i], " is outside the vocabulary of ",
            vocab_size);
      out.ids.push_back(ids[i]);
      continue;
    }
    check(out.segments.size() < patches.size(), "prompt: more image places than the ", patches.size(),
          " images given");
    const Patches& image = patches[out.segments.size()];
    const Grid& grid = image.grid;
    const Segment span{grid.t * grid.h / place.merge, grid.w / place.merge, first, image.area,
                       std::ssize(out.segments)};
    size_t run = i;
    while (run < ids.size() && ids[run] == ids[i] && run - i < static_cast<size_t>(span.count())) ++run;
    check(run - i == 1 || static_cast<int64_t>(run - i) == span.count(), "prompt: image ",
          out.segments.size() + 1, " has ", run - i, " places, expected 1 or ", span.count());
    for (int64_t t = 0; t < span.count(); ++t) {
      out.visual_rows.push_back(static_cast<int64_t>(out.ids.size()));
      out.ids.push_back(place.stored);
    }
    out.segments.push_back(span);
    first += span.count();
    i = run - 1;
  }
  check(!out.ids.empty(), "prompt: it is empty");
  check(out.segments.size() == patches.size(), "prompt: ", patches.size(), " images were given but it has ",
        out.segments.size(), " places for them");
  check_as(Error::Kind::too_large, std::ssize(out.ids) < max_positions, "prompt: ", out.ids.size(),
           " tokens do not fit the model's context of ", max_positions,
           out.visual_rows.empty() ? "; shorten the text"
           : place.resizes         ? "; lower --max-pixels, give fewer images or shorten the text"
                                   : "; give fewer images or shorten the text");
  out.patches = std::move(patches);
  const auto rows = std::ssize(out.ids), visual = std::ssize(out.visual_rows);
  const int64_t after = visual == 0 ? 0 : out.visual_rows.back() + 1 - visual;
  for (int64_t row = after < rows - visual ? after : 0; row < rows - visual; ++row)
    out.question_rows.push_back(row);
  return out;
}

void set_question(Prompt& prompt, const std::vector<int64_t>& ids, const std::vector<int64_t>& places,
                  int64_t image_token) {
  if (places.empty()) return;
  prompt.question_rows.clear();
  for (const int64_t place : places)
    prompt.question_rows.push_back(place - std::count(ids.begin(), ids.begin() + place, image_token));
}

}  // namespace glimpse
