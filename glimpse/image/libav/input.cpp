#include "glimpse/image/libav/input.h"

#include <algorithm>
#include <vector>

#include "glimpse/base/check.h"

namespace glimpse::libav {
namespace {

constexpr const char* containers = "mov,matroska,avi,mpegts";
/// The decoders that may run, of the hundreds that the library has.
constexpr const char* decoders =
    "h264,hevc,vp8,vp9,libdav1d,libaom-av1,mpeg1video,mpeg2video,mpeg4,msmpeg4,h263,mjpeg,prores,dnxhd,ffv1,"
    "rawvideo";

int read_bytes(void* opaque, uint8_t* to, int size) {
  auto& reader = *static_cast<Reader*>(opaque);
  if (reader.budget <= 0) return AVERROR_EXIT;
  const int64_t count = reader.bytes.read(reader.at, {to, static_cast<size_t>(size)});
  if (count < 0) {
    reader.failed = true;
    return AVERROR(EIO);
  }
  reader.at += count;
  reader.budget -= std::max<int64_t>(count, 1);
  return count > 0 ? static_cast<int>(count) : AVERROR_EOF;
}

int64_t seek_bytes(void* opaque, int64_t offset, int whence) {
  auto& reader = *static_cast<Reader*>(opaque);
  const int64_t size = reader.bytes.size();
  if (whence & AVSEEK_SIZE) return size;
  whence &= ~AVSEEK_FORCE;
  const int64_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? reader.at : size;
  if (__builtin_add_overflow(base, offset, &offset) || offset < 0) return AVERROR(EINVAL);
  return reader.at = offset;
}

int refuse_to_open(AVFormatContext*, AVIOContext**, const char*, int, AVDictionary**) {
  return AVERROR(EPERM);
}

Io make_io(Reader& reader) {
  constexpr int buffer_size = 1 << 16;
  auto* buffer = static_cast<unsigned char*>(av_malloc(buffer_size));
  Io io(buffer ? avio_alloc_context(buffer, buffer_size, 0, &reader, read_bytes, nullptr, seek_bytes)
               : nullptr);
  if (!io) av_free(buffer);
  invariant(io != nullptr, "no memory for a reader");
  return io;
}

}  // namespace

Input::Input(const File& file) : name_(file.name) {
  // Generous: an index at the end, a pass over the packets, jumps to key frames.
  const int64_t budget = std::min(file.bytes->size(), INT64_MAX / 32) * 16 + (int64_t{1} << 28);
  reader_ = std::make_unique<Reader>(Reader{*file.bytes, 0, budget});
  io_ = make_io(*reader_);
  open(file);
  choose_stream();
}

void Input::damaged(const std::string& why) const {
  check(!reader_->failed, name_, ": reading failed");
  fail(name_, ": damaged, truncated or unsupported video: ",
       reader_->budget > 0 ? why : "its parts refer to each other without end");
}

void Input::open(const File& file) {
  AVFormatContext* format = avformat_alloc_context();
  invariant(format != nullptr, "no memory for a container");
  format->pb = io_.get();
  format->flags |= AVFMT_FLAG_CUSTOM_IO;
  format->io_open = refuse_to_open;
  Options options;
  options.set("format_whitelist", containers).set("codec_whitelist", decoders);
  // Frees the format when it fails.
  const int opened = avformat_open_input(&format, "", av_find_input_format(file.container), options.get());
  if (opened < 0) damaged(in_words(opened));
  format_.reset(format);

  std::vector<Options> limits(format->nb_streams);
  std::vector<AVDictionary*> given;
  for (unsigned i = 0; i < format->nb_streams; ++i) {
    AVStream& stream = *format->streams[i];
    const AVCodecParameters& codec = *stream.codecpar;
    if (codec.codec_type != AVMEDIA_TYPE_VIDEO) stream.discard = AVDISCARD_ALL;
    check(codec.width <= 0 || codec.height <= most_frame_pixels / codec.width, name_, ": its frames are ",
          codec.width, " x ", codec.height, " pixels; at most ", most_frame_pixels, " pixels are accepted");
    given.push_back(*limits[i].set("max_pixels", most_frame_pixels).set("threads", 1).get());
  }
  const int found = avformat_find_stream_info(format, given.empty() ? nullptr : given.data());
  for (size_t i = 0; i < given.size(); ++i) *limits[i].get() = given[i];  // what is left of them
  if (found < 0) damaged(in_words(found));
}

void Input::choose_stream() {
  stream_ = av_find_best_stream(format_.get(), AVMEDIA_TYPE_VIDEO, -1, -1, nullptr, 0);
  check(stream_ >= 0 && !(stream().disposition & AV_DISPOSITION_ATTACHED_PIC), name_,
        ": there is no video in the file");
  for (unsigned i = 0; i < format_->nb_streams; ++i)
    if (static_cast<int>(i) != stream_) format_->streams[i]->discard = AVDISCARD_ALL;

  const AVCodecParameters& codec = *stream().codecpar;
  decoder_ = avcodec_find_decoder(codec.codec_id);
  const std::string listed = concat(',', decoders, ',');
  const char* const codec_name =
      codec.codec_id == AV_CODEC_ID_NONE ? "unknown" : avcodec_get_name(codec.codec_id);
  check(decoder_ && listed.find(concat(',', decoder_->name, ',')) != std::string::npos, name_,
        ": its video's codec (", codec_name, ") cannot be decoded; what can be are ", decoders);
  if (codec.width < 1 || codec.height < 1) damaged("the size of its frames is not known");
}

bool Input::read(AVPacket& packet) const {
  while (true) {
    av_packet_unref(&packet);
    const int got = av_read_frame(format_.get(), &packet);
    if (got == AVERROR_EOF && !reader_->failed) return false;
    if (got < 0) damaged(in_words(got));
    if (packet.stream_index == stream_) return true;
  }
}

bool Input::seek(int64_t time) const {
  return av_seek_frame(format_.get(), stream_, time, AVSEEK_FLAG_BACKWARD) >= 0;
}

}  // namespace glimpse::libav
