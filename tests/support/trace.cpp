// SPDX-License-Identifier: Apache-2.0
#include "tests/support/trace.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "tests/reference/attend.hpp"
#include "tests/support/harness.hpp"

namespace clusterkv::testing {
namespace {

struct File {
  std::string header;
  std::string data;
};

File read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot open " + path);
  const std::string all{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  std::uint64_t size = 0;
  std::memcpy(&size, all.data(), sizeof size);
  return {all.substr(8, size), all.substr(8 + size)};
}

/// What follows `"name": ` in the header.
std::string after(const std::string& header, const std::string& name) {
  const std::string quoted = "\"" + name + "\": ";
  const std::size_t at = header.find(quoted);
  if (at == std::string::npos) throw std::runtime_error("no " + name + " in the trace");
  return header.substr(at + quoted.size());
}

double metadata(const std::string& header, const std::string& name) {
  return std::stod(after(header, name).substr(1));  // after the quote
}

std::vector<std::uint16_t> tensor(const File& file, const std::string& name) {
  const std::string offsets = after(after(file.header, name), "data_offsets").substr(1);
  const std::size_t first = std::stoul(offsets);
  const std::size_t last = std::stoul(offsets.substr(offsets.find(',') + 1));
  std::vector<std::uint16_t> elements((last - first) / 2);
  std::memcpy(elements.data(), file.data.data() + first, last - first);
  return elements;
}

double dot(const float* a, const float* b, int dim) {
  double even = 0;
  double odd = 0;
  for (int d = 0; d < dim; d += 2) {
    even += double{a[d]} * double{b[d]};
    odd += double{a[d + 1]} * double{b[d + 1]};
  }
  return even + odd;
}

/// Full attention of one query head over the first `num_tokens` tokens.
void attend_fully(const RecordedLayer& r, const float* query, const float* key, const float* value,
                  int num_tokens, double* out) {
  const std::ptrdiff_t stride = std::ptrdiff_t{r.num_kv_heads} * r.head_dim;
  std::vector<double> weight;
  for (int t = 0; t < num_tokens; ++t) {
    weight.push_back(reference::soft_capped(
        double{r.softmax_scale} * dot(query, key + t * stride, r.head_dim), r.logit_softcap));
  }
  const double max = *std::max_element(weight.begin(), weight.end());
  double sum = 0;
  for (double& w : weight) sum += w = std::exp(w - max);
  for (int t = 0; t < num_tokens; ++t) {
    const double share = weight[static_cast<std::size_t>(t)] / sum;
    for (int d = 0; d < r.head_dim; ++d) out[d] += share * value[t * stride + d];
  }
}

/// The batch of a replay: one sequence a budget, all living the same.
class Replay {
 public:
  Replay(const RecordedLayer& recorded, const CacheConfig& config, const std::vector<int>& budgets)
      : recorded_(recorded),
        pool_(make_thread_pool(2)),
        harness_(config, limits(recorded, budgets), {Backend::kCpu, pool_.get(), nullptr}) {
    for (const int budget : budgets) {
      rows_.push_back(
          {harness_.cache.add_sequence(), recorded.query_start, 0, Phase::kPrefillLast, budget});
    }
    append(0, recorded.query_start);
    for (StepRow& row : rows_) row = {row.id, 1, 1, Phase::kDecode, row.budget_tokens};
  }

  Choice step(int query, Output& output) {
    append(recorded_.query_start + query, 1);
    const auto count = static_cast<std::int64_t>(rows_.size());
    const int heads = recorded_.num_q_heads;
    const std::uint16_t* from =
        recorded_.query.data() + std::ptrdiff_t{query} * heads * recorded_.head_dim;
    TensorView q = contiguous_view(from, DType::kF16, {count, heads, recorded_.head_dim});
    q.stride[0] = 0;  // every row asks the same
    const Choice choice = copy_choice(harness_.cache.select(0, harness_.plan, q));
    harness_.cache.attend(0, harness_.plan,
                          {q, make_out(output, count, heads, recorded_.head_dim)});
    return choice;
  }

 private:
  static PlanLimits limits(const RecordedLayer& recorded, const std::vector<int>& budgets) {
    const int rows = static_cast<int>(budgets.size());
    return {rows, rows * recorded.query_start, *std::max_element(budgets.begin(), budgets.end())};
  }

  void append(int first, int count) {
    harness_.begin(rows_);
    const auto rows = static_cast<std::int64_t>(rows_.size());
    const auto width = static_cast<std::size_t>(recorded_.num_kv_heads * recorded_.head_dim);
    const auto repeated = [&](const std::vector<std::uint16_t>& all) {
      const auto begin = all.begin() + std::ptrdiff_t(width) * first;
      std::vector<std::uint16_t> result;
      for (std::int64_t i = 0; i < rows; ++i) {
        result.insert(result.end(), begin, begin + std::ptrdiff_t(width) * count);
      }
      return result;
    };
    const auto key = repeated(recorded_.key), value = repeated(recorded_.value);
    const auto view = [&](const std::vector<std::uint16_t>& data) {
      return contiguous_view(data.data(), DType::kF16,
                             {rows * count, recorded_.num_kv_heads, recorded_.head_dim});
    };
    harness_.cache.append(0, harness_.plan, view(key), view(value));
  }

