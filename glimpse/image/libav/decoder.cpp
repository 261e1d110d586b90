#include "glimpse/image/libav/decoder.h"

#include <algorithm>

#include "glimpse/base/check.h"

namespace glimpse::libav {
namespace {

/// Fewer frames than this are decoded rather than jumped over.
constexpr int64_t worth_a_jump = 8;
/// What a file may lack at its end of the frames that its packets promise: the second field of a picture,
/// placeholders.
constexpr int64_t lacking = 2;

Codec open_codec(const Input& input, const std::string& name) {
  Codec codec(avcodec_alloc_context3(&input.decoder()));
  invariant(codec != nullptr, "no memory for a decoder");
  Options options;
  options.set("max_pixels", most_frame_pixels).set("threads", detail::video_threads());
  int opened = avcodec_parameters_to_context(codec.get(), input.stream().codecpar);
  codec->pkt_timebase = input.stream().time_base;
  if (opened >= 0) opened = avcodec_open2(codec.get(), &input.decoder(), options.get());
  check(opened >= 0, name, ": damaged or unsupported video: the decoder ", input.decoder().name,
        " cannot be started: ", in_words(opened));
  return codec;
}

}  // namespace

Decoder::Decoder(const File& file, const Timeline& timeline)
    : file_(file),
      timeline_(timeline),
      packet_(av_packet_alloc()),
      frame_(av_frame_alloc()),
      previous_(av_frame_alloc()) {
  invariant(packet_ && frame_ && previous_, "no memory for a frame");
  start();
}

void Decoder::start() {
  codec_.reset();
  input_ = std::make_unique<Input>(file_);
  codec_ = open_codec(*input_, file_.name);
  shown_ = -1;
  from_key_ = pending_ = ended_ = false;
}

const AVFrame& Decoder::at(int64_t index) {
  if (shown_ >= index) return *frame_;
  if (!timeline_.times.empty()) wanted_ = timeline_.times[index];
  bool found = false;
  try {
    go_near(index);
    found = try_at(index) && (!from_key_ || shown_ == index);
  } catch (const Error&) {
    if (!from_key_) throw;
  }
  if (found) return *frame_;
  check(from_key_, file_.name, ": the video is damaged or shorter than it said: its last frame is ",
        shown_ + 1, " of ", timeline_.frames);
  // Not every frame that is called a key frame is all that those behind it need: an open group's last frame
  // can be missing. Then from the first frame on, and without jumps.
  may_seek_ = false;
  start();
  return at(index);
}

/// Jumps to the last key frame before the frame, if that spares enough.
void Decoder::go_near(int64_t index) {
  if (!may_seek_) return;
  const auto behind =
      std::upper_bound(timeline_.keys.begin(), timeline_.keys.end(), index,
                       [](int64_t wanted, const KeyFrame& key) { return wanted < key.index; });
  if (behind == timeline_.keys.begin()) return;
  const KeyFrame& key = *std::prev(behind);
  if (key.index <= shown_ + worth_a_jump) return;
  from_key_ = true;
  check(land(key), file_.name, ": frame ", key.index, " cannot be jumped to");
  avcodec_flush_buffers(codec_.get());
  ended_ = false;
}

/// Reads the first packet behind a jump; whether it is a key frame that is shown no later.
bool Decoder::land(const KeyFrame& key) {
  // Containers keep times of showing or of decoding; by the wrong one they go too far, or too far back.
  for (const int64_t time : {key.shown, std::min(key.shown, key.decoded)})
    if (input_->seek(time) && input_->read(*packet_) && packet_->flags & AV_PKT_FLAG_KEY &&
        packet_->pts != AV_NOPTS_VALUE && packet_->pts <= key.shown)
      return pending_ = true;
  return false;
}

bool Decoder::try_at(int64_t index) {
  constexpr int broken = FF_DECODE_ERROR_INVALID_BITSTREAM | FF_DECODE_ERROR_DECODE_SLICES;
  while (next())
    if (shown_ >= index) {
      check(!(frame_->decode_error_flags & broken), file_.name, ": the video is damaged at frame ",
            shown_ + 1);
      return true;
    }
  return shown_ >= 0 && index + lacking >= timeline_.frames && shown_ + lacking >= index;
}

/// Decodes up to the next frame; false at the end, where the last frame stays.
bool Decoder::next() {
  std::swap(frame_, previous_);
  while (true) {
    const int got = avcodec_receive_frame(codec_.get(), frame_.get());
    if (got >= 0) {
      shown_ = index_of(*frame_);
      return true;
    }
    // What comes before the first picture that is whole, as in a recording that began amid others, is left
    // out.
    check(got == AVERROR(EAGAIN) || got == AVERROR_EOF || shown_ < 0, file_.name,
          ": the video is damaged behind frame ", shown_ + 1, ": ", in_words(got));
    if (got != AVERROR_EOF && send()) continue;
    std::swap(frame_, previous_);
    return false;
  }
}

/// Gives the decoder a packet, or its end; false when it has had that.
bool Decoder::send() {
  if (ended_) return false;
  if (!pending_) ended_ = !input_->read(*packet_);
  pending_ = false;
  // Of H.264, what no other frame refers to need not be decoded on the way.
  const bool on_the_way = packet_->pts != AV_NOPTS_VALUE && packet_->pts < wanted_;
  if (codec_->codec_id == AV_CODEC_ID_H264)
    codec_->skip_frame = on_the_way ? AVDISCARD_NONREF : AVDISCARD_DEFAULT;
  const int sent = avcodec_send_packet(codec_.get(), ended_ ? nullptr : packet_.get());
  check(sent >= 0 || shown_ < 0, file_.name, ": the video is damaged behind frame ", shown_ + 1, ": ",
        in_words(sent));
  return true;
}

int64_t Decoder::index_of(const AVFrame& frame) const {
  if (timeline_.times.empty()) return shown_ + 1;
  const auto& times = timeline_.times;
  const auto found = std::lower_bound(times.begin(), times.end(), frame.best_effort_timestamp);
  return std::min<int64_t>(found - times.begin(), timeline_.frames - 1);
}

}  // namespace glimpse::libav
