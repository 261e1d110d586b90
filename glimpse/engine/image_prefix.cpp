#include "glimpse/engine/image_prefix.h"

#include "glimpse/base/check.h"

namespace glimpse {

namespace {

// Calls visit(name, tensor) for every tensor but those of the layers' caches.
template <class Prefix, class Visit>
void visit_tensors(Prefix& prefix, const Visit& visit) {
  visit("hidden", prefix.hidden);
  visit("position_ids", prefix.position_ids);
  visit("scores", prefix.scores);
  for_tensors(prefix.vision, [&](const std::string& name, auto& tensor) { visit("vision." + name, tensor); });
}

// The same for lists of numbers.
template <class Prefix, class Visit>
void visit_lists(Prefix& prefix, const Visit& visit) {
  visit("rows", prefix.rows);
  visit("visual", prefix.visual);
  visit("source", prefix.source);
  visit("shift", prefix.shift);
  visit("left", prefix.left);
  visit("vision.windows", prefix.vision.windows);
}

}  // namespace

size_t ImagePrefix::bytes() const {
  size_t sum = 0;
  visit_tensors(*this, [&](const std::string&, const at::Tensor& tensor) {
    if (tensor.defined()) sum += tensor.storage().nbytes();
  });
  visit_lists(*this, [&](const std::string&, const std::vector<int64_t>& list) {
    sum += list.size() * sizeof(int64_t);
  });
  for (const LayerCache& layer : layers) sum += layer.bytes();
  return sum + (encoding ? encoding->bytes() : 0);
}

std::map<std::string, at::Tensor> tensors_of(const ImagePrefix& prefix) {
  std::map<std::string, at::Tensor> out;
  const auto add = [&](const std::string& name, const at::Tensor& tensor) {
    if (tensor.defined()) out[name] = tensor.detach().cpu();
  };
  visit_tensors(prefix, add);
  visit_lists(prefix, [&](const std::string& name, const std::vector<int64_t>& list) {
    add(name, at::tensor(list, at::kLong));
  });
  for (size_t i = 0; i < prefix.layers.size(); ++i) {
    add(concat("layers.", i, ".keys"), prefix.layers[i].stored_keys());
    add(concat("layers.", i, ".values"), prefix.layers[i].stored_values());
  }
  const bool any = !prefix.layers.empty();
  add("counts",
      at::tensor(std::vector<int64_t>{
          prefix.tokens, std::ssize(prefix.layers), std::ssize(prefix.vision.states),
          std::ssize(prefix.vision.additions), std::ssize(prefix.vision.attention),
          any ? static_cast<int64_t>(prefix.layers[0].format()) : 0, any ? prefix.layers[0].head_dim() : 0}));
  return out;
}

ImagePrefix prefix_of(const std::map<std::string, at::Tensor>& tensors, at::Device device) {
  const auto get = [&](const std::string& name) {
    const auto found = tensors.find(name);
    check(found != tensors.end(), "an image prefix without ", name);
    return found->second;
  };
  const auto list_of = [](const at::Tensor& tensor) {
    const at::Tensor flat = tensor.to(at::kLong).contiguous();
    return std::vector<int64_t>(flat.const_data_ptr<int64_t>(),
                                flat.const_data_ptr<int64_t>() + flat.numel());
  };
  const std::vector<int64_t> counts = list_of(get("counts"));
  check(counts.size() == 7 && counts[5] >= 0 && counts[5] <= static_cast<int64_t>(KvFormat::int4),
        "an image prefix with other counts");
  ImagePrefix prefix;
  prefix.tokens = counts[0];
  prefix.layers.resize(static_cast<size_t>(counts[1]));
  prefix.vision.states.resize(static_cast<size_t>(counts[2]));
  prefix.vision.additions.resize(static_cast<size_t>(counts[3]));
  prefix.vision.attention.resize(static_cast<size_t>(counts[4]));
  visit_tensors(prefix, [&](const std::string& name, at::Tensor& tensor) {
    // The positions stay on the CPU (Prompt).
    if (const auto found = tensors.find(name); found != tensors.end())
      tensor = found->second.clone().to(name == "position_ids" ? at::Device(at::kCPU) : device);
  });
  visit_lists(prefix,
              [&](const std::string& name, std::vector<int64_t>& list) { list = list_of(get(name)); });
  for (size_t i = 0; i < prefix.layers.size(); ++i) {
    const at::Tensor keys = get(concat("layers.", i, ".keys")), values = get(concat("layers.", i, ".values"));
    prefix.layers[i] =
        LayerCache::restored(static_cast<KvFormat>(counts[5]), counts[6], keys.to(device), values.to(device));
  }
  return prefix;
}

}  // namespace glimpse
