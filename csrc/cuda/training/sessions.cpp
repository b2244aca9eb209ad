#include "sessions.h"

#include <list>
#include <mutex>
#include <utility>

namespace mhicl::cuda {
namespace {

constexpr size_t most_kept = 4;

struct Cache {
  std::mutex mutex;
  std::list<std::pair<SessionKey, CapturedSession>> sessions;  // the latest first
};

// Never destroyed: when the process ends the driver may be gone before it.
Cache& cache() {
  static Cache& instance = *new Cache;
  return instance;
}

}  // namespace

std::optional<CapturedSession> take_session(const SessionKey& key) {
  const std::lock_guard lock(cache().mutex);
  auto& sessions = cache().sessions;
  for (auto at = sessions.begin(); at != sessions.end(); ++at) {
    if (!(at->first == key)) continue;
    std::optional<CapturedSession> found(std::move(at->second));
    sessions.erase(at);
    return found;
  }
  return std::nullopt;
}

void keep_session(const SessionKey& key, CapturedSession session) {
  std::list<std::pair<SessionKey, CapturedSession>> dropped;  // destroyed without the lock
  const std::lock_guard lock(cache().mutex);
  auto& sessions = cache().sessions;
  sessions.emplace_front(key, std::move(session));
  if (sessions.size() > most_kept) dropped.splice(dropped.begin(), sessions, std::prev(sessions.end()));
}

}  // namespace mhicl::cuda
