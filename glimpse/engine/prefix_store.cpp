#include "glimpse/engine/prefix_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iostream>

#include "glimpse/base/atomic_file.h"
#include "glimpse/engine/checked_file.h"
#include "glimpse/engine/hash.h"

namespace glimpse {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMostPending = size_t{512} << 20;  // bytes that may wait to be written
constexpr std::string_view kEnding = ".safetensors";

// The folder's secret, made once: whoever comes first puts a whole file in place.
std::string secret_of(const fs::path& dir) {
  const fs::path path = dir / "seed";
  if (!fs::exists(path)) {
    const std::string text = hex(random_word(), random_word());
    const fs::path fresh = dir / concat("seed.tmp-", getpid());
    const int file = open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    check(file >= 0, "cannot write ", fresh.string(), ": ", std::strerror(errno));
    const bool written = ::write(file, text.data(), text.size()) == std::ssize(text);
    close(file);
    const bool there = written && (link(fresh.c_str(), path.c_str()) == 0 || errno == EEXIST);
    unlink(fresh.c_str());
    check(there, "cannot write ", path.string());
  }
  std::ifstream in(path);
  std::string text;
  in >> text;
  check(text.size() == 32, path.string(), ": is damaged; remove it (the image prefixes beside it are lost)");
  return text;
}

}  // namespace

PrefixStore::PrefixStore(PrefixStoreOptions options, at::Device device)
    : options_(std::move(options)), device_(device) {
  Hash hash(0);
  hash.add(secret_of(options_.folder->dir()));
  hash.add(options_.origin);
  seed_ = hash.sum().low64;
  options_.folder->make_room(0);
  writer_ = std::thread([this] { run(); });
}

PrefixStore::~PrefixStore() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_all();
  writer_.join();
}

fs::path PrefixStore::path_of(const PrefixKey& key) const {
  return options_.folder->dir() / (hex(key.high, key.low) + std::string(kEnding));
}

std::shared_ptr<const ImagePrefix> PrefixStore::load(const PrefixKey& key) {
  const fs::path path = path_of(key);
  return load_checked(path, seed_, hex(key.high, key.low),
                      [&](const std::map<std::string, at::Tensor>& tensors) {
                        auto prefix = std::make_shared<const ImagePrefix>(prefix_of(tensors, device_));
                        CacheFolder::use(path);
                        return prefix;
                      });
}

void PrefixStore::save(const PrefixKey& key, std::shared_ptr<const ImagePrefix> prefix) {
  const size_t size = prefix->bytes();
  const std::lock_guard lock(mutex_);
  if (size > options_.folder->max_bytes() || pending_bytes_ + size > kMostPending) return;
  pending_.push_back({key, std::move(prefix)});
  pending_bytes_ += size;
  changed_.notify_all();
}

void PrefixStore::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return ended_ || !pending_.empty(); });
    if (pending_.empty()) return;
    const Pending next = pending_.front();
    lock.unlock();
    std::string problem;
    try {
      write(next);
    } catch (const std::exception& error) {
      problem = error.what();
    }
    lock.lock();
    if (!problem.empty() && !std::exchange(told_, true))
      std::cerr << "glimpse: image prefixes are not kept on disk: " << problem << std::endl;
    pending_bytes_ -= next.prefix->bytes();
    pending_.pop_front();
  }
}

void PrefixStore::write(const Pending& pending) {
  const fs::path path = path_of(pending.key);
  if (fs::exists(path)) return;
  const std::map<std::string, at::Tensor> tensors = tensors_of(*pending.prefix);
  const CacheFolder& folder = *options_.folder;
  check(options_.folder->make_room(checked_bytes(tensors)), folder.dir().string(), ": the bound of ",
        folder.max_bytes(), " bytes leaves them no room beside what is in use there; raise cache_disk_gb");
  save_checked(path, tensors, seed_, hex(pending.key.high, pending.key.low));
}

}  // namespace glimpse
