// SPDX-License-Identifier: Apache-2.0
//
// llama.cpp with a small model of random weights, made on the spot, driven token by token.
#pragma once

#include <llama.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace clusterkv::llama_cpp::testing {

struct ModelSpec {
  int num_layers = 3, num_q_heads = 6, num_kv_heads = 2, head_dim = 64;
  int window =
      0;  ///< > 0: an architecture in which every other layer attends to the last tokens only
  float softcap = 0;  ///< > 0: an architecture that caps logits; its window is above all tokens
  bool has_sinks = false;  ///< an architecture with learned sinks; its window is above all tokens
};

using ModelPtr = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
/// Random weights, the same for the same spec. 256 tokens, no text.
ModelPtr make_model(const ModelSpec& spec);
inline constexpr int kVocab = 256;

/// Who attends.
enum class Attention { kFlash, kNoFlash, kPlugin };

struct EngineOptions {
  Attention attention = Attention::kFlash;
  ggml_type cache_type = GGML_TYPE_F16;
  int context_tokens = 2048;
  int max_sequences = 1;
  bool is_unified = true;
  int threads = 1;  ///< two spin, and take long on a machine that is busy
  bool full_window_cache = true;
  ggml_backend_sched_eval_callback on_node = nullptr;
  void* on_node_data = nullptr;
};

/// One token of a batch.
struct Token {
  int id = 0, position = 0;
  std::vector<int> sequences = {0};
  bool has_logits = false;
};

/// A context. Logits asked for are collected in the order of the batches.
class Engine {
 public:
  Engine(llama_model* model, const EngineOptions& options);

  void decode(const std::vector<Token>& tokens);
  /// Tokens of one sequence from `position` on, made from `seed`, in batches of 128; logits of the last.
  void prompt(int sequence, int position, int count, int seed);
  /// One token of one sequence, with logits.
  void token(int sequence, int position, int id);

  /// Decodes a token, and gives up after so many nodes of the graph. Says whether it did.
  bool give_up_after(int nodes, const Token& token);

  /// All that the engine remembers; and back to it.
  std::vector<std::uint8_t> state();
  void restore(const std::vector<std::uint8_t>& state);

  llama_memory_t memory() { return llama_get_memory(context_.get()); }
  [[nodiscard]] const std::vector<float>& logits() const { return logits_; }

 private:
  std::unique_ptr<llama_context, decltype(&llama_free)> context_{nullptr, llama_free};
  std::vector<float> logits_;
};

/// What the log said since the last call.
std::string take_log();

/// |a - b| / |b|
double distance(const std::vector<float>& a, const std::vector<float>& b);

/// Sets a variable of the environment while it lives.
class Variable {
 public:
  Variable(const char* name, const std::string& value);
  ~Variable();
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
};

}  // namespace clusterkv::llama_cpp::testing
