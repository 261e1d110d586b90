#include <algorithm>
#include <cmath>

#include "glimpse/base/check.h"
#include "glimpse/image/libav/decoder.h"

namespace glimpse::libav {
namespace {

/// Whether a packet is never shown: VP8's references for later frames, in a container that has no word for
/// it.
bool hidden(const AVCodecParameters& codec, const AVPacket& packet) {
  constexpr int show_frame = 0x10;  // of a VP8 frame's first byte
  return codec.codec_id == AV_CODEC_ID_VP8 && packet.size > 0 && !(packet.data[0] & show_frame);
}

/// Frames per second as the container or FFmpeg's probe has it, unless the frames themselves say something
/// quite different: of a variable rate, the probe sees only the first seconds.
double frame_rate(const AVStream& stream, int64_t frames, int64_t ticks) {
  constexpr double near = 0.02;
  const auto usable = [](double rate) { return std::isfinite(rate) && rate > 0; };
  const double said = av_q2d(stream.avg_frame_rate);
  const double seen = frames > 1 && ticks > 0 ? static_cast<double>(frames) /
                                                    (static_cast<double>(ticks) * av_q2d(stream.time_base))
                                              : 0;
  if (!usable(seen)) return usable(said) ? said : 1;
  return usable(said) && std::abs(said / seen - 1) < near ? said : seen;
}

}  // namespace

Timeline read_timeline(const Input& input, const std::string& name) {
  Timeline timeline;
  const Packet packet(av_packet_alloc());
  invariant(packet != nullptr, "no memory for a packet");
  const AVCodecParameters& codec = *input.stream().codecpar;
  int64_t first = INT64_MAX, last = INT64_MIN, last_lasts = 0, packets = 0;
  bool timed = true;
  while (input.read(*packet)) {
    ++packets;
    check(!(packet->flags & AV_PKT_FLAG_CORRUPT), name, ": the video is damaged or cut off at frame ",
          packets);
    // Before or behind the part that an edit list shows, or never shown.
    if (packet->flags & AV_PKT_FLAG_DISCARD || hidden(codec, *packet)) continue;
    const int64_t time = packet->pts != AV_NOPTS_VALUE ? packet->pts : packet->dts;
    timed = timed && packet->pts != AV_NOPTS_VALUE;
    if (time != AV_NOPTS_VALUE) {
      first = std::min(first, time);
      if (time >= last) last_lasts = packet->duration;
      last = std::max(last, time);
    }
    ++timeline.frames;
    if (!timed) continue;
    timeline.times.push_back(packet->pts);
    if (packet->flags & AV_PKT_FLAG_KEY)
      timeline.keys.push_back({0, packet->pts, packet->dts == AV_NOPTS_VALUE ? packet->pts : packet->dts});
  }
  check(timeline.frames > 0, name, ": there are no frames in the video");
  const int listed = avformat_index_get_entries_count(&input.stream());
  check(std::string_view(input.format().iformat->name).find("mov") == std::string_view::npos ||
            packets >= listed,
        name, ": the video is cut off: ", packets, " of ", listed, " frames are there");

  std::sort(timeline.times.begin(), timeline.times.end());
  if (!timed || std::adjacent_find(timeline.times.begin(), timeline.times.end()) != timeline.times.end()) {
    timeline.times.clear();
    timeline.keys.clear();
  }
  for (KeyFrame& key : timeline.keys)
    key.index =
        std::lower_bound(timeline.times.begin(), timeline.times.end(), key.shown) - timeline.times.begin();
  std::sort(timeline.keys.begin(), timeline.keys.end(),
            [](const KeyFrame& a, const KeyFrame& b) { return a.index < b.index; });

  int64_t ticks = 0;
  if (last > first && !__builtin_sub_overflow(last, first, &ticks)) {
    if (last_lasts <= 0 || last_lasts > ticks) last_lasts = ticks / std::max<int64_t>(timeline.frames - 1, 1);
    if (__builtin_add_overflow(ticks, last_lasts, &ticks)) ticks = 0;
  }
  timeline.fps = frame_rate(input.stream(), timeline.frames, ticks);
  return timeline;
}

}  // namespace glimpse::libav
