#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "flags.h"
#include "glimpse/serve/service.h"

namespace glimpse::app {

namespace {

struct ServeFlags {
  Fetching fetching;
  serve::ServeOptions options;
  std::vector<std::string> presets;
  std::string key, key_file;
  size_t kv_mb = 0, body_mb = 64;
  size_t video_mb = 256;
  double grace = 20, fetch_seconds = 10, video_seconds = 60;
};

// The model's id: given, else that of its folder, without what a list of ids would stumble over.
std::string name_of(const ServeFlags& flags) {
  std::string name = flags.options.name;
  if (name.empty()) name = flags.options.engine.model.empty() ? "glimpse-tiny" : flags.options.engine.model;
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  if (flags.options.name.empty() && std::filesystem::exists(name))
    name = std::filesystem::path(name).filename();
  check(name.find_first_of(",=\"\\\n") == name.npos, "--served-model-name: '", name,
        "' has a character that an id may not have");
  return name;
}

std::map<std::string, std::string> presets_of(const ServeFlags& flags, const std::string& name) {
  std::map<std::string, std::string> presets = {{name + "+none", "none"}};
  const EngineOptions& engine = flags.options.engine;
  if (engine.model.empty() || !engine.new_modules.empty()) presets[name + "+glimpse"] = "glimpse";
  for (const std::string& preset : flags.presets) {
    const size_t mark = preset.find('=');
    check(mark != preset.npos && mark > 0 && mark + 1 < preset.size(),
          "--preset: expected NAME=COMPOSITION, got '", preset, "'");
    const std::string own = preset.substr(0, mark);
    check(own.find_first_of(",\"\\") == own.npos, "--preset: '", own,
          "' has a character that an id may not have");
    presets[own] = preset.substr(mark + 1);
  }
  return presets;
}

std::vector<std::string> keys_of(const ServeFlags& flags) {
  std::vector<std::string> keys;
  if (!flags.key.empty()) keys.push_back(flags.key);
  if (flags.key_file.empty()) return keys;
  std::ifstream in(flags.key_file);
  check(in.is_open(), "--api-key-file: ", flags.key_file, " cannot be read");
  for (std::string line; std::getline(in, line);) {
    line.erase(line.find_last_not_of(" \t\r") + 1);
    if (!line.empty()) keys.push_back(line);
  }
  check(!keys.empty(), "--api-key-file: ", flags.key_file, " has no key");
  return keys;
}

int run(ServeFlags& flags, Interrupt& interrupt) {
  flags.fetching.provide(flags.options.engine, interrupt);
  serve::ServeOptions options = flags.options;
  options.name = name_of(flags);
  options.presets = presets_of(flags, options.name);
  options.keys = keys_of(flags);
  options.scheduler.kv_bytes = flags.kv_mb << 20;
  options.http.max_body = flags.body_mb << 20;
  options.http.max_bodies = std::max(options.http.max_bodies, 2 * options.http.max_body);
  options.media.fetch.timeout = std::chrono::milliseconds(static_cast<int64_t>(flags.fetch_seconds * 1000));
  options.media.fetch.max_video_bytes = flags.video_mb << 20;
  options.media.video_time = std::chrono::milliseconds(static_cast<int64_t>(flags.video_seconds * 1000));
  options.grace = std::chrono::milliseconds(static_cast<int64_t>(flags.grace * 1000));
  const std::stop_token stop = interrupt.arm();
  serve::Service service(std::move(options));
  std::cerr << "listening on " << service.url() << std::endl;
  service.run(stop);
  std::cerr << "glimpse: ended" << std::endl;
  return 0;
}

}  // namespace

std::function<int()> add_serve(CLI::App& app, Interrupt& interrupt) {
  const auto flags = std::make_shared<ServeFlags>();
  serve::ServeOptions& options = flags->options;
  options.engine.threads = 0;
  flags->fetching = add_model_flags(app, options.engine);
  add_cache_flag(app, options.engine);
  const auto add = [&](const char* name, auto& value, const char* help, const char* type) {
    return app.add_option(name, value, help)->type_name(type)->capture_default_str()->group("Server");
  };
  const auto count = [](int64_t low) { return CLI::Range(low, int64_t{1} << 40); };
  add("--host", options.http.host, "address to listen on; 0.0.0.0: every one", "ADDRESS");
  add("--port", options.http.port, "port; 0: a free one", "N")->check(CLI::Range(0, 65535));
  add("--served-model-name", options.name, "the model's id for clients; else its folder's name", "NAME");
  add("--preset", flags->presets,
      "a further id that means this composition, for clients that cannot say how to prune: NAME=COMPOSITION "
      "(may be repeated)",
      "PRESET")
      ->take_all();
  add("--api-key", flags->key, "clients must send this key; the environment or a file hides it from others",
      "KEY");
  add("--api-key-file", flags->key_file, "clients must send one of this file's keys, one per line", "FILE");
  add("--parallel", options.scheduler.max_sequences, "answers made at the same time, at most", "N")
      ->check(count(1));
  add("--queue", options.scheduler.max_waiting, "requests that may wait; further ones get the status 429",
      "N")
      ->check(count(1));
  add("--kv-mb", flags->kv_mb, "memory for the KV caches of all answers, in MiB; 0: no bound", "N")
      ->check(count(0));
  add("--media-path", options.media.media_path,
      "folder whose pictures and videos clients may name by file: URLs", "DIR");
  add("--allow-domain", options.media.fetch.domains,
      "host that pictures and videos may be fetched from by http(s), at ports 80 and 443, or HOST:PORT; "
      "*.HOST: those "
      "below it; *: every one (may be repeated)",
      "HOST")
      ->take_all();
  add("--fetch-seconds", flags->fetch_seconds, "fetching a picture or video may take, redirects included",
      "SECONDS")
      ->check(CLI::Range(0.001, 3600.0));
  app.add_flag("--allow-private-addresses", options.media.fetch.private_addresses,
               "allowed hosts may be in private networks or on this machine")
      ->group("Server");
  add("--max-images", options.max_images, "images of one request, at most", "N")->check(count(0));
  add("--max-videos", options.max_videos, "videos of one request, at most", "N")->check(count(0));
  add("--max-frames", options.max_frames, "frames that are taken of a video, at most", "N")->check(count(2));
  add("--max-video-mb", flags->video_mb, "largest video file, in MiB", "N")->check(CLI::Range(1, 1 << 14));
  add("--video-seconds", flags->video_seconds, "reading the frames of one video may take", "SECONDS")
      ->check(CLI::Range(0.001, 3600.0));
  add("--max-body-mb", flags->body_mb, "largest request, in MiB", "N")->check(count(1));
  add("--max-new-tokens", options.max_new_tokens, "longest answer where the client asks for no number", "N")
      ->check(count(1));
  add("--cors-origin", options.cors, "origin whose pages may ask this server, or *", "ORIGIN");
  add("--ssl-cert-file", options.http.certificate, "PEM certificate; with its key TLS is spoken", "FILE");
  add("--ssl-key-file", options.http.key, "PEM key of the certificate", "FILE");
  add("--grace", flags->grace, "seconds that running answers get when the server is told to end", "SECONDS")
      ->check(CLI::Range(0.0, 1e6));
  app.add_flag_callback(
         "--quiet,-q", [flags] { flags->options.log = false; }, "no line for every request")
      ->group("Server");
  for (CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty() || option->get_name() == "--help") continue;
    std::string name = "GLIMPSE_SERVE_";
    for (const char c : option->get_lnames()[0]) name += c == '-' ? '_' : static_cast<char>(std::toupper(c));
    option->envname(name);
  }
  app.footer(
      "Every setting may come from the environment: --api-key from GLIMPSE_SERVE_API_KEY, and so on.\n"
      "Example:\n"
      "  glimpse serve --port 8080 &\n"
      "  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", "
      "\"content\": \"Hello\"}]}'");
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
