#include "glimpse/train/trainer.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <iostream>
#include <ranges>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/json_file.h"
#include "glimpse/base/timer.h"
#include "glimpse/engine/engine.h"
#include "glimpse/engine/kept_grids.h"
#include "glimpse/engine/kept_pictures.h"
#include "glimpse/io/run_identity.h"
#include "glimpse/train/checkpoint.h"
#include "glimpse/train/loader.h"
#include "glimpse/train/report.h"

namespace glimpse {

namespace fs = std::filesystem;

namespace {

constexpr size_t kCheckpointsKept = 2;

// Dropout's random numbers belong to a batch of a step, so that a resumed run draws the same ones and every
// process does: `batch` counts the batches of one process of those that the run began on.
void seed_dropout(uint64_t seed, int64_t step, int64_t batch) {
  at::manual_seed(seed * 1000003 + static_cast<uint64_t>(step) * 4099 + static_cast<uint64_t>(batch));
}

// Of what is drawn for a row of a step, on whichever process; there is room for its completions' own.
int64_t seed_of_row(uint64_t seed, int64_t step, int64_t row) {
  std::seed_seq mix{seed, seed >> 32, static_cast<uint64_t>(step), static_cast<uint64_t>(row)};
  std::array<uint32_t, 2> words;
  mix.generate(words.begin(), words.end());
  return static_cast<int64_t>((uint64_t{words[0]} << 20 ^ words[1]) << 10 & ((uint64_t{1} << 52) - 1));
}

at::ScalarType parse_save_dtype(const std::string& name) {
  check(name == "fp32" || name == "bf16", "save_dtype: expected fp32 or bf16, got '", name, "'");
  return name == "fp32" ? at::kFloat : at::kBFloat16;
}

// Of all that is trained on but the pictures' bytes, of which a set has too many.
std::string rows_fingerprint(const std::vector<TrainRow>& rows) {
  std::string all;
  for (const TrainRow& row : rows)
    all += content_hash(json_text(nlohmann::json{row.question, row.answer, row.dataset, row.image, row.boxes,
                                                 row.width, row.height})) +
           (row.video ? "video" : "");
  return content_hash(all);
}

int64_t number_of(const std::string& fingerprint) {
  return static_cast<int64_t>(std::stoull(fingerprint, nullptr, 16));
}

fs::path base_dir(const std::string& model) {
  return model.empty() ? builtin_model_dir() / "model" : resolve_model_dir(model);
}

}  // namespace

// What a step adds up over its examples; the order is that of the message between processes.
struct Trainer::Sums {
  explicit Sums(size_t count) : values(count) {}
  std::vector<double> values;  // of Trainable::value_names()
  double examples = 0, total = 0;
  double predicted = 0, kept_reference = 0, kept = 0, reference = 0, kept_share = 0, stop = 0;

  void add(const Learned& learned, const Example& example, const Trainable& modules) {
    const at::NoGradGuard no_grad;
    examples += 1;
    std::vector<at::Tensor> parts = {learned.total.reshape(1).to(at::kFloat),
                                     learned.values.to(learned.total.device())};
    if (learned.logits.defined()) parts.push_back(learned.logits.to(at::kFloat));
    const at::Tensor known = at::cat(parts).cpu();  // one copy from the device
    total += double{known.const_data_ptr<float>()[0]};
    for (size_t i = 0; i < values.size(); ++i) values[i] += double{known.const_data_ptr<float>()[i + 1]};
    if (!learned.logits.defined()) return;
    const int64_t before = 1 + std::ssize(values);
    const at::Tensor logits = known.narrow(0, before, known.numel() - before);
    const std::vector<int64_t> keep = modules.keep(logits);
    predicted += 1;
    kept_share += static_cast<double>(keep.size()) / static_cast<double>(logits.numel());
    if (!example.reference.defined()) return;
    const at::Tensor mask = example.reference.contiguous();
    for (const int64_t token : keep) kept_reference += mask.const_data_ptr<float>()[token];
    kept += static_cast<double>(keep.size());
    reference += mask.sum().item<double>();
  }

