#include "glimpse/engine/memory_need.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iomanip>
#include <sstream>

#include "glimpse/engine/cgroup.h"
#include "glimpse/nn/row_blocks.h"

namespace glimpse {

namespace {

// A linear layer's weight, as take_linear tells them: a matrix that is no table.
bool is_linear(const std::string& name, at::IntArrayRef shape) {
  return shape.size() == 2 && name.ends_with(".weight") && name.find("embed") == name.npos;
}

uint64_t low_bit_bytes(int64_t out, int64_t in, int64_t group, int64_t group_bytes) {
  const uint64_t numbers = static_cast<uint64_t>(out) * in, rows = static_cast<uint64_t>(out) * 8;
  return group == 0 ? numbers + rows : numbers / 2 + numbers / group * group_bytes + rows;
}

struct Held {
  uint64_t bytes = 0;
  bool mapped = false;
};

// A matrix of a linear layer in few bits, as it is kept or made.
std::optional<uint64_t> few_bits_of(const Weights& weights, const std::string& name, at::IntArrayRef shape,
                                    const LoadOptions& options, WeightOptions::Format format) {
  using enum WeightOptions::Format;
  if (const FewBits* stored_bits = weights.few_bits(name);
      stored_bits && keeps_few_bits(at::TensorOptions(options.device), options.weights))
    return low_bit_bytes(shape[0], shape[1], stored_bits->steps ? stored_bits->group : 0, 4);
  if (format == int8) return low_bit_bytes(shape[0], shape[1], 0, 0);
  if (format == int4) return low_bit_bytes(shape[0], shape[1], options.weights.group, 1);
  return {};
}

Held held(const Weights& weights, const std::string& name, const LoadOptions& options) {
  using enum WeightOptions::Format;
  const at::IntArrayRef shape = weights.shape(name);
  const auto numbers = static_cast<uint64_t>(c10::multiply_integers(shape));
  const at::ScalarType dtype = weights.dtype(name);
  if (!at::isFloatingType(dtype)) return {weights.bytes(name), true};  // of 8 or 4 bits already
  // A head beside layers of 4 bits has 8.
  const bool head = name.starts_with("lm_head") && options.weights.format == int4;
  if (is_linear(name, shape))
    if (const auto bytes = few_bits_of(weights, name, shape, options, head ? int8 : options.weights.format))
      return {*bytes, false};
  if (weights.few_bits(name) && keeps_few_bits(at::TensorOptions(options.device), options.weights))
    return {weights.bytes(name), true};  // a table that is read row by row
  const uint64_t bytes = numbers * c10::elementSize(options.dtype);
  return {bytes, dtype == options.dtype && weights.bytes(name) == bytes};
}

// What a layer of these widths makes of a block of rows: norms and products, gate and up and their product.
uint64_t block_bytes(int64_t rows, int64_t hidden, int64_t inner, uint64_t itemsize) {
  return static_cast<uint64_t>(rows) * (3 * hidden + 3 * inner) * itemsize;
}

std::string gib(uint64_t bytes) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(2) << static_cast<double>(bytes) / (uint64_t{1} << 30) << " GiB";
  return out.str();
}

std::atomic<bool>& checks() {
  static std::atomic<bool> on = [] {
    const char* const given = std::getenv("GLIMPSE_MEMORY_CHECK");
    return !given || std::string(given) != "0";
  }();
  return on;
}

uint64_t number_of(const std::string& text, uint64_t otherwise) {
  uint64_t value = 0;
  return std::istringstream(text) >> value ? value : otherwise;
}

// The number behind `name` in lines of names and numbers.
std::optional<uint64_t> entry_of(const std::string& text, const std::string& name) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(name + " ") || line.starts_with(name + ":"))
      return number_of(line.substr(name.size() + 1), 0);
  return {};
}

}  // namespace

