#include "glimpse/image/patches.h"

#include <xxhash.h>

namespace glimpse {

uint64_t pictures_hash(std::span<const Patches> pictures) {
  uint64_t hash = 0;
  for (const Patches& picture : pictures) {
    const at::Tensor values = picture.pixel_values.contiguous();
    hash = XXH3_64bits_withSeed(values.const_data_ptr(), values.nbytes(), hash);
  }
  return hash;
}

}  // namespace glimpse
