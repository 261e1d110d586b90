#include "glimpse/image/libav/to_image.h"

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/image/decoders.h"

namespace glimpse::libav {
namespace {

/// The formats that say "full range" by their name, without it: the range is given apart.
AVPixelFormat plain_format(int format) {
  switch (format) {
    case AV_PIX_FMT_YUVJ420P:
      return AV_PIX_FMT_YUV420P;
    case AV_PIX_FMT_YUVJ422P:
      return AV_PIX_FMT_YUV422P;
    case AV_PIX_FMT_YUVJ444P:
      return AV_PIX_FMT_YUV444P;
    case AV_PIX_FMT_YUVJ440P:
      return AV_PIX_FMT_YUV440P;
    case AV_PIX_FMT_YUVJ411P:
      return AV_PIX_FMT_YUV411P;
    default:
      return static_cast<AVPixelFormat>(format);
  }
}

const int32_t* display_matrix(AVStream& stream) {
#if LIBAVFORMAT_VERSION_MAJOR >= 61
  const AVPacketSideData* data = av_packet_side_data_get(
      stream.codecpar->coded_side_data, stream.codecpar->nb_coded_side_data, AV_PKT_DATA_DISPLAYMATRIX);
  return data && data->size >= 9 * sizeof(int32_t) ? reinterpret_cast<const int32_t*>(data->data) : nullptr;
#else
  size_t size = 0;
  const uint8_t* data = av_stream_get_side_data(&stream, AV_PKT_DATA_DISPLAYMATRIX, &size);
  return data && size >= 9 * sizeof(int32_t) ? reinterpret_cast<const int32_t*>(data) : nullptr;
#endif
}

}  // namespace

int orientation_of(AVStream& stream) {
  const int32_t* matrix = display_matrix(stream);
  if (!matrix) return 1;
  // A point (x, y) is shown at (a x + c y, b x + d y); turns by other angles than quarters are taken for
  // none.
  const int32_t a = matrix[0], b = matrix[1], c = matrix[3], d = matrix[4];
  if (a && d && !b && !c) return a > 0 ? (d > 0 ? 1 : 4) : (d > 0 ? 2 : 3);
  if (b && c && !a && !d) return c > 0 ? (b > 0 ? 5 : 8) : (b > 0 ? 6 : 7);
  return 1;
}

ToImage::ToImage(int width, int height, int orientation) : orientation_(orientation), rgb_(av_frame_alloc()) {
  invariant(rgb_ != nullptr, "no memory for a frame");
  rgb_->format = AV_PIX_FMT_RGB24;
  rgb_->width = width;
  rgb_->height = height;
  invariant(av_frame_get_buffer(rgb_.get(), 0) >= 0, "no memory for a frame");
}

Image ToImage::convert(const AVFrame& frame, const std::string& name) {
  // As the readers convert that qwen-vl-utils uses (PyAV, torchcodec): a twentieth of the time of what rounds
  // more finely.
  constexpr int flags = SWS_BILINEAR;
  const int width = rgb_->width, height = rgb_->height;
  // Keeps the scaler as long as nothing changes.
  scaler_.reset(sws_getCachedContext(scaler_.release(), frame.width, frame.height, plain_format(frame.format),
                                     width, height, AV_PIX_FMT_RGB24, flags, nullptr, nullptr, nullptr));
  const char* const format = av_get_pix_fmt_name(static_cast<AVPixelFormat>(frame.format));
  check(scaler_ != nullptr, name, ": pixels of format ", format ? format : "unknown", " cannot be converted");
  int *inverse = nullptr, *table = nullptr;
  int full = 0, rgb_full = 0, brightness = 0, contrast = 0, saturation = 0;
  if (sws_getColorspaceDetails(scaler_.get(), &inverse, &full, &table, &rgb_full, &brightness, &contrast,
                               &saturation) >= 0)
    sws_setColorspaceDetails(scaler_.get(), sws_getCoefficients(frame.colorspace),
                             frame.color_range == AVCOL_RANGE_JPEG, table, rgb_full, brightness, contrast,
                             saturation);
  sws_scale(scaler_.get(), frame.data, frame.linesize, 0, frame.height, rgb_->data, rgb_->linesize);

  const size_t row = size_t{3} * width;
  detail::Pixels pixels{width, height, 3, std::vector<uint8_t>(row * height), orientation_};
  for (int y = 0; y < height; ++y)
    std::copy_n(rgb_->data[0] + ptrdiff_t{y} * rgb_->linesize[0], row, &pixels.data[row * y]);
  pixels = detail::upright(std::move(pixels));
  return {pixels.width, pixels.height, std::move(pixels.data)};
}

}  // namespace glimpse::libav
