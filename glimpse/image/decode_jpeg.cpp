#include <csetjmp>
#include <cstdio>
#include <string_view>
// jpeglib.h needs what stands above.
#include <jerror.h>
#include <jpeglib.h>

#include "glimpse/image/decoders.h"

namespace glimpse::detail {
namespace {

/// libjpeg's state. Its errors longjmp, so calls into it go through `run`.
class Reader {
 public:
  explicit Reader(Bytes bytes) {
    state.err = jpeg_std_error(&errors_);
    state.client_data = this;
    errors_.error_exit = [](j_common_ptr common) { of(common).fail(); };
    errors_.emit_message = on_message;
    invariant(run([&] { jpeg_create_decompress(&state); }), "libjpeg cannot start");
    source_.next_input_byte = bytes.data();
    source_.bytes_in_buffer = bytes.size();
    source_.init_source = source_.term_source = [](j_decompress_ptr) {};
    source_.fill_input_buffer = on_end;
    source_.skip_input_data = skip;
    source_.resync_to_restart = jpeg_resync_to_restart;
    state.src = &source_;
    progress_.progress_monitor = limit_scans;
    state.progress = &progress_;
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { jpeg_destroy_decompress(&state); }

  /// False when libjpeg failed inside `calls`, with the reason in `message`. `calls` must own nothing that
  /// needs a destructor.
  template <class Calls>
  bool run(const Calls& calls) {
    if (setjmp(failure_)) return false;
    calls();
    return true;
  }

  /// Whether the rows that were read have all that belongs to them. libjpeg tells when a scan's data ends too
  /// early; what is missing of several scans shows only in what they should have brought.
  bool is_whole() const {
    if (!ended_early_ || !multiple_scans_) return true;
    if (!state.progressive_mode) return false;
    for (int component = 0; component < state.num_components; ++component)
      for (const int missing_bits : state.coef_bits[component])
        if (missing_bits != 0) return false;
    return true;
  }

  void start() {
    multiple_scans_ = jpeg_has_multiple_scans(&state);
    jpeg_start_decompress(&state);
  }

  jpeg_decompress_struct state{};
  char message[JMSG_LENGTH_MAX] = "";

 private:
  template <class Common>
  static Reader& of(Common* common) {
    return *static_cast<Reader*>(common->client_data);
  }

  [[noreturn]] void fail() {
    errors_.format_message(reinterpret_cast<j_common_ptr>(&state), message);
    std::longjmp(failure_, 1);
  }

  static void on_message(j_common_ptr common, int level) {
    constexpr int warning = -1;
    if (level != warning) return;
    switch (common->err->msg_code) {
      case JWRN_EXTRANEOUS_DATA:  // bytes between two segments
      case JWRN_NOT_SEQUENTIAL:   // a baseline scan that does not say "coefficients 0 to 63": some phones
      case JWRN_JFIF_MAJOR:       // a version that is not 1.x
      case JWRN_ADOBE_XFORM:      // an unknown colour space, taken for YCbCr
        return;                   // All of these leave the pixels whole.
      default:
        of(common).fail();
    }
  }

  /// Goes on with an end-of-image marker: whether anything is missing is told by what comes of it.
  static boolean on_end(j_decompress_ptr decoder) {
    static constexpr JOCTET end[] = {0xFF, JPEG_EOI};
    of(decoder).ended_early_ = true;
    decoder->src->next_input_byte = end;
    decoder->src->bytes_in_buffer = sizeof end;
    return TRUE;
  }

  static void skip(j_decompress_ptr decoder, long count) {
    if (count <= 0) return;
    jpeg_source_mgr& source = *decoder->src;
    if (static_cast<size_t>(count) > source.bytes_in_buffer) {
      on_end(decoder);
    } else {
      source.next_input_byte += count;
      source.bytes_in_buffer -= count;
    }
  }

  /// A small file can ask for thousands of scans over a large picture.
  static void limit_scans(j_common_ptr common) {
    constexpr int most = 500;
    Reader& self = of(common);
    if (self.state.input_scan_number <= most) return;
    std::snprintf(self.message, sizeof self.message, "it has more than %d scans", most);
    std::longjmp(self.failure_, 1);
  }

  jpeg_error_mgr errors_{};
  jpeg_source_mgr source_{};
  jpeg_progress_mgr progress_{};
  std::jmp_buf failure_;
  bool ended_early_ = false;
  bool multiple_scans_ = false;
};

/// Print files store inks inverted (Adobe's way), whatever their markers say; Pillow assumes the same.
void inverted_cmyk_to_rgb(const std::vector<uint8_t>& cmyk, uint8_t* rgb) {
  for (size_t i = 0; i < cmyk.size(); i += 4) {
    const int light = cmyk[i + 3];
    for (size_t c = 0; c < 3; ++c)
      *rgb++ = static_cast<uint8_t>(light - ((255 - cmyk[i + c]) * light + 127) / 255);
  }
}

/// From the APP1 segments, wherever they stand before the pixels.
int orientation_of(const jpeg_decompress_struct& state) {
  constexpr std::string_view exif_name{"Exif\0\0", 6}, xmp_name{"http://ns.adobe.com/xap/1.0/\0", 29};
  std::vector<uint8_t> exif;
  Bytes xmp;
  for (const jpeg_marker_struct* marker = state.marker_list; marker; marker = marker->next) {
    const Bytes content(marker->data, marker->data_length);
    const std::string_view text(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (text.starts_with(exif_name))  // more than 64 KiB go into several segments
      exif.insert(exif.end(), content.begin() + exif_name.size(), content.end());
    else if (text.starts_with(xmp_name))
      xmp = content.subspan(xmp_name.size());
  }
  return orientation(exif, xmp);
}

}  // namespace

Pixels decode_jpeg(const Source& source) {
  Reader reader(source.bytes);
  jpeg_decompress_struct& state = reader.state;
  const bool header_read = reader.run([&] {
    constexpr unsigned longest = 0xFFFF;
    jpeg_save_markers(&state, JPEG_APP0 + 1, longest);
    jpeg_read_header(&state, TRUE);
  });
  if (!header_read) damaged(source, reader.message);

  Pixels pixels = make_pixels(source, state.image_width, state.image_height, 3);
  const bool cmyk = state.jpeg_color_space == JCS_CMYK || state.jpeg_color_space == JCS_YCCK;
  state.out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
  std::vector<uint8_t> inks(cmyk ? pixels.data.size() / 3 * 4 : 0);
  uint8_t* const first_row = cmyk ? inks.data() : pixels.data.data();
  const size_t row_bytes = static_cast<size_t>(pixels.width) * (cmyk ? 4 : 3);
  const bool image_read = reader.run([&] {
    reader.start();
    while (state.output_scanline < state.output_height) {
      JSAMPROW row = first_row + state.output_scanline * row_bytes;
      jpeg_read_scanlines(&state, &row, 1);
    }
  });
  if (!image_read) damaged(source, reader.message);
  if (!reader.is_whole()) damaged(source, "the file ends before its last scan");
  if (cmyk) inverted_cmyk_to_rgb(inks, pixels.data.data());
  pixels.orientation = orientation_of(state);
  return pixels;
}

}  // namespace glimpse::detail
