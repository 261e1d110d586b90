#pragma once

#include <pybind11/numpy.h>

#include "glimpse/image/decode.h"

namespace glimpse {

/// A path, a file's bytes, or pixels [height, width, 3] uint8.
Image picture(const pybind11::handle& from, const DecodeOptions& options);

/// What the image processors of the checkpoints make of pictures, and the tokenizers.
void add_processing(pybind11::module_& module);

}  // namespace glimpse
