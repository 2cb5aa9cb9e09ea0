// SPDX-License-Identifier: Apache-2.0
//
// What ggml loads: a registry with one device, of the kind that works beside the CPU on the same memory.
// The scheduler asks it for each node, and gives it those it supports: decode attention, nothing else.
#include <fmt/format.h>
#include <ggml-backend-impl.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <optional>
#include <string_view>

#include "integrations/llama_cpp/context.hpp"
#include "integrations/llama_cpp/log.hpp"
#include "integrations/llama_cpp/node.hpp"
#include "integrations/llama_cpp/settings.hpp"

namespace clusterkv::llama_cpp {
namespace {

constexpr const char* kName = "ClusterKV";

/// Layers from this on are taken over. Of the newest context: the scheduler's questions come without one.
std::atomic<int> first_layer{0};

std::optional<Settings> read_settings() noexcept {
  try {
    return Settings::read([](const char* name) -> const char* { return std::getenv(name); });
  } catch (const std::exception& error) {
    log(GGML_LOG_LEVEL_ERROR, error.what());
    return {};
  }
}

/// Whether ggml's CPU backend runs on OpenMP's threads, which then are ours too.
bool engine_has_openmp() {
  ggml_backend_reg_t cpu = ggml_backend_reg_by_name("CPU");
  if (cpu == nullptr) return false;
  const auto get_features = reinterpret_cast<ggml_backend_get_features_t>(
      ggml_backend_reg_get_proc_address(cpu, "ggml_backend_get_features"));
  if (get_features == nullptr) return false;
  for (auto* feature = get_features(cpu); feature->name != nullptr; ++feature) {
    if (std::string_view(feature->name) == "OPENMP") return true;
  }
  return false;
}

Context& context_of(ggml_backend_t backend) {
  return *static_cast<Context*>(backend->context);
}

const char* backend_name(ggml_backend_t) {
  return kName;
}

void free_backend(ggml_backend_t backend) {
  delete &context_of(backend);
  delete backend;
}

ggml_status compute(ggml_backend_t backend, ggml_cgraph* graph) {
  return context_of(backend).compute(*graph);
}

void set_num_threads(ggml_backend_t backend, int num_threads) {
  static const bool has_openmp = engine_has_openmp();
  if (has_openmp) {
    context_of(backend).set_num_threads(num_threads);
    return;
  }
  static const bool said =
      (log(GGML_LOG_LEVEL_WARN, "ggml was built without OpenMP: attention runs on one thread"),
       true);
  (void)said;
}

ggml_backend_t make_backend(ggml_backend_dev_t device, const char*) {
  static ggml_guid guid = {0xc1, 0x05, 0x7e, 0x12, 0x6b, 0x76, 0x4c, 0x9a,
                           0x8e, 0x31, 0x52, 0x0d, 0x94, 0x13, 0x22, 0x13};
  const auto settings = read_settings();
  if (!settings) return nullptr;
  try {
    first_layer =
        settings->takes_over() ? settings->first_layer() : std::numeric_limits<int>::max();
    ggml_backend_i calls{};
    calls.get_name = backend_name;
    calls.free = free_backend;
    calls.graph_compute = compute;
    auto context = std::make_unique<Context>(*settings);
    auto* backend = new ggml_backend{&guid, calls, device, context.get()};
    context.release();
    return backend;
  } catch (const std::exception& error) {
    log(GGML_LOG_LEVEL_ERROR, error.what());
    return nullptr;
  }
}

const char* device_name(ggml_backend_dev_t) {
  return kName;
}

const char* device_description(ggml_backend_dev_t) {
  return "clustered attention over the engine's own KV cache";
}

void device_memory(ggml_backend_dev_t, std::size_t* free, std::size_t* total) {
  *free = 0;
  *total = 0;
}

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) {
  return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props* props) {
  *props = {};
  props->name = device_name(device);
  props->description = device_description(device);
  props->type = device_type(device);
}

/// The very buffers of the CPU: the scheduler hands over nodes whose tensors lie there, and copies
/// nothing.
ggml_backend_buffer_type_t device_buffers(ggml_backend_dev_t) {
  return ggml_backend_cpu_buffer_type();
}

bool supports_op(ggml_backend_dev_t, const ggml_tensor* op) {
  return Node::is_supported(*op, first_layer);
}

bool supports_buffers(ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
  return ggml_backend_buft_is_host(type);
}

ggml_backend_dev_t device_of(ggml_backend_reg_t registry, std::size_t) {
  return static_cast<ggml_backend_dev_t>(registry->context);
}

void* proc_address(ggml_backend_reg_t, const char* name) {
  if (std::strcmp(name, "ggml_backend_set_n_threads") != 0) return nullptr;
  return reinterpret_cast<void*>(static_cast<ggml_backend_set_n_threads_t>(set_num_threads));
}

ggml_backend_reg_t registry() {
  static ggml_backend_device device{};
  static ggml_backend_reg registry{};
  device.reg = &registry;
  device.iface.get_name = device_name;
  device.iface.get_description = device_description;
  device.iface.get_memory = device_memory;
  device.iface.get_type = device_type;
  device.iface.get_props = device_props;
  device.iface.init_backend = make_backend;
  device.iface.get_buffer_type = device_buffers;
  device.iface.supports_op = supports_op;
  device.iface.supports_buft = supports_buffers;
  registry.api_version = GGML_BACKEND_API_VERSION;
  registry.iface.get_name = [](ggml_backend_reg_t) { return kName; };
  registry.iface.get_device_count = [](ggml_backend_reg_t) -> std::size_t { return 1; };
  registry.iface.get_device = device_of;
  registry.iface.get_proc_address = proc_address;
  registry.context = &device;
  return &registry;
}

/// Structs of ggml are used by their layout, which only this version is known to have.
bool is_our_engine() noexcept {
  if (std::string_view(ggml_version()) == CLUSTERKV_GGML_VERSION) return true;
  log(GGML_LOG_LEVEL_ERROR, fmt::format("built for ggml {}, loaded by ggml {}: not used",
                                        CLUSTERKV_GGML_VERSION, ggml_version()));
  return false;
}

}  // namespace
}  // namespace clusterkv::llama_cpp

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init() {
  using namespace clusterkv::llama_cpp;
  return is_our_engine() && read_settings().has_value() ? registry() : nullptr;
}
