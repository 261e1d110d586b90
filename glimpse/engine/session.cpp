#include "glimpse/engine/session.h"

namespace glimpse {

Answer Session::ask(const std::string& question, std::stop_token stop,
                    std::function<void(const std::string&)> on_text) {
  Request next = request_;
  Message message{"user", {}};
  for (const Medium& medium : pending_) {
    message.parts.push_back(part_of(medium));
    next.media.push_back(medium);
  }
  message.parts.push_back({Part::Kind::text, question});
  next.messages.push_back(std::move(message));
  next.stop = std::move(stop);
  next.on_text = std::move(on_text);
  Answer answer = engine_.ask(next);
  if (answer.finish_reason == "cancelled") return answer;
  next.messages.push_back({"assistant", {{Part::Kind::text, answer.text}}});
  request_ = std::move(next);
  pending_.clear();
  return answer;
}

void Session::clear() {
  request_ = settings_;
  pending_.clear();
}

void Session::set_pruning(const std::string& composition, const Budget& budget) {
  for (Request* const request : {&settings_, &request_}) {
    request->prune = composition;
    request->budget = budget;
  }
}

}  // namespace glimpse
