#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "glimpse/engine/decode_graphs.h"
#include "glimpse/engine/sequence.h"
#include "glimpse/nn/device.h"
#include "glimpse/nn/forward.h"

namespace glimpse {

namespace {

int64_t shift(const Sequence& sequence, int64_t layer) {
  return sequence.shift.empty() ? 0 : sequence.shift[layer];
}

// The layers before which a sequence's positions differ from those in the layer before, the first included.
std::vector<int64_t> turns_of(std::span<Sequence* const> sequences, int64_t layers) {
  std::vector<int64_t> turns;
  for (int64_t layer = 0; layer < layers; ++layer)
    if (layer == 0 || std::any_of(sequences.begin(), sequences.end(), [&](const Sequence* sequence) {
          return shift(*sequence, layer) != shift(*sequence, layer - 1);
        }))
      turns.push_back(layer);
  return turns;
}

}  // namespace

at::Tensor decode_step(const Vlm& model, std::span<Sequence* const> sequences,
                       const std::vector<int64_t>& tokens, DecodeGraphs* graphs) {
  const at::NoGradGuard no_grad;
  const Decoder& decoder = model.decoder();
  const at::Device device = decoder.options().device();
  const int64_t layers = decoder.config().layers, components = sequences[0]->prompt.position_ids.size(0);
  const std::vector<int64_t> turns = turns_of(sequences, layers);
  RaggedBatch batch;
  std::vector<KvCache*> caches;
  for (Sequence* sequence : sequences) {
    batch.sequences.push_back({&sequence->cache, 1});
    caches.push_back(&sequence->cache);
  }
  // The tokens, then the positions from each turn on.
  std::vector<int64_t> numbers = tokens;
  for (const int64_t layer : turns)
    for (const Sequence* sequence : sequences)
      numbers.push_back(sequence->next_position - shift(*sequence, layer));
  const at::Tensor inputs = at::tensor(numbers, at::kLong).view({-1, std::ssize(sequences)});

  const auto step = [&](const at::Tensor& in, const std::optional<cuda::DecodeTable>& table) {
    batch.table = table;
    int64_t turn = 0;
    LayerHooks hooks;
    hooks.before = [&](int64_t layer, at::Tensor&, RaggedBatch& all) {
      if (turn < std::ssize(turns) && turns[turn] == layer)
        all.rope = model.rope(in[++turn].unsqueeze(1).expand({components, -1, 1}));
    };
    return decoder.logits(Forward(decoder, decoder.embed(in[0]), batch, hooks).run());
  };

  at::Tensor logits;
  std::optional<cuda::DecodeTable> table;
  if (cuda::DecodeTable::possible(*caches[0])) {
    table = cuda::DecodeTable::reserve(caches);
    if (graphs) {
      DecodeGraphs::Kind kind{std::ssize(sequences), components, turns, {}};
      for (const int64_t rows : table->longest) kind.longest.push_back(DecodeGraphs::bucket(rows));
      logits = graphs->run(kind, inputs, *table, device, step);
    }
    if (!logits.defined()) table->entries = to_device(table->entries, device);
  }
  if (!logits.defined()) logits = step(to_device(inputs, device), table);
  for (Sequence* sequence : sequences) ++sequence->next_position;
  return logits;
}

}  // namespace glimpse
