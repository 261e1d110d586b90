#pragma once

#include "glimpse/image/resize.h"

namespace glimpse::detail {

/// smart_resize with bounds that need not be whole numbers: a video's are a share of what all frames may
/// have.
Size smart_resize_between(int height, int width, int factor, double min_pixels, double max_pixels,
                          bool thin_grows);

}  // namespace glimpse::detail
