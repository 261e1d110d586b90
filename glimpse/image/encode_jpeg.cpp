#include <turbojpeg.h>

#include "glimpse/base/check.h"
#include "glimpse/image/overlay.h"

namespace glimpse {

std::vector<uint8_t> encode_jpeg(const Image& image, int quality) {
  check(image.width > 0 && image.height > 0, "JPEG: a picture without pixels");
  const tjhandle encoder = tjInitCompress();
  check(encoder != nullptr, "JPEG: the encoder cannot be started");
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  const int failed = tjCompress2(encoder, image.rgb.data(), image.width, 0, image.height, TJPF_RGB, &bytes,
                                 &size, TJSAMP_420, quality, 0);
  std::vector<uint8_t> out;
  if (!failed) out.assign(bytes, bytes + size);
  tjFree(bytes);
  tjDestroy(encoder);
  check(!failed, "JPEG: a picture of ", image.width, " x ", image.height, " pixels cannot be encoded");
  return out;
}

}  // namespace glimpse
