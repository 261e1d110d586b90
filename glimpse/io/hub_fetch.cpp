#include <algorithm>
#include <atomic>
#include <thread>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/check.h"
#include "glimpse/io/file_fetch.h"

namespace glimpse {
namespace fs = std::filesystem;

namespace {

constexpr size_t kAtOnce = 4;

// What is still to come, as far as it is known before the hub is asked.
uint64_t bytes_to_come(const fs::path& folder, const std::vector<HubFile>& files) {
  uint64_t bytes = 0;
  for (const HubFile& file : files) {
    std::error_code ignored;
    const fs::path blob = folder / "blobs" / file.etag;
    if (file.etag.empty() || !fs::exists(blob, ignored)) bytes += file.size.value_or(0);
    const uint64_t begun = fs::file_size(blob.string() + ".incomplete", ignored);
    if (!ignored && !file.etag.empty()) bytes -= std::min(bytes, begun);
  }
  return bytes;
}

void write_ref(const HubListing& listing) {
  if (listing.id.revision == listing.commit) return;
  const fs::path ref = repo_folder(listing.id.repo) / "refs" / listing.id.revision;
  make_folder(ref.parent_path());
  AtomicFile file(ref);
  file.stream() << listing.commit;
  file.commit();
}

}  // namespace

FetchReport::FetchReport(const FetchWatch& watch, const std::vector<HubFile>& files) : watch_(watch) {
  progress_.total = total_size(files);
  progress_.all_files = files.size();
  locked_.note = [this](const std::string& text) {
    const std::lock_guard lock(mutex_);
    watch_.note(text);
  };
}

void FetchReport::got(const std::string& name, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  progress_.bytes += static_cast<uint64_t>(bytes);
  progress_.name = name;
  watch_.progress(progress_);
}

void FetchReport::finished(const std::string& name) {
  const std::lock_guard lock(mutex_);
  ++progress_.files;
  progress_.name = name;
  watch_.progress(progress_);
}

fs::path Hub::fetch(const HubListing& listing, const std::vector<HubFile>& files, const FetchWatch& watch,
                    const std::stop_token& stop) const {
  const fs::path folder = repo_folder(listing.id.repo), snapshot = folder / "snapshots" / listing.commit;
  std::vector<HubFile> missing = missing_files(listing, files);
  make_folder(folder);
  const uint64_t needed = bytes_to_come(folder, missing), room = free_bytes(folder);
  check(needed <= room, "model '", listing.id.text(), "' needs ", size_text(needed), ", but ",
        folder.string(), " has room for ", size_text(room),
        " only. Make room there (`glimpse models` lists what is in the cache), or set HF_HUB_CACHE to a "
        "larger disk.");
  // Large ones first, so that none of them is left alone at the end.
  std::stable_sort(missing.begin(), missing.end(), [](const HubFile& a, const HubFile& b) {
    return a.size.value_or(0) > b.size.value_or(0);
  });

  FetchReport report(watch, missing);
  std::stop_source ending;
  const std::stop_callback forward(stop, [&] { ending.request_stop(); });
  const std::stop_token ended = ending.get_token();
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr first_error;
  const auto work = [&] {
    try {
      HubConnection connection(options_, report.watch(), ended);
      for (size_t i = next++; i < missing.size() && !ended.stop_requested(); i = next++)
        fetch_file(connection, listing, missing[i], report);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!first_error) first_error = std::current_exception();
      ending.request_stop();
    }
  };
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < std::min(kAtOnce, missing.size()); ++i) threads.emplace_back(work);
  }
  if (first_error) std::rethrow_exception(first_error);
  check_goes_on(stop);
  write_ref(listing);
  return snapshot;
}

}  // namespace glimpse
