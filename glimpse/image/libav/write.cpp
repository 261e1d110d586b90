#include "glimpse/image/libav/write.h"

#include <cmath>

#include "glimpse/base/check.h"
#include "glimpse/image/libav/libav.h"

namespace glimpse::libav {
namespace {

#if LIBAVFORMAT_VERSION_MAJOR >= 61
using Written = const uint8_t*;
#else
using Written = uint8_t*;
#endif

int write_bytes(void* opaque, Written bytes, int size) {
  auto& stream = *static_cast<std::ostream*>(opaque);
  stream.write(reinterpret_cast<const char*>(bytes), size);
  return stream.good() ? size : AVERROR(EIO);
}

int64_t seek_bytes(void* opaque, int64_t offset, int whence) {
  auto& stream = *static_cast<std::ostream*>(opaque);
  if (whence & AVSEEK_SIZE) return AVERROR(ENOSYS);
  const auto base = whence == SEEK_SET ? std::ios::beg : whence == SEEK_CUR ? std::ios::cur : std::ios::end;
  stream.seekp(offset, base);
  return stream.good() ? static_cast<int64_t>(stream.tellp()) : AVERROR(EIO);
}

void free_output(AVFormatContext** format) {
  avformat_free_context(*format);
}

/// A file that grows frame by frame.
class Writer {
 public:
  Writer(const detail::VideoOutput& output, int width, int height);
  void add(const Image& image);
  void finish();

 private:
  void write_header();
  void encode(const AVFrame* frame);
  /// Fails with what went wrong, if it did.
  void done(int result, const char* what) const {
    check(result >= 0, output_.name, ": cannot be written: ", what, ": ", in_words(result));
  }

