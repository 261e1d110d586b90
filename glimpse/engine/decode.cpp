#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "glimpse/engine/index_tensor.h"
#include "glimpse/engine/sequence.h"

namespace glimpse {

at::Tensor decode_step(const Vlm& model, std::span<Sequence* const> sequences,
                       const std::vector<int64_t>& tokens) {
  const at::NoGradGuard no_grad;
  const Decoder& decoder = model.decoder();
  const at::Device device = decoder.options().device();
  RaggedBatch batch;
  std::vector<KvCache*> caches;
  for (Sequence* sequence : sequences) {
    batch.sequences.push_back({&sequence->cache, 1, nullptr});
    caches.push_back(&sequence->cache);
  }
  if (cuda::DecodeTable::possible(*caches[0])) batch.table.emplace(caches);
  const auto shift = [](const Sequence& sequence, int64_t layer) {
    return sequence.shift.empty() ? 0 : sequence.shift[layer];
  };
  const auto turns = [&](int64_t layer) {  // whether the positions differ from the layer before
    return layer == 0 || std::any_of(sequences.begin(), sequences.end(), [&](const Sequence* sequence) {
             return shift(*sequence, layer) != shift(*sequence, layer - 1);
           });
  };
  const int64_t components = sequences[0]->prompt.position_ids.size(0);
  at::Tensor x = decoder.embed(index_tensor(tokens, device));
  for (int64_t layer = 0; layer < decoder.config().layers; ++layer) {
    if (turns(layer)) {
      std::vector<int64_t> positions;
      for (const Sequence* sequence : sequences)
        positions.push_back(sequence->next_position - shift(*sequence, layer));
      batch.rope = model.rope(index_tensor(positions, device).expand({components, -1}));
    }
    x = decoder.layer(layer, x, batch);
  }
  for (Sequence* sequence : sequences) ++sequence->next_position;
  return decoder.logits(x);
}

}  // namespace glimpse
