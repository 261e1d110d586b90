#include "glimpse/engine/decode_graphs.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "glimpse/nn/device.h"

namespace glimpse {

namespace {

constexpr size_t kMost = 16;

}  // namespace

int64_t DecodeGraphs::bucket(int64_t rows) {
  const int64_t step = rows <= 4096 ? 256 : 1024;
  return (rows + step - 1) / step * step;
}

at::Tensor DecodeGraphs::run(const Kind& kind, const at::Tensor& inputs, const cuda::DecodeTable& table,
                             at::Device device, const Step& step) {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || !usable_) return {};
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.kind == kind; });
  if (found == entries_.end()) {
    entries_.push_front({kind, nullptr, {}, {}, {}});
    if (entries_.size() > kMost) entries_.pop_back();
    return {};
  }
  entries_.splice(entries_.begin(), entries_, found);
  Entry& entry = entries_.front();
  if (!entry.graph) {
    entry.inputs = inputs.to(device);
    entry.table = {table.entries.to(device), kind.longest};
    entry.graph = std::make_unique<cuda::Graph>();
    try {
      entry.logits = entry.graph->record(device, [&] { return step(entry.inputs, entry.table); });
    } catch (const c10::Error&) {  // a libtorch that cannot record something of it; it works without, too
      usable_ = false;
      entries_.clear();
      return {};
    }
  } else {
    entry.inputs.copy_(inputs.pin_memory(), /*non_blocking=*/true);
    entry.table.entries.copy_(table.entries.pin_memory(), /*non_blocking=*/true);
  }
  entry.graph->replay();
  return entry.logits.clone();  // the next replay writes there
}

}  // namespace glimpse
