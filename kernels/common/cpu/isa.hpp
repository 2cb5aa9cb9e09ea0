// SPDX-License-Identifier: Apache-2.0
//
// Which instruction set the CPU ops use. All of kernels/<stage>/cpu is compiled once for each
// (docs/decisions/005); a stage's functions for one of them are its CpuOps. Stages without products of
// matrices have none for kAmx: kAvx512Vnni serves.
#pragma once

#include <array>
#include <cstdint>

namespace clusterkv {

enum class Isa : std::uint8_t { kPortable, kAvx2, kAvx512, kAvx512Vnni, kAmx };
inline constexpr std::array kIsas{Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni,
                                  Isa::kAmx};

/// portable, avx2, avx512, avx512vnni, amx
const char* name_of(Isa isa) noexcept;

/// Whether its ops are compiled in and this CPU can run them.
bool is_offered(Isa isa) noexcept;

/// The best one offered, or the one that CLUSTERKV_CPU names; decided once.
/// \throws BackendUnavailable  CLUSTERKV_CPU names none that is offered
Isa cpu_isa();

/// The ops of a stage for one instruction set; defined in kernels/<stage>/cpu/ops.cpp.
template <class Ops, Isa kIsa>
const Ops& ops_of();

/// \pre is_offered(isa)
template <class Ops>
const Ops& ops_of(Isa isa) {
  switch (isa) {
#if defined(__x86_64__) && !defined(CLUSTERKV_WITHOUT_AVX512)
    case Isa::kAmx:
      if constexpr (requires { Ops::kHasMatrixOps; }) return ops_of<Ops, Isa::kAmx>();
      [[fallthrough]];
    case Isa::kAvx512Vnni: return ops_of<Ops, Isa::kAvx512Vnni>();
    case Isa::kAvx512: return ops_of<Ops, Isa::kAvx512>();
#endif
#if defined(__x86_64__) && !defined(CLUSTERKV_WITHOUT_AVX2)
    case Isa::kAvx2: return ops_of<Ops, Isa::kAvx2>();
#endif
    default: return ops_of<Ops, Isa::kPortable>();
  }
}

}  // namespace clusterkv
