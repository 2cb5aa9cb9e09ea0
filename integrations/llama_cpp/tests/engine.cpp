// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/tests/engine.hpp"

#include <ggml-backend.h>
#include <gguf.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <stdexcept>
#include <utility>

namespace clusterkv::llama_cpp::testing {
namespace {

std::string log_text;
std::mutex log_mutex;

void keep_log(ggml_log_level, const char* text, void*) {
  const std::lock_guard lock(log_mutex);
  log_text += text;
}

/// Norms near 1; attention that matters and has peaks. The same values for the same name.
void set_weights(ggml_tensor* tensor, void*) {
  std::seed_seq seed(tensor->name, tensor->name + std::strlen(tensor->name));
  std::mt19937 random(seed);
  const bool is_norm = std::strstr(tensor->name, "norm") != nullptr;
  const bool is_bias = std::strstr(tensor->name, "bias") != nullptr;
  const bool is_attention = std::strstr(tensor->name, "attn_") != nullptr;
  const bool is_sink = std::strstr(tensor->name, "sinks") != nullptr;
  const float small = is_norm || is_bias ? 0.02F : 0.12F;
  std::normal_distribution<float> normal(is_norm && !is_bias ? 1.0F : 0.0F,
                                         is_attention && !is_norm && !is_bias ? 0.25F : small);
  std::vector<float> values(static_cast<std::size_t>(ggml_nelements(tensor)));
  // Sinks that take about as much as a thousand tokens.
  for (float& value : values) value = normal(random) + (is_sink ? 7.0F : 0.0F);
  ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
}

void set_number(gguf_context* gguf, const std::string& key, int value) {
  gguf_set_val_u32(gguf, key.c_str(), static_cast<std::uint32_t>(value));
}

}  // namespace

ModelPtr make_model(const ModelSpec& spec) {
  const std::unique_ptr<gguf_context, decltype(&gguf_free)> gguf(gguf_init_empty(), gguf_free);
  const std::string arch = spec.softcap > 0  ? "gemma2"
                           : spec.has_sinks  ? "gpt-oss"
                           : spec.window > 0 ? "gemma3"
                                             : "llama";
  gguf_set_val_str(gguf.get(), "general.architecture", arch.c_str());
  gguf_set_val_str(gguf.get(), "tokenizer.ggml.model", "no_vocab");
  set_number(gguf.get(), arch + ".vocab_size", kVocab);
  set_number(gguf.get(), arch + ".context_length", 32768);
  set_number(gguf.get(), arch + ".embedding_length", 128);
  set_number(gguf.get(), arch + ".block_count", spec.num_layers);
  set_number(gguf.get(), arch + ".feed_forward_length", 128);
  set_number(gguf.get(), arch + ".attention.head_count", spec.num_q_heads);
  set_number(gguf.get(), arch + ".attention.head_count_kv", spec.num_kv_heads);
  set_number(gguf.get(), arch + ".attention.key_length", spec.head_dim);
  set_number(gguf.get(), arch + ".attention.value_length", spec.head_dim);
  set_number(gguf.get(), arch + ".rope.dimension_count", spec.head_dim);
  gguf_set_val_f32(gguf.get(), (arch + ".attention.layer_norm_rms_epsilon").c_str(), 1e-5F);
  if (spec.has_sinks) {
    set_number(gguf.get(), arch + ".expert_count", 2);
    set_number(gguf.get(), arch + ".expert_used_count", 2);
    set_number(gguf.get(), arch + ".expert_feed_forward_length", 64);
    set_number(gguf.get(), arch + ".attention.sliding_window", 1 << 20);
  }
  if (spec.softcap > 0) {
    gguf_set_val_f32(gguf.get(), "gemma2.attn_logit_softcapping", spec.softcap);
    set_number(gguf.get(), arch + ".attention.sliding_window", 1 << 20);
  }
  if (spec.window > 0) {
    set_number(gguf.get(), arch + ".attention.sliding_window", spec.window);
    set_number(gguf.get(), arch + ".attention.sliding_window_pattern", 2);
  }
  ModelPtr model(
      llama_model_init_from_user(gguf.get(), set_weights, nullptr, llama_model_default_params()),
      llama_model_free);
  if (!model) throw std::runtime_error("no model: " + take_log());
  return model;
}

Engine::Engine(llama_model* model, const EngineOptions& options) {
  auto params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(options.context_tokens);
  params.n_batch = params.n_ubatch = 512;
  params.n_seq_max = static_cast<std::uint32_t>(options.max_sequences);
  params.n_threads = params.n_threads_batch = options.threads;
  params.type_k = params.type_v = options.cache_type;
  params.kv_unified = options.is_unified;
  params.swa_full = options.full_window_cache;
  params.flash_attn_type = options.attention == Attention::kNoFlash ? LLAMA_FLASH_ATTN_TYPE_DISABLED
                                                                    : LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.cb_eval = options.on_node;
  params.cb_eval_user_data = options.on_node_data;
  context_.reset(llama_init_from_model(model, params));
  if (!context_) throw std::runtime_error("no context: " + take_log());
}

void Engine::decode(const std::vector<Token>& tokens) {
  llama_batch batch = llama_batch_init(static_cast<std::int32_t>(tokens.size()), 0, 8);
  for (const Token& token : tokens) {
    const int i = batch.n_tokens++;
    batch.token[i] = token.id;
    batch.pos[i] = token.position;
    batch.n_seq_id[i] = static_cast<std::int32_t>(token.sequences.size());
    std::copy(token.sequences.begin(), token.sequences.end(), batch.seq_id[i]);
    batch.logits[i] = token.has_logits ? 1 : 0;
  }
  const int result = llama_decode(context_.get(), batch);
  llama_batch_free(batch);
  if (result != 0) throw std::runtime_error("llama_decode: " + std::to_string(result) + take_log());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (!tokens[i].has_logits) continue;
    const float* row = llama_get_logits_ith(context_.get(), static_cast<std::int32_t>(i));
    logits_.insert(logits_.end(), row, row + kVocab);
  }
}

