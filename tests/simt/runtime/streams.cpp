// SPDX-License-Identifier: Apache-2.0
//
// The stand-in for CUDA's runtime: kernels/common/cuda/runtime.hpp without a device. Work waits in its
// stream until somebody waits for it; with a seed, some of it runs at other times, and what may overtake
// does. The host that touches device memory dies.
#include "simt/streams.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "clusterkv/error.hpp"
#include "kernels/common/cuda/runtime.hpp"
#include "runtime/memory.hpp"
#include "simt/executor.hpp"

namespace simt {

/// What streams did while they were recorded, in the order of the calls.
struct Capture {
  enum class Kind : std::uint8_t { kWork, kRecord, kHold };
  struct Node {
    std::size_t branch;
    Kind kind;
    Work work;
    std::size_t event;
  };
  std::vector<Node> nodes;
  std::size_t num_events = 0;
  std::size_t num_branches = 1;
  bool has_ended = false;
  std::vector<std::unique_ptr<clusterkv::simt::SideStream>> streams;  ///< of branches 1, 2, …
};

namespace {

/// Work of a stream, or a point at which it waits for an event.
struct Item {
  Work work;
  std::function<bool()> is_ready;
};

struct Stream {
  std::deque<Item> items;
  bool is_destroyed = false;  ///< its work still runs
  std::shared_ptr<Capture> capture;
  std::size_t branch = 0;  ///< of the capture

  [[nodiscard]] bool is_ready() const {
    return !items.empty() && (!items.front().is_ready || items.front().is_ready());
  }
};

/// Recorded `last` times, passed up to `done`; or recorded into a graph, where it is event number `recorded`.
struct Event {
  std::uint64_t last = 0;
  std::uint64_t done = 0;
  std::shared_ptr<Capture> capture;
  std::size_t recorded = 0;
};

/// In the order in which they were made.
std::vector<Stream*>& streams() {
  static std::vector<Stream*> all;
  return all;
}

std::mt19937_64& random_engine() {
  static std::mt19937_64 engine;
  return engine;
}

/// Device memory, which the host may not touch: its pages are open only while work of a stream runs.
class DevicePages {
 public:
  void* take(std::size_t bytes) {
    const std::size_t room = (bytes + kPage - 1) / kPage * kPage;
    auto* taken = static_cast<std::byte*>(allocate(room + kPage));
    auto* first = reinterpret_cast<std::byte*>(
        (reinterpret_cast<std::uintptr_t>(taken) + kPage - 1) / kPage * kPage);
    mark_guard(taken, room + kPage);
    set_state(first, bytes, kUnwritten);
    all_[first] = {taken, room};
    set(first, room, PROT_NONE);
    return first;
  }
  void give_back(void* memory) noexcept {
    const auto found = all_.find(static_cast<std::byte*>(memory));
    set(found->first, found->second.bytes, PROT_READ | PROT_WRITE);
    release(found->second.taken);
    all_.erase(found);
  }
  [[nodiscard]] bool hold(const void* memory) const {
    return all_.contains(static_cast<std::byte*>(const_cast<void*>(memory)));
  }
  void run(const Work& work) {
    open(true);
    const std::unique_ptr<DevicePages, decltype(&close)> at_end(this, close);
    work();
  }

 private:
  static constexpr std::size_t kPage = 4096;
  struct Pages {
    std::byte* taken;
    std::size_t bytes;
  };

  static void close(DevicePages* pages) { pages->open(false); }
  void open(bool is_open) {
    for (const auto& [first, pages] : all_) {
      set(first, pages.bytes, is_open ? PROT_READ | PROT_WRITE : PROT_NONE);
    }
  }
  static void set(std::byte* first, std::size_t bytes, int protection) {
    if (mprotect(first, bytes, protection) != 0) std::abort();
  }

