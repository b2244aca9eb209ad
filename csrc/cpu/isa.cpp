#include "isa.h"

#include <cstdlib>
#include <stdexcept>

#include "kernels.h"

namespace mhicl {
namespace {

std::string names_of(const std::vector<Isa>& isas) {
  std::string names;
  for (const Isa isa : isas) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  return names;
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> runnable;
  for (const Isa isa : compiled_isas()) {
    if (cpu_supports(isa)) runnable.push_back(isa);
  }
  return runnable;
}

Isa choose_isa() {
  const std::vector<Isa> runnable = runnable_isas();
  const char* forced = std::getenv("MHICL_ISA");
  if (forced == nullptr || *forced == '\0') return runnable.back();
  for (const Isa isa : runnable) {
    if (forced == std::string(isa_name(isa))) return isa;
  }
  throw std::runtime_error("MHICL_ISA must be one of those that this build and this processor have (" +
                           names_of(runnable) + "), got \"" + forced + "\"");
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::portable: return "portable";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
  }
  throw std::logic_error("unknown instruction set");
}

std::vector<Isa> compiled_isas() {
#ifdef MHICL_X86
  return {Isa::portable, Isa::avx2, Isa::avx512};
#else
  return {Isa::portable};
#endif
}

bool cpu_supports(Isa isa) {
  if (isa == Isa::portable) return true;
#ifdef MHICL_X86
  __builtin_cpu_init();
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Isa active_isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

const Kernels& kernels() {
  switch (active_isa()) {
    case Isa::portable: return portable::table;
#ifdef MHICL_X86
    case Isa::avx2: return avx2::table;
    case Isa::avx512: return avx512::table;
#endif
    default: throw std::logic_error("no kernels for the active instruction set");
  }
}

}  // namespace mhicl
