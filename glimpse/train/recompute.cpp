#include "glimpse/train/recompute.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <mutex>

namespace glimpse {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

LayerCache cache_of(const at::Tensor& keys, const at::Tensor& values) {
  LayerCache cache;
  cache.append(keys.transpose(0, 1), values.transpose(0, 1));
  return cache;
}

// Of the generator that dropout on the device uses.
at::Tensor generator_state(at::Device device, const at::Tensor& set = {}) {
  at::Generator generator = at::globalContext().defaultGenerator(device.is_cuda() ? device : at::kCPU);
  const std::lock_guard lock(generator.mutex());
  at::Tensor before = generator.get_state();
  if (set.defined()) generator.set_state(set);
  return before;
}

// A layer, and what it is run with: the rows, then keys and values of each sequence whose cache has some.
struct Work : torch::CustomClassHolder {
  Work(const Decoder& of, int64_t l, const RaggedBatch& rows)
      : decoder(of), layer(l), batch(rows), random(generator_state(of.options().device())) {}
  const Decoder& decoder;
  const int64_t layer;
  const RaggedBatch batch;  // its caches are not used
  const at::Tensor random;  // state of the generator before it ran
  variable_list inputs;     // without their graphs
  std::vector<bool> has_cache;

  // The layer's rows, then all keys and values of each sequence.
  variable_list run(const variable_list& in) const {
    std::vector<KvCache> caches(batch.sequences.size(), KvCache(layer + 1));
    RaggedBatch own = batch;
    size_t next = 1;
    for (size_t i = 0; i < caches.size(); ++i) {
      if (has_cache[i]) {
        caches[i].layers[layer] = cache_of(in[next], in[next + 1]);
        next += 2;
      }
      own.sequences[i].cache = &caches[i];
    }
    variable_list out = {decoder.layer(layer, in[0], own)};
    for (const KvCache& cache : caches)
      out.insert(out.end(), {cache.layers[layer].keys(), cache.layers[layer].values()});
    return out;
  }
};

// `inputs` are the work's with their graphs, and one that wants gradients whatever these do: the layer's own
// parameters are not among them.
struct Recomputation : torch::autograd::Function<Recomputation> {
  static variable_list forward(AutogradContext* context, const at::TensorList&,
                               const c10::intrusive_ptr<torch::CustomClassHolder>& held) {
    context->saved_data["work"] = c10::IValue::make_capsule(held);
    // Dropout depends on whether gradients are recorded; what is recorded here goes at once.
    const at::AutoGradMode with_gradients(true);
    const auto& work = static_cast<const Work&>(*held);
    variable_list out;
    for (const at::Tensor& t : work.run(work.inputs)) out.push_back(t.detach());
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto held = context->saved_data["work"].toCapsule();
    const auto& work = static_cast<const Work&>(*held);
    const at::AutoGradMode with_gradients(true);
    variable_list in;
    for (const at::Tensor& t : work.inputs) in.push_back(t.detach().requires_grad_());
    const at::Device device = in[0].device();
    const at::Tensor now = generator_state(device, work.random);
    const variable_list out = work.run(in);
    generator_state(device, now);
    variable_list ends, from;
    for (size_t i = 0; i < out.size(); ++i)
      if (gradients[i].defined() && out[i].requires_grad()) {
        ends.push_back(out[i]);
        from.push_back(gradients[i]);
      }
    if (!ends.empty()) torch::autograd::backward(ends, from);
    variable_list back;
    for (const at::Tensor& t : in) back.push_back(t.grad());
    back.insert(back.end(), {at::Tensor(), at::Tensor()});  // the one that wants gradients; the work
    return back;
  }
};

}  // namespace

at::Tensor recomputed_layer(const Decoder& decoder, int64_t layer, const at::Tensor& x,
                            const RaggedBatch& batch) {
  auto work = c10::make_intrusive<Work>(decoder, layer, batch);
  variable_list inputs = {x};
  for (const SequenceRows& sequence : batch.sequences) {
    const LayerCache& cache = sequence.cache->layers[layer];
    work->has_cache.push_back(cache.length() > 0);
    if (cache.length() > 0) inputs.insert(inputs.end(), {cache.keys(), cache.values()});
  }
  for (const at::Tensor& t : inputs) work->inputs.push_back(t.detach());
  inputs.push_back(at::zeros({1}, x.options()).requires_grad_());
  const variable_list out = Recomputation::apply(
      at::TensorList(inputs), c10::static_intrusive_pointer_cast<torch::CustomClassHolder>(work));
  for (size_t i = 0; i < batch.sequences.size(); ++i)
    batch.sequences[i].cache->layers[layer] = cache_of(out[1 + 2 * i], out[2 + 2 * i]);
  return out[0];
}

}  // namespace glimpse
