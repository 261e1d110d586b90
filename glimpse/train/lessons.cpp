#include "glimpse/train/lessons.h"

#include <ATen/core/grad_mode.h>

#include "glimpse/engine/checked_file.h"
#include "glimpse/engine/hash.h"
#include "glimpse/engine/prefill.h"
#include "glimpse/io/safetensors.h"
#include "glimpse/nn/index_tensor.h"
#include "glimpse/prune/shares.h"

namespace glimpse {

namespace fs = std::filesystem;

namespace {

// Notes what a scout would see, and lets everything pass; or nothing, where nobody looks further. What one
// within the encoder sees is here, too, as nothing was dropped before, with the tokens that it has to guess.
class Lookout : public Pruner {
 public:
  Lookout(const std::vector<int64_t>& taps, bool passes) : taps_(taps), passes_(passes) {}
  std::string name() const override { return "lookout"; }
  nlohmann::json settings() const override { return nullptr; }
  std::vector<Cut> cuts() const override { return {{Cut::Place::before, 0}}; }
  Taps taps() const override { return {taps_, {}, false, nullptr, {}}; }
  Selection select(const View& view, const Cut&, const Budget&) const override {
    seen_ = scout_inputs(view);
    windows_ = encoder_units(view);
    Selection out;
    if (passes_)
      for (int64_t i = 0; i < view.count(); ++i) out.keep.push_back(i);
    return out;
  }
  Lesson lesson() const { return {seen_, windows_, {}}; }

