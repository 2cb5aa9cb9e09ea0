// SPDX-License-Identifier: Apache-2.0
//
// A backend: its stores, and the five stages over them. All that does not depend on where memory lies,
// who is in a step, lengths, pages, the checks of arguments, is Core's.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "clusterkv/kv_cache.hpp"
#include "src/needs.hpp"
#include "src/plan.hpp"

namespace clusterkv {

/// What attention leaves out: the rows stay with the engine if it has them.
enum class Part : std::uint8_t { kRowsAndTail, kTailOnly };

/// One layer of one step.
struct LayerCall {
  int layer;
  DecodePlan::Impl& plan;
  const Stream& stream;
  bool dense;            ///< no index: attends to everything
  bool adopted = false;  ///< the choice came from the caller
  bool ahead = false;    ///< of prefetch(), which has scratch of its own
};

/// First tokens of a visible segment, to be pending again.
struct RestoredRows {
  SegmentView segment;
  const std::uint32_t* row_pages;   ///< of the segment's sequence
  std::int64_t first_token;         ///< position of the segment's first token
  std::int64_t num_tokens;          ///< < segment.num_rows
  const std::uint32_t* live_pages;  ///< written from row 0 on, in token order
};

enum class PageUse : std::uint8_t { kCopiedFrom, kCopiedTo };

/// Arguments of ClusterSelector::to_paged().
struct PagedTarget {
  const TensorView& block_table;
  int block_tokens;
  const TensorView& indptr;
  const TensorView& indices;
};

/// Goes through what a sequence has in the stores, in the order in which it is saved.
class PartVisitor {
 public:
  virtual ~PartVisitor() = default;
  virtual void visit(std::span<std::byte> part) = 0;
  /// Whether visit() writes to parts, or reads them.
  [[nodiscard]] virtual bool fills_parts() const = 0;
  /// The parts since the last call belong together.
  virtual void end_block() = 0;
};

struct RowRange {
  int layer;
  std::int64_t first;
  std::int64_t last;
};

class Stages {
 public:
  virtual ~Stages() = default;

  /// \throws BackendUnavailable  if the stream is another backend's
  virtual void check_stream(const Stream& stream) const = 0;

  /// Whether the stream records calls, to be run again in later steps.
  [[nodiscard]] virtual bool is_capturing(const Stream& stream) const = 0;

  // ------------------------------------------------------------------------------------ step
  /// Takes the workspace of a new plan over.
  virtual void open_plan(DecodePlan::Impl& plan, const Workspace& workspace,
                         const Stream& stream) = 0;
  /// Memory for sealing a segment of this size, before anything of the step has changed.
  /// \throws OutOfMemory
  virtual void reserve_seal(int num_tokens, int num_clusters) = 0;
  /// The plan's rows and views are those of the new step.
  virtual void begin_step(DecodePlan::Impl& plan, std::span<const StaleQuads> stale,
                          const Stream& stream) = 0;
  /// Whether rows [first, first + count) of a tensor of append() are all finite.
  virtual bool all_finite(const TensorView& tensor, std::int64_t first, std::int64_t count) = 0;
  virtual void append(const LayerCall& call, const TensorView& key, const TensorView& value) = 0;

  // ----------------------------------------------------------------------------------- layer
  virtual void take_query(const LayerCall& call, const TensorView& query) = 0;
  virtual void score(const LayerCall& call) = 0;
  virtual void choose(const LayerCall& call) = 0;
  /// \throws ShapeError, DTypeError, ValueError, CapacityError
  virtual void adopt(const LayerCall& call, const Selection& selection) = 0;
  virtual void recall(const LayerCall& call) = 0;
  /// Recalls what `query` would choose, beside what the stream does until the layer's recall(). Of a layer
  /// with an index, in a plan with limits.prefetch.
  /// \throws StepError
  virtual void prefetch(const LayerCall& call, const TensorView& query) = 0;
  /// `sink_logits` may be empty.
  virtual void attend(const LayerCall& call, const AttentionOut& out, const TensorView& sink_logits,
                      Part part) = 0;
  [[nodiscard]] virtual Selection selection(const LayerCall& call) const = 0;

  // -------------------------------------------------------------------------- fork, truncate
  /// Before copy_pages(), while a step may still fail: a page of the row store that it will read, or may
  /// write. \throws FileError
  virtual void prepare_copy(std::uint32_t page, PageUse use) const = 0;
  /// Pages of the row store, with token positions, and of the live store: one after the other, in all
  /// layers. Nothing can fail here: a step has begun.
  virtual void copy_pages(std::span<const PageCopy> rows, std::span<const PageCopy> live,
                          const Stream& stream) = 0;
  /// In all layers. Writes nothing but `live_pages`.
  virtual void restore_rows(const RestoredRows& rows, const Stream& stream) = 0;

  // ------------------------------------------------------------------------------ save, load
  /// All layers of a sequence whose segments are all written.
  virtual void visit_parts(const Sequence& sequence, PartVisitor& visitor,
                           const Stream& stream) = 0;
  /// Whether the stages can read what a visitor has written.
  /// \throws FormatError
  virtual void check_parts(const Sequence& sequence, const Stream& stream) const = 0;

  // ------------------------------------------------------------------------------------ read
  virtual void token_ids(const LayerCall& call, const Selection& selection, const TensorView& ids,
                         const TensorView& counts) const = 0;
  virtual void to_paged(const LayerCall& call, const Selection& selection,
                        const PagedTarget& target) const = 0;
  virtual void read_rows(const RowRange& range, const Sequence& sequence, const TensorView& key,
                         const TensorView& value, const Stream& stream) const = 0;
  /// Adds what this backend counted.
  virtual void add_counts(CacheStats& stats) const = 0;
};

/// What there is to know of a backend before it is made.
struct BackendInfo {
  const char* missing;  ///< why it cannot be used, a static string; null if it can
  Residency residency;  ///< that of Residency::kAuto
  /// Why it cannot run a config whose fields are in range, a static string; null if it can.
  const char* (*find_fault)(const CacheConfig& config, Rows rows);
  /// Of a config with all defaults filled in. Sizes that cannot be are at the largest value.
  MemoryNeeds (*find_needs)(const CacheConfig& config, const PlanLimits& limits, Rows rows);
  std::unique_ptr<Stages> (*make)(const CacheConfig& config, const Resources& resources, Rows rows);
  MemoryResource& (*memory)() noexcept;
};

const BackendInfo& backend_info(Backend backend);
const BackendInfo& cpu_backend();
const BackendInfo& cuda_backend();

}  // namespace clusterkv
