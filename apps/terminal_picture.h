#pragma once

#include <optional>
#include <string>

#include "glimpse/image/image.h"

namespace glimpse::app {

/// How a terminal shows pictures.
enum class PictureProtocol { none, kitty, sixel };

/// Asks the terminal at standard input and error what it can show; what was typed meanwhile is added to
/// `typed`. A terminal that does not answer within a second shows none.
PictureProtocol ask_for_pictures(std::string& typed);

/// What the terminal's answers say, once they are whole: they end with the one that every terminal gives.
/// What is no answer is added to `typed`.
std::optional<PictureProtocol> read_picture_answers(const std::string& bytes, std::string& typed);

/// What draws a picture where the cursor is, made smaller to fit into a terminal's window. "" for none.
std::string picture_sequence(const Image& image, PictureProtocol protocol);

}  // namespace glimpse::app
