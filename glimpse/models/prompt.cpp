#include "glimpse/models/prompt.h"

#include <algorithm>
#include <iterator>

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

std::vector<int64_t> Prompt::media_rows() const {
  std::vector<int64_t> rows;
  std::merge(visual_rows.begin(), visual_rows.end(), structure_rows.begin(), structure_rows.end(),
             std::back_inserter(rows));
  return rows;
}

Prompt widen(const std::vector<int64_t>& ids, std::vector<Patches> patches,
             const std::vector<std::vector<TokenGrid>>& grids, const ImagePlace& place, int64_t vocab_size,
             int64_t max_positions) {
  check(place.stored >= 0 && place.stored < vocab_size, "prompt: the image token ", place.stored,
        " is outside the vocabulary of ", vocab_size);
  Prompt out;
  int64_t first = 0;
  size_t image = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] != place.token) {
      check(ids[i] >= 0 && ids[i] < vocab_size, "prompt: token id ", ids[i], " is outside the vocabulary of ",
            vocab_size);
      out.ids.push_back(ids[i]);
      continue;
    }
    check(image < grids.size(), "prompt: more image places than the ", grids.size(), " images given");
    int64_t wanted = 0;
    for (const TokenGrid& grid : grids[image]) wanted += grid.rows * grid.cols + grid.breaks;
    size_t run = i;
    while (run < ids.size() && ids[run] == ids[i] && run - i < static_cast<size_t>(wanted)) ++run;
    check(run - i == 1 || static_cast<int64_t>(run - i) == wanted, "prompt: image ", image + 1, " has ",
          run - i, " places, expected 1 or ", wanted);
    const auto add = [&](std::vector<int64_t>& rows) {
      rows.push_back(std::ssize(out.ids));
      out.ids.push_back(place.stored);
    };
    for (const TokenGrid& grid : grids[image]) {
      const Segment span{grid.rows, grid.cols, first, grid.area, static_cast<int64_t>(image)};
      const int64_t runs = std::max<int64_t>(grid.breaks, 1);
      invariant(span.count() % runs == 0, "a grid breaks into unequal runs");
      for (int64_t run_of_tokens = 0; run_of_tokens < runs; ++run_of_tokens) {
        for (int64_t t = 0; t < span.count() / runs; ++t) add(out.visual_rows);
        if (grid.breaks > 0) add(out.structure_rows);
      }
      if (span.count() > 0) out.segments.push_back(span);
      first += span.count();
    }
    ++image;
    i = run - 1;
  }
  check(!out.ids.empty(), "prompt: it is empty");
  check(image == grids.size(), "prompt: ", grids.size(), " images were given but it has ", image,
        " places for them");
  check_as(Error::Kind::too_large, std::ssize(out.ids) < max_positions, "prompt: ", out.ids.size(),
           " tokens do not fit the model's context of ", max_positions,
           out.visual_rows.empty() ? "; shorten the text"
           : place.resizes
               ? "; lower --max-pixels, give fewer images or frames (--max-frames) or shorten the text"
               : "; give fewer images or shorten the text");
  out.patches = std::move(patches);
  const std::vector<int64_t> media = out.media_rows();
  const int64_t text = std::ssize(out.ids) - std::ssize(media);
  const int64_t after = media.empty() ? 0 : media.back() + 1 - std::ssize(media);
  for (int64_t row = after < text ? after : 0; row < text; ++row) out.question_rows.push_back(row);
  return out;
}

void set_question(Prompt& prompt, const std::vector<int64_t>& ids, const std::vector<int64_t>& places,
                  std::span<const int64_t> media_tokens) {
  if (places.empty()) return;
  prompt.question_rows.clear();
  for (const int64_t place : places)
    prompt.question_rows.push_back(place - std::count_if(ids.begin(), ids.begin() + place, [&](int64_t id) {
                                     return std::find(media_tokens.begin(), media_tokens.end(), id) !=
                                            media_tokens.end();
                                   }));
}

}  // namespace glimpse
