#include "glimpse/nn/cuda_graph.h"

#include <stdexcept>

#ifdef GLIMPSE_CUDA
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace glimpse::cuda {

#ifdef GLIMPSE_CUDA

struct Graph::Recorded {
  at::cuda::CUDAGraph graph;
};

Graph::Graph() : recorded_(std::make_unique<Recorded>()) {}

at::Tensor Graph::record(at::Device device, const std::function<at::Tensor()>& work) {
  const c10::cuda::CUDAGuard guard(device);
  const c10::cuda::CUDAStreamGuard on(c10::cuda::getStreamFromPool());  // the default one cannot be recorded
  at::cuda::CUDAGraph& graph = recorded_->graph;
  graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);  // other threads may go on allocating
  at::Tensor result;
  try {
    result = work();
  } catch (...) {
    try {
      graph.capture_end();
    } catch (...) {  // it was invalid already
    }
    throw;
  }
  graph.capture_end();
  return result;
}

void Graph::replay() {
  recorded_->graph.replay();
}

#else

struct Graph::Recorded {};

Graph::Graph() = default;

at::Tensor Graph::record(at::Device, const std::function<at::Tensor()>&) {
  throw std::logic_error("a CUDA graph was recorded in a program built without CUDA");
}

void Graph::replay() {}

#endif

Graph::~Graph() = default;

}  // namespace glimpse::cuda
