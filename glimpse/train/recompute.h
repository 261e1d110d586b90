#pragma once

#include "glimpse/nn/decoder.h"

namespace glimpse {

/// What Decoder::layer gives, and what it leaves in the caches; but for the gradients only what went in is
/// kept, and the layer runs again when they are needed. Memory then grows by a layer's rows, not by all that
/// it makes of them. Random numbers are drawn again as they were. The decoder must then be as it is now.
at::Tensor recomputed_layer(const Decoder& decoder, int64_t layer, const at::Tensor& x,
                            const RaggedBatch& batch);

}  // namespace glimpse