MemoryNeed::MemoryNeed(const ModelSource& source, const LoadOptions& options, KvFormat kv)
    : itemsize_(c10::elementSize(options.dtype)) {
  const Weights all = open_weights(source);
  uint64_t keys = 0;
  for (const std::string& name : all.names()) {
    const Held tensor = held(all, name, options);
    weights += tensor.bytes;
    if (tensor.mapped) mapped += tensor.bytes;
    const at::IntArrayRef shape = all.shape(name);
    const int64_t out = shape.size() == 4 ? 16 * shape[0] : shape.empty() ? 0 : shape[0];  // packed in blocks
    if (!name.starts_with("model.")) continue;
    if (name == "model.norm.weight") hidden_ = out;
    if (name.ends_with("self_attn.k_proj.weight")) keys += out;
    if (name.ends_with("mlp.gate_proj.weight")) inner_ = out;
  }
  // A tied head is the embedding itself, but where linear layers are in few bits.
  const std::string embedding = "model.embed_tokens.weight";
  if (!all.contains("lm_head.weight") && all.contains(embedding))
    weights += few_bits_of(all, embedding, all.shape(embedding), options,
                           options.weights.format == WeightOptions::Format::int4 ? WeightOptions::Format::int8
                                                                                 : options.weights.format)
                   .value_or(0);
  const int64_t unit = keys % 32 == 0 ? 32 : 16;  // numbers that share a scale
  kv_token = 2 * keys / unit * LayerCache::row_bytes(kv, unit, itemsize_);
  rows_token = 4 * hidden_ * itemsize_;
}

uint64_t MemoryNeed::image(int64_t tokens) const {
  const int64_t patches = tokens * vision.merge * vision.merge, most = max_block_rows(at::kCPU);
  const uint64_t picture = 3 * static_cast<uint64_t>(tokens * token_pixels()),
                 rows = patches * vision.hidden * itemsize_;
  // The values of patches are float32, and gone when they are embedded. A block has hidden states, queries,
  // keys and values, the former two rotated as well, and their mix; and the tables they are rotated by.
  const uint64_t embedding = picture + patches * vision.patch_values * 4 + rows,
                 tables = patches * (vision.hidden / std::max<int64_t>(vision.heads, 1)) * 4,
                 blocks = 7 * rows + tables, layers = text(tokens);
  // The allocator keeps what encoder and language model make of a block of rows.
  const uint64_t kept =
      block_bytes(std::min(patches, 2 * most), vision.hidden, vision.intermediate, itemsize_) +
      block_bytes(std::min(tokens, most), hidden_, inner_, itemsize_);
  return picture + std::max({embedding, blocks, layers}) + kept + tokens * hidden_ * itemsize_;
}

int64_t MemoryNeed::largest_image(uint64_t bytes) const {
  int64_t low = 0, high = int64_t{1} << 24;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (image(middle) <= bytes)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

std::optional<MemoryNeed> memory_need(const ModelSource& source, const LoadOptions& options, KvFormat kv) {
  try {
    return MemoryNeed(source, options, kv);
  } catch (const std::exception&) {
    return {};
  }
}

std::optional<uint64_t> available_memory(const std::filesystem::path& root) {
  std::optional<uint64_t> least;
  const auto bound = [&](uint64_t bytes) { least = std::min(bytes, least.value_or(bytes)); };
  if (const auto kib = entry_of(Cgroup{root / "proc"}.text("meminfo"), "MemAvailable")) bound(*kib * 1024);
  for_each_cgroup(root, "memory", [&](const Cgroup& group) {
    const uint64_t limit =
        number_of(group.text(group.unified ? "memory.max" : "memory.limit_in_bytes"), UINT64_MAX);
    if (limit >= UINT64_MAX / 4) return;  // "max", or what version 1 has for it
    const uint64_t used =
        number_of(group.text(group.unified ? "memory.current" : "memory.usage_in_bytes"), 0);
    // Files' pages in memory are given up when others need the room.
    const uint64_t files =
        entry_of(group.text("memory.stat"), group.unified ? "inactive_file" : "total_inactive_file")
            .value_or(0);
    const uint64_t held_by_others = used - std::min(used, files);
    bound(limit - std::min(limit, held_by_others));
  });
  return least;
}

void check_memory(bool on) {
  checks() = on;
}

void check_fits(const ModelSource& source, const LoadOptions& options, KvFormat kv) {
  const auto available = available_memory();
  if (!checks() || !options.device.is_cpu() || !available) return;
  const auto need = memory_need(source, options, kv);
  if (!need || need->loaded() <= *available) return;
  fail(source.path().string(), " does not fit into memory: its weights take ", gib(need->weights),
       " as they would be loaded, but ", gib(*available),
       " are available. Fewer bits take less (--weights int8 or int4, a smaller .gguf file); `glimpse "
       "inspect` shows "
       "how much. --no-memory-check, or GLIMPSE_MEMORY_CHECK=0, loads it all the same.");
}

}  // namespace glimpse
