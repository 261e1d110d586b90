#include "glimpse/engine/scheduler.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "glimpse/base/timer.h"
#include "glimpse/nn/index_tensor.h"

namespace glimpse {

namespace {

double mib(size_t bytes) {
  return std::round(static_cast<double>(bytes) / 1048576 * 10) / 10;
}

}  // namespace

Scheduler::Scheduler(const Engine& engine, SchedulerOptions options) : engine_(engine), options_(options) {
  check(options_.max_sequences > 0, "scheduler: max_sequences ", options_.max_sequences, " is not positive");
  check(options_.chunk_rows > 0, "scheduler: chunk_rows ", options_.chunk_rows, " is not positive");
}

// Of one layer's cache when it has grown to `rows`.
size_t Scheduler::layer_bytes(int64_t rows, KvFormat format) const {
  const Decoder& decoder = engine_.model().decoder();
  const DecoderConfig& c = decoder.config();
  return static_cast<size_t>(LayerCache::capacity_of(rows) * 2 * c.kv_heads) *
         LayerCache::row_bytes(format, c.head_dim, decoder.options().dtype().itemsize());
}

size_t Scheduler::most_kv_bytes(const Job& job) const {
  const int64_t rows = std::ssize(job.sequence.prompt.ids) + 1 + job.tokens_left();
  // A layer that a prompt runs through holds its rows as they came, beside their codes.
  const size_t open = engine_.kv() == KvFormat::plain ? 0 : layer_bytes(rows, KvFormat::plain);
  return open + static_cast<size_t>(engine_.model().decoder().config().layers) *
                    layer_bytes(rows, engine_.kv()) * (1 + job.forks.size());
}

std::future<Answer> Scheduler::submit(const Request& request) {
  return std::move(submit(request, 1)[0]);
}

std::vector<std::future<Answer>> Scheduler::submit(const Request& request, int64_t choices,
                                                   std::span<const std::shared_ptr<EventSink>> events) {
  check(choices >= 1 && choices <= options_.max_sequences, choices,
        " answers to one request were asked for; from 1 to ", options_.max_sequences, " run together");
  check(events.empty() || std::ssize(events) == choices, "events: ", events.size(), " queues for ", choices,
        " answers");
  auto job = std::make_unique<Job>(engine_, request);
  std::vector<std::future<Answer>> futures;
  for (int64_t choice = 0; choice < choices; ++choice) {
    if (choice > 0) job->forks.push_back(std::make_unique<Job>(*job, request, choice));
    Job& own = choice > 0 ? *job->forks.back() : *job;
    if (!events.empty()) own.report_to(events[choice]);
    futures.push_back(own.future());
  }
  const size_t most = most_kv_bytes(*job), patches = job->patch_bytes();
  check_as(Error::Kind::too_large, options_.kv_bytes == 0 || most <= options_.kv_bytes,
           "this request may need ", mib(most), " MiB of KV cache (a prompt of ",
           job->sequence.prompt.ids.size(), " tokens and up to ", job->tokens_left(),
           " new ones), but all requests together have ", mib(options_.kv_bytes), " MiB");
  {
    const std::lock_guard lock(mutex_);
    check_as(Error::Kind::busy, options_.max_waiting == 0 || waiting_.size() < options_.max_waiting,
             waiting_.size(), " requests wait already; submit the request again later");
    check_as(
        Error::Kind::busy,
        waiting_.empty() || options_.waiting_bytes == 0 || waiting_bytes_ + patches <= options_.waiting_bytes,
        waiting_.size(), " requests wait with ", mib(waiting_bytes_), " MiB of patches; another ",
        mib(patches), " MiB are more than the ", mib(options_.waiting_bytes),
        " MiB of waiting_bytes; submit the request again later");
    waiting_.push_back(std::move(job));
    waiting_bytes_ += patches;
    state_.waiting = waiting_.size();
  }
  wake_.notify_one();
  return futures;
}

std::vector<const Job*> Scheduler::running() const {
  std::vector<const Job*> jobs;
  for (const Prompts& prompts : prefilling_)
    for (const JobPtr& job : prompts.jobs) {
      jobs.push_back(job.get());
      for (const JobPtr& fork : job->forks) jobs.push_back(fork.get());
    }
  for (const JobPtr& job : decoding_) jobs.push_back(job.get());
  return jobs;
}

// The next request that can start now, in the order of submission. One whose image prefix is just being made
// lets others go first and then finds it in the cache.
Scheduler::JobPtr Scheduler::admit() {
  const int64_t free = options_.max_sequences - std::ssize(running());
  if (free <= 0) return nullptr;
  const auto is_being_made = [&](const JobPtr& job) {
    const auto& key = job->sequence.prefix_key;
    const auto makes_it = [&](const JobPtr& other) { return other->sequence.prefix_key == key; };
    return key && !engine_.prefix_cache()->find(*key) &&
           std::any_of(prefilling_.begin(), prefilling_.end(), [&](const Prompts& prompts) {
             return std::any_of(prompts.jobs.begin(), prompts.jobs.end(), makes_it);
           });
  };
  const std::lock_guard lock(mutex_);
  const auto next = std::find_if_not(waiting_.begin(), waiting_.end(), is_being_made);
  if (next == waiting_.end() || std::ssize((*next)->forks) + 1 > free) return nullptr;
  const size_t most = most_kv_bytes(**next);
  if (options_.kv_bytes > 0 && reserved_ + most > options_.kv_bytes) return nullptr;
  JobPtr job = std::move(*next);
  waiting_.erase(next);
  waiting_bytes_ -= job->patch_bytes();
  reserved_ += job->reserved = most;
  return job;
}

// Puts a job into the last batch if that has room, else into one of its own.
void Scheduler::start(JobPtr job) {
  try {
    const auto& key = job->sequence.prefix_key;
    const auto prefix = key ? engine_.prefix_cache()->find(*key) : nullptr;
    const int64_t rows = std::ssize(job->sequence.prompt.ids) + 1 - (prefix ? prefix->tokens : 0);
    if (prefilling_.empty() || prefilling_.back().closed || prefilling_.back().batch.started() ||
        prefilling_.back().batch.rows() + rows > options_.chunk_rows) {
      const at::Device device = engine_.model().decoder().options().device();
      prefilling_.emplace_back(engine_, std::min(max_block_rows(device), chunk_work()));
    }
    Prompts& prompts = prefilling_.back();
    prompts.jobs.reserve(prompts.jobs.size() + 1);
    prompts.batch.add(job->sequence);
    // The batch has its patches. A prompt that may share it keeps them, for a second try if another's fails.
    if (rows > options_.chunk_rows) job->sequence.prompt.patches.clear();
    prompts.jobs.push_back(std::move(job));
  } catch (...) {
    fail(*job, std::current_exception());
  }
}

// Gives jobs whose common batch has failed another try, each in a batch of its own.
void Scheduler::start_alone(std::vector<JobPtr> jobs) {
  for (JobPtr& job : jobs) {
    if (!prefilling_.empty()) prefilling_.back().closed = true;
    start(std::move(job));
  }
  if (!prefilling_.empty()) prefilling_.back().closed = true;
}

// Sets `bytes` aside for the job, less than before.
void Scheduler::shrink(Job& job, size_t bytes) {
  reserved_ -= job.reserved - bytes;
  job.reserved = bytes;
}

void Scheduler::end(Job& job, const std::string& reason) {
  shrink(job, 0);
  job.finish(reason);
}

void Scheduler::fail(Job& job, std::exception_ptr error) {
  shrink(job, 0);
  job.fail(std::move(error));
}

void Scheduler::fail_all(std::vector<JobPtr>& jobs) {
  for (const JobPtr& job : jobs) fail(*job, std::current_exception());
  jobs.clear();
}

void Scheduler::drop_cancelled() {
  std::vector<JobPtr> dropped;  // ended outside the lock, as they may call back
  // Asks each job only once: a stop may come at any moment. Room comes first, so that no job is lost.
  const auto take_from = [&](auto& jobs, const auto& before_it_leaves) {
    dropped.reserve(dropped.size() + jobs.size());
    for (auto job = jobs.begin(); job != jobs.end();) {
      if (!(*job)->cancelled()) {
        ++job;
        continue;
      }
      before_it_leaves(**job);
      dropped.push_back(std::move(*job));
      job = jobs.erase(job);
    }
  };
  {
    const std::lock_guard lock(mutex_);
    take_from(waiting_, [&](const Job& job) { waiting_bytes_ -= job.patch_bytes(); });
  }
  for (Prompts& prompts : prefilling_) try {
      take_from(prompts.jobs, [&](const Job& job) { prompts.batch.remove(job.sequence); });
    } catch (...) {  // the batch is not whole any more
      fail_all(prompts.jobs);
    }
  take_from(decoding_, [](const Job&) {});
  for (const JobPtr& job : dropped) end(*job, "cancelled");
}

// Takes the next token of a job; false if it has ended.
bool Scheduler::accept(Job& job, const at::Tensor& candidates, const at::Tensor& logits) {
  try {
    const std::string reason = job.accept(candidates, logits);
    if (reason.empty()) return true;
    end(job, reason);
  } catch (...) {
    fail(job, std::current_exception());
  }
  return false;
}

// Whose turn it is; null if no prompts are left.
Scheduler::Prompts* Scheduler::next_prompts() {
  prefilling_.remove_if([](const Prompts& prompts) { return prompts.jobs.empty(); });
  if (prefilling_.empty()) return nullptr;
  first_had_turn_ = !first_had_turn_;
  if (first_had_turn_) return &prefilling_.front();
  return &*std::min_element(prefilling_.begin(), prefilling_.end(), [](const Prompts& a, const Prompts& b) {
    return a.batch.rows_left() < b.batch.rows_left();
  });
}

// Rows through a layer between two decoding steps.
int64_t Scheduler::chunk_work() const {
  return options_.chunk_rows * engine_.model().decoder().config().layers;
}

void Scheduler::prefill_chunk() {
  while (JobPtr job = admit()) start(std::move(job));
  int64_t work = chunk_work();
  while (Prompts* const prompts = next_prompts()) {
    try {
      if (!advance(*prompts, work)) return;
    } catch (...) {
      std::vector<JobPtr> jobs = std::exchange(prompts->jobs, {});
      const auto has_patches = [](const JobPtr& job) { return !job->sequence.prompt.patches.empty(); };
      if (jobs.size() > 1 && std::all_of(jobs.begin(), jobs.end(), has_patches))
        start_alone(std::move(jobs));
      else
        fail_all(jobs);
    }
  }
}

// Lets prompts go on for as much as is left of a chunk's work, but at least a step per chunk; whether they
// got through.
bool Scheduler::advance(Prompts& prompts, int64_t& work) {
  PrefillBatch& batch = prompts.batch;
  while (!batch.done()) {
    if (work < batch.step_rows() && work < chunk_work()) return false;
    work -= batch.step_rows();
    for (const PrefillBatch::Failure& failure : batch.step()) {
      const auto job = std::find_if(prompts.jobs.begin(), prompts.jobs.end(),
                                    [&](const JobPtr& each) { return &each->sequence == failure.sequence; });
      fail(**job, failure.error);
      prompts.jobs.erase(job);
    }
    drop_cancelled();
  }
  if (!batch.empty()) finish_prefill(prompts);
  return true;
}

void Scheduler::finish_prefill(Prompts& prompts) {
  // Until the candidates are there nothing changes, so that another try is possible.
  std::vector<Job*> all;
  std::vector<int64_t> rows;  // of the logits
  for (const JobPtr& job : prompts.jobs) {
    rows.insert(rows.end(), 1 + job->forks.size(), rows.empty() ? 0 : rows.back() + 1);
    all.push_back(job.get());
    for (const JobPtr& fork : job->forks) all.push_back(fork.get());
  }
  const at::Tensor logits = prompts.batch.finish();
  const at::Tensor own = logits.index_select(0, index_tensor(rows, logits.device()));
  const std::vector<at::Tensor> candidates = next_candidates(all, own);
  decoding_.reserve(decoding_.size() + all.size());
  int64_t next = 0;
  for (JobPtr& first : std::exchange(prompts.jobs, {})) {
    std::vector<JobPtr> choices = std::exchange(first->forks, {});
    choices.insert(choices.begin(), std::move(first));
    const size_t each = choices[0]->reserved / choices.size();
    choices[0]->sequence.prompt.patches.clear();
    for (size_t i = 0; i < choices.size(); ++i) {
      choices[i]->reserved = each;
      if (i > 0) choices[i]->fork(*choices[0]);
    }
    for (JobPtr& job : choices) {
      const int64_t row = next++;
      if (begin_decoding(*job, candidates[row], own[row])) decoding_.push_back(std::move(job));
    }
  }
}

// Takes the first token of a job whose prefill has ended; false if it has ended with it.
bool Scheduler::begin_decoding(Job& job, const at::Tensor& candidates, const at::Tensor& logits) {
  try {
    job.prefilled();
    size_t bytes = 0;
    for (const LayerCache& layer : job.sequence.cache.layers)
      bytes += layer_bytes(layer.length() + job.tokens_left(), engine_.kv());
    shrink(job, std::min(bytes, job.reserved));
  } catch (...) {
    fail(job, std::current_exception());
    return false;
  }
  return accept(job, candidates, logits);
}

void Scheduler::decode() {
  std::vector<bool> going_on(decoding_.size());
  if (decode(decoding_, going_on)) {
    // Something failed: the others go on, and what fails alone ends.
    for (size_t i = 0; i < decoding_.size(); ++i) {
      std::vector<bool> one(1);
      if (const auto error = decode(std::span(&decoding_[i], 1), one)) fail(*decoding_[i], error);
      going_on[i] = one[0];
    }
  }
  auto next = going_on.begin();
  std::erase_if(decoding_, [&](const JobPtr&) { return !*next++; });
}

// A step of these sequences, and who goes on behind it. If it fails they are as they were before.
std::exception_ptr Scheduler::decode(std::span<const JobPtr> jobs, std::vector<bool>& going_on) {
  const Timer timer;
  std::vector<Job*> all;
  std::vector<Sequence*> sequences;
  std::vector<int64_t> tokens, positions;
  std::vector<std::vector<int64_t>> lengths;
  for (const JobPtr& job : jobs) {
    all.push_back(job.get());
    sequences.push_back(&job->sequence);
    tokens.push_back(job->last_token());
    positions.push_back(job->sequence.next_position);
    lengths.emplace_back();
    for (const LayerCache& layer : job->sequence.cache.layers) lengths.back().push_back(layer.length());
  }
  at::Tensor logits;
  std::vector<at::Tensor> candidates;
  try {
    logits = decode_step(engine_.model(), sequences, tokens, &engine_.decode_graphs());
    candidates = next_candidates(all, logits);
  } catch (...) {
    for (size_t i = 0; i < jobs.size(); ++i) {
      sequences[i]->next_position = positions[i];
      std::vector<LayerCache>& layers = sequences[i]->cache.layers;
      for (size_t l = 0; l < layers.size(); ++l) layers[l].drop_last(layers[l].length() - lengths[i][l]);
    }
    return std::current_exception();
  }
  const double ms = timer.ms();
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i]->sequence.times.decode += ms;
    going_on[i] = accept(*jobs[i], candidates[i], logits[static_cast<int64_t>(i)]);
  }
  return nullptr;
}

