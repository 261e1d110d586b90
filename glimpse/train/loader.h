#pragma once

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "glimpse/base/check.h"
#include "glimpse/nn/parallel.h"

namespace glimpse {

/// An item, or the text of the glimpse::Error that making it threw.
template <class Item>
struct Loaded {
  size_t index = 0;  ///< what `make` was called with
  std::optional<Item> item;
  std::string problem;
};

/// Makes the items order[0], order[1], ... ahead of their use and hands them out in that order, whatever the
/// number of threads. At most `ahead` items are in the making or waiting (never fewer than one). With
/// `threads` = 0 each is made when it is asked for. `make` is called from several threads at once.
template <class Item>
class Loader {
 public:
  Loader(std::vector<size_t> order, std::function<Item(size_t)> make, int threads, size_t ahead)
      : order_(std::move(order)), make_(std::move(make)), ahead_(std::max<size_t>(ahead, 1)) {
    check(threads >= 0 && threads <= 1024, "a loader with ", threads, " threads; expected 0 to 1024");
    for (int i = 0; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// Waits for the items now in the making, and for no more.
  ~Loader() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    room_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  /// The next item, none after the last. What `make` throws, other than glimpse::Error, is thrown from here
  /// in the item's place.
  std::optional<Loaded<Item>> next() {
    if (given_ == order_.size()) return std::nullopt;
    if (workers_.empty()) return value_of(attempt(order_[given_++]));
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return !slots_.empty() && slots_.front().done; });
    Slot slot = std::move(slots_.front());
    slots_.pop_front();
    ++given_;
    lock.unlock();
    room_.notify_one();
    return value_of(std::move(slot));
  }

 private:
  struct Slot {
    bool done = false;
    Loaded<Item> loaded;
    std::exception_ptr thrown;
  };

  Slot attempt(size_t index) const {
    Slot slot{.done = true, .loaded = {.index = index, .item = {}, .problem = {}}, .thrown = {}};
    try {
      slot.loaded.item = make_(index);
    } catch (const Error& error) {
      slot.loaded.problem = error.what();
    } catch (...) {
      slot.thrown = std::current_exception();
    }
    return slot;
  }

  static Loaded<Item> value_of(Slot slot) {
    if (slot.thrown) std::rethrow_exception(slot.thrown);
    return std::move(slot.loaded);
  }

  void work() {
    work_alone();
    std::unique_lock lock(mutex_);
    while (true) {
      room_.wait(lock, [&] { return stopping_ || taken_ == order_.size() || slots_.size() < ahead_; });
      if (stopping_ || taken_ == order_.size()) return;
      const size_t place = taken_++;
      slots_.emplace_back();
      lock.unlock();
      Slot slot = attempt(order_[place]);
      lock.lock();
      // Those before it may have been handed out meanwhile, so its slot has moved to the front.
      slots_[place - given_] = std::move(slot);
      if (place == given_) ready_.notify_one();
    }
  }

  const std::vector<size_t> order_;
  const std::function<Item(size_t)> make_;
  const size_t ahead_;
  std::mutex mutex_;
  std::condition_variable room_, ready_;  // for workers; for next()
  std::deque<Slot> slots_;                // of the items order_[given_] to order_[taken_ - 1]
  size_t given_ = 0, taken_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace glimpse
