// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu/isa.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#include "clusterkv/error.hpp"
#include "kernels/attend/attend.hpp"
#include "kernels/cluster/cluster.hpp"
#include "kernels/index/index.hpp"
#include "kernels/recall/recall.hpp"
#include "kernels/select/select.hpp"

namespace clusterkv {
namespace {

TEST(Isa, PortableIsAlwaysOfferedAndTheOneInUseIsToo) {
  EXPECT_TRUE(is_offered(Isa::kPortable));
  EXPECT_TRUE(is_offered(cpu_isa()));
}

TEST(Isa, IsTheOneThatTheEnvironmentNames) {
  const char* wanted = std::getenv("CLUSTERKV_CPU");
  if (wanted == nullptr) {
    for (const Isa isa : kIsas) EXPECT_TRUE(!is_offered(isa) || isa <= cpu_isa());
  } else {
    EXPECT_STREQ(name_of(cpu_isa()), wanted);
  }
}

TEST(Isa, EachHasFunctionsOfItsOwn) {
  for (const Isa a : kIsas) {
    for (const Isa b : kIsas) {
      if (a >= b || !is_offered(a) || !is_offered(b)) continue;
      EXPECT_NE(ops_of<cluster::CpuOps>(a).assign, ops_of<cluster::CpuOps>(b).assign);
      EXPECT_NE(ops_of<select::CpuOps>(a).score_clusters, ops_of<select::CpuOps>(b).score_clusters);
      if (b == Isa::kAmx) continue;  // its other stages are those of kAvx512Vnni
      EXPECT_NE(ops_of<index::CpuOps>(a).build_index, ops_of<index::CpuOps>(b).build_index);
      EXPECT_NE(ops_of<recall::CpuOps>(a).append_rows, ops_of<recall::CpuOps>(b).append_rows);
      EXPECT_NE(ops_of<attend::CpuOps>(a).attend_rows, ops_of<attend::CpuOps>(b).attend_rows);
    }
  }
}

TEST(IsaDeathTest, AnUnknownNameThrowsAndListsWhatIsOffered) {
  // In a process of its own: the choice is made once.
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(
      {
        setenv("CLUSTERKV_CPU", "sse9", 1);
        try {
          cpu_isa();
        } catch (const BackendUnavailable& error) {
          std::exit(std::strncmp(error.what(), "CLUSTERKV_CPU=sse9, expected one of portable", 44));
        }
        std::exit(9);
      },
      ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace clusterkv
