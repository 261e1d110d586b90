// Asks a model about an image: ask IMAGE QUESTION [MODEL_DIR [NEW_MODULES_DIR]]
#include <iostream>

#include "glimpse/engine/engine.h"
#include "glimpse/image/decode.h"

int main(int argc, char** argv) try {
  if (argc < 3) {
    std::cerr << "usage: ask IMAGE QUESTION [MODEL_DIR [NEW_MODULES_DIR]]\n";
    return 2;
  }
  glimpse::EngineOptions options;  // without a model: the small one that is installed with the library
  if (argc > 3) options.model = argv[3];
  if (argc > 4) options.new_modules = {argv[4]};
  const auto engine = glimpse::Engine::load(options);

  using Kind = glimpse::Part::Kind;
  glimpse::Request request;
  request.media = {glimpse::load_image(argv[1])};
  request.messages = {{"user", {{Kind::image, {}}, {Kind::text, argv[2]}}}};
  request.on_text = [](const std::string& text) { std::cout << text << std::flush; };

  const glimpse::Answer answer = engine->ask(request);
  std::cout << "\nkept " << answer.kept_tokens << " of " << answer.visual_tokens << " visual tokens\n";
} catch (const glimpse::Error& error) {
  std::cerr << "ask: " << error.what() << "\n";
  return 1;
}
