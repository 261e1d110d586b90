#include "glimpse/io/checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "glimpse/base/check.h"
#include "glimpse/io/adapter.h"
#include "glimpse/io/layout.h"
#include "glimpse/io/mapping.h"
#include "glimpse/io/tensor_file.h"

namespace glimpse {
namespace fs = std::filesystem;
namespace {

fs::path weights_file(const fs::path& dir) {
  std::string tried;
  for (const char* name : {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                           "pytorch_model.bin.index.json"}) {
    if (fs::exists(dir / name)) return dir / name;
    tried += concat(tried.empty() ? "" : ", ", name);
  }
  fail("no weights in ", dir.string(), ": expected one of ", tried);
}

}  // namespace

Weights Weights::open(const fs::path& dir_or_file, Rename rename) {
  std::error_code ignored;
  check(fs::exists(dir_or_file, ignored), "no such file or directory: ", dir_or_file.string());
  const fs::path file = fs::is_directory(dir_or_file) ? weights_file(dir_or_file) : dir_or_file;
  Weights weights;
  weights.rename_ = std::move(rename);
  weights.source_ = file.string();
  if (file.extension() == ".json")
    weights.add_index(file);
  else
    weights.add_file(file);
  return weights;
}

Weights Weights::from(std::map<std::string, at::Tensor> tensors, const std::string& source) {
  Weights weights;
  weights.source_ = source;
  for (auto& [name, tensor] : tensors) weights.entries_.emplace(name, Entry{std::move(tensor), source, name});
  return weights;
}

Weights Weights::lazy(const std::map<std::string, Lazy>& tensors, const std::string& source, Rename rename) {
  Weights weights;
  weights.source_ = source;
  weights.rename_ = std::move(rename);
  for (const auto& [name, each] : tensors) {
    Entry entry{at::empty(each.shape, at::TensorOptions(each.dtype).device(at::kMeta)), each.file,
                each.name_in_file};
    entry.lazy = each;
    const bool added = weights.entries_.emplace(weights.canonical(name), std::move(entry)).second;
    check(added, source, ": tensor '", name, "' is there twice");
  }
  return weights;
}

Weights Weights::fresh(std::function<at::Tensor(const std::string&, at::IntArrayRef)> make) {
  Weights weights;
  weights.make_ = std::move(make);
  return weights;
}

void Weights::include(Weights other) {
  for (auto& [name, theirs] : other.entries_) {
    const auto [own, added] = entries_.emplace(name, theirs);
    check(added, theirs.file, ": '", name, "' is also in ", own->second.file);
  }
  source_ += " and " + other.source_;
}

void Weights::add_file(const fs::path& file) {
  for (auto& [file_name, tensor] : load_tensors(file)) {
    const std::string name = canonical(file_name);
    const auto [old, added] = entries_.emplace(name, Entry{tensor, file.string(), file_name});
    old->second.mapped = file.extension() == ".safetensors";
    check(added, file.string(), ": tensor '", file_name, "' is a second '", name, "' (the first is in ",
          old->second.file, ")");
  }
}

void Weights::add_index(const fs::path& index) {
  const auto json = read_json(index);
  check(json.is_object() && json.contains("weight_map") && json["weight_map"].is_object(), index.string(),
        ": expected an object with a weight_map");
  std::set<std::string> shards;
  for (const auto& [name, shard] : json["weight_map"].items()) {
    check(shard.is_string(), index.string(), ": the shard of '", name, "' is not a file name");
    const auto& file = shard.get_ref<const std::string&>();
    check(!file.empty() && fs::path(file).filename() == file && file != "." && file != "..", index.string(),
          ": shard '", file, "' is not a plain file name in the same directory");
    shards.insert(file);
  }
  for (const auto& shard : shards) {
    const fs::path file = index.parent_path() / shard;
    check(fs::exists(file), "shard ", file.string(), " is missing; ", index.string(), " names it");
    add_file(file);
  }
  for (const auto& [name, shard] : json["weight_map"].items()) {
    const std::string file = (index.parent_path() / shard.get_ref<const std::string&>()).string();
    const auto found = entries_.find(canonical(name));
    check(found != entries_.end() && found->second.file == file, index.string(), ": tensor '", name,
          "' is not in ", file);
  }
}

std::string Weights::canonical(std::string_view file_name) const {
  return rename_ ? rename_(file_name) : std::string(file_name);
}

std::string Weights::stored_as(const std::string& name) const {
  const Entry& found = entry(name);
  return found.lazy ? found.lazy->stored_as : c10::toString(found.tensor.scalar_type());
}

std::vector<std::string> Weights::names() const {
  std::vector<std::string> result;
  for (const auto& [name, unused] : entries_) result.push_back(name);
  return result;
}

const Weights::Entry& Weights::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found != entries_.end()) return found->second;
  const std::string near = nearest(name, names());
  fail("tensor '", name, "' is missing from ", source_,
       near.empty() ? "" : concat("; did you mean '", near, "'?"));
}

