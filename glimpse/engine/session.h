#pragma once

#include <string>
#include <vector>

#include "glimpse/engine/engine.h"

namespace glimpse {

/// A conversation of several turns. Each question is answered as if asked afresh after all turns before it,
/// with visual tokens of its own; an engine with a cache (EngineOptions::cache_mb) runs images and videos
/// only once.
class Session {
 public:
  /// `settings`: what every turn is asked with, and the messages and media to begin with (a system message).
  Session(const Engine& engine, Request settings)
      : engine_(engine), settings_(std::move(settings)), request_(settings_) {}

  /// Adds an image or a video to the next question.
  void add(Medium medium) { pending_.push_back(std::move(medium)); }
  /// Asks the next question. A cancelled answer leaves the conversation, and the media that wait, as they
  /// were; so does an error.
  Answer ask(const std::string& question, std::stop_token stop = {},
             std::function<void(const std::string&)> on_text = {});
  /// Forgets the turns and the media.
  void clear();
  /// Answers the questions to come with this pruning, of the media of earlier turns, too.
  void set_pruning(const std::string& composition, const Budget& budget);

  /// What every turn is asked with.
  const Request& settings() const { return settings_; }
  /// Those of the turns so far: an answer's media, in their order.
  const std::vector<Medium>& media() const { return request_.media; }
  /// Media that wait for the next question.
  size_t waiting() const { return pending_.size(); }

 private:
  const Engine& engine_;
  Request settings_;
  Request request_;  // the conversation so far
  std::vector<Medium> pending_;
};

}  // namespace glimpse
