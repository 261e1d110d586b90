#pragma once

#include "glimpse/serve/protocol.h"

/// What a request's body says of pictures and videos. Errors: ApiError, which names the field.
namespace glimpse::serve {

/// The picture or video of a part that has it at `field`, image_url or video_url.
MediumSource medium_of(const nlohmann::json& part, const std::string& field, const std::string& where);

int64_t videos_of(const ChatCall& call);

/// Reads mm_processor_kwargs and media_io_kwargs, once the messages are read.
void read_preparation(const nlohmann::json& body, const Served& served, ChatCall& call);

}  // namespace glimpse::serve