  std::map<std::byte*, Pages> all_;
};
DevicePages& device_pages() {
  static DevicePages pages;
  return pages;
}

void forget(Stream* stream) {
  std::erase(streams(), stream);
  delete stream;
}

/// Runs one item of a stream that is ready, any of them; false if there is none.
bool run_one() {
  std::vector<Stream*> ready;
  for (Stream* stream : streams()) {
    if (stream->is_ready()) ready.push_back(stream);
  }
  if (ready.empty()) return false;
  const std::size_t in_order = is_oldest_stream_first() ? 0 : ready.size() - 1;
  const std::size_t at = seed() == 0 ? in_order : random_engine()() % ready.size();
  Stream* stream = ready[at];
  Item item = std::move(stream->items.front());
  stream->items.pop_front();
  if (item.work) device_pages().run(item.work);
  if (stream->is_destroyed && stream->items.empty()) forget(stream);
  return true;
}

void run_some() {
  if (seed() == 0) return;
  while (random_engine()() % 4 == 0 && run_one()) {
  }
}

int calls_to_failure = 0;
bool is_lost = false;  ///< nothing runs any more, and nobody waits

template <class Done>
void run_until(const Done& done) {
  while (!is_lost && !done()) {
    if (!run_one()) throw std::runtime_error("streams wait for each other");
  }
}

Stream* stream_of(void* stream) {
  return static_cast<Stream*>(stream);
}

}  // namespace

void fail_at(int n) {
  calls_to_failure = n;
  is_lost = false;
}

void enqueue(void* stream, Work work) {
  if (calls_to_failure > 0 && --calls_to_failure == 0) {
    is_lost = true;
    for (Stream* s : streams()) s->items.clear();
  }
  if (is_lost) throw clusterkv::CudaError("injected: the device is lost");
  if (stream == nullptr) return device_pages().run(work);
  if (Capture* capture = stream_of(stream)->capture.get()) {
    capture->nodes.push_back({stream_of(stream)->branch, Capture::Kind::kWork, std::move(work), 0});
    return;
  }
  stream_of(stream)->items.push_back({std::move(work), {}});
  run_some();
}

bool is_idle() {
  return std::ranges::all_of(streams(), [](const Stream* s) { return s->items.empty(); });
}

void begin_capture(void* stream) {
  stream_of(stream)->capture = std::make_shared<Capture>();
  stream_of(stream)->branch = 0;
}

Graph end_capture(void* stream) {
  const std::shared_ptr<Capture> capture = stream_of(stream)->capture;
  capture->has_ended = true;
  for (Stream* s : streams()) {
    if (s->capture == capture) s->capture = nullptr;
  }
  const auto is_held = [&](std::size_t event) {
    return std::ranges::any_of(capture->nodes, [&](const Capture::Node& node) {
      return node.kind == Capture::Kind::kHold && node.event == event && node.branch == 0;
    });
  };
  for (std::size_t branch = 1; branch < capture->num_branches; ++branch) {
    const auto last = std::find_if(capture->nodes.rbegin(), capture->nodes.rend(),
                                   [&](const auto& node) { return node.branch == branch; });
    if (last->kind != Capture::Kind::kRecord || !is_held(last->event)) {
      throw std::runtime_error("a stream that was recorded beside another was not waited for");
    }
    capture->streams.push_back(std::make_unique<clusterkv::simt::SideStream>());
  }
  return capture;
}

void replay(const Graph& graph, void* stream) {
  const auto passed = std::make_shared<std::vector<bool>>(graph->num_events);
  for (const Capture::Node& node : graph->nodes) {
    void* to = node.branch == 0 ? stream : graph->streams[node.branch - 1]->get();
    if (node.kind == Capture::Kind::kWork) {
      enqueue(to, node.work);
    } else if (node.kind == Capture::Kind::kRecord) {
      enqueue(to, [passed, event = node.event] { (*passed)[event] = true; });
    } else {
      stream_of(to)->items.push_back(
          {{}, [passed, event = node.event]() -> bool { return (*passed)[event]; }});
    }
  }
}

}  // namespace simt