at::Tensor Weights::Entry::value(at::ScalarType wanted) const {
  at::Tensor result = lazy ? lazy->read(changes.empty() ? wanted : tensor.scalar_type()) : tensor;
  for (const Change& change : changes) result = change(result);
  return result;
}

at::Tensor Weights::take(const std::string& name, at::IntArrayRef shape, at::TensorOptions options) const {
  if (make_ && !contains(name)) entries_.emplace(name, Entry{make_(name, shape), "new parameters", name});
  const Entry& found = entry(name);
  const at::ScalarType own = found.tensor.scalar_type();
  found.check_shape(name, shape);
  const at::ScalarType dtype = options.has_dtype() ? c10::typeMetaToScalarType(options.dtype()) : own;
  check(at::isFloatingType(dtype) == at::isFloatingType(own), "tensor '", name, "' in ", found.file,
        " has dtype ", own, "; expected ", dtype);
  check(!at::isFloatingType(own) || c10::elementSize(own) > 1, "tensor '", name, "' in ", found.file,
        " has dtype ", own, ", which means nothing without its scale");
  found.used = true;
  const at::Tensor tensor = found.value(dtype);
  return tensor.to(options.has_device() ? options.device() : tensor.device(), dtype).contiguous();
}

void Weights::Entry::check_shape(const std::string& name, at::IntArrayRef shape) const {
  check(tensor.sizes() == shape, "tensor '", name, "' in ", file, " has shape ", shape_text(tensor.sizes()),
        "; expected ", shape_text(shape));
}

const FewBits* Weights::few_bits(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end() || !found->second.changes.empty()) return nullptr;
  const std::optional<Lazy>& lazy = found->second.lazy;
  return lazy && lazy->few_bits ? &*lazy->few_bits : nullptr;
}

const FewBits* Weights::take_few_bits(const std::string& name, at::IntArrayRef shape) const {
  const FewBits* found = few_bits(name);
  if (!found) return nullptr;
  entry(name).check_shape(name, shape);
  entry(name).used = true;
  return found;
}

void Weights::release(const std::string& name) const {
  const Entry& found = entry(name);
  if (found.lazy) return found.lazy->release();
  if (!found.mapped || !found.tensor.is_contiguous()) return;
  Mapping::release(found.tensor.const_data_ptr(), found.tensor.nbytes());
}

void Weights::expect_all_taken(const std::function<bool(std::string_view)>& ignore) const {
  size_t count = 0;
  std::string listed;
  for (const auto& [name, value] : entries_) {
    if (value.used || (ignore && ignore(name))) continue;
    if (++count <= 10) listed += concat("\n  ", name, " ", shape_text(value.tensor.sizes()));
  }
  check(count == 0, source_, " has ", count, " tensors that the model does not know:", listed,
        count > 10 ? "\n  ..." : "");
}

void Weights::merge_adapter(const fs::path& dir) {
  const std::string who = "adapter " + dir.string();
  std::map<std::string, Change> changes;
  // Notes what happens to the tensor that the adapter calls `file_name`.
  const auto note = [&](const std::string& file_name, at::IntArrayRef shape, Change change) {
    const std::string name = canonical(file_name);
    const auto found = entries_.find(name);
    check(found != entries_.end(), who, " changes '", file_name, "', but there is no '", name, "' in ",
          source_);
    const Entry& old = found->second;
    check(old.tensor.sizes() == shape && at::isFloatingType(old.tensor.scalar_type()), who, " changes '",
          file_name, "' of shape ", shape_text(shape), ", but it is ", old.tensor.scalar_type(), " of shape ",
          shape_text(old.tensor.sizes()), " in ", old.file);
    invariant(!old.used, "merge_adapter after take");
    check(changes.emplace(name, std::move(change)).second, who, " changes '", name, "' twice");
  };
  const Adapter adapter = load_adapter(dir);
  for (const auto& [module, delta] : adapter.deltas)
    note(module + ".weight", delta.weight_shape(),
         [change = delta](const at::Tensor& weight) { return change.apply(weight); });
  for (const auto& [name, tensor] : adapter.replacements)
    note(name, tensor.sizes(),
         [whole = tensor](const at::Tensor& old) { return whole.to(old.scalar_type()); });
  for (auto& [name, change] : changes) entries_.at(name).changes.push_back(std::move(change));
}

bool Weights::merge_adapters(const std::vector<fs::path>& dirs, const std::string& embedding,
                             const std::string& head) {
  Entry twin = entry(embedding);
  twin.name_in_file = head;
  auto stored = entries_.extract(head);  // a tied model may have it, and reads the embedding all the same
  if (stored) twin.name_in_file = stored.mapped().name_in_file;
  entries_.emplace(head, std::move(twin));
  for (const fs::path& dir : dirs) merge_adapter(dir);
  if (!entry(embedding).changes.empty() || !entry(head).changes.empty()) return true;
  entries_.erase(head);
  if (stored) entries_.insert(std::move(stored));
  return false;
}

size_t Weights::bytes() const {
  size_t total = 0;
  for (const auto& [name, value] : entries_) total += value.bytes();
  return total;
}

}  // namespace glimpse
