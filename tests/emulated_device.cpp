#include "emulated_device.h"

#include <ATen/ATen.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <set>

namespace glimpse::test {

namespace {

const at::Device kDevice(at::kPrivateUse1, 0);
std::atomic<int64_t> copies_to_host = 0, copies_to_device = 0, blocking_copies = 0;

void note_copy_to_device(bool blocking) {
  ++copies_to_device;
  blocking_copies += blocking ? 1 : 0;
}

// No address of a process has this bit, so that whoever reads an emulated tensor's memory directly crashes.
constexpr uintptr_t kTag = uintptr_t{1} << 62;

void* tagged(void* address) {
  return address ? reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(address) ^ kTag) : nullptr;
}

// The same memory as a storage of the other device, which keeps it alive.
c10::Storage other_side(const c10::Storage& storage) {
  const at::Device device = storage.device().is_cpu() ? kDevice : at::Device(at::kCPU);
  at::DataPtr data(
      tagged(storage.mutable_data()), new c10::Storage(storage),
      [](void* owner) { delete static_cast<c10::Storage*>(owner); }, device);
  return {c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), c10::GetCPUAllocator(),
          /*resizable=*/true};
}

void take_shape(const at::Tensor& to, const at::Tensor& from) {
  to.unsafeGetTensorImpl()->set_sizes_and_strides(from.sizes(), from.strides(), from.storage_offset());
}

// A tensor that lies in `storage` as `like` does in its own.
at::Tensor tensor_in(c10::Storage storage, const at::Tensor& like) {
  const auto key = storage.device().is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::PrivateUse1;
  const at::Tensor out =
      at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  take_shape(out, like);
  return out;
}

at::Tensor on_host(const at::Tensor& tensor) {
  return tensor.is_cpu() ? tensor : tensor_in(other_side(tensor.storage()), tensor);
}

// The arguments of one operation, lent to the CPU and given back.
class Loan {
 public:
  Loan(std::string operation, bool takes_host_indices)
      : operation_(std::move(operation)), takes_host_indices_(takes_host_indices) {}

  at::Tensor lend(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (tensor.is_cpu()) {
      TORCH_CHECK(tensor.dim() == 0 || takes_host_indices_, operation_,
                  ": expected all tensors on the emulated device, but one of shape ", tensor.sizes(),
                  " is on the CPU");
      if (tensor.dim() > 0) note_copy_to_device(/*blocking=*/true);
      return tensor;
    }
    lent_.push_back({tensor, on_host(tensor)});
    return lent_.back().host;
  }

  c10::IValue lend(const c10::IValue& value) {
    if (value.isTensor()) return lend(value.toTensor());
    if (value.isDevice()) return at::Device(at::kCPU);
    if (value.isTensorList()) {
      c10::List<at::Tensor> out;
      for (const at::Tensor& each : value.toTensorVector()) out.push_back(lend(each));
      return out;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> out;
      for (const std::optional<at::Tensor>& each : value.toOptionalTensorVector())
        out.push_back(each ? std::optional(lend(*each)) : std::nullopt);
      return out;
    }
    return value;
  }

  // Arguments that the operation has resized or given other memory.
  void give_back() {
    for (const auto& [device, host] : lent_) {
      if (host.storage().data() != tagged(device.storage().mutable_data()))
        device.unsafeGetTensorImpl()->set_storage_keep_dtype(other_side(host.storage()));
      if (host.sizes() != device.sizes() || host.strides() != device.strides()) take_shape(device, host);
    }
  }

  // What the operation made, or its view of an argument.
  at::Tensor result(const at::Tensor& made) const {
    if (!made.defined()) return made;
    const auto source = std::find_if(lent_.begin(), lent_.end(),
                                     [&](const Pair& pair) { return pair.host.is_alias_of(made); });
    return tensor_in(source == lent_.end() ? other_side(made.storage()) : source->device.storage(), made);
  }

  c10::IValue result(const c10::IValue& value) const {
    if (value.isTensor()) return result(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> out;
    for (const at::Tensor& each : value.toTensorVector()) out.push_back(result(each));
    return out;
  }

 private:
  struct Pair {
    at::Tensor device, host;
  };
  const std::string operation_;
  const bool takes_host_indices_;
  std::vector<Pair> lent_;
};

// Whether a device has to tell the host a size or an answer before the host can go on.
bool answers_host(const std::string& name, const torch::jit::Stack& arguments) {
  static const std::set<std::string> always = {"aten::nonzero",
                                               "aten::masked_select",
                                               "aten::_unique",
                                               "aten::_unique2",
                                               "aten::unique_consecutive",
                                               "aten::unique_dim",
                                               "aten::unique_dim_consecutive",
                                               "aten::bincount",
                                               "aten::equal",
                                               "aten::repeat_interleave"};
  if (always.contains(name)) return true;
  if (name != "aten::index") return false;
  const auto indices = arguments.back().toOptionalTensorVector();
  return std::any_of(indices.begin(), indices.end(), [](const std::optional<at::Tensor>& index) {
    return index && index->defined() && index->scalar_type() == at::kBool;
  });
}

// Runs an operation on the CPU over the same memory.
void run_on_host(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  static const std::set<std::string> take_host_indices = {"aten::index", "aten::index_put_",
                                                          "aten::_index_put_impl_", "aten::_unsafe_index"};
  const c10::FunctionSchema& schema = op.schema();
  const std::vector<c10::Argument>&arguments = schema.arguments(), &returns = schema.returns();
  const torch::jit::Stack given(stack->end() - std::ssize(arguments), stack->end());
  if (answers_host(schema.name(), given)) ++copies_to_host;
  Loan loan(schema.name(), take_host_indices.contains(schema.name()));
  stack->resize(stack->size() - given.size());
  for (const c10::IValue& value : given) stack->push_back(loan.lend(value));
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  loan.give_back();
  const size_t first = stack->size() - returns.size();
  for (size_t r = 0; r < returns.size(); ++r) {
    c10::IValue& value = (*stack)[first + r];
    const c10::AliasInfo* const alias = returns[r].alias_info();
    const auto same = [&](const c10::Argument& argument) {  // "Tensor(a!) self" for "Tensor(a!)"
      return alias && alias->isWrite() && argument.alias_info() && *argument.alias_info() == *alias;
    };
    const auto written = std::find_if(arguments.begin(), arguments.end(), same);
    value = written == arguments.end() ? loan.result(value) : given[written - arguments.begin()];
  }
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (from.numel() > 0 && from.is_cpu()) note_copy_to_device(!non_blocking);
  if (from.numel() > 0 && to.is_cpu()) ++copies_to_host;
  on_host(to).copy_(on_host(from));
  return to;
}

at::Scalar local_scalar(const at::Tensor& tensor) {
  ++copies_to_host;
  return at::_local_scalar_dense(on_host(tensor));
}

// One device with one stream, on which everything happens at once.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return at::kPrivateUse1; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};

}  // namespace

void register_emulated_device() {
  [[maybe_unused]] static const bool once = [] {
    c10::register_privateuse1_backend(kEmulated);
    at::RegisterPrivateUse1HooksInterface(new Hooks);  // libtorch keeps both for good
    const c10::impl::DeviceGuardImplRegistrar guard(at::kPrivateUse1, new Guard);
    static torch::Library all(torch::Library::IMPL, "_", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
    all.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
    static torch::Library aten(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__,
                               __LINE__);
    aten.impl("_copy_from", copy_from);
    aten.impl("_local_scalar_dense", local_scalar);
    return true;
  }();
}

Transfers transfers() {
  return {copies_to_host, copies_to_device, blocking_copies};
}

}  // namespace glimpse::test
