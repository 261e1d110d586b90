#pragma once

#include <memory>
#include <stop_token>

#include "glimpse/engine/scheduler.h"
#include "glimpse/serve/client_media.h"
#include "glimpse/serve/http.h"
#include "glimpse/serve/protocol.h"

namespace glimpse::serve {

struct ServeOptions {
  HttpOptions http;
  EngineOptions engine;
  SchedulerOptions scheduler;
  MediaOptions media;
  std::string name;                            ///< the model's id; "": that of its folder
  std::map<std::string, std::string> presets;  ///< further ids -> compositions
  std::vector<std::string> keys;               ///< a client must have one of these; none: all may ask
  std::string cors;                            ///< origin whose pages may ask, or "*"; "": none
  std::chrono::milliseconds grace{20000};      ///< running answers get at the end
  int64_t max_images = 16, max_videos = 4;     ///< of a request
  int64_t max_frames = 768;                    ///< of a video
  int64_t max_new_tokens = 512;                ///< of an answer whose client asks for no number
  bool log = true;                             ///< a line on standard error for every request
};

/// An OpenAI-compatible server: one thread for connections, one that steps the scheduler, a few that read
/// requests and decode pictures, a few that decode videos.
class Service {
 public:
  /// Listens from here on; until the model is loaded everything but the page is answered with 503.
  explicit Service(ServeOptions options);
  ~Service();
  std::string url() const;
  /// Loads the model and serves until `stop` is requested; then running answers get `grace`. Errors: loading.
  void run(std::stop_token stop);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace glimpse::serve
