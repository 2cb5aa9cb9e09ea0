// SPDX-License-Identifier: Apache-2.0
//
// save() of a sequence of 32,768 tokens to a file and load() from it, beside the same bytes written and read
// by themselves (`of_file`; of each: `save_of_file`, `load_of_file`). `disk`: what was written is on the disk
// (fdatasync) and is read from there; `cached`: the file stays in memory. Files lie in TMPDIR. Each figure
// is the median of 5 repetitions.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/support/filled_cache.hpp"

namespace clusterkv::bench {
namespace {

constexpr std::size_t kBuffer = std::size_t{1} << 20;

/// A file without a name, read and written through a buffer as stdio would.
class File {
 public:
  File() : buffer_(kBuffer) {
    std::string name = (std::filesystem::temp_directory_path() / "clusterkv-bench-XXXXXX").string();
    file_ = mkstemp(name.data());
    require(file_ >= 0 && unlink(name.c_str()) == 0);
  }
  ~File() { close(file_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void write(std::span<const std::byte> part) {
    while (!part.empty()) {
      const std::size_t count = std::min(part.size(), kBuffer - held_);
      std::memcpy(buffer_.data() + held_, part.data(), count);
      held_ += count;
      part = part.subspan(count);
      if (held_ == kBuffer) flush();
    }
  }
  void end_writing(bool to_disk) {
    flush();
    if (to_disk) require(fdatasync(file_) == 0);
  }
  /// Reading begins, from the disk if the file is there.
  void rewind(bool from_disk) {
    if (from_disk) require(posix_fadvise(file_, 0, 0, POSIX_FADV_DONTNEED) == 0);
    require(lseek(file_, 0, SEEK_SET) == 0);
    at_ = held_ = 0;
  }
  std::size_t read(std::span<std::byte> to) {
    if (at_ == held_) {
      const ssize_t count = ::read(file_, buffer_.data(), kBuffer);
      require(count >= 0);
      at_ = 0;
      held_ = static_cast<std::size_t>(count);
    }
    const std::size_t count = std::min(to.size(), held_ - at_);
    std::memcpy(to.data(), buffer_.data() + at_, count);
    at_ += count;
    return count;
  }
  [[nodiscard]] std::int64_t size() const {
    struct stat status {};
    require(fstat(file_, &status) == 0);
    return status.st_size;
  }

 private:
  static void require(bool ok) {
    if (!ok) throw std::runtime_error("the bench's file failed");
  }
  void flush() {
    for (std::size_t done = 0; done < held_;) {
      const ssize_t count = ::write(file_, buffer_.data() + done, held_ - done);
      require(count > 0);
      done += static_cast<std::size_t>(count);
    }
    held_ = 0;
  }

  int file_;
  std::vector<std::byte> buffer_;
  std::size_t at_ = 0;
  std::size_t held_ = 0;
};

template <class Run>
double seconds_of(const Run& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Seconds {
  double write = 0;
  double read = 0;
};

/// So many bytes, a buffer at a time, from memory and back.
Seconds plain_seconds(std::int64_t bytes, bool disk) {
  std::vector<std::byte> block(kBuffer, std::byte{5});
  File file;
  const auto for_each_block = [&](const auto& visit) {
    for (std::int64_t left = bytes; left > 0;) {
      const auto count = std::min<std::int64_t>(left, kBuffer);
      visit(std::span(block).first(static_cast<std::size_t>(count)));
      left -= count;
    }
  };
  Seconds seconds;
  seconds.write = seconds_of([&] {
    for_each_block([&](std::span<const std::byte> part) { file.write(part); });
    file.end_writing(disk);
  });
  file.rewind(disk);
  seconds.read = seconds_of([&] {
    for_each_block([&](std::span<std::byte> to) {
      while (!to.empty()) to = to.subspan(file.read(to));
    });
  });
  return seconds;
}

void save_load(benchmark::State& state, bool disk) {
  FilledCache& filled = filled_cache({});
  ClusterKVCache target(filled.cache().config());
  Seconds ours, plain;
  std::int64_t bytes = 0;
  for (auto _ : state) {
    File file;
    const double save = seconds_of([&] {
      filled.cache().save(filled.sequence(0),
                          [&](std::span<const std::byte> part) { file.write(part); });
      file.end_writing(disk);
    });
    bytes = file.size();
    file.rewind(disk);
    SequenceId id{};
    const double load = seconds_of(
        [&] { id = target.load([&](std::span<std::byte> to) { return file.read(to); }); });
    target.remove(id);
    state.SetIterationTime(save + load);
    ours = {ours.write + save, ours.read + load};
    const Seconds by_itself = plain_seconds(bytes, disk);
    plain = {plain.write + by_itself.write, plain.read + by_itself.read};
  }
  state.counters["of_file"] = (plain.write + plain.read) / (ours.write + ours.read);
  state.counters["save_of_file"] = plain.write / ours.write;
  state.counters["load_of_file"] = plain.read / ours.read;
  state.counters["MB"] = static_cast<double>(bytes) / 1e6;
  const auto rate = [&](double seconds) {
    return static_cast<double>(bytes * state.iterations()) / seconds / 1e6;
  };
  state.counters["save_MB_s"] = rate(ours.write);
  state.counters["load_MB_s"] = rate(ours.read);
}

void medians(benchmark::internal::Benchmark* bench) {
  bench->Iterations(1)->Repetitions(5)->ReportAggregatesOnly()->UseManualTime()->Unit(
      benchmark::kMillisecond);
}
BENCHMARK_CAPTURE(save_load, disk, true)->Name("pipeline/save_load/cpu/disk")->Apply(medians);
BENCHMARK_CAPTURE(save_load, cached, false)->Name("pipeline/save_load/cpu/cached")->Apply(medians);

}  // namespace
}  // namespace clusterkv::bench
