// SPDX-License-Identifier: Apache-2.0
//
// Lane layouts of fragments: PTX ISA, "matrix fragments for mma.m16n8k16", "mma.m16n8k32", "ldmatrix",
// "movmatrix".
#include "simt/warp.hpp"

#include <bit>

#include "kernels/common/numeric.hpp"
#include "runtime/block_run.hpp"
#include "runtime/checker.hpp"

namespace simt {
namespace {

constexpr unsigned kAll = 0xffffffffU;

struct ShuffleArguments {
  std::uint32_t value;
  int source;
  std::uint32_t result;
  Site site;
};
struct BallotArguments {
  bool predicate;
  unsigned result;
};
struct MatchArguments {
  std::uint32_t value;
  unsigned result;
};
struct LdmatrixArguments {
  const void* row;
  bool transposed;
  std::uint32_t result[4];
};
struct MovmatrixArguments {
  std::uint32_t matrix;
  std::uint32_t result;
};
template <class Accumulator>
struct MmaArguments {
  Accumulator* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

/// Arguments of the lanes of a mask, by lane.
template <class Arguments>
struct Lanes {
  void* const* lanes;
  Arguments& operator[](int lane) const { return *static_cast<Arguments*>(lanes[lane]); }
  [[nodiscard]] bool has(int lane) const { return lanes[lane] != nullptr; }
};

template <class Visit>
void for_lanes(unsigned mask, const Visit& visit) {
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1U) != 0) visit(lane);
  }
}

void shuffle_lanes(Lanes<ShuffleArguments> lanes, unsigned mask) {
  for_lanes(mask, [&](int lane) {
    const int source = lanes[lane].source;
    if (!lanes.has(source)) {
      report("shuffle from a lane outside the mask at " + where(lanes[lane].site));
      return;
    }
    lanes[lane].result = lanes[source].value;
  });
}

void ballot_lanes(Lanes<BallotArguments> lanes, unsigned mask) {
  unsigned result = 0;
  for_lanes(mask, [&](int lane) { result |= (lanes[lane].predicate ? 1U : 0U) << lane; });
  for_lanes(mask, [&](int lane) { lanes[lane].result = result; });
}

void match_lanes(Lanes<MatchArguments> lanes, unsigned mask) {
  for_lanes(mask, [&](int lane) {
    lanes[lane].result = 0;
    for_lanes(mask, [&](int other) {
      if (lanes[other].value == lanes[lane].value) lanes[lane].result |= 1U << other;
    });
  });
}

// ------------------------------------------------------------------------------------- matrix
std::uint16_t half_of(std::uint32_t word, int half) {
  return static_cast<std::uint16_t>(word >> (16 * half));
}

void ldmatrix_lanes(Lanes<LdmatrixArguments> lanes) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t element[8][8];
    for (int row = 0; row < 8; ++row) {
      std::memcpy(element[row], lanes[8 * matrix + row].row, sizeof element[row]);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4;
      const int column = lane % 4 * 2;
      const bool transposed = lanes[lane].transposed;
      const std::uint32_t low = transposed ? element[column][row] : element[row][column];
      const std::uint32_t high = transposed ? element[column + 1][row] : element[row][column + 1];
      lanes[lane].result[matrix] = low | high << 16;
    }
  }
}

void movmatrix_lanes(Lanes<MovmatrixArguments> lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4;
    const int column = lane % 4 * 2;  // of the result: rows `column` and column + 1 of the source
    const auto at = [&](int r, int c) { return half_of(lanes[4 * r + c / 2].matrix, c % 2); };
    lanes[lane].result = at(column, row) | std::uint32_t{at(column + 1, row)} << 16;
  }
}

/// A [16][16], B [16][8] of 16-bit elements.
template <class Widen>
void mma_f32_lanes(Lanes<MmaArguments<float>> lanes, const Widen& widen) {
  float a[16][16];
  float b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4;
    const int t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      for (int half = 0; half < 2; ++half) {
        a[g + i % 2 * 8][2 * t + half + i / 2 * 8] = widen(half_of(lanes[lane].a[i], half));
      }
    }
    for (int i = 0; i < 2; ++i) {
      for (int half = 0; half < 2; ++half) {
        b[2 * t + half + 8 * i][g] = widen(half_of(lanes[lane].b[i], half));
      }
    }
  }
  float sum[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) sum[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      lanes[lane].d[i] += sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
  }
}

