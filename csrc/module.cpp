// The Python module mhicl_fast._C: facts about this build. Loading it also registers the operators, which Python
// then reaches through torch.ops.mhicl.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace {

std::string compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#elif defined(__GNUC__)
  return "GCC " __VERSION__;
#else
  return "unknown";
#endif
}

std::map<std::string, std::string> build_facts() {
#ifdef NDEBUG
  const char* type = "release";
#else
  const char* type = "with assertions";
#endif
  return {
      {"version", MHICL_VERSION},
      {"torch", MHICL_TORCH_VERSION},
      {"compiler", compiler()},
      {"cuda", MHICL_CUDA_VERSION},
      {"cuda_architectures", MHICL_CUDA_ARCHITECTURES},
      {"type", type},
  };
}

std::vector<std::string> names(const std::vector<mhicl::Isa>& isas) {
  std::vector<std::string> names;
  for (const mhicl::Isa isa : isas) names.emplace_back(mhicl::isa_name(isa));
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<mhicl::Isa> isas = mhicl::compiled_isas();
  std::erase_if(isas, [](mhicl::Isa isa) { return !mhicl::cpu_supports(isa); });
  return names(isas);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of mhicl_fast.";
  m.def("build_facts", &build_facts, "What this module was built from and for.");
  m.def("compiled_isas", [] { return names(mhicl::compiled_isas()); }, "The instruction sets in this module.");
  m.def("supported_isas", &supported_isas, "Those of them that this processor has.");
  m.def("active_isa", [] { return mhicl::isa_name(mhicl::active_isa()); }, "The one the kernels run with.");
}
