// Questions about videos, from their frames to the answer.
#include "builtin.h"
#include "glimpse/engine/session.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::row_request;
using test::tiny_engine;

namespace {

// Frames of two pictures, one half each.
Video clip(double fps = 2) {
  std::vector<Image> frames;
  for (const int row : {0, 0, 24, 24}) {
    const Image picture = std::get<Image>(row_request(row).media[0]);
    frames.push_back(resize(picture, 280, 224));
  }
  Video video{video_of(std::move(frames), fps, "two pictures"), {}};
  video.options.min_pixels = 1;
  return video;
}

Request question(const std::string& text, const Video& video, const std::string& prune = "glimpse") {
  Request request = row_request(0, prune);
  request.media = {video};
  request.messages = {{"user", {{Part::Kind::video, ""}, {Part::Kind::text, text}}}};
  return request;
}

std::unique_ptr<Engine> caching_engine() {
  return Engine::load({.model = test::tiny_dir() / "model",
                       .new_modules = {(test::tiny_dir() / "new_modules").string()},
                       .dtype = "fp32",
                       .device = test::device_name(),
                       .cache_mb = 64});
}

}  // namespace

TEST_CASE("a video's answer has grids with times, and together with others it is the same") {
  const Request request = question("What letter is on the orange square?", clip());
  const Answer alone = tiny_engine().ask(request);
  REQUIRE(alone.segments.size() == 2);
  CHECK(alone.segments[0].seconds == 0.25);
  CHECK(alone.segments[1].seconds == 1.25);
  CHECK(alone.visual_tokens == 2 * 80);
  CHECK(alone.keep.size() == 2);
  CHECK(alone.kept_tokens < alone.visual_tokens);
  const std::vector<Request> all = {row_request(3), request, row_request(5, "none")};
  const std::vector<Answer> together = tiny_engine().ask(std::span<const Request>(all));
  CHECK(together[1].ids == alone.ids);
  CHECK(together[1].keep == alone.keep);
}

TEST_CASE("further questions about a clip take what the first one left, unless its pace differs") {
  const auto engine = caching_engine();
  const auto asked = [&](const Engine& by, const Request& request) { return by.ask(request); };
  const Request first = question("What letter is on the orange square?", clip()),
                second = question("What letter is on the purple hexagon?", clip()),
                slower = question("What letter is on the purple hexagon?", clip(1));
  CHECK(asked(*engine, first).cached_tokens == 0);
  for (const Request& request : {second, first}) {
    const Answer cached = asked(*engine, request), fresh = asked(tiny_engine(), request);
    CHECK(cached.cached_tokens >= 160);
    CHECK(cached.ids == fresh.ids);
    CHECK(cached.keep == fresh.keep);
  }
  CHECK(asked(*engine, slower).cached_tokens == 0);
  CHECK(asked(*engine, slower).ids == asked(tiny_engine(), slower).ids);
}

TEST_CASE("boxes count for the times that they are there") {
  Request request = question("What letter is on the orange square?", clip(), "reference(max_keep=none)");
  request.boxes = {{{0, 0, 1, 1, 1, 2}, {0.1, 0.1, 0.2, 0.2, 5, 6}}};
  const Answer answer = tiny_engine().ask(request);
  CHECK(answer.keep[1].size() == 80);
  CHECK(answer.keep[0].size() <= 1);  // the corner that is kept for a segment without boxes, if any
  request.boxes = {{{0, 0, 1, 1}}};
  CHECK(tiny_engine().ask(request).kept_tokens == 160);
}

TEST_CASE("a conversation about a video") {
  const auto engine = caching_engine();
  Request settings;
  settings.max_new_tokens = 16;
  Session session(*engine, settings);
  session.add(clip());
  const Answer one = session.ask("What letter is on the orange square?");
  const Answer two = session.ask("What letter is on the purple hexagon?");
  CHECK(one.visual_tokens == 160);
  CHECK(two.visual_tokens == 160);
  CHECK(two.cached_tokens >= 160);
  CHECK(is_video(session.media().at(0)));
}