/// A [16][32], B [32][8] of int8.
void mma_s8_lanes(Lanes<MmaArguments<std::int32_t>> lanes) {
  std::int32_t a[16][32];
  std::int32_t b[32][8];
  const auto byte_of = [](std::uint32_t word, int byte) {
    return std::int32_t{static_cast<std::int8_t>(word >> (8 * byte))};
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4;
    const int t = lane % 4;
    for (int byte = 0; byte < 4; ++byte) {
      for (int i = 0; i < 4; ++i) {
        a[g + i % 2 * 8][4 * t + byte + i / 2 * 16] = byte_of(lanes[lane].a[i], byte);
      }
      for (int i = 0; i < 2; ++i) b[4 * t + byte + 16 * i][g] = byte_of(lanes[lane].b[i], byte);
    }
  }
  std::int32_t sum[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 32; ++k) {
      for (int column = 0; column < 8; ++column) sum[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      lanes[lane].d[i] += sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
  }
}

void combine(Collective collective, void* const* lanes, unsigned mask) {
  switch (collective) {
    case Collective::kSync: break;
    case Collective::kShuffle: shuffle_lanes({lanes}, mask); break;
    case Collective::kBallot: ballot_lanes({lanes}, mask); break;
    case Collective::kMatch: match_lanes({lanes}, mask); break;
    case Collective::kLdmatrix: ldmatrix_lanes({lanes}); break;
    case Collective::kMovmatrix: movmatrix_lanes({lanes}); break;
    case Collective::kMmaF16:
      mma_f32_lanes({lanes}, [](auto x) { return clusterkv::f16_to_float(x); });
      break;
    case Collective::kMmaBF16:
      mma_f32_lanes({lanes}, [](auto x) { return clusterkv::bf16_to_float(x); });
      break;
    case Collective::kMmaS8: mma_s8_lanes({lanes}); break;
  }
}

void join(unsigned mask, Collective collective, void* arguments, Site site) {
  current_block->join(mask, collective, arguments, combine, site);
}

}  // namespace

void syncwarp(unsigned mask, Site site) {
  join(mask, Collective::kSync, nullptr, site);
}

std::uint32_t shuffle(unsigned mask, std::uint32_t value, int source, Site site) {
  ShuffleArguments arguments{value, source, value, site};
  join(mask, Collective::kShuffle, &arguments, site);
  return arguments.result;
}

unsigned ballot(unsigned mask, bool predicate, Site site) {
  BallotArguments arguments{predicate, 0};
  join(mask, Collective::kBallot, &arguments, site);
  return arguments.result;
}

unsigned match_any(unsigned mask, std::uint32_t value, Site site) {
  MatchArguments arguments{value, 0};
  join(mask, Collective::kMatch, &arguments, site);
  return arguments.result;
}

void ldmatrix(std::uint32_t (&to)[4], const void* row, bool transposed, Site site) {
  check_read(row, 16, 16, site);
  if (!current_block->is_shared(row, 16)) {
    report("ldmatrix from outside shared memory at " + where(site));
  }
  LdmatrixArguments arguments{row, transposed, {}};
  join(kAll, Collective::kLdmatrix, &arguments, site);
  std::memcpy(to, arguments.result, sizeof arguments.result);
}

std::uint32_t movmatrix(std::uint32_t matrix, Site site) {
  MovmatrixArguments arguments{matrix, 0};
  join(kAll, Collective::kMovmatrix, &arguments, site);
  return arguments.result;
}

void mma_f32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], bool is_bf16,
             Site site) {
  MmaArguments<float> arguments{d, a, b};
  join(kAll, is_bf16 ? Collective::kMmaBF16 : Collective::kMmaF16, &arguments, site);
}

void mma_s8(std::int32_t (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
            Site site) {
  MmaArguments<std::int32_t> arguments{d, a, b};
  join(kAll, Collective::kMmaS8, &arguments, site);
}

}  // namespace simt
