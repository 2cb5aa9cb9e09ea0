// SPDX-License-Identifier: Apache-2.0
//
// What a saved sequence has in the stores of a backend, and whether what was loaded makes sense. Stores may
// lie where the host cannot read: then parts are addresses only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "src/index/cluster_index.hpp"
#include "src/recall/row_stores.hpp"
#include "src/stages.hpp"

namespace clusterkv {

struct SavedStores {
  const CacheConfig& config;
  const recall::RowArena& live;
  const index::ClusterIndex& index;
  std::function<RowStore(int layer)> stored;
  /// Before rows of `stored` are visited; may be empty.
  std::function<void(int layer, int head, std::uint32_t row, std::int64_t count)> fetch;
};

/// Stages::visit_parts().
void visit_parts(const SavedStores& stores, const Sequence& sequence, PartVisitor& visitor);

/// How tables in a store come to where the host reads them.
struct TableReader {
  std::function<void(void* to, const void* from, std::size_t bytes)> copy;
  std::function<void()> wait;  ///< until the copies so far are there
};

/// Stages::check_parts().
void check_parts(const SavedStores& stores, const Sequence& sequence, const TableReader& reader);

}  // namespace clusterkv
