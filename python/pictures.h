#pragma once

#include <pybind11/numpy.h>

#include "glimpse/image/decode.h"
#include "glimpse/image/medium.h"
#include "glimpse/models/prompt.h"

namespace glimpse {

/// A path, a file's bytes, or pixels [height, width, 3] uint8.
Image picture(const pybind11::handle& from, const DecodeOptions& options);

/// The same, or a video as (path, file's bytes or list of pictures; VideoOptions as JSON), whose frames have
/// the bounds that it leaves open.
Medium medium(const pybind11::handle& from, const ImageBounds& bounds);

/// What the image processors of the checkpoints make of pictures, and the tokenizers.
void add_processing(pybind11::module_& module);

}  // namespace glimpse
