// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "clusterkv/config.hpp"
#include "src/recall/row_stores.hpp"
#include "src/runtime/cold_file.hpp"

namespace clusterkv::recall {

using runtime::Access;

/// Rows of one plane that lie together.
struct RowRun {
  std::uint32_t first;
  std::int64_t count;
};

/// The clustered rows of all layers: in memory; or with store.cold_path in a file, but for dense layers,
/// which read all of theirs in every step. Rows in a file are fetched before they are touched.
class StoredRows {
 public:
  struct Bytes {
    std::size_t memory;
    std::size_t file;
  };
  static Bytes bytes(const CacheConfig& config, std::int64_t num_pages);

  /// \throws OutOfMemory, FileError
  StoredRows(const CacheConfig& config, std::int64_t num_pages, MemoryResource& memory);

  /// Null base if there are no rows.
  [[nodiscard]] RowStore layer(int layer) const {
    return in_file(layer) ? cold_.layer(layer - num_in_memory_) : warm_.layer(layer);
  }
  [[nodiscard]] bool in_file(int layer) const { return layer >= num_in_memory_; }

  /// Begins to read rows that a fetch will ask for.
  void expect(int layer, int kv_head, const RowRun& run) const noexcept;

  /// Makes sure that rows can be touched. Whether they can.
  [[nodiscard]] bool try_fetch(int layer, int kv_head, const RowRun& run,
                               Access access) const noexcept;

  /// \throws FileError
  void fetch(int layer, int kv_head, const RowRun& run, Access access) const {
    if (access == Access::kRead) expect(layer, kv_head, run);  // in one piece
    if (!try_fetch(layer, kv_head, run, access)) fail_fetch();
  }
  [[noreturn]] void fail_fetch() const { file_->fail_fetch(); }

 private:
  int num_in_memory_;  ///< layers
  RowArena warm_;
  std::unique_ptr<runtime::ColdFile> file_;
  RowArena cold_;
};

}  // namespace clusterkv::recall
