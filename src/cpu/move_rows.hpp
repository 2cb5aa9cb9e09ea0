// SPDX-License-Identifier: Apache-2.0
//
// Rows of one layer from page to page: what fork() and truncate() need.
#pragma once

#include <span>

#include "src/cpu/read_rows.hpp"
#include "src/stages.hpp"

namespace clusterkv::cpu {

/// Stages::copy_pages(). On the caller's thread: it cannot fail, and it is bound by memory.
void copy_pages(const RowSource& layer, std::span<const PageCopy> rows,
                std::span<const PageCopy> live);

/// Stages::restore_rows() of one KV head.
void restore_rows(const RowSource& layer, const RestoredRows& rows, int head);

}  // namespace clusterkv::cpu
