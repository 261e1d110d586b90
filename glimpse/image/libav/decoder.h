#pragma once

#include <span>
#include <string>
#include <vector>

#include "glimpse/image/libav/input.h"

namespace glimpse::libav {

/// Where decoding can begin.
struct KeyFrame {
  int64_t index;           ///< of the frame, as shown
  int64_t shown, decoded;  ///< its times
};

/// A file's frames without their pixels.
struct Timeline {
  int64_t frames = 0;
  double fps = 0;
  /// When each frame is shown, ascending, in the stream's unit of time; empty if the container does not say
  /// it of each: frames are then counted from the first.
  std::vector<int64_t> times;
  std::vector<KeyFrame> keys;
};

/// One pass over the packets. Error when the file ends within one.
Timeline read_timeline(const Input& input, const std::string& name);

/// Frames by their index, forwards.
class Decoder {
 public:
  Decoder(const File& file, const Timeline& timeline);
  AVStream& stream() const { return input_->stream(); }
  /// The frame at `index`, which is no less than the last one. It stays until the next call.
  const AVFrame& at(int64_t index);
  /// Index of the frame that at() gave: it changes when the frame does.
  int64_t shown() const { return shown_; }

 private:
  void start();
  void go_near(int64_t index);
  bool land(const KeyFrame& key);
  bool try_at(int64_t index);
  bool next();
  bool send();
  int64_t index_of(const AVFrame& frame) const;

  const File& file_;
  const Timeline& timeline_;
  std::unique_ptr<Input> input_;
  Codec codec_;
  Packet packet_;
  Frame frame_, previous_;
  int64_t shown_ = -1;
  int64_t wanted_ = INT64_MIN;  ///< time of the frame that is looked for, if times are known
  bool may_seek_ = true, from_key_ = false;
  bool pending_ = false;  ///< whether the packet is still to be decoded
  bool ended_ = false;
};

}  // namespace glimpse::libav