  /// Means over the examples; of the kept tokens as section 7 says: over all tokens, the share over examples.
  void report(StepMetrics& metrics, const std::vector<std::string>& names) const {
    const auto share = [](double part, double whole) { return whole > 0 ? part / whole : 0.0; };
    metrics.add("loss", total / examples);
    for (size_t i = 0; i < names.size(); ++i) metrics.add(names[i], values[i] / examples);
    if (predicted == 0) return;
    metrics.add("precision", share(kept_reference, kept));
    metrics.add("recall", share(kept_reference, reference));
    metrics.add("f1", share(2 * kept_reference, kept + reference));
    metrics.add("iou", share(kept_reference, kept + reference - kept_reference));
    metrics.add("kept", kept_share / predicted);
  }

  void over_all(World& world) {
    std::vector<double*> all = {&examples, &total,     &predicted,  &kept_reference,
                                &kept,     &reference, &kept_share, &stop};
    for (double& value : values) all.push_back(&value);
    at::Tensor message = at::empty({static_cast<int64_t>(all.size())}, at::kDouble);
    for (size_t i = 0; i < all.size(); ++i) message[static_cast<int64_t>(i)] = *all[i];
    std::vector<at::Tensor> tensors = {message};
    world.sum(tensors);
    for (size_t i = 0; i < all.size(); ++i) *all[i] = message[static_cast<int64_t>(i)].item<double>();
  }
};

Trainer::Trainer(TrainOptions options, fs::path run, World& world, bool resume)
    : options_(std::move(options)), run_(std::move(run)), world_(world) {
  parse_save_dtype(options_.save_dtype);
  check(!options_.data.empty(), "training: no rows; name a JSONL file with --data");
  set_threads(options_.threads);
  const fs::path dir = base_dir(options_.model);
  const fs::path start = options_.new_modules.empty() ? "" : resolve_model_dir(options_.new_modules);
  EngineOptions engine;
  engine.dtype = options_.dtype;
  engine.device = local_device(options_.device);
  LoadOptions load = load_options(engine, read_json(dir / "config.json"));
  load.weights.keep = false;  // layers in few bits cannot be trained through
  if (!start.empty()) load.config_overrides = read_json(start / "config.json");
  model_ = load_vlm(dir, load);
  const std::string notes = world_.first() ? "" : concat("process-", world_.rank(), "-");
  modules_ = make_trainable(options_, *model_, dir, run_ / notes);
  optimiser_ = std::make_unique<Optimiser>(modules_->parameters(), options_.optimiser);

  std::vector<DataSource> sources;
  for (const std::string& file : options_.data) sources.push_back({file, options_.dataset, options_.samples});
  TrainRows read =
      read_train_rows(sources, {options_.image_root, options_.seed, options_.max_bad_share,
                                options_.tune ? options_.new_modules.empty()
                                              : options_.scout.empty() || options_.loss.distil_weight == 0});
  rows_ = std::move(read.rows);
  if (world_.first())
    for (const std::string& problem : read.problems) std::cerr << "glimpse: skipped " << problem << "\n";
  std::string weights = weights_fingerprint(dir);
  if (options_.tune && !options_.tune->adapter.empty())
    weights += ' ' + weights_fingerprint(resolve_model_dir(options_.tune->adapter));
  if (!start.empty()) weights += ' ' + weights_fingerprint(start);
  take_up_beginning(weights, resume);
  hold_out();
  plan_steps();
  take_up_checkpoint();
  if (world_.first()) {
    write_settings();
    log_ = std::make_unique<MetricsLog>(run_, step_ > 0 ? step_ : -1);
  }
}

// The first process's record of how the run began, or begins now; all processes must fit it.
void Trainer::take_up_beginning(const std::string& weights, bool resume) {
  const std::string rows = rows_fingerprint(rows_);
  const fs::path file = run_ / "train.json";
  processes_ = world_.size();
  if (world_.first()) {
    fs::create_directories(run_);
    lock_.emplace(run_ / ".lock", LockKind::exclusive);
    check(resume || !fs::exists(file), run_.string(), " holds a training run that another process began");
    began_ = {{"rows", rows}, {"weights", weights}, {"processes", processes_}};
    const nlohmann::json before =
        resume ? read_json(file).value("began", nlohmann::json()) : nlohmann::json();
    if (before.is_object()) {
      check(member(before, "rows") == rows, run_.string(),
            " began with other rows than its data files give now; it cannot go on with these");
      check(member(before, "weights") == weights, run_.string(),
            " began with other weights than its model or its first modules have now; it cannot go on with "
            "these");
      began_ = before;
      processes_ = before.value("processes", processes_);
    }
  }
  std::vector<at::Tensor> shared = {at::tensor({processes_, number_of(rows)}, at::kLong)};
  world_.share(shared);
  processes_ = shared[0][0].item<int64_t>();
  check(shared[0][1].item<int64_t>() == number_of(rows), "training: process ", world_.rank(),
        " has other rows than the first; give all processes the same data files and pictures");
}

// A few rows for answers before and after; a small set keeps nine tenths.
void Trainer::hold_out() {
  if (!options_.tune) return;
  const size_t count = std::min(static_cast<size_t>(options_.tune->held_out), rows_.size() / 10);
  const std::vector<size_t> chosen = sample_rows(rows_.size(), count, options_.seed);
  for (const size_t row : chosen) held_out_.push_back(rows_[row]);
  for (const size_t row : std::views::reverse(chosen)) rows_.erase(rows_.begin() + static_cast<int64_t>(row));
}

// A step has the rows that it had when the run began, on however many processes.
void Trainer::plan_steps() {
  const int64_t batches = options_.accumulation * processes_;  // of a step, on all processes
  check(batches % world_.size() == 0, "this run began on ", processes_,
        " processes, and each of its steps has ", batches, " batches of ", options_.batch, " rows, which ",
        world_.size(), " processes cannot share out evenly; go on with a number that divides ", batches);
  accumulation_ = batches / world_.size();
  if (world_.size() != processes_)
    notes_.push_back(concat("began on ", processes_, " processes and goes on on ", world_.size(),
                            ": steps have the same rows, ", accumulation_, " batches on each process"));
  steps_per_epoch_ = (static_cast<int64_t>(rows_.size()) + step_rows() - 1) / step_rows();
  total_steps_ = steps_per_epoch_ * options_.epochs;
  if (options_.max_steps > total_steps_)
    notes_.push_back(
        concat("the epochs end after ", total_steps_, " steps, before max_steps ", options_.max_steps));
  if (options_.max_steps > 0) total_steps_ = std::min(total_steps_, options_.max_steps);
}

// What the first process reads, all go on from: they need not see its directory.
void Trainer::take_up_checkpoint() {
  if (world_.first())
    if (const auto checkpoint = newest_checkpoint(run_)) {
      optimiser_->load_state(checkpoint->state, (run_ / "checkpoints").string());
      step_ = checkpoint->step;
    }
  std::map<std::string, at::Tensor> state = optimiser_->state();
  std::vector<at::Tensor> counts = {at::tensor({step_}, at::kLong), state.at("steps")};
  world_.share(counts);
  step_ = counts[0].item<int64_t>();
  check(total_steps_ >= step_, "this run has done ", step_, " steps, more than the ", total_steps_,
        " that it is to have; raise max_steps or epochs");
  if (step_ == 0) return;
  std::vector<at::Tensor> values;
  std::vector<std::string> names;
  for (const auto& [name, parameter] : modules_->parameters())
    for (const char* part : {"parameter/", "exp_avg/", "exp_avg_sq/"}) {
      const auto known = state.find(part + name);
      names.push_back(part + name);
      values.push_back(known != state.end() ? known->second
                                            : at::zeros(parameter.sizes(), at::TensorOptions(at::kFloat)));
    }
  world_.share(values);
  for (size_t i = 0; i < names.size(); ++i) state[names[i]] = values[i];
  state["steps"] = counts[1];
  if (!world_.first()) optimiser_->load_state(state, "the first process's checkpoint");
}

void Trainer::write_settings() {
  nlohmann::json& schedules = began_["schedules"];
  if (!schedules.empty() && schedules.back().value("steps", total_steps_) != total_steps_)
    notes_.push_back(concat("planned for ", schedules.back()["steps"], " steps, now for ", total_steps_,
                            ": from step ", step_ + 1, " on the learning rate is that of ", total_steps_,
                            " steps, which is not what a run of so many from the start would give"));
  if (schedules.empty() || schedules.back().value("steps", total_steps_) != total_steps_)
    schedules.push_back({{"after_step", step_}, {"steps", total_steps_}});
  nlohmann::json all = options_.to_json();
  all["began"] = began_;
  AtomicFile settings(run_ / "train.json");
  settings.stream() << all.dump(2) << "\n";
  settings.commit();
}

Trainer::~Trainer() = default;

// The rows that this process takes in batch `batch` of a step; the last step of an epoch may be short.
std::vector<size_t> Trainer::batch_rows(int64_t step, int64_t batch) {
  const int64_t epoch = step / steps_per_epoch_;
  if (epoch != ordered_epoch_) order_ = epoch_order(rows_.size(), options_.seed, epoch);
  ordered_epoch_ = epoch;
  const auto count = static_cast<int64_t>(order_.size());
  const int64_t first =
      step % steps_per_epoch_ * step_rows() + (batch * world_.size() + world_.rank()) * options_.batch;
  return {order_.begin() + std::min(first, count), order_.begin() + std::min(first + options_.batch, count)};
}

StepMetrics Trainer::take_step(Loader<LoadedRow>& loader, bool stop) {
  const Timer timer;
  Sums sums(modules_->value_names().size());
  sums.stop = stop;
  for (int64_t b = 0; b < accumulation_; ++b) {
    std::vector<Example> examples;
    const int64_t first = (b * world_.size() + world_.rank()) * options_.batch;  // of the step's rows
    const size_t count = batch_rows(step_, b).size();
    for (size_t i = 0; i < count; ++i) {
      auto row = loader.next();
      invariant(row.has_value(), "the loader ended before the run");
      if (!row->item) {
        report_broken(row->problem);
        continue;
      }
      examples.push_back(std::move(row->item->example));
      examples.back().seed = seed_of_row(options_.seed, step_, first + static_cast<int64_t>(i));
    }
    if (examples.empty()) continue;
    seed_dropout(options_.seed, step_, (b * world_.size() + world_.rank()) / processes_);
    size_t taken = 0;
    modules_->learn(examples, options_.loss, [&](std::span<const Learned> learned) {
      at::Tensor total;
      for (const Learned& one : learned) {
        sums.add(one, examples[taken++], *modules_);
        total = total.defined() ? total + one.total : one.total;
      }
      total.backward();
    });
  }
  // The step's gradient is the mean over its examples, on whichever process they were.
  sums.over_all(world_);
  check(sums.examples > 0, "training: no row of step ", step_ + 1, " could be used");
  std::vector<at::Tensor> gradients;
  for (const auto& [name, parameter] : modules_->parameters()) {
    if (!parameter.grad().defined()) parameter.mutable_grad() = at::zeros_like(parameter);
    gradients.push_back(parameter.mutable_grad());
  }
  world_.sum(gradients);
  stopping_ = sums.stop > 0;  // when any process was asked to, all of them stop after this step
  for (at::Tensor& gradient : gradients) gradient.div_(sums.examples);

  const double lr =
      options_.optimiser.lr * learning_rate_factor(step_, total_steps_, options_.optimiser.warmup_ratio);
  const double norm = optimiser_->step(lr);
  ++step_;
  StepMetrics metrics{step_, static_cast<double>(step_) / static_cast<double>(steps_per_epoch_), {}};
  sums.report(metrics, modules_->value_names());
  metrics.add("grad_norm", norm);
  metrics.add("lr", lr);
  metrics.add("samples_per_s", 1000.0 * sums.examples / timer.ms());
  return metrics;
}

bool Trainer::run(std::stop_token stop, const std::function<void(const StepMetrics&)>& after_step) {
  std::vector<size_t> mine;
  for (int64_t step = step_; step < total_steps_; ++step)
    for (int64_t b = 0; b < accumulation_; ++b)
      for (const size_t row : batch_rows(step, b)) mine.push_back(row);
  Loader<LoadedRow> loader(
      mine, [&](size_t row) { return loaded(rows_[row]); }, options_.loader_threads,
      static_cast<size_t>(2 * options_.batch + options_.loader_threads));
  if (world_.first()) draw_overlays();
  if (world_.first() && step_ == 0) note_answers(Shown::before);

  try {
    while (step_ < total_steps_) {
      const StepMetrics metrics = take_step(loader, stop.stop_requested());
      if (world_.first()) {
        if (step_ % options_.log_every == 0 || step_ == total_steps_) {
          log_->write(metrics);
          note_sample();
        }
        if (options_.overlay_every > 0 && step_ % options_.overlay_every == 0) draw_overlays();
        if (step_ % options_.save_every == 0 && step_ < total_steps_) save();
        after_step(metrics);
      }
      if (stopping_) {
        if (world_.first()) save();
        return false;
      }
    }
  } catch (const LostProcess&) {
    // The parameters are those after the last whole step.
    if (world_.first()) save();
    throw;
  }
  if (world_.first()) finish();
  return true;
}

LoadedRow Trainer::loaded(const TrainRow& row) const {
  LoadedRow out = load_row(*model_, row, media());
  try {
    modules_->check_example(out.example);
  } catch (const Error& error) {
    fail(row.file, ":", row.line, ": ", error.what());
  }
  return out;
}

void Trainer::report_broken(const std::string& problem) {
  std::cerr << "glimpse: skipped " << problem << "\n";
  ++broken_;
  const double share = static_cast<double>(broken_) / static_cast<double>(rows_.size());
  check(share <= options_.max_bad_share, "training: ", broken_, " of ", rows_.size(),
        " rows could not be used, more than max_bad_share ", options_.max_bad_share, "; the last: ", problem);
}

void Trainer::save() {
  save_checkpoint(run_, {step_, optimiser_->state()}, kCheckpointsKept);
}

// What the modules keep of a few rows now, as inference would.
void Trainer::draw_overlays() {
  if (options_.overlay_every == 0 || options_.overlay_rows == 0) return;
  const at::NoGradGuard no_grad;
  const auto pruner = modules_->pruner();
  if (!pruner) return;
  const auto shown = sample_rows(rows_.size(), static_cast<size_t>(options_.overlay_rows), options_.seed);
  fs::create_directories(run_ / "overlays");
  for (size_t i = 0; i < shown.size(); ++i) try {
      LoadedRow row = load_row(*model_, rows_[shown[i]], media());
      Sequence sequence;
      sequence.prompt = std::move(row.example.prompt);
      sequence.pruners.push_back(pruner);
      Sequence* const sequences[] = {&sequence};
      prefill(*model_, sequences);
      const std::vector<Segment>& segments = sequence.prompt.segments;
      char name[48];
      std::snprintf(name, sizeof name, "step-%06lld-row-%zu.png", static_cast<long long>(step_), i);
      save_png(kept_picture(row.medium, kept_grids(segments, by_segment(segments, sequence.kept), 0),
                            KeptStyle::overlay),
               run_ / "overlays" / name);
      AtomicFile question(run_ / "overlays" / concat("row-", i, ".txt"));
      question.stream() << rows_[shown[i]].question << "\n";
      question.commit();
    } catch (const Error&) {
      // A broken row is reported where it is trained on.
    }
}

void Trainer::note_sample() {
  const std::string sample = modules_->sample();
  if (sample.empty()) return;
  std::ofstream out(run_ / "samples.txt", std::ios::app);
  out << "step " << step_ << ": " << sample << "\n";
}

void Trainer::note_answers(Shown when) {
  write_answers(run_, when, *modules_, *model_, held_out_, media());
}

void Trainer::finish() {
  save();
  draw_overlays();
  modules_->save(run_ / "final", parse_save_dtype(options_.save_dtype));
  note_answers(Shown::after);
  write_report(run_);
}

}  // namespace glimpse
