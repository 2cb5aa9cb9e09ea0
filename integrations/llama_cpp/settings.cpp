// SPDX-License-Identifier: Apache-2.0
#include "integrations/llama_cpp/settings.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstring>
#include <limits>
#include <string_view>

#include "clusterkv/error.hpp"

namespace clusterkv::llama_cpp {
namespace {

using Get = std::function<const char*(const char*)>;

void read_number(const Get& get, const char* name, std::int64_t least, std::int64_t most,
                 auto& into) {
  const char* text = get(name);
  if (text == nullptr) return;
  std::int64_t value = 0;
  const char* end = text + std::strlen(text);
  const auto [rest, error] = std::from_chars(text, end, value);
  if (error != std::errc{} || rest != end || value < least || value > most) {
    throw ConfigError(
        fmt::format("{}: \"{}\", expected a whole number {} .. {}", name, text, least, most));
  }
  into = static_cast<std::remove_reference_t<decltype(into)>>(value);
}

/// True if the variable is `yes`, false if it is `no`; `into` stays as it is where it is not set.
void read_choice(const Get& get, const char* name, std::string_view no, std::string_view yes,
                 bool& into) {
  const char* text = get(name);
  if (text == nullptr) return;
  if (text != no && text != yes) {
    throw ConfigError(fmt::format("{}: \"{}\", expected {} or {}", name, text, no, yes));
  }
  into = text == yes;
}

}  // namespace

Settings Settings::read(const Get& get) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  Settings settings;
  read_choice(get, "CLUSTERKV_PRESET", "standard", "paper", settings.paper);
  read_choice(get, "CLUSTERKV_STORE", "device", "host", settings.host_store);
  read_choice(get, "CLUSTERKV_ROWS", "cache", "engine", settings.engine_rows);
  read_choice(get, "CLUSTERKV_STATS", "0", "1", settings.stats);
  read_number(get, "CLUSTERKV_BUDGET", 0, 1 << 24, settings.budget_tokens);
  read_number(get, "CLUSTERKV_DENSE_LAYERS", 0, 1 << 20, settings.dense_layers);
  read_number(get, "CLUSTERKV_MAX_TOKENS", 1, kMost, settings.max_tokens);
  read_number(get, "CLUSTERKV_MAX_SEQUENCES", 1, 1024, settings.max_sequences);
  return settings;
}

CacheConfig Settings::config(const ModelShape& model) const {
  CacheConfig config = paper ? CacheConfig::paper(model) : CacheConfig::standard(model);
  if (budget_tokens > 0) config.select.budget_tokens = budget_tokens;
  if (dense_layers >= 0) config.select.dense_layers = dense_layers;
  config.store.residency = host_store ? Residency::kHost : Residency::kDevice;
  return config;
}

int Settings::first_layer() const {
  return config({}).select.dense_layers;
}

}  // namespace clusterkv::llama_cpp