void Engine::prompt(int sequence, int position, int count, int seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  for (int first = 0; first < count; first += 128) {
    std::vector<Token> tokens;
    for (int i = first; i < std::min(first + 128, count); ++i) {
      tokens.push_back({.id = static_cast<int>(random() % kVocab),
                        .position = position + i,
                        .sequences = {sequence},
                        .has_logits = i + 1 == count});
    }
    decode(tokens);
  }
}

void Engine::token(int sequence, int position, int id) {
  decode({{.id = id % kVocab, .position = position, .sequences = {sequence}, .has_logits = true}});
}

bool Engine::give_up_after(int nodes, const Token& token) {
  const auto count_down = [](void* left) { return --*static_cast<int*>(left) < 0; };
  llama_set_abort_callback(context_.get(), count_down, &nodes);
  bool gave_up = false;
  try {
    decode({token});
  } catch (const std::runtime_error&) {
    gave_up = true;
  }
  llama_set_abort_callback(context_.get(), nullptr, nullptr);
  return gave_up;
}

std::vector<std::uint8_t> Engine::state() {
  std::vector<std::uint8_t> bytes(llama_state_get_size(context_.get()));
  bytes.resize(llama_state_get_data(context_.get(), bytes.data(), bytes.size()));
  return bytes;
}

void Engine::restore(const std::vector<std::uint8_t>& state) {
  if (llama_state_set_data(context_.get(), state.data(), state.size()) != state.size()) {
    throw std::runtime_error("llama_state_set_data: " + take_log());
  }
}

std::string take_log() {
  static const bool is_set = (llama_log_set(keep_log, nullptr), true);
  (void)is_set;
  const std::lock_guard lock(log_mutex);
  return std::exchange(log_text, {});
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return INFINITY;
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

Variable::Variable(const char* name, const std::string& value) : name_(name) {
  setenv(name, value.c_str(), 1);
}

Variable::~Variable() {
  unsetenv(name_);
}

}  // namespace clusterkv::llama_cpp::testing