bool Scheduler::step() {
  const at::NoGradGuard no_grad;
  try {
    drop_cancelled();
    prefill_chunk();
    drop_cancelled();
    if (!decoding_.empty()) decode();
  } catch (...) {  // not even an error can be handled: what runs ends, what waits and comes goes on
    fail_everything();
  }
  return note_state();
}

void Scheduler::fail_everything() {
  for (Prompts& prompts : prefilling_) fail_all(prompts.jobs);
  prefilling_.clear();
  fail_all(decoding_);
}

// Publishes what is going on; whether anything is.
bool Scheduler::note_state() {
  const std::vector<const Job*> jobs = running();
  size_t used = 0;
  for (const Job* job : jobs) used += job->sequence.cache.bytes();
  const std::lock_guard lock(mutex_);
  state_ = {waiting_.size(), jobs.size(), reserved_, used};
  return state_.waiting + state_.running > 0;
}

void Scheduler::run() {
  while (step()) {
  }
}

void Scheduler::serve(std::stop_token stop) {
  while (!stop.stop_requested()) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, stop, [&] { return state_.waiting + state_.running > 0; });
    }
    if (!stop.stop_requested()) step();
  }
  std::vector<JobPtr> left;
  {
    const std::lock_guard lock(mutex_);
    std::move(waiting_.begin(), waiting_.end(), std::back_inserter(left));
    waiting_.clear();
    waiting_bytes_ = 0;
  }
  for (Prompts& prompts : prefilling_)
    std::move(prompts.jobs.begin(), prompts.jobs.end(), std::back_inserter(left));
  prefilling_.clear();
  std::move(decoding_.begin(), decoding_.end(), std::back_inserter(left));
  decoding_.clear();
  for (const JobPtr& job : left) end(*job, "cancelled");
  note_state();  // but starts nothing that came meanwhile
}

Scheduler::State Scheduler::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

}  // namespace glimpse
