// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu/isa.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "clusterkv/error.hpp"

#ifdef __x86_64__
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace clusterkv {
namespace {

#ifdef __x86_64__
bool has_f16c() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && has_f16c();
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") != 0 &&
         __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0;
}
bool has_vnni() {
  return has_avx512() && __builtin_cpu_supports("avx512vnni") != 0;
}
/// Asks for the registers: a process has them on request.
bool has_amx() {
#ifdef __linux__
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  constexpr unsigned kTile = 1U << 24, kBf16 = 1U << 22, kInt8 = 1U << 25;
  if (!has_vnni() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kTile) == 0 || (d & kBf16) == 0 || (d & kInt8) == 0) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl
  static const bool kIsGranted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return kIsGranted;
#else
  return false;
#endif
}
#else
bool has_avx2() {
  return false;
}
bool has_avx512() {
  return false;
}
bool has_vnni() {
  return false;
}
bool has_amx() {
  return false;
}
#endif

Isa choose() {
  const char* wanted = std::getenv("CLUSTERKV_CPU");
  Isa best = Isa::kPortable;
  std::string offered;
  for (const Isa isa : kIsas) {
    if (!is_offered(isa)) continue;
    if (wanted != nullptr && std::strcmp(wanted, name_of(isa)) == 0) return isa;
    best = isa;
    offered += fmt::format("{}{}", offered.empty() ? "" : ", ", name_of(isa));
  }
  if (wanted == nullptr || *wanted == '\0') return best;
  throw BackendUnavailable(fmt::format("CLUSTERKV_CPU={}, expected one of {}", wanted, offered));
}

}  // namespace

const char* name_of(Isa isa) noexcept {
  constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512vnni", "amx"};
  return kNames[static_cast<int>(isa)];
}

bool is_offered(Isa isa) noexcept {
#ifdef CLUSTERKV_WITHOUT_AVX2
  constexpr Isa kWidest = Isa::kPortable;
#elif defined(CLUSTERKV_WITHOUT_AVX512)
  constexpr Isa kWidest = Isa::kAvx2;
#else
  constexpr Isa kWidest = Isa::kAmx;
#endif
  if (isa > kWidest) return false;
  switch (isa) {
    case Isa::kAvx2: return has_avx2();
    case Isa::kAvx512: return has_avx512();
    case Isa::kAvx512Vnni: return has_vnni();
    case Isa::kAmx: return has_amx();
    default: return true;
  }
}

Isa cpu_isa() {
  static const Isa kIsa = choose();
  return kIsa;
}

}  // namespace clusterkv
