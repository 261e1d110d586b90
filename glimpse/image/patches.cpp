#include "glimpse/image/patches.h"

#include <ATen/Parallel.h>
#include <xxhash.h>

namespace glimpse {

at::Tensor Patches::values(int64_t first, int64_t count) const {
  const at::Tensor rows = pixel_values.narrow(0, first, count);
  if (!levels) return rows;
  at::Tensor out = at::empty(rows.sizes(), at::kFloat);
  const uint8_t* const from = rows.const_data_ptr<uint8_t>();
  float* const to = out.data_ptr<float>();
  const int64_t size = rows.size(1), channel = size / std::ssize(*levels);
  at::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (size_t c = 0; c < levels->size(); ++c)
        for (int64_t i = row * size + static_cast<int64_t>(c) * channel, end_of_channel = i + channel;
             i < end_of_channel; ++i)
          to[i] = (*levels)[c][from[i]];
  });
  return out;
}

uint64_t pictures_hash(std::span<const Patches> pictures) {
  uint64_t hash = 0;
  for (const Patches& picture : pictures) {
    const at::Tensor values = picture.pixel_values.contiguous();
    hash = XXH3_64bits_withSeed(values.const_data_ptr(), values.nbytes(), hash);
  }
  return hash;
}

}  // namespace glimpse
