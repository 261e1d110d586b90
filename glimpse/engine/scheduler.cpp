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
  job->reserved = most_kv_bytes(*job);
  check(options_.kv_bytes == 0 || job->reserved <= options_.kv_bytes, "this request may need ",
        mib(job->reserved), " MiB of KV cache (a prompt of ", job->sequence.prompt.ids.size(),
        " tokens and up to ", job->tokens_left(), " new ones), but all requests together have ",
        mib(options_.kv_bytes), " MiB");
  std::future<Answer> future = job->future();
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(job));
    state_.waiting = waiting_.size();
  }
  wake_.notify_one();
  return future;
}

// The next request that can start now, in the order of submission. One whose image prefix is just being made
// lets others go first and then finds it in the cache.
Scheduler::JobPtr Scheduler::admit() {
  if (batch_ && (batch_->started() || batch_->rows() >= options_.chunk_rows)) return nullptr;
  if (std::ssize(prefilling_) + std::ssize(decoding_) >= options_.max_sequences) return nullptr;
  const auto is_being_made = [&](const JobPtr& job) {
    const auto& key = job->sequence.prefix_key;
    return key && !engine_.prefix_cache()->find(*key) &&
           std::any_of(prefilling_.begin(), prefilling_.end(),
                       [&](const JobPtr& other) { return other->sequence.prefix_key == key; });
  };
  const std::lock_guard lock(mutex_);
  const auto next = std::find_if_not(waiting_.begin(), waiting_.end(), is_being_made);
  if (next == waiting_.end()) return nullptr;
  if (options_.kv_bytes > 0 && reserved_ + (*next)->reserved > options_.kv_bytes) return nullptr;
  JobPtr job = std::move(*next);
  waiting_.erase(next);
  reserved_ += job->reserved;
  return job;
}

void Scheduler::start(JobPtr job) {
  if (!batch_) batch_ = std::make_unique<PrefillBatch>(engine_.model(), engine_.prefix_cache());
  try {
    batch_->add(job->sequence);
    job->sequence.prompt.patches.clear();  // the encoder has seen them
    prefilling_.push_back(std::move(job));
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
  const auto take = [&](JobPtr& job) {
    if (!job->cancelled()) return false;
    dropped.push_back(std::move(job));
    return true;
  };
  {
    const std::lock_guard lock(mutex_);
    // Those that wait have nothing set aside yet.
    for (const JobPtr& job : waiting_)
      if (job->cancelled()) reserved_ += job->reserved;
    std::erase_if(waiting_, take);
  }
  for (const JobPtr& job : prefilling_)
    if (job->cancelled()) batch_->remove(job->sequence);
  std::erase_if(prefilling_, take);
  std::erase_if(decoding_, take);
  for (const JobPtr& job : dropped) end(*job, "cancelled");
}

// Takes the next token of a job; false if it has ended.
bool Scheduler::accept(Job& job, const at::Tensor& logits) {
  try {
    const std::string reason = job.accept(logits);
    if (reason.empty()) return true;
    end(job, reason);
  } catch (...) {
    fail(job, std::current_exception());
  }
  return false;
}

void Scheduler::prefill_chunk() {
  while (JobPtr job = admit()) {
    start(std::move(job));
    if (!decoding_.empty()) return;  // an image is enough to encode between two tokens
  }
  int64_t work = options_.chunk_rows * engine_.model().decoder().config().layers;
  for (bool any = false; !prefilling_.empty() && !batch_->done(); any = true) {
    if (any && work < batch_->rows()) return;
    work -= batch_->rows();
    for (const PrefillBatch::Failure& failure : batch_->step()) {
      const auto job = std::find_if(prefilling_.begin(), prefilling_.end(),
                                    [&](const JobPtr& each) { return &each->sequence == failure.sequence; });
      fail(**job, failure.error);
      prefilling_.erase(job);
    }
    drop_cancelled();
  }
  if (!prefilling_.empty() && batch_->done()) finish_prefill();
  if (prefilling_.empty()) batch_.reset();
}

void Scheduler::finish_prefill() {
  const at::Tensor logits = batch_->finish();
  batch_.reset();
  for (size_t i = 0; i < prefilling_.size(); ++i) {
    JobPtr& job = prefilling_[i];
    job->prefilled();
    size_t bytes = 0;
    for (const LayerCache& layer : job->sequence.cache.layers)
      bytes += layer_bytes(layer.length() + job->tokens_left());
    shrink(*job, std::min(bytes, job->reserved));
    if (accept(*job, logits[static_cast<int64_t>(i)])) decoding_.push_back(std::move(job));
  }
  prefilling_.clear();
}

void Scheduler::decode() {
  const Timer timer;
  std::vector<Sequence*> sequences;
  std::vector<int64_t> tokens;
  for (const JobPtr& job : decoding_) {
    sequences.push_back(&job->sequence);
    tokens.push_back(job->last_token());
  }
  const at::Tensor logits = decode_step(engine_.model(), sequences, tokens);
  const double ms = timer.ms();
  int64_t row = 0;
  std::erase_if(decoding_, [&](const JobPtr& job) {
    job->sequence.times.decode += ms;
    return !accept(*job, logits[row++]);
  });
}

bool Scheduler::step() {
  const at::NoGradGuard no_grad;
  drop_cancelled();
  try {
    prefill_chunk();
  } catch (...) {
    batch_.reset();
    fail_all(prefilling_);
  }
  drop_cancelled();
  try {
    if (!decoding_.empty()) decode();
  } catch (...) {
    fail_all(decoding_);
  }
  const std::lock_guard lock(mutex_);
  state_ = {waiting_.size(), prefilling_.size() + decoding_.size(), reserved_, 0};
  for (const auto* jobs : {&prefilling_, &decoding_})
    for (const JobPtr& job : *jobs) state_.kv_used += job->sequence.cache.bytes();
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
    for (JobPtr& job : waiting_) {
      reserved_ += job->reserved;
      left.push_back(std::move(job));
    }
    waiting_.clear();
  }
  batch_.reset();
  for (auto* jobs : {&prefilling_, &decoding_}) {
    std::move(jobs->begin(), jobs->end(), std::back_inserter(left));
    jobs->clear();
  }
  for (const JobPtr& job : left) end(*job, "cancelled");
  step();  // notes that nothing is left
}

Scheduler::State Scheduler::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

}  // namespace glimpse
