// Which instruction set the CPU kernels run with.
#pragma once

#include <string>
#include <vector>

namespace mhicl {

enum class Isa { portable, avx2, avx512 };

const char* isa_name(Isa isa);

// The instruction sets this build holds, narrowest first.
std::vector<Isa> compiled_isas();

// Whether this processor, and its operating system, can run it.
bool cpu_supports(Isa isa);

// The widest instruction set that is compiled in and supported, or the one that MHICL_ISA names.
// Throws std::runtime_error when MHICL_ISA names one that is unknown, not compiled in or not supported.
Isa active_isa();

}  // namespace mhicl