  const detail::VideoOutput& output_;
  int width_, height_;
  Io io_;
  std::unique_ptr<AVFormatContext, Freed<free_output>> format_;
  Codec codec_;
  Frame frame_;
  Packet packet_;
  Scaler scaler_;
  AVStream* stream_ = nullptr;
};

Writer::Writer(const detail::VideoOutput& output, int width, int height)
    : output_(output), width_(width), height_(height), frame_(av_frame_alloc()), packet_(av_packet_alloc()) {
  invariant(frame_ && packet_, "no memory for a frame");
  AVFormatContext* format = nullptr;
  done(avformat_alloc_output_context2(&format, nullptr, output.container, nullptr), output.container);
  format_.reset(format);
  constexpr int buffer_size = 1 << 16;
  auto* buffer = static_cast<unsigned char*>(av_malloc(buffer_size));
  io_.reset(avio_alloc_context(buffer, buffer_size, 1, &output.stream, nullptr, write_bytes, seek_bytes));
  invariant(io_ != nullptr, "no memory for a writer");
  format->pb = io_.get();
  format->flags |= AVFMT_FLAG_CUSTOM_IO;

  const AVCodec* encoder = avcodec_find_encoder_by_name("libx264");
  if (!encoder) encoder = avcodec_find_encoder(AV_CODEC_ID_MPEG4);
  check(encoder != nullptr, output.name, ": cannot be written: FFmpeg was built without encoders");
  codec_.reset(avcodec_alloc_context3(encoder));
  codec_->width = (width + 1) / 2 * 2;
  codec_->height = (height + 1) / 2 * 2;
  codec_->pix_fmt = AV_PIX_FMT_YUV420P;
  codec_->colorspace = AVCOL_SPC_BT709;
  codec_->color_primaries = AVCOL_PRI_BT709;
  codec_->color_trc = AVCOL_TRC_BT709;
  codec_->color_range = AVCOL_RANGE_MPEG;
  constexpr int finest = 65535;  // that every encoder takes
  codec_->framerate = av_d2q(output.fps, finest);
  codec_->time_base = av_inv_q(codec_->framerate);
  if (format->oformat->flags & AVFMT_GLOBALHEADER) codec_->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
  Options options;
  options.set("threads", detail::video_threads()).set("preset", "veryfast").set("crf", "18");
  if (encoder->id == AV_CODEC_ID_MPEG4) {
    codec_->flags |= AV_CODEC_FLAG_QSCALE;
    codec_->global_quality = FF_QP2LAMBDA * 3;
  }
  done(avcodec_open2(codec_.get(), encoder, options.get()), encoder->name);
  write_header();
}

void Writer::write_header() {
  stream_ = avformat_new_stream(format_.get(), nullptr);
  invariant(stream_ != nullptr, "no memory for a stream");
  stream_->time_base = codec_->time_base;
  stream_->avg_frame_rate = codec_->framerate;
  done(avcodec_parameters_from_context(stream_->codecpar, codec_.get()), "parameters");
  Options options;
  options.set("fflags", "+bitexact");  // no version and no date in it
  done(avformat_write_header(format_.get(), options.get()), "header");

  frame_->format = codec_->pix_fmt;
  frame_->width = codec_->width;
  frame_->height = codec_->height;
  frame_->pts = 0;
  done(av_frame_get_buffer(frame_.get(), 0), "frame");
  constexpr int flags = SWS_BICUBIC | SWS_FULL_CHR_H_INP | SWS_ACCURATE_RND;
  scaler_.reset(sws_getContext(codec_->width, codec_->height, AV_PIX_FMT_RGB24, codec_->width, codec_->height,
                               codec_->pix_fmt, flags, nullptr, nullptr, nullptr));
  invariant(scaler_ != nullptr, "no memory for a scaler");
  const int* table = sws_getCoefficients(SWS_CS_ITU709);
  constexpr int one = 1 << 16;
  sws_setColorspaceDetails(scaler_.get(), table, 1, table, 0, 0, one, one);
}

void Writer::add(const Image& image) {
  check(image.width == width_ && image.height == height_, output_.name, ": a frame of ", image.width, " x ",
        image.height, " pixels in a video of ", width_, " x ", height_);
  // Even sides: the last column and row twice.
  const size_t width = codec_->width, height = codec_->height, row = 3 * width;
  std::vector<uint8_t> padded(row * height);
  for (size_t y = 0; y < height; ++y) {
    const uint8_t* from = &image.rgb[std::min<size_t>(y, height_ - 1) * width_ * 3];
    uint8_t* to = &padded[y * row];
    std::copy_n(from, size_t{3} * width_, to);
    if (width > static_cast<size_t>(width_)) std::copy_n(to + row - 6, 3, to + row - 3);
  }
  done(av_frame_make_writable(frame_.get()), "frame");
  const uint8_t* const planes[] = {padded.data()};
  const int strides[] = {static_cast<int>(row)};
  sws_scale(scaler_.get(), planes, strides, 0, codec_->height, frame_->data, frame_->linesize);
  encode(frame_.get());
  ++frame_->pts;
}

void Writer::encode(const AVFrame* frame) {
  done(avcodec_send_frame(codec_.get(), frame), "encoding");
  while (true) {
    const int got = avcodec_receive_packet(codec_.get(), packet_.get());
    if (got == AVERROR(EAGAIN) || got == AVERROR_EOF) return;
    done(got, "encoding");
    packet_->duration = 1;
    av_packet_rescale_ts(packet_.get(), codec_->time_base, stream_->time_base);
    packet_->stream_index = stream_->index;
    done(av_interleaved_write_frame(format_.get(), packet_.get()), "packet");
  }
}

void Writer::finish() {
  encode(nullptr);
  done(av_write_trailer(format_.get()), "end");
  avio_flush(io_.get());
  done(io_->error, "end");
}

}  // namespace

void write_video(const detail::VideoOutput& output, const std::function<std::optional<Image>()>& next) {
  std::optional<Image> image = next();
  if (!image || image->width < 1 || image->height < 1)
    fail(output.name, ": a video without frames cannot be written");
  Writer writer(output, image->width, image->height);
  for (; image; image = next()) writer.add(*image);
  writer.finish();
}

}  // namespace glimpse::libav
