#pragma once

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/display.h>
#include <libavutil/error.h>
#include <libavutil/imgutils.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
}

#include <memory>
#include <string>

/// FFmpeg's objects, freed as they have to be.
namespace glimpse::libav {

template <auto Free>
struct Freed {
  template <class T>
  void operator()(T* object) const {
    Free(&object);
  }
};

inline void free_io(AVIOContext** io) {
  av_freep(static_cast<void*>(&(*io)->buffer));
  avio_context_free(io);
}
inline void free_scaler(SwsContext** scaler) {
  sws_freeContext(*scaler);
}

using Io = std::unique_ptr<AVIOContext, Freed<free_io>>;
using Format = std::unique_ptr<AVFormatContext, Freed<avformat_close_input>>;
using Codec = std::unique_ptr<AVCodecContext, Freed<avcodec_free_context>>;
using Packet = std::unique_ptr<AVPacket, Freed<av_packet_free>>;
using Frame = std::unique_ptr<AVFrame, Freed<av_frame_free>>;
using Scaler = std::unique_ptr<SwsContext, Freed<free_scaler>>;

/// What an error of FFmpeg's means, in words.
inline std::string in_words(int error) {
  char text[AV_ERROR_MAX_STRING_SIZE] = "";
  av_strerror(error, text, sizeof text);
  return text;
}

/// Options for one call, which takes what it knows.
class Options {
 public:
  Options() = default;
  Options(const Options&) = delete;
  Options& operator=(const Options&) = delete;
  ~Options() { av_dict_free(&entries_); }
  Options& set(const char* key, const char* value) {
    av_dict_set(&entries_, key, value, 0);
    return *this;
  }
  Options& set(const char* key, int64_t value) {
    av_dict_set_int(&entries_, key, value, 0);
    return *this;
  }
  AVDictionary** get() { return &entries_; }

 private:
  AVDictionary* entries_ = nullptr;
};

}  // namespace glimpse::libav
