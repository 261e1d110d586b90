#include "glimpse/nn/cuda_ops.h"

#include "glimpse/base/check.h"
#include "glimpse/nn/device.h"
#include "glimpse/nn/ops.h"

#ifdef GLIMPSE_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "glimpse/nn/cuda_kernels.h"
#endif

namespace glimpse::cuda {

DecodeTable DecodeTable::reserve(std::span<KvCache* const> caches) {
  const auto layers = std::ssize(caches[0]->layers), sequences = std::ssize(caches);
  DecodeTable table{at::empty({layers, sequences, 4}, at::kLong), std::vector<int64_t>(layers)};
  int64_t* to = table.entries.data_ptr<int64_t>();
  for (int64_t l = 0; l < layers; ++l)
    for (KvCache* const cache : caches) {
      LayerCache& layer = cache->layers[l];
      layer.grow(1);
      const LayerCache::Memory memory = layer.memory();
      *to++ = reinterpret_cast<int64_t>(memory.keys);
      *to++ = reinterpret_cast<int64_t>(memory.values);
      *to++ = memory.head_stride;
      *to++ = layer.length();
      table.longest[l] = std::max(table.longest[l], layer.length());
    }
  return table;
}

namespace {
bool kernels_in_use = true;
}

void use_kernels(bool use) {
  kernels_in_use = use;
}

#ifdef GLIMPSE_CUDA

namespace {

template <class T>
const T* data(const at::Tensor& x) {
  return x.defined() ? static_cast<const T*>(x.const_data_ptr()) : nullptr;
}

// Calls f(T{}, stream) with the element type of `x`, on its device.
template <class Function>
void launch(const at::Tensor& x, Function f) {
  const c10::cuda::CUDAGuard guard(x.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  with_element(x.scalar_type(), [&](auto element) { f(element, stream); });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor norm(at::Tensor x, const at::Tensor& delta, const at::Tensor& weight, double eps) {
  at::Tensor out = at::empty_like(x);
  launch(x, [&](auto element, cudaStream_t stream) {
    using T = decltype(element);
    const int64_t n = x.size(-1);
    rms_norm(element_data<T>(x), data<T>(delta), data<T>(weight), static_cast<float>(eps),
             n ? x.numel() / n : 0, n, element_data<T>(out), stream);
  });
  return out;
}

}  // namespace

bool has_kernel(const at::Tensor& x) {
  return kernels_in_use && x.is_cuda() &&
         (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat) && x.is_contiguous() &&
         !(at::GradMode::is_enabled() && x.requires_grad());
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return norm(x, {}, weight, eps);
}

at::Tensor add_rms_norm(at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight, double eps) {
  return norm(x, delta, weight, eps);
}

at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& up) {
  at::Tensor out = at::empty_like(gate);
  launch(gate, [&](auto element, cudaStream_t stream) {
    using T = decltype(element);
    silu_mul(data<T>(gate), data<T>(up), element_data<T>(out), gate.numel(), stream);
  });
  return out;
}

at::Tensor apply_rope(const at::Tensor& x, const Rope& rope) {
  launch(x, [&](auto element, cudaStream_t stream) {
    using T = decltype(element);
    rotate(element_data<T>(x), data<float>(rope.cos), data<float>(rope.sin), x.size(0), x.size(1),
           x.size(2) / 2, stream);
  });
  return x;
}

bool has_few_row_kernel(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const auto aligned = [](const at::Tensor& t) {
    return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
  };
  return has_kernel(x, weight) && (!bias.defined() || has_kernel(x, bias)) && x.size(0) > 0 &&
         x.size(0) <= max_few_rows && x.size(1) * x.element_size() % 16 == 0 && aligned(x) && aligned(weight);
}

std::vector<at::Tensor> few_row_products(const at::Tensor& x, std::span<const DenseWeight> weights) {
  invariant(std::ssize(weights) <= max_factors, "more weights than few_row_products() takes");
  std::vector<at::Tensor> out;
  for (const DenseWeight& each : weights)
    out.push_back(at::empty({x.size(0), each.weight.size(0)}, x.options()));
  launch(x, [&](auto element, cudaStream_t stream) {
    using T = decltype(element);
    Factor<T> factors[max_factors];
    for (size_t i = 0; i < weights.size(); ++i)
      factors[i] = {data<T>(weights[i].weight), data<T>(weights[i].bias), element_data<T>(out[i]),
                    weights[i].weight.size(0)};
    few_row_products(data<T>(x), x.size(0), x.size(1), factors, std::ssize(weights), stream);
  });
  return out;
}

void gather_rows(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& index,
                 at::Tensor& to_keys, at::Tensor& to_values) {
  launch(keys, [&](auto element, cudaStream_t stream) {
    using T = decltype(element);
    const int64_t d = keys.size(2);
    gather_rows(data<T>(keys), data<T>(values), keys.size(1) * d, index.const_data_ptr<int64_t>(),
                index.size(0), keys.size(0), d, element_data<T>(to_keys), element_data<T>(to_values),
                to_keys.size(1) * d, stream);
  });
}

bool DecodeTable::possible(const KvCache& cache) {
  if (cache.layers.empty() || cache.layers[0].length() == 0 || cache.layers[0].is_coded()) return false;
  const at::Tensor keys = cache.layers[0].keys();
  const int64_t d = keys.size(2);
  return kernels_in_use && keys.is_cuda() &&
         (keys.scalar_type() == at::kBFloat16 || keys.scalar_type() == at::kFloat) && d % 8 == 0 && d <= 256;
}

at::Tensor decode_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Rope& rope,
                            const DecodeTable& table, int64_t l) {
  const DecodeShape shape{q.size(0), q.size(1), k.size(1), q.size(2)};
  const Parts parts = decode_parts(shape, table.longest[l]);
  const at::Tensor scratch = at::empty({decode_scratch(shape, parts)}, q.options().dtype(at::kFloat));
  at::Tensor out = at::empty({q.size(0), q.size(1) * q.size(2)}, q.options());
  const auto* const caches = reinterpret_cast<const CacheEntry*>(table.entries.const_data_ptr<int64_t>() +
                                                                 l * table.entries.stride(0));
  launch(q, [&](auto element, cudaStream_t stream) {
    using T = decltype(element);
    T* const queries = element_data<T>(q);
    rotate_and_append(queries, data<T>(k), data<T>(v), data<float>(rope.cos), data<float>(rope.sin), caches,
                      shape, stream);
    decode_attention(queries, caches, shape, parts, scratch.data_ptr<float>(), element_data<T>(out), stream);
  });
  return out;
}

#else

namespace {
[[noreturn]] void none() {
  throw std::logic_error("a CUDA kernel was called in a program built without them");
}
}  // namespace

bool has_kernel(const at::Tensor&) {
  return false;
}
at::Tensor rms_norm(const at::Tensor&, const at::Tensor&, double) {
  none();
}
at::Tensor add_rms_norm(at::Tensor&, const at::Tensor&, const at::Tensor&, double) {
  none();
}
at::Tensor silu_mul(const at::Tensor&, const at::Tensor&) {
  none();
}
at::Tensor apply_rope(const at::Tensor&, const Rope&) {
  none();
}
bool has_few_row_kernel(const at::Tensor&, const at::Tensor&, const at::Tensor&) {
  return false;
}
std::vector<at::Tensor> few_row_products(const at::Tensor&, std::span<const DenseWeight>) {
  none();
}
void gather_rows(const at::Tensor&, const at::Tensor&, const at::Tensor&, at::Tensor&, at::Tensor&) {
  none();
}
bool DecodeTable::possible(const KvCache&) {
  return false;
}
at::Tensor decode_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&, const Rope&,
                            const DecodeTable&, int64_t) {
  none();
}

#endif

}  // namespace glimpse::cuda