  const RecordedLayer& recorded_;
  std::unique_ptr<Executor> pool_;
  Harness<ClusterKVCache> harness_;
  std::vector<StepRow> rows_;
};

double relative_error(const float* out, const double* full, int dim) {
  double difference = 0;
  double norm = 0;
  for (int d = 0; d < dim; ++d) {
    difference += (out[d] - full[d]) * (out[d] - full[d]);
    norm += full[d] * full[d];
  }
  return std::sqrt(difference / norm);
}

using List = std::vector<Choice::Entry>;

/// Share of `now` that is in `before`.
double share_kept(const List& now, const List& before) {
  const auto kept = std::count_if(now.begin(), now.end(), [&](const Choice::Entry& entry) {
    return std::any_of(before.begin(), before.end(),
                       [&](const Choice::Entry& old) { return old.cluster == entry.cluster; });
  });
  return static_cast<double>(kept) / static_cast<double>(now.size());
}

double mean_share_kept(const std::vector<List>& now, const std::vector<List>& before) {
  double sum = 0;
  for (std::size_t head = 0; head < now.size(); ++head) sum += share_kept(now[head], before[head]);
  return sum / static_cast<double>(now.size());
}

}  // namespace

ModelShape RecordedLayer::model(DType kv_dtype) const {
  ModelShape shape;
  shape.num_layers = 1;
  shape.layers = {layer};
  shape.num_q_heads = num_q_heads;
  shape.num_kv_heads = num_kv_heads;
  shape.head_dim = head_dim;
  shape.kv_dtype = kv_dtype;
  shape.softmax_scale = softmax_scale;
  shape.logit_softcap = logit_softcap;
  return shape;
}

RecordedLayer load_recorded_layer(const std::string& path, int layer) {
  const File file = read_file(path);
  RecordedLayer r;
  r.layer = layer;
  r.query_start = static_cast<int>(metadata(file.header, "query_start"));
  r.num_q_heads = static_cast<int>(metadata(file.header, "query_heads"));
  r.num_kv_heads = static_cast<int>(metadata(file.header, "kv_heads"));
  r.head_dim = static_cast<int>(metadata(file.header, "head_dim"));
  r.softmax_scale = static_cast<float>(metadata(file.header, "softmax_scale"));
  if (file.header.find("logit_softcap") != std::string::npos) {
    r.logit_softcap = static_cast<float>(metadata(file.header, "logit_softcap"));
  }
  const std::string prefix = "layers." + std::to_string(layer) + ".";
  r.key = tensor(file, prefix + "key");
  r.value = tensor(file, prefix + "value");
  r.query = tensor(file, prefix + "query");
  r.num_tokens = static_cast<int>(r.key.size()) / (r.num_kv_heads * r.head_dim);
  return r;
}

float f16_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                   : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return (bits & 0x8000) != 0 ? -size : size;
}

std::vector<float> widened(const std::vector<std::uint16_t>& f16) {
  std::vector<float> result(f16.size());
  std::transform(f16.begin(), f16.end(), result.begin(), f16_value);
  return result;
}

std::vector<double> full_attention(const RecordedLayer& r, int num_queries) {
  const std::vector<float> key = widened(r.key), value = widened(r.value), query = widened(r.query);
  const int group = r.num_q_heads / r.num_kv_heads;
  std::vector<double> full(static_cast<std::size_t>(num_queries * r.num_q_heads * r.head_dim));
  for (int i = 0; i < num_queries * r.num_q_heads; ++i) {
    const int position = r.query_start + i / r.num_q_heads;
    const int kv_head = i % r.num_q_heads / group;
    attend_fully(r, query.data() + i * r.head_dim, key.data() + kv_head * r.head_dim,
                 value.data() + kv_head * r.head_dim, position + 1, full.data() + i * r.head_dim);
  }
  return full;
}

std::vector<ReplayResult> replay_recorded(const RecordedLayer& r, CacheConfig config,
                                          const std::vector<int>& budgets,
                                          const std::vector<double>& full, int num_queries) {
  config.select.dense_layers = 0;
  config.select.dense_threshold = 0;
  config.max_sequences = static_cast<int>(budgets.size());
  config.max_tokens = std::int64_t{config.max_sequences} * r.num_tokens;
  Replay replay(r, config, budgets);
  std::vector<ReplayResult> results(budgets.size());
  Choice before;
  for (int query = 0; query < num_queries; ++query) {
    Output output;
    const Choice now = replay.step(query, output);
    for (std::size_t b = 0; b < budgets.size(); ++b) {
      if (query > 0) {
        results[b].hit_rate += mean_share_kept(now.lists[b], before.lists[b]) / (num_queries - 1);
      }
      for (int head = 0; head < r.num_q_heads; ++head) {
        const auto row = static_cast<std::ptrdiff_t>(b) * r.num_q_heads + head;
        const std::ptrdiff_t full_row = std::ptrdiff_t{query} * r.num_q_heads + head;
        results[b].error_mean += relative_error(output.out.data() + row * r.head_dim,
                                                full.data() + full_row * r.head_dim, r.head_dim) /
                                 (num_queries * r.num_q_heads);
      }
    }
    before = now;
  }
  return results;
}

}  // namespace clusterkv::testing