namespace clusterkv::simt {
namespace {

using ::simt::stream_of;

class DeviceMemory final : public MemoryResource {
 public:
  void* allocate(std::size_t bytes, std::size_t, Device device) override {
    if (device.kind == Device::kCuda) return ::simt::device_pages().take(bytes);
    void* memory = ::simt::allocate(bytes);
    // Pages of the system are zero, and the host writes without telling.
    std::memset(memory, 0, bytes);
    ::simt::mark_written(memory, bytes);
    return memory;
  }
  void deallocate(void* memory, std::size_t, std::size_t, Device) noexcept override {
    if (::simt::device_pages().hold(memory)) return ::simt::device_pages().give_back(memory);
    ::simt::release(memory);
  }
};

}  // namespace

const char* find_device_fault() noexcept {
  return nullptr;
}

MemoryResource& device_memory() noexcept {
  static DeviceMemory memory;
  return memory;
}

void copy_async(void* to, const void* from, std::size_t bytes, void* stream) {
  ::simt::enqueue(stream, [=] {
    std::memcpy(to, from, bytes);
    ::simt::mark_written(to, bytes);
  });
}

void fill_async(void* to, int byte, std::size_t bytes, void* stream) {
  ::simt::enqueue(stream, [=] {
    std::memset(to, byte, bytes);
    ::simt::mark_written(to, bytes);
  });
}

void wait_for(void* stream) {
  if (stream == nullptr) return;
  ::simt::run_until([&] { return stream_of(stream)->items.empty(); });
}

void wait_for_all() {
  ::simt::run_until(::simt::is_idle);
}

bool is_capturing(void* stream) {
  return stream != nullptr && stream_of(stream)->capture != nullptr;
}

SideStream::SideStream() : stream_(new ::simt::Stream) {
  ::simt::streams().push_back(stream_of(stream_));
}

SideStream::~SideStream() {
  ::simt::Stream* stream = stream_of(stream_);
  stream->is_destroyed = true;
  if (stream->items.empty() || ::simt::is_lost) ::simt::forget(stream);
}

Event::Event() : event_(new ::simt::Event) {}

// Work that waits for it may still be enqueued, as with CUDA's: the memory stays.
Event::~Event() {
  static_cast<::simt::Event*>(event_)->capture = nullptr;
}

void Event::record(void* stream) {
  auto* event = static_cast<::simt::Event*>(event_);
  event->capture = stream == nullptr ? nullptr : stream_of(stream)->capture;
  if (event->capture) {
    event->recorded = event->capture->num_events++;
    event->capture->nodes.push_back(
        {stream_of(stream)->branch, ::simt::Capture::Kind::kRecord, {}, event->recorded});
    return;
  }
  const std::uint64_t number = event->last + 1;
  ::simt::enqueue(stream, [=] { event->done = number; });
  event->last = number;
}

void Event::hold(void* stream) const {
  const auto* event = static_cast<::simt::Event*>(event_);
  if (stream == nullptr) return wait();
  ::simt::Stream& waiting = *stream_of(stream);
  if (event->capture) {
    const std::shared_ptr<::simt::Capture>& capture = event->capture;
    if (capture->has_ended || (waiting.capture && waiting.capture != capture)) {
      throw CudaError("an event of a graph is waited for outside of it");
    }
    if (!waiting.capture) {
      waiting.capture = capture;
      waiting.branch = capture->num_branches++;
    }
    capture->nodes.push_back({waiting.branch, ::simt::Capture::Kind::kHold, {}, event->recorded});
    return;
  }
  if (waiting.capture) {
    if (event->last == 0) return;
    throw CudaError("an event outside of a graph is waited for in it");
  }
  waiting.items.push_back({{}, [event, number = event->last] { return event->done >= number; }});
}

void Event::wait() const {
  const auto* event = static_cast<::simt::Event*>(event_);
  if (event->capture) throw CudaError("an event of a graph is waited for outside of it");
  ::simt::run_until([event, number = event->last] { return event->done >= number; });
}

}  // namespace clusterkv::simt
