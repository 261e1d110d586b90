#pragma once

#include <condition_variable>
#include <deque>
#include <future>
#include <list>
#include <mutex>

#include "glimpse/engine/engine.h"
#include "glimpse/engine/job.h"
#include "glimpse/engine/prefill.h"

namespace glimpse {

/// How much is done at once.
struct SchedulerOptions {
  int64_t max_sequences = 8;  ///< answered at the same time
  size_t kv_bytes = 0;        ///< bound on the KV caches of these, in bytes; 0: none
  int64_t chunk_rows = 512;   ///< prompt rows between two decoding steps, counted through all layers: a
                              ///< longer prompt goes on by as much of layers and encoder as that work allows
  size_t waiting_bytes = size_t{2} << 30;  ///< bound on the patches (float32) of requests that wait; 0: none
  size_t max_waiting = 4096;               ///< bound on the number of requests that wait; 0: none
};

/// Answers many requests with one model: a step lets prompts go some layers further and gives every other
/// sequence its next token. Requests come and end between steps. Each answer is that of the request alone,
/// but for rounding: products of many rows add up in another order than those of few. In fp32 hidden states
/// differ by about 1e-5 of their size, and tokens where two are that close; in bf16 by about 1e-2, so that
/// near-ties may come out differently. What goes wrong with one request (memory, its callback) ends that one
/// only. Prompts that together have at most `chunk_rows` rows run together; of several such batches, the one
/// that came first and the one with the least left to do take turns, so that a short prompt waits for one
/// chunk of a long one and none waits forever.
///
/// Memory: an admitted request sets aside the most that its KV cache can come to,
///   layers * capacity(prompt + 1 + new tokens) rows, with capacity(n) = n + max(64, n / 4),
/// and one layer's rows as they come where the cache is of 8 or 4 bits (nn/kv_cache.h),
/// and after its prefill gives back what its cuts have freed: then it is the sum over layers of
/// capacity(rows left in the layer + new tokens). Requests are admitted in the order of submission as soon as
/// they fit; what is set aside never exceeds `kv_bytes`. Not counted there are
/// - the patches of requests that wait, which `waiting_bytes` bounds, and of those that are admitted but not
///   yet encoded,
/// - per prompt that is encoded, five times the patches' hidden states,
/// - per prompt in the layers its rows' hidden states and what its pruners read of the encoder,
/// - what a layer makes on its way, for `max_block_rows` rows at most (nn/row_blocks.h),
/// - cached image prefixes.
class Scheduler {
 public:
  explicit Scheduler(const Engine& engine, SchedulerOptions options = {});
  /// Requests that have not been answered leave a broken promise.
  ~Scheduler() = default;

  /// Queues a request; may be called from any thread, also during a step. Errors: a wrong request, one that
  /// could never get enough memory (too_large), or no room among those that wait (busy). Later errors come
  /// out of the future. Request::on_text is called by the thread that steps.
  std::future<Answer> submit(const Request& request);
  /// The same for several answers to one request, whose prompt runs once; if it has a seed, they have it and
  /// those after it. `events`: a queue for each of them, or none.
  std::vector<std::future<Answer>> submit(const Request& request, int64_t choices,
                                          std::span<const std::shared_ptr<EventSink>> events = {});

  /// One step, by one thread at a time. Returns whether anything is left to do.
  bool step();
  /// Steps until nothing is left.
  void run();
  /// Steps, and waits for requests, until `stop` is requested; what is then left is cancelled.
  void serve(std::stop_token stop);

  /// What is going on, as of the last step; may be called from any thread.
  struct State {
    size_t waiting = 0, running = 0;      ///< requests; a request in its prefill is running
    size_t kv_reserved = 0, kv_used = 0;  ///< bytes set aside, and allocated of these
  };
  State state() const;

  /// Bytes of KV cache that are set aside for this request when it is admitted.
  size_t most_kv_bytes(const Job& job) const;

 private:
  using JobPtr = std::unique_ptr<Job>;
  struct Prompts {  // that go through the layers together
    Prompts(const Engine& engine, int64_t block_rows)
        : batch(engine.model(), engine.prefix_cache(), block_rows) {}
    PrefillBatch batch;
    std::vector<JobPtr> jobs = {};  // in the batch's order
    bool closed = false;            // to further jobs
  };
  size_t layer_bytes(int64_t rows, KvFormat format) const;
  int64_t chunk_work() const;
  JobPtr admit();
  void start(JobPtr job);
  Prompts* next_prompts();
  void prefill_chunk();
  bool advance(Prompts& prompts, int64_t& work);
  void finish_prefill(Prompts& prompts);
  void start_alone(std::vector<JobPtr> jobs);
  bool begin_decoding(Job& job, const at::Tensor& candidates, const at::Tensor& logits);
  std::vector<const Job*> running() const;
  void fail_everything();
  bool note_state();
  void decode();
  std::exception_ptr decode(std::span<const JobPtr> jobs, std::vector<bool>& going_on);
  void drop_cancelled();
  bool accept(Job& job, const at::Tensor& candidates, const at::Tensor& logits);
  void shrink(Job& job, size_t bytes);
  void end(Job& job, const std::string& reason);
  void fail(Job& job, std::exception_ptr error);
  void fail_all(std::vector<JobPtr>& jobs);

  const Engine& engine_;
  const SchedulerOptions options_;
  mutable std::mutex mutex_;  // of waiting_ and state_
  std::condition_variable_any wake_;
  std::deque<JobPtr> waiting_;
  size_t waiting_bytes_ = 0;  // their patches
  State state_;
  // Only the thread that steps uses these.
  std::list<Prompts> prefilling_;  // in the order of coming
  bool first_had_turn_ = false;
  std::vector<JobPtr> decoding_;
  size_t reserved_ = 0;
};

}  // namespace glimpse
