// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "clusterkv/clusterkv.hpp"

namespace ckv = clusterkv;

void move_only(ckv::ClusterKVCache& cache, ckv::DecodePlan& plan) {
  ckv::ClusterKVCache moved_cache = std::move(cache);
  ckv::DecodePlan moved_plan = std::move(plan);
#ifdef COPY_CACHE
  ckv::ClusterKVCache copied_cache = moved_cache;
#endif
#ifdef COPY_PLAN
  ckv::DecodePlan copied_plan = moved_plan;
#endif
}

ckv::SequenceId make_id() {
#ifdef ID_FROM_INT
  return 3;
#else
  return ckv::SequenceId{3};
#endif
}

#ifdef LEAF_FROM_THREADS
class Derived : public ckv::LentThreads {};
#endif
