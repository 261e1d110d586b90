#include "bench/process.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "glimpse/base/check.h"
#include "glimpse/base/timer.h"

namespace glimpse::bench {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kSteps = 16, kSmall = 16;

// A pruned prefill and `steps` tokens.
void answer(const Question& question, const Engine& engine, int64_t steps) {
  Sequence sequence;
  sequence.prompt = make_prompt(question, engine.model());
  sequence.pruners = make_pruners("glimpse", engine.pruner_context());
  sequence.budget.keep = question.keep;
  Sequence* const sequences[] = {&sequence};
  at::Tensor logits = prefill(engine.model(), sequences);
  for (int64_t i = 0; i < steps; ++i)
    logits = decode_step(engine.model(), sequences, {logits.argmax().item<int64_t>()});
}

// Calls f with every file of the checkpoint, opened.
template <class Function>
void with_files(const fs::path& checkpoint, Function f) {
  for (const auto& entry : fs::recursive_directory_iterator(checkpoint)) {
    if (!entry.is_regular_file()) continue;
    const int file = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    check(file >= 0, "cannot read ", entry.path().string());
    f(file);
    ::close(file);
  }
}

// Puts the files out of the page cache, as far as the kernel does it.
void drop(const fs::path& checkpoint) {
  with_files(checkpoint, [](int file) {
    ::fsync(file);
    ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  });
}

// What this process read from disks so far, mapped pages included.
double disk_bytes() {
  std::ifstream io("/proc/self/io");
  double bytes = 0;
  for (std::string key; io >> key >> bytes;)
    if (key == "read_bytes:") return bytes;
  return 0;
}

}  // namespace

void time_startup(const Question& question, Rows& rows) {
  const fs::path program = fs::read_symlink("/proc/self/exe").parent_path() / "glimpse";
  const fs::path picture = builtin_model_dir() / "test/cot/read/read_000.jpg";
  const std::string command = concat(program, " ask --quiet -n 1 --threads ", question.threads, " --image ",
                                     picture, " 'What is this?' >/dev/null");
  Samples times;
  for (int round = 0; round < 3; ++round) {
    const Timer timer;
    check(std::system(command.c_str()) == 0, "failed: ", command);
    times.add(timer.ms());
  }
  rows.add({.name = "startup_ms",
            .value = times.best(),
            .unit = "ms",
            .median = times.median(),
            .note = "the whole process: glimpse ask -n 1 with the built-in model",
            .goal = at_most(1000)});
}

void time_cold_start(const Question& question, Rows& rows) {
  Question small = question;
  if (vision_shape(question).window_tokens > 0) small.visual = kSmall;  // else all have the same size
  struct Reading {
    double ms = 0, gigabytes = 0;
  };
  const auto reading = [](const auto& run) {
    const double before = disk_bytes();
    const Timer timer;
    run();
    return Reading{timer.ms(), (disk_bytes() - before) / 1e9};
  };
  const auto load_and_answer = [&] { answer(small, *load_engine(small), 0); };

  drop(question.checkpoint);
  const Reading disk = reading([&] {
    std::vector<char> buffer(8 << 20);
    with_files(question.checkpoint, [&](int file) {
      while (::read(file, buffer.data(), buffer.size()) > 0) continue;
    });
  });
  drop(question.checkpoint);
  const Reading cold = reading(load_and_answer), warm = reading(load_and_answer);
  say(concat("first token: cold ", cold.ms, " ms, warm ", warm.ms, " ms"));
  rows.add({.name = "disk_read",
            .value = disk.gigabytes / disk.ms * 1e3,
            .unit = "GB/s",
            .note = concat(disk.gigabytes, " GB from the disk")});
  const double disk_ms = disk.gigabytes > 0 ? cold.gigabytes / disk.gigabytes * disk.ms : 0;
  rows.add({.name = "cold_first_token_ms",
            .value = cold.ms,
            .unit = "ms",
            .share = disk_ms > 0 ? std::optional(disk_ms / cold.ms) : std::nullopt,
            .note = concat("limit: the disk, ", cold.gigabytes, " GB",
                           cold.gigabytes == 0 ? "; the page cache could not be emptied" : "")});
  rows.add({.name = "warm_first_token_ms", .value = warm.ms, .unit = "ms"});
}

void measure_resident(const Question& question, Rows& rows) {
  Memory::trim_and_reset_peak();
  answer(question, *load_engine(question), kSteps);
  const Memory memory = Memory::now();
  rows.add({.name = "resident_gib",
            .value = memory.peak_mib / 1024,
            .unit = "GiB",
            .note = concat("peak: encoder, pruned prefill of ", question.visual + question.text, " tokens, ",
                           kSteps, " decoded"),
            .goal = question.goals().resident});
}

}  // namespace glimpse::bench
