// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/summary.hpp"

#include <fmt/format.h>

namespace clusterkv::llama_cpp {
namespace {

double ratio(std::int64_t part, std::int64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

double mib(std::int64_t bytes) {
  return static_cast<double>(bytes) / (1024.0 * 1024.0);
}

}  // namespace

void Summary::add(const Group& group) {
  ++groups;
  layers += group.num_layers();
  const auto cache = group.stats();
  const Counts& more = group.counts();
  const Times& time = group.times();
  counts.steps += more.steps;
  counts.cache_rows += more.cache_rows;
  counts.exact_rows += more.exact_rows;
  counts.forks += more.forks;
  counts.cuts += more.cuts;
  counts.overwritten += more.overwritten;
  counts.evictions += more.evictions;
  counts.refused_steps += more.refused_steps;
  times.match += time.match;
  times.append += time.append;
  times.attend += time.attend;
  const bool is_in_place = more.lists > 0;  // a selector knows nothing of what is not estimated
  stats.selections += is_in_place ? more.lists : cache.total.selections;
  stats.dense_selections += cache.total.dense_selections;
  stats.attended_tokens += cache.total.attended_tokens + more.listed_tokens;
  stats.quad_hits += cache.total.quad_hits;
  stats.quad_misses += cache.total.quad_misses;
  stats.quads_in_place += cache.total.quads_in_place;
  if (!is_in_place) {
    stats.estimates += cache.total.estimates;
    stats.estimated_mass += cache.total.estimated_mass;
  }
  held_bytes += cache.held_bytes;
  resident_bytes += static_cast<std::int64_t>(group.resident_bytes());
  workspace_bytes += static_cast<std::int64_t>(group.workspace_bytes());
  live_sequences += cache.live_sequences;
  live_tokens += cache.live_tokens;
  kmeans_tokens += cache.kmeans_tokens;
}

std::vector<std::string> Summary::lines() const {
  const double mass =
      stats.estimates == 0 ? 0.0 : stats.estimated_mass / static_cast<double>(stats.estimates);
  const std::int64_t quads = stats.quad_hits + stats.quad_misses + stats.quads_in_place;
  return {
      fmt::format("layers={} groups={} steps={} cache_rows={} exact_rows={} refused_steps={}",
                  layers, groups, counts.steps, counts.cache_rows, counts.exact_rows + exact_rows,
                  counts.refused_steps),
      fmt::format("attended_tokens={:.1f} dense_share={:.4f} estimated_mass={:.4f} hit_rate={:.4f}",
                  ratio(stats.attended_tokens, stats.selections),
                  ratio(stats.dense_selections, stats.selections), mass,
                  ratio(stats.quad_hits, quads)),
      fmt::format("sequences={} tokens={} forks={} cuts={} overwritten={} evictions={}",
                  live_sequences, live_tokens, counts.forks, counts.cuts, counts.overwritten,
                  counts.evictions),
      fmt::format("seconds: match={:.4f} append={:.4f} attend={:.4f}", times.match, times.append,
                  times.attend),
      fmt::format("MiB: engine={:.1f} held={:.1f} resident={:.1f} workspace={:.1f}",
                  mib(engine_bytes), mib(held_bytes), mib(resident_bytes), mib(workspace_bytes)),
  };
}

}  // namespace clusterkv::llama_cpp
