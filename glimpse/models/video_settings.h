#pragma once

#include "glimpse/image/video.h"
#include "glimpse/models/prompt.h"
#include "glimpse/models/source.h"

namespace glimpse {

/// How a checkpoint wants videos shown, by its video_preprocessor_config.json (transformers 5: the
/// video_processor in processor_config.json); nothing where there is none. `fps`, `min_frames` and
/// `max_frames` are taken over (`fps` also as the rate of frames that were chosen already). So are the bounds
/// on pixels (`size`, `min_pixels`, `max_pixels`) of a Qwen2VLVideoProcessor: they are a frame's, and narrow
/// those of qwen-vl-utils, as a processor does behind it; its lower one counts below 128 visual tokens only
/// where its upper one does. Those of a Qwen3VLVideoProcessor bound the whole clip, which qwen-vl-utils does
/// by total_pixels, its own, and are left alone; so are `num_frames` and `do_sample_frames`: frames are
/// always chosen, by their rate. Errors name file and field.
VideoOptions video_defaults(const ModelSource& source);

/// `asked` with what it leaves out: a frame's bounds as of pictures, then what the checkpoint wants.
VideoOptions video_options(const VideoOptions& asked, const ImageBounds& bounds, const ModelSource& source);

}  // namespace glimpse
