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

/// The clustered rows of all layers. Near: those of dense layers, which read all of theirs in every step, and
/// those that Residency leaves on the device. Far: the others, in the host store, which with store.cold_path
/// is a file. Rows in a file are fetched before they are touched.
class StoredRows {
 public:
  struct Bytes {
    std::size_t near;
    std::size_t far;
    std::size_t file;
  };
  static Bytes bytes(const CacheConfig& config, std::int64_t num_pages);

  /// \throws OutOfMemory, FileError
  StoredRows(const CacheConfig& config, std::int64_t num_pages, MemoryResource& memory,
             Device near = {}, Device far = {});

  /// Null base if there are no rows.
  [[nodiscard]] RowStore layer(int layer) const;
  [[nodiscard]] bool is_in_file(int layer) const { return file_ != nullptr && layer >= num_dense_; }

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
  int num_dense_;          ///< layers, the first ones
  std::int64_t num_near_;  ///< pages of the other layers
  RowArena dense_;
  RowArena near_;
  std::unique_ptr<runtime::ColdFile> file_;
  RowArena far_;
};

}  // namespace clusterkv::recall
