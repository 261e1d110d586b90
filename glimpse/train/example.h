#pragma once

#include "glimpse/train/forward.h"
#include "glimpse/train/rows.h"

namespace glimpse {

/// A row with its image.
struct LoadedRow {
  Example example;
  Image image;
};

/// Reads a row's image and makes the prompt, the answer's ids and the reference mask of it (method.md section
/// 5); the row must outlive it. For use by several threads at once. Errors name the row's file and line.
LoadedRow load_row(const Vlm& model, const TrainRow& row, const ImageBounds& bounds);

}  // namespace glimpse
