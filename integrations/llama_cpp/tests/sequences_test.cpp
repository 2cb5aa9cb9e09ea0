// SPDX-License-Identifier: Apache-2.0
//
// The plugin in llama.cpp, against the engine's own attention: several sequences.
#include <gmock/gmock.h>

#include "integrations/llama_cpp/tests/fixture.hpp"

namespace clusterkv::llama_cpp::testing {
namespace {

using ::testing::HasSubstr;

/// true: all sequences in the same cells, told apart by masks. false: a stream each.
class Sequences : public PluginTest, public ::testing::WithParamInterface<bool> {
 protected:
  [[nodiscard]] EngineOptions options(int sequences) const {
    return {.context_tokens = 4096, .max_sequences = sequences, .is_unified = GetParam()};
  }
};

/// One token of each sequence, in one batch.
void together(Engine& engine, const std::vector<int>& positions, int id) {
  std::vector<Token> tokens;
  for (int s = 0; s < static_cast<int>(positions.size()); ++s) {
    tokens.push_back({.id = (id + 31 * s) % kVocab,
                      .position = positions[static_cast<std::size_t>(s)],
                      .sequences = {s},
                      .has_logits = true});
  }
  engine.decode(tokens);
}

TEST_P(Sequences, DecodeTogether) {
  const Result ours = expect_equal({}, options(2), [](Engine& engine) {
    engine.prompt(0, 0, 500, 1);
    engine.prompt(1, 0, 300, 2);
    for (int i = 0; i < 8; ++i) together(engine, {500 + i, 300 + i}, i);
  });
  EXPECT_EQ(ours.stat("sequences"), 2);
  // The first step learns the layers; the second sees the longer prompt, which waits a step.
  EXPECT_EQ(ours.stat("cache_rows"), 7 * 2 - 1);
  EXPECT_EQ(ours.stat("exact_rows"), 2 + 1);
}

TEST_P(Sequences, DecodeInTurn) {
  const Result ours = expect_equal({}, options(4), [](Engine& engine) {
    for (int s = 0; s < 4; ++s) engine.prompt(s, 0, 200 + 50 * s, s + 1);
    for (int i = 0; i < 4; ++i) {
      for (int s = 0; s < 4; ++s) engine.token(s, 200 + 50 * s + i, 9 * i + s);
    }
  });
  EXPECT_EQ(ours.stat("sequences"), 4);
  EXPECT_EQ(ours.stat("cuts"), 0);
  EXPECT_EQ(ours.stat("forks"), 0);
  // Each is appended once.
  EXPECT_EQ(ours.stat("tokens"), 200 + 250 + 300 + 350 + 4 * 4);
}

TEST_P(Sequences, MayBeginWithTheLast) {
  const Result ours = expect_equal({}, options(3), [](Engine& engine) {
    for (int s = 2; s >= 0; --s) engine.prompt(s, 0, 450, s + 1);
    for (int i = 0; i < 4; ++i) {
      for (int s = 2; s >= 0; --s) engine.token(s, 450 + i, 9 * i + s);
    }
  });
  // The first of all learns the layers; then each sees its prompt, and answers two or three.
  EXPECT_EQ(ours.stat("cache_rows"), 2 + 3 + 3);
}

TEST_P(Sequences, ShareAPrefix) {
  const Result ours = expect_equal({}, options(3), [](Engine& engine) {
    engine.prompt(0, 0, 500, 1);
    engine.token(0, 500, 1);
    engine.token(0, 501, 2);
    llama_memory_seq_cp(engine.memory(), 0, 1, -1, -1);
    llama_memory_seq_cp(engine.memory(), 0, 2, -1, -1);
    for (int i = 0; i < 6; ++i) together(engine, {502 + i, 502 + i, 502 + i}, i);
  });
  EXPECT_EQ(ours.stat("sequences"), 3);
  EXPECT_EQ(ours.stat("forks"), GetParam() ? 2 : 0);  // streams have copies of their own
}

TEST_P(Sequences, MayTakeMoreThanOneTokenEach) {
  expect_equal({}, options(2), [](Engine& engine) {
    engine.prompt(0, 0, 500, 1);
    engine.prompt(1, 0, 350, 2);
    for (int i = 0; i < 4; ++i) {
      std::vector<Token> tokens;
      for (int s = 0; s < 2; ++s) {
        for (int j = 0; j < 3; ++j) {
          tokens.push_back({.id = 5 * i + 7 * j + s,
                            .position = s == 0 ? 500 + 4 * i + j : 350 + 3 * i + j,
                            .sequences = {s},
                            .has_logits = true});
        }
      }
      engine.decode(tokens);
      engine.token(0, 503 + 4 * i, i);  // steps of one sequence alone
    }
  });
}

TEST_P(Sequences, AreAnsweredExactlyWhereTheyAreTooMany) {
  const Variable limit("CLUSTERKV_MAX_SEQUENCES", "2");
  const Script script = [](Engine& engine) {
    for (int s = 0; s < 4; ++s) engine.prompt(s, 0, 200, s + 1);
    for (int i = 0; i < 4; ++i) together(engine, {200 + i, 200 + i, 200 + i, 200 + i}, i);
  };
  const Result flash = run({}, options(4), script);
  EngineOptions own = options(4);
  own.attention = Attention::kPlugin;
  const Result ours = run({}, own, script);
  EXPECT_LT(distance(ours.logits, flash.logits), 3e-3);
  EXPECT_EQ(ours.stat("refused_steps"), 3);
  EXPECT_THAT(ours.log, HasSubstr("CLUSTERKV_MAX_SEQUENCES"));
}

TEST_P(Sequences, TheOldestMakesRoom) {
  const Variable limit("CLUSTERKV_MAX_SEQUENCES", "2");
  const Result ours = expect_equal({}, options(3), [](Engine& engine) {
    for (int s = 0; s < 3; ++s) engine.prompt(s, 0, 200, s + 1);
    for (int i = 0; i < 4; ++i) {
      for (int s = 0; s < 3; ++s) engine.token(s, 200 + i, i);
    }
  });
  EXPECT_GT(ours.stat("evictions"), 0);
  EXPECT_EQ(ours.stat("sequences"), 2);
}

INSTANTIATE_TEST_SUITE_P(Cells, Sequences, ::testing::Values(true, false),
                         [](const auto& cells) { return cells.param ? "Unified" : "Streams"; });

/// Every other layer sees the last 200 tokens only.
constexpr ModelSpec kWindowed{.num_layers = 6, .window = 200};

TEST_F(PluginTest, LayersWithASlidingWindowAndACacheOfTheirOwnAreNotClustered) {
  const Result ours = expect_equal(kWindowed, {.full_window_cache = false}, [](Engine& engine) {
    engine.prompt(0, 0, 960, 1);
    for (int i = 0; i < 8; ++i) engine.token(0, 960 + i, i);
  });
  EXPECT_EQ(ours.stat("groups"), 1);
  EXPECT_EQ(ours.stat("layers"), 2);  // 3 and 5
  EXPECT_EQ(ours.stat("cache_rows"), 6 * 2);
}

TEST_F(PluginTest, LayersWithASlidingWindowInACacheLikeTheOthersAreSeenByWhatLeaves) {
  const Result ours = expect_equal(kWindowed, {.full_window_cache = true}, [](Engine& engine) {
    engine.prompt(0, 0, 960, 1);
    for (int i = 0; i < 12; ++i) engine.token(0, 960 + i, i);
  });
  EXPECT_EQ(ours.stat("groups"), 2);
  EXPECT_THAT(ours.log, HasSubstr("sliding window"));
  EXPECT_THAT(ours.log, HasSubstr("layers 2 .. 4"));
}

}  // namespace
}  // namespace clusterkv::llama_cpp::testing
