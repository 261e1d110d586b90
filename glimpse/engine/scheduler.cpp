#include "glimpse/engine/scheduler.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "glimpse/base/timer.h"

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
size_t Scheduler::layer_bytes(int64_t rows) const {
  const Decoder& decoder = engine_.model().decoder();
  const DecoderConfig& c = decoder.config();
  return static_cast<size_t>(LayerCache::capacity_of(rows) * 2 * c.kv_heads * c.head_dim) *
         decoder.options().dtype().itemsize();
}

size_t Scheduler::most_kv_bytes(const Job& job) const {
  const int64_t rows = std::ssize(job.sequence.prompt.ids) + 1 + job.tokens_left();
  return static_cast<size_t>(engine_.model().decoder().config().layers) * layer_bytes(rows);
}

std::future<Answer> Scheduler::submit(const Request& request) {
  auto job = std::make_unique<Job>(engine_, request);
  const size_t most = most_kv_bytes(*job);
  check(options_.kv_bytes == 0 || most <= options_.kv_bytes, "this request may need ", mib(most),
        " MiB of KV cache (a prompt of ", job->sequence.prompt.ids.size(), " tokens and up to ",
        job->tokens_left(), " new ones), but all requests together have ", mib(options_.kv_bytes), " MiB");
  std::future<Answer> future = job->future();
  {
    const std::lock_guard lock(mutex_);
    size_t held = 0;
    for (const JobPtr& other : waiting_) held += other->patch_bytes();
    check(waiting_.empty() || options_.waiting_bytes == 0 ||
              held + job->patch_bytes() <= options_.waiting_bytes,
          waiting_.size(), " requests wait with ", mib(held), " MiB of patches; another ",
          mib(job->patch_bytes()), " MiB are more than the ", mib(options_.waiting_bytes),
          " MiB of waiting_bytes; submit the request again later");
    waiting_.push_back(std::move(job));
    state_.waiting = waiting_.size();
  }
  wake_.notify_one();
  return future;
}

std::vector<const Job*> Scheduler::running() const {
  std::vector<const Job*> jobs;
  for (const Prompts& prompts : prefilling_)
    for (const JobPtr& job : prompts.jobs) jobs.push_back(job.get());
  for (const JobPtr& job : decoding_) jobs.push_back(job.get());
  return jobs;
}

// The next request that can start now, in the order of submission. One whose image prefix is just being made
// lets others go first and then finds it in the cache.
Scheduler::JobPtr Scheduler::admit() {
  if (std::ssize(running()) >= options_.max_sequences) return nullptr;
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
  if (next == waiting_.end()) return nullptr;
  const size_t most = most_kv_bytes(**next);
  if (options_.kv_bytes > 0 && reserved_ + most > options_.kv_bytes) return nullptr;
  JobPtr job = std::move(*next);
  waiting_.erase(next);
  reserved_ += job->reserved = most;
  return job;
}

// Puts a job into the last batch if that has room, else into one of its own.
void Scheduler::start(JobPtr job) {
  try {
    const auto& key = job->sequence.prefix_key;
    const auto prefix = key ? engine_.prefix_cache()->find(*key) : nullptr;
    const int64_t rows = std::ssize(job->sequence.prompt.ids) + 1 - (prefix ? prefix->tokens : 0);
    if (prefilling_.empty() || prefilling_.back().batch.started() ||
        prefilling_.back().batch.rows() + rows > options_.chunk_rows) {
      const at::Device device = engine_.model().decoder().options().device();
      const int64_t most = std::min(max_block_rows(device), chunk_work());
      prefilling_.push_back({PrefillBatch(engine_.model(), engine_.prefix_cache(), most), {}});
    }
    Prompts& prompts = prefilling_.back();
    prompts.jobs.reserve(prompts.jobs.size() + 1);
    prompts.batch.add(job->sequence);
    job->sequence.prompt.patches.clear();  // the batch has them
    prompts.jobs.push_back(std::move(job));
  } catch (...) {
    fail(*job, std::current_exception());
  }
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
  // Asks each job only once: a stop may come at any moment.
  const auto take = [&](JobPtr& job) {
    if (!job->cancelled()) return false;
    dropped.push_back(std::move(job));
    return true;
  };
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(waiting_, take);
  }
  for (Prompts& prompts : prefilling_)
    std::erase_if(prompts.jobs, [&](JobPtr& job) {
      if (!take(job)) return false;
      prompts.batch.remove(dropped.back()->sequence);
      return true;
    });
  std::erase_if(decoding_, take);
  for (const JobPtr& job : dropped) end(*job, "cancelled");
}

// Takes the next token of a job; false if it has ended.
bool Scheduler::accept(Job& job, const at::Tensor& candidates) {
  try {
    const std::string reason = job.accept(candidates);
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
      fail_all(prompts->jobs);
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
  const std::vector<at::Tensor> candidates = next_candidates(prompts.jobs, prompts.batch.finish());
  for (size_t i = 0; i < prompts.jobs.size(); ++i) {
    JobPtr& job = prompts.jobs[i];
    job->prefilled();
    size_t bytes = 0;
    for (const LayerCache& layer : job->sequence.cache.layers)
      bytes += layer_bytes(layer.length() + job->tokens_left());
    shrink(*job, std::min(bytes, job->reserved));
    if (accept(*job, candidates[i])) decoding_.push_back(std::move(job));
  }
  prompts.jobs.clear();
}

void Scheduler::decode() {
  const Timer timer;
  std::vector<Sequence*> sequences;
  std::vector<int64_t> tokens;
  for (const JobPtr& job : decoding_) {
    sequences.push_back(&job->sequence);
    tokens.push_back(job->last_token());
  }
  const std::vector<at::Tensor> candidates =
      next_candidates(decoding_, decode_step(engine_.model(), sequences, tokens, &engine_.decode_graphs()));
  const double ms = timer.ms();
  auto next = candidates.begin();
  std::erase_if(decoding_, [&](const JobPtr& job) {
    job->sequence.times.decode += ms;
    return !accept(*job, *next++);
  });
}

bool Scheduler::step() {
  const at::NoGradGuard no_grad;
  drop_cancelled();
  prefill_chunk();
  drop_cancelled();
  try {
    if (!decoding_.empty()) decode();
  } catch (...) {
    fail_all(decoding_);
  }
  return note_state();
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
