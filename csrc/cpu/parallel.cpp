#include "parallel.h"

#if __has_include(<pthread.h>)
#include <pthread.h>
#endif

namespace mhicl {
namespace {

bool forked = false;

#if __has_include(<pthread.h>)
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

bool in_forked_child() { return forked; }

}  // namespace mhicl
