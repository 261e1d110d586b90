#include "glimpse/train/world.h"

#include <charconv>
#include <chrono>
#include <cstdlib>
#include <string>

#ifndef USE_C10D_GLOO
#define USE_C10D_GLOO
#endif
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef GLIMPSE_NCCL
#ifndef USE_C10D_NCCL
#define USE_C10D_NCCL
#endif
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include "glimpse/base/check.h"

namespace glimpse {

namespace {

constexpr auto kTimeout = std::chrono::minutes(10);

int64_t number_of(const char* name) {
  const char* text = std::getenv(name);
  check(text != nullptr, "training on several processes: ", name,
        " is not set; start them with torchrun --no-python, or set RANK, WORLD_SIZE, MASTER_ADDR and "
        "MASTER_PORT");
  const std::string_view given = text;
  int64_t value = -1;
  const auto [end, error] = std::from_chars(given.begin(), given.end(), value);
  check(error == std::errc() && end == given.end() && value >= 0, name, ": expected a number, got '", given,
        "'");
  return value;
}

class Group : public World {
 public:
  Group(int rank, int size, const std::string& host, uint16_t port, const at::Device& device)
      : device_(device) {
    rank_ = rank;
    size_ = size;
    c10d::TCPStoreOptions store;
    store.port = port;
    // Under torchrun the launcher's own store listens at MASTER_PORT; it may be shared.
    const char* shared = std::getenv("TORCHELASTIC_USE_AGENT_STORE");
    store.isServer = rank == 0 && !(shared && std::string_view(shared) == "True");
    store.numWorkers = static_cast<size_t>(size);
    store.timeout = kTimeout;
    try {
      auto rendezvous =
          c10::make_intrusive<c10d::PrefixStore>("glimpse", c10::make_intrusive<c10d::TCPStore>(host, store));
      group_ = connect(rendezvous, device);
    } catch (const std::exception& error) {
      fail("training: process ", rank, " of ", size, " cannot reach the others at ", host, ":", port, ": ",
           first_line(error));
    }
  }

  void sum(std::vector<at::Tensor>& tensors) override {
    // One message for all of them.
    std::vector<at::Tensor> flat;
    for (const at::Tensor& tensor : tensors) flat.push_back(tensor.flatten());
    // Each kind of process group has its own device, whatever the tensors are on.
    std::vector<at::Tensor> message = {at::cat(flat).to(device_)};
    try {
      group_->allreduce(message)->wait(kTimeout);
    } catch (const std::exception& error) {
      throw LostProcess(
          concat("training: process ", rank_, " of ", size_, " has lost another one: ", first_line(error)));
    }
    int64_t first = 0;
    for (at::Tensor& tensor : tensors) {
      tensor.copy_(message[0].narrow(0, first, tensor.numel()).view_as(tensor));
      first += tensor.numel();
    }
  }

 private:
  static std::string first_line(const std::exception& error) {
    const std::string text = error.what();
    return text.substr(0, text.find('\n'));
  }

  c10::intrusive_ptr<c10d::Backend> connect(const c10::intrusive_ptr<c10d::Store>& store,
                                            const at::Device& device) const {
#ifdef GLIMPSE_NCCL
    if (device.is_cuda()) return c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank_, size_);
#endif
    check(device.is_cpu(),
          "training on several CUDA devices: this program's libtorch was built without NCCL");
    auto options = c10d::ProcessGroupGloo::Options::create(kTimeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
    return c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank_, size_, options);
  }

  const at::Device device_;
  c10::intrusive_ptr<c10d::Backend> group_;
};

}  // namespace

void World::share(std::vector<at::Tensor>& tensors) {
  for (at::Tensor& tensor : tensors)
    if (!first()) tensor.zero_();
  sum(tensors);
}

std::string local_device(const std::string& device) {
  if (device != "cuda" || !std::getenv("LOCAL_RANK")) return device;
  return concat("cuda:", number_of("LOCAL_RANK"));
}

std::unique_ptr<World> World::from_environment(const at::Device& device) {
  const char* given = std::getenv("WORLD_SIZE");
  if (!given || std::string_view(given) == "1") return std::make_unique<World>();
  const int64_t size = number_of("WORLD_SIZE"), rank = number_of("RANK"), port = number_of("MASTER_PORT");
  check(size >= 1 && size <= 65536 && rank < size, "RANK ", rank, " is not below WORLD_SIZE ", size);
  check(port > 0 && port < 65536, "MASTER_PORT ", port, " is no port");
  const char* host = std::getenv("MASTER_ADDR");
  check(host && *host, "training on several processes: MASTER_ADDR is not set");
  return std::make_unique<Group>(static_cast<int>(rank), static_cast<int>(size), host,
                                 static_cast<uint16_t>(port), device);
}

}  // namespace glimpse
