// SPDX-License-Identifier: Apache-2.0
//
// A life of a cache in C, as a fuzzer's bytes say: calls in any order, with arguments that are mostly
// right. What is checked is in the comments of c_life.cpp.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "clusterkv/c_api.h"
#include "tests/fuzz/bytes.hpp"
#include "tests/fuzz/stores.hpp"

namespace clusterkv::fuzz {

class CLife {
 public:
  explicit CLife(Bytes bytes) : bytes_(bytes) {}
  ~CLife();
  CLife(const CLife&) = delete;
  CLife& operator=(const CLife&) = delete;

  void run();

 private:
  static Stores& stores();
  struct Tensor {
    std::vector<float> data;
    std::int64_t shape[6];
    std::int64_t strides[6];
    ckv_tensor view;
  };

  bool create();
  void act();
  void add();
  void fork();
  void truncate();
  void remove();
  void save();
  void load();
  void step();
  void layers(int tokens, int queries);
  void attend(const ckv_layer_call& call, int queries);
  void use_choice(const ckv_layer_call& call, int queries);
  void read_rows();
  void drop_plan();
  void finish();

  ckv_status check(ckv_status status);
  ckv_stats stats();
  /// `holds` that nothing that counts has changed, after a call that failed.
  void check_unchanged(const ckv_stats& before);
  ckv_tensor* tensor(Tensor& to, std::int64_t rows, std::int64_t heads);
  std::int64_t drawn_sequence();
  ckv_step_row draw_row();

  Bytes bytes_;
  ckv_config config_{};
  ckv_error error_{};
  ckv_executor* executor_ = nullptr;
  ckv_cache* cache_ = nullptr;
  ckv_plan* plan_ = nullptr;
  std::vector<unsigned char> workspace_;
  std::map<std::int64_t, std::int64_t> lengths_;  ///< of live sequences
  std::vector<unsigned char> saved_;
  std::int64_t saved_length_ = -1;
  int allocations_left_ = 1 << 30;
  int fail_region_ = -1;  ///< the executor fails in this one from now

  static int run_tasks(void* context, int num_tasks, void (*task)(void*, int), void* arg);
};

}  // namespace clusterkv::fuzz
