#pragma once

#include "glimpse/models/vlm.h"
#include "glimpse/train/forward.h"
#include "glimpse/train/rows.h"

namespace glimpse {

/// How what the rows show is prepared.
struct MediaOptions {
  ImageBounds bounds;
  VideoOptions video;
};

/// A row with its picture or video.
struct LoadedRow {
  Example example;
  Medium medium;
};

/// Reads what a row shows and makes the prompt, the answer's ids and the reference mask of it (method.md
/// section 5; of a video slice by slice, families.md section 5); the row must outlive it. For use by several
/// threads at once. Errors name the row's file and line.
LoadedRow load_row(const Vlm& model, const TrainRow& row, const MediaOptions& options);

}  // namespace glimpse
