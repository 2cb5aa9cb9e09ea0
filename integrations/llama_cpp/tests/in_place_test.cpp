// SPDX-License-Identifier: Apache-2.0
//
// The plugin over the engine's own rows: it answers as with rows of its own.
#include <gmock/gmock.h>

#include "integrations/llama_cpp/tests/fixture.hpp"

namespace clusterkv::llama_cpp::testing {
namespace {

using ::testing::HasSubstr;

class InPlace : public PluginTest {
 protected:
  /// Both with the same budget.
  struct Both {
    Result rows, in_place;
  };
  static Both run_both(const ModelSpec& spec, EngineOptions options, const Script& script) {
    options.attention = Attention::kPlugin;
    Both both;
    both.rows = run(spec, options, script, 128);
    const Variable rows("CLUSTERKV_ROWS", "engine");
    both.in_place = run(spec, options, script, 128);
    return both;
  }
};

TEST_F(InPlace, AnswersAsWithRowsOfItsOwn) {
  for (const bool has_sinks : {false, true}) {
    const Both both = run_both({.num_layers = 4, .has_sinks = has_sinks}, {}, [](Engine& engine) {
      engine.prompt(0, 0, 1500, 1);
      for (int i = 0; i < 350; ++i) engine.token(0, 1500 + i, 7 * i + 3);  // a window is clustered
    });
    EXPECT_LT(distance(both.in_place.logits, both.rows.logits), 2e-3);
    EXPECT_EQ(both.in_place.stat("attended_tokens"), both.rows.stat("attended_tokens"));
    EXPECT_EQ(both.in_place.stat("cache_rows"), both.rows.stat("cache_rows"));
    EXPECT_LT(both.in_place.stat("held"), 0.5 * both.rows.stat("held"));
  }
}

TEST_F(InPlace, WithABudgetAboveAllTokensLogitsAreTheEnginesOwn) {
  const Variable rows("CLUSTERKV_ROWS", "engine");
  for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_BF16}) {
    expect_equal({}, {.cache_type = type}, [](Engine& engine) {
      engine.prompt(0, 0, 700, 1);
      for (int i = 0; i < 12; ++i) engine.token(0, 700 + i, 7 * i + 3);
    });
  }
}

TEST_F(InPlace, SegmentsThatAreCutAreClusteredAnew) {
  const Both both = run_both({}, {}, [](Engine& engine) {
    engine.prompt(0, 0, 900, 1);
    for (int i = 0; i < 4; ++i) engine.token(0, 900 + i, i);
    llama_memory_seq_rm(engine.memory(), 0, 700, -1);
    for (int i = 0; i < 4; ++i) engine.token(0, 700 + i, 50 + i);
  });
  EXPECT_EQ(both.in_place.stat("cuts"), 1);
  EXPECT_EQ(both.in_place.stat("sequences"), 1);
  EXPECT_EQ(both.in_place.stat("tokens"), 704);
  // Other clusters than where the segment's first tokens are pending.
  EXPECT_LT(distance(both.in_place.logits, both.rows.logits), 0.05);
}

/// One token of each of two sequences.
void both_say(Engine& engine, int first, int second, int id) {
  engine.decode({{.id = id, .position = first, .has_logits = true},
                 {.id = 2 * id + 1, .position = second, .sequences = {1}, .has_logits = true}});
}

TEST_F(InPlace, SequencesShareAPrefix) {
  const Variable rows("CLUSTERKV_ROWS", "engine");
  for (const bool is_unified : {true, false}) {
    // Streams are copied whole; else the prefix ends inside a segment, which cannot be cut.
    const int prefix = is_unified ? 450 : 605;
    const EngineOptions options{
        .context_tokens = 4096, .max_sequences = 2, .is_unified = is_unified};
    const Result ours = expect_equal({}, options, [&](Engine& engine) {
      engine.prompt(0, 0, 600, 1);
      engine.prompt(1, 0, 500, 2);
      for (int i = 0; i < 5; ++i) both_say(engine, 600 + i, 500 + i, i);
      llama_memory_seq_rm(engine.memory(), 1, -1, -1);
      llama_memory_seq_cp(engine.memory(), 0, 1, -1, is_unified ? prefix : -1);
      for (int i = 0; i < 4; ++i) both_say(engine, 605 + i, prefix + i, i);
    });
    EXPECT_GE(ours.stat("sequences"), 2);
    EXPECT_EQ(ours.stat("forks"), is_unified ? 1 : 0);
  }
}

TEST_F(InPlace, DraftsAreAnsweredExactlyBesideOthers) {
  const Variable rows("CLUSTERKV_ROWS", "engine");
  const Result ours = expect_equal({}, {.max_sequences = 3}, [](Engine& engine) {
    for (int s = 0; s < 3; ++s) engine.prompt(s, 0, 500, s);
    for (int i = 0; i < 3; ++i) {
      for (int s = 0; s < 3; ++s) engine.token(s, 500 + i, 5 * i + s);
    }
    // One token of the first and the last sequence, three of the other.
    for (int i = 0; i < 2; ++i) {
      std::vector<Token> tokens;
      for (const int s : {0, 1, 1, 1, 2}) {
        const int before = static_cast<int>(tokens.size());
        const int position = s == 1 ? 503 + 3 * i + before - 1 : 503 + i;
        tokens.push_back(
            {.id = 9 * i + before, .position = position, .sequences = {s}, .has_logits = true});
      }
      engine.decode(tokens);
    }
  });
  EXPECT_EQ(ours.stat("exact_rows"), 1 + 3 + 2 * 3);  // the first step, prompts, drafts
}

TEST_F(InPlace, QuantisedRowsAreHeldTwice) {
  const Both both = run_both({}, {.cache_type = GGML_TYPE_Q8_0}, [](Engine& engine) {
    engine.prompt(0, 0, 900, 1);
    for (int i = 0; i < 4; ++i) engine.token(0, 900 + i, i);
  });
  EXPECT_EQ(both.in_place.logits, both.rows.logits);
  EXPECT_THAT(both.in_place.log, HasSubstr("a quantised cache: rows are held twice"));
}

}  // namespace
}  // namespace clusterkv::llama_cpp::testing
