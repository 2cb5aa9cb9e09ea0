// SPDX-License-Identifier: Apache-2.0
//
// Files that are cut off, lie, or mean harm: each gives a FormatError that names the field.
#include "tools/clusterkv/safetensors.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "clusterkv/error.hpp"
#include "tests/support/data.hpp"
#include "tests/support/random.hpp"
#include "tools/clusterkv/trace.hpp"

namespace clusterkv::tool {
namespace {

using nlohmann::json;

std::vector<std::byte> make_file(const std::string& header, std::size_t data_bytes) {
  const std::uint64_t size = header.size();
  std::vector<std::byte> bytes(sizeof(size) + header.size() + data_bytes);
  std::memcpy(bytes.data(), &size, sizeof(size));
  std::memcpy(bytes.data() + sizeof(size), header.data(), header.size());
  return bytes;
}

void expect_format_error(std::vector<std::byte> bytes, const std::string& part) {
  try {
    parse_safetensors(std::move(bytes));
    ADD_FAILURE() << "no error, expected one with: " << part;
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

json tensor(const char* dtype, const json& shape, const json& offsets) {
  return {{"dtype", dtype}, {"shape", shape}, {"data_offsets", offsets}};
}

TEST(SafeTensors, ReadsTensorsAndMetadata) {
  json header = {{"a", tensor("F32", {2, 3}, {0, 24})}, {"b", tensor("F16", {4}, {24, 32})}};
  header["__metadata__"] = {{"key", "value"}};
  auto bytes = make_file(header.dump(), 32);
  const float value = 2.5F;
  std::memcpy(bytes.data() + bytes.size() - 32 + 20, &value, sizeof(value));
  const SafeTensors file = parse_safetensors(std::move(bytes));
  ASSERT_EQ(file.tensors.size(), 2U);
  const TensorView& a = file.tensors.at("a");
  EXPECT_EQ(a.rank, 2);
  EXPECT_EQ(a.shape[1], 3);
  EXPECT_EQ(a.stride[0], 3);
  EXPECT_EQ(a.stride[1], 1);
  float read = 0;
  std::memcpy(&read, static_cast<const std::byte*>(a.data) + 20, sizeof(read));
  EXPECT_EQ(read, value);
  EXPECT_EQ(file.tensors.at("b").dtype, DType::kF16);
  EXPECT_EQ(file.metadata.at("key"), "value");
}

TEST(SafeTensors, RejectsHeadersThatAreNot) {
  expect_format_error({}, "0 bytes");
  expect_format_error(std::vector<std::byte>(7), "7 bytes");
  auto bytes = make_file("{}", 0);
  const std::uint64_t huge = ~std::uint64_t{0};
  std::memcpy(bytes.data(), &huge, sizeof(huge));
  expect_format_error(bytes, "header length 18446744073709551615");
  expect_format_error(make_file("{\"a\":", 0), "not a JSON object");
  expect_format_error(make_file("[1, 2]", 0), "not a JSON object");
  expect_format_error(make_file("\xff\xfe{}", 0), "not a JSON object");
  expect_format_error(make_file(R"({"a": 3})", 0), "a: not a JSON object");
  expect_format_error(make_file(R"({"__metadata__": {"k": 3}})", 0), "k is not a string");
}

TEST(SafeTensors, RejectsTensorsThatLie) {
  const auto expect = [](const json& entry, const std::string& part) {
    expect_format_error(make_file(json{{"a", entry}}.dump(), 64), part);
  };
  expect(tensor("F64", {8}, {0, 64}), "dtype");
  expect({{"shape", {8}}, {"data_offsets", {0, 64}}}, "dtype null");
  expect(tensor("F32", {8}, {0, 32, 3}), "data_offsets");
  expect(tensor("F32", {8}, {-1, 31}), "data_offsets");
  expect(tensor("F32", {8}, {32, 0}), "ascending within 64 bytes");
  expect(tensor("F32", {100}, {0, 400}), "ascending within 64 bytes");
  expect(tensor("F32", {8}, {0, 36}), "36 bytes of data, expected 32");
  expect(tensor("F32", {8, -1}, {0, 32}), "shape");
  expect(tensor("F32", {8.5}, {0, 32}), "shape");
  expect(tensor("F32", "8", {0, 32}), "shape");
  expect(tensor("F32", {1, 1, 1, 1, 1, 8}, {0, 32}), "shape");
  expect(tensor("F32", {1ULL << 39, 1ULL << 39}, {0, 32}), "expected fewer than 2^62 bytes");
  expect(tensor("F32", {1ULL << 63, 2}, {0, 32}), "up to 2^40");
  expect(tensor("F32", {1ULL << 40, 1ULL << 22}, {0, 0}), "expected fewer than 2^62 bytes");
}

TEST(SafeTensors, RejectsOverlappingTensors) {
  const json header = {{"a", tensor("F32", {8}, {0, 32})}, {"b", tensor("F32", {8}, {28, 60})}};
  expect_format_error(make_file(header.dump(), 64), "b: begins at 28");
}

TEST(SafeTensors, RejectsAMissingFile) {
  EXPECT_THROW(read_safetensors("/nowhere/at.all"), FormatError);
}

/// Any damage gives a FormatError or a file that parses; never more.
TEST(SafeTensors, SurvivesRandomDamage) {
  const json header = {{"a", tensor("F32", {2, 3}, {0, 24})}, {"b", tensor("F16", {4}, {24, 32})}};
  const auto good = make_file(header.dump(), 32);
  testing::Random random(1);
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    auto bytes = good;
    for (int flips = random.between(1, 4); flips > 0; --flips) {
      const auto at =
          static_cast<std::size_t>(random.between(0, static_cast<int>(bytes.size()) - 1));
      bytes[at] = static_cast<std::byte>(random.between(0, 255));
    }
    if (random.between(0, 9) == 0) bytes.resize(static_cast<std::size_t>(random.between(0, 100)));
    try {
      parse_safetensors(std::move(bytes));
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 10000);
}

// ------------------------------------------------------------------------------------- traces

SafeTensors good_trace() {
  const auto f32 = [](const json& shape, int begin, int end) {
    return tensor("F32", shape, {begin, end});
  };
  json header = {{"layers.3.key", f32({10, 2, 4}, 0, 320)},
                 {"layers.3.value", f32({10, 2, 4}, 320, 640)},
                 {"layers.3.query", f32({4, 6, 4}, 640, 1024)}};
  header["__metadata__"] = {{"softmax_scale", "0.5"},
                            {"query_start", "6"},
                            {"query_heads", "6"},
                            {"kv_heads", "2"},
                            {"head_dim", "4"}};
  return parse_safetensors(make_file(header.dump(), 1024));
}

void expect_trace_error(const std::function<void(SafeTensors&)>& spoil, const std::string& part) {
  SafeTensors file = good_trace();
  spoil(file);
  try {
    make_trace(std::move(file));
    ADD_FAILURE() << "no error, expected one with: " << part;
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(Trace, HasTheShapeItsMetadataSays) {
  const Trace trace = make_trace(good_trace());
  EXPECT_EQ(trace.num_tokens, 10);
  EXPECT_EQ(trace.num_queries, 4);
  ASSERT_EQ(trace.layers.size(), 1U);
  EXPECT_EQ(trace.layers[0].id, 3);
  EXPECT_EQ(trace.softmax_scale, 0.5F);
  EXPECT_EQ(trace.logit_softcap, 0.0F);
  SafeTensors capped = good_trace();
  capped.metadata["logit_softcap"] = "30";
  EXPECT_EQ(make_trace(std::move(capped)).logit_softcap, 30.0F);
}

TEST(Trace, RejectsMetadataThatDoesNotFit) {
  const auto set = [](const char* key, const char* value) {
    return [=](SafeTensors& f) { f.metadata[key] = value; };
  };
  for (const char* key : {"softmax_scale", "query_start", "query_heads", "kv_heads", "head_dim"}) {
    expect_trace_error([=](SafeTensors& f) { f.metadata.erase(key); }, "is missing");
    expect_trace_error(set(key, "x"), "expected a number");
    expect_trace_error(set(key, ""), "expected a number");
  }
  expect_trace_error(set("softmax_scale", "nan"), "softmax_scale");
  expect_trace_error(set("softmax_scale", "-1"), "softmax_scale");
  for (const char* value : {"nan", "inf", "-1", "1e-5", "1e7", "x"}) {
    expect_trace_error(set("logit_softcap", value), "logit_softcap");
  }
  expect_trace_error(set("query_start", "10"), "query_start: 10, expected 1 .. 9");
  expect_trace_error(set("query_start", "0"), "query_start");
  expect_trace_error(set("query_heads", "7"), "query_heads");
  expect_trace_error(set("kv_heads", "0"), "kv_heads");
  expect_trace_error(set("kv_heads", "3"), "layers.3.key");
  expect_trace_error(set("head_dim", "5"), "layers.3.key");
  expect_trace_error(set("query_start", "5"), "layers.3.query");
}

TEST(Trace, RejectsTensorsThatDoNotFit) {
  expect_trace_error([](SafeTensors& f) { f.tensors.erase("layers.3.value"); }, "layers.3.value");
  expect_trace_error([](SafeTensors& f) { f.tensors.clear(); }, "no tensor");
  expect_trace_error([](SafeTensors& f) { f.tensors["layers.x.key"] = {}; }, "layers.x.key");
  expect_trace_error([](SafeTensors& f) { f.tensors["layers.3.key"].rank = 2; }, "layers.3.key");
  expect_trace_error([](SafeTensors& f) { f.tensors["layers.3.key"].dtype = DType::kI32; },
                     "dtype I32");
  expect_trace_error([](SafeTensors& f) { f.tensors["layers.3.value"].shape[0] = 9; },
                     "layers.3.value");
}

TEST(Trace, OfTheProjectIsWhatItsNoteSays) {
  const Trace trace = read_trace(testing::small_trace());
  EXPECT_EQ(trace.num_tokens, 4096);
  EXPECT_EQ(trace.query_start, 3840);
  EXPECT_EQ(trace.num_q_heads, 9);
  EXPECT_EQ(trace.num_kv_heads, 3);
  EXPECT_EQ(trace.head_dim, 64);
  EXPECT_EQ(trace.layers[0].key.dtype, DType::kF16);
}

}  // namespace
}  // namespace clusterkv::tool