 private:
  const std::vector<int64_t>& taps_;
  const bool passes_;
  mutable std::vector<ScoutInput> seen_;
  mutable std::vector<int64_t> windows_;
};

using Tensors = std::map<std::string, at::Tensor>;

std::string tap_name(size_t i) {
  return concat("taps.", i);
}

// All pictures of a row one behind the other; "picture" [N] says whose a token is.
Tensors picture_tensors(const Lesson& lesson) {
  std::vector<at::Tensor> visual;
  std::vector<std::vector<at::Tensor>> taps(lesson.inputs[0].taps.size());
  std::vector<int64_t> row, col, picture;
  for (const ScoutInput& input : lesson.inputs) {
    visual.push_back(input.visual);
    for (size_t i = 0; i < taps.size(); ++i) taps[i].push_back(input.taps[i]);
    row.insert(row.end(), input.row.begin(), input.row.end());
    col.insert(col.end(), input.col.begin(), input.col.end());
    picture.resize(row.size(), &input - lesson.inputs.data());
  }
  Tensors out = {{"visual", at::cat(visual)}};
  for (size_t i = 0; i < taps.size(); ++i) out[tap_name(i)] = at::cat(taps[i]);
  const auto whole = [](const std::vector<int64_t>& all) { return at::tensor(all, at::kLong); };
  out.insert({{"row", whole(row)},
              {"col", whole(col)},
              {"picture", whole(picture)},
              {"windows", whole(lesson.windows)}});
  return out;
}

Tensors row_tensors(const Lesson& lesson) {
  Tensors out = {{"words", lesson.inputs[0].words}};
  if (lesson.taught.defined()) out["taught"] = lesson.taught;
  return out;
}

// The other way round. Errors: a name is missing, sizes do not agree.
Lesson lesson_from(const Tensors& pictures, const Tensors& own, size_t taps, at::Device device) {
  const at::Tensor words = to_device(own.at("words"), device),
                   visual = to_device(pictures.at("visual"), device);
  const std::vector<int64_t> row = list_of(pictures.at("row")), col = list_of(pictures.at("col")),
                             picture = list_of(pictures.at("picture"));
  check(std::ssize(picture) == visual.size(0) && col.size() == picture.size() && row.size() == picture.size(),
        "sizes do not agree");
  Lesson lesson;
  lesson.windows = list_of(pictures.at("windows"));
  for (size_t first = 0, end = 0; first < picture.size(); first = end) {
    while (end < picture.size() && picture[end] == picture[first]) ++end;
    const auto from = static_cast<std::ptrdiff_t>(first), to = static_cast<std::ptrdiff_t>(end);
    ScoutInput input{visual.slice(0, from, to),
                     {},
                     {row.begin() + from, row.begin() + to},
                     {col.begin() + from, col.begin() + to},
                     words};
    for (size_t i = 0; i < taps; ++i)
      input.taps.push_back(to_device(pictures.at(tap_name(i)), device).slice(0, from, to));
    lesson.inputs.push_back(std::move(input));
  }
  if (const auto taught = own.find("taught"); taught != own.end()) lesson.taught = taught->second;
  return lesson;
}

std::string file_name(const char* kind, const Hash& hash) {
  const XXH128_hash_t sum = hash.sum();
  return concat(kind, "-", hex(sum.high64, sum.low64), ".safetensors");
}

}  // namespace

Lessons::Lessons(const Vlm& model, std::vector<int64_t> taps, LessonOptions options)
    : model_(model), taps_(std::move(taps)), options_(std::move(options)) {
  if (options_.cache_mb > 0) pictures_ = std::make_unique<PrefixCache>(options_.cache_mb << 20);
}

Lessons::Files Lessons::files_of(const Prompt& prompt) const {
  Hash picture(0);
  picture.add(options_.origin);
  picture.add(taps_);
  for (const Patches& patches : prompt.patches) picture.add(patches.pixel_values);
  for (const Segment& segment : prompt.segments) {
    picture.add(segment.rows);
    picture.add(segment.cols);
  }
  const std::string pictures = file_name("picture", picture);
  Hash row(0);
  row.add(pictures);
  row.add(options_.teacher_origin);
  row.add(prompt.ids);
  row.add(prompt.question_rows);
  // A video's times are in its tokens' positions, on which the teacher's opinion depends.
  for (const Patches& patches : prompt.patches)
    if (patches.clip) row.add(patches.clip->seconds_per_grid);
  const fs::path& dir = options_.folder->dir();
  return {dir / pictures, dir / file_name("row", row)};
}

std::optional<Lesson> Lessons::stored(const Files& files) const {
  if (!fs::exists(files.row) || !fs::exists(files.picture)) return std::nullopt;
  try {
    Lesson lesson = lesson_from(load_safetensors(files.picture).tensors, load_safetensors(files.row).tensors,
                                taps_.size(), model_.decoder().options().device());
    check(lesson.taught.defined() == (options_.teacher != nullptr), "the teacher's part is missing");
    for (const fs::path& path : {files.row, files.picture}) CacheFolder::use(path);
    return lesson;
  } catch (const std::exception&) {  // damaged: made again
    return std::nullopt;
  }
}

void Lessons::store(const Files& files, const Lesson& lesson) {
  const auto write = [&](const fs::path& path, const Tensors& tensors) {
    full_ = full_ || !options_.folder->make_room(checked_bytes(tensors), began_);
    if (!full_) save_safetensors(path, tensors);
  };
  // The picture's is there already where another row is about it, unless that one is why the lesson was made.
  write(files.row, row_tensors(lesson));
  if (!full_ && !stored(files)) write(files.picture, picture_tensors(lesson));
}

std::vector<Lesson> Lessons::made(std::span<const Example* const> examples) {
  const at::NoGradGuard no_grad;
  PrefillBatch batch(model_, pictures_.get());
  std::vector<std::shared_ptr<Lookout>> lookouts;
  std::vector<Sequence> sequences(examples.size());
  for (size_t i = 0; i < examples.size(); ++i) {
    Sequence& sequence = sequences[i];
    lookouts.push_back(std::make_shared<Lookout>(taps_, options_.teacher != nullptr));
    sequence.prompt = examples[i]->prompt;
    sequence.pruners.push_back(lookouts.back());
    if (const auto& teacher = options_.teacher)
      sequence.pruners.push_back(std::make_shared<GlimpsePruner>(teacher, teacher->config.rule));
    if (const auto end = prefix_end(sequence.prompt, sequence.pruners, model_.decoder().config().layers);
        pictures_ && end)
      sequence.prefix_key = prefix_key(sequence, *end, model_.weights_version(), pictures_->seed());
    batch.add(sequence);
  }
  while (!batch.done())
    for (const PrefillBatch::Failure& failure : batch.step()) std::rethrow_exception(failure.error);
  std::vector<Lesson> lessons;
  for (size_t i = 0; i < examples.size(); ++i) {
    lessons.push_back(lookouts[i]->lesson());
    if (options_.teacher) lessons.back().taught = sequences[i].scores;
  }
  return lessons;
}

std::vector<Lesson> Lessons::of(std::span<const Example> examples) {
  std::vector<Lesson> lessons(examples.size());
  std::vector<Files> files(examples.size());
  std::vector<size_t> missing;
  std::vector<const Example*> asked;
  for (size_t i = 0; i < examples.size(); ++i) {
    if (options_.folder) {
      files[i] = files_of(examples[i].prompt);
      if (auto known = stored(files[i])) {
        lessons[i] = std::move(*known);
        continue;
      }
    }
    missing.push_back(i);
    asked.push_back(&examples[i]);
  }
  if (missing.empty()) return lessons;
  std::vector<Lesson> fresh = made(asked);
  for (size_t i = 0; i < missing.size(); ++i) {
    if (options_.folder) store(files[missing[i]], fresh[i]);
    lessons[missing[i]] = std::move(fresh[i]);
  }
  return lessons;
}

}  // namespace glimpse
