// SPDX-License-Identifier: Apache-2.0
//
// The plugin in llama.cpp, against the engine's own attention: one sequence.
#include <gmock/gmock.h>

#include "integrations/llama_cpp/tests/fixture.hpp"

namespace clusterkv::llama_cpp::testing {
namespace {

using ::testing::HasSubstr;

/// A prompt and some tokens after it.
void prompt_and_tokens(Engine& engine, int prompt, int tokens) {
  engine.prompt(0, 0, prompt, 1);
  for (int i = 0; i < tokens; ++i) engine.token(0, prompt + i, 7 * i + 3);
}

class Shapes : public PluginTest, public ::testing::WithParamInterface<ModelSpec> {};

TEST_P(Shapes, LogitsAreTheEnginesOwn) {
  const Result ours =
      expect_equal(GetParam(), {}, [](Engine& e) { prompt_and_tokens(e, 700, 12); });
  // The engine keeps layers 0 and 1. The first step learns the layers, the second sees the prompt.
  EXPECT_EQ(ours.stat("layers"), GetParam().num_layers - 2);
  EXPECT_EQ(ours.stat("cache_rows"), 10 * (GetParam().num_layers - 2));
  EXPECT_EQ(ours.stat("exact_rows"), 2 * (GetParam().num_layers - 2));
}

INSTANTIATE_TEST_SUITE_P(
    All, Shapes,
    ::testing::Values(ModelSpec{.num_layers = 4}, ModelSpec{.num_kv_heads = 6},
                      ModelSpec{.num_q_heads = 4, .num_kv_heads = 1, .head_dim = 128},
                      ModelSpec{.num_q_heads = 4, .head_dim = 256},
                      ModelSpec{.num_q_heads = 4, .head_dim = 80}),
    [](const auto& shape) {
      return fmt::format("q{}_kv{}_d{}", shape.param.num_q_heads, shape.param.num_kv_heads,
                         shape.param.head_dim);
    });

TEST_F(PluginTest, LearnedSinksTakeTheirShare) {
  const ModelSpec spec{.num_layers = 4, .has_sinks = true};
  const Script script = [](Engine& engine) {
    prompt_and_tokens(engine, 700, 8);
    engine.decode({{.id = 1, .position = 708, .has_logits = true},
                   {.id = 2, .position = 709, .has_logits = true}});
  };
  const Result ours = expect_equal(spec, {}, script);
  EXPECT_EQ(ours.stat("layers"), 2);
  const Result few = run(spec, {.attention = Attention::kPlugin}, script, 128);
  EXPECT_LT(few.stat("attended_tokens"), 16 + 128 + 40);
  EXPECT_LT(distance(few.logits, ours.logits), 0.05);
}

TEST_F(PluginTest, LogitsMayBeCapped) {
  const ModelSpec spec{.num_layers = 4, .softcap = 0.02F};
  const Script script = [](Engine& engine) {
    prompt_and_tokens(engine, 700, 8);
    engine.decode({{.id = 1, .position = 708, .has_logits = true},
                   {.id = 2, .position = 709, .has_logits = true}});
  };
  for (const char* rows : {"cache", "engine"}) {
    const Variable where("CLUSTERKV_ROWS", rows);
    const Result ours = expect_equal(spec, {}, script);
    EXPECT_EQ(ours.stat("layers"), 2);
    const Result few = run(spec, {.attention = Attention::kPlugin}, script, 128);
    EXPECT_LT(few.stat("attended_tokens"), 16 + 128 + 40);
    EXPECT_LT(distance(few.logits, ours.logits), 0.05);
  }
}

TEST_F(PluginTest, RowsMayBeBf16) {
  expect_equal({}, {.cache_type = GGML_TYPE_BF16},
               [](Engine& e) { prompt_and_tokens(e, 700, 12); });
}

TEST_F(PluginTest, RowsMayBeQ8) {
  const Script script = [](Engine& e) { prompt_and_tokens(e, 700, 12); };
  const auto with = [&](Attention attention, ggml_type type) {
    return run({}, {.attention = attention, .cache_type = type}, script);
  };
  const Result flash = with(Attention::kFlash, GGML_TYPE_Q8_0);
  const Result ours = with(Attention::kPlugin, GGML_TYPE_Q8_0);
  // The engine has no other path for q8_0. It quantises queries too, which we do not.
  const double noise = distance(flash.logits, with(Attention::kFlash, GGML_TYPE_F16).logits);
  EXPECT_LE(distance(ours.logits, flash.logits), noise);
  EXPECT_GT(ours.stat("cache_rows"), 0);
}

TEST_F(PluginTest, ASmallBudgetReadsFewerRows) {
  const Script script = [](Engine& e) { prompt_and_tokens(e, 1500, 8); };
  const Result flash = run({}, {}, script);
  const Result ours = run({}, {.attention = Attention::kPlugin}, script, 128);
  EXPECT_LT(ours.stat("attended_tokens"), 16 + 128 + 40);
  EXPECT_GT(ours.stat("estimated_mass"), 0.5);  // random weights attend evenly
  EXPECT_LT(distance(ours.logits, flash.logits), 0.05);
  EXPECT_GT(distance(ours.logits, flash.logits), 1e-4);
}

TEST_F(PluginTest, TheStoreChangesNothing) {
  const Script script = [](Engine& e) { prompt_and_tokens(e, 1500, 8); };
  const Result device = run({}, {.attention = Attention::kPlugin}, script, 128);
  const Variable store("CLUSTERKV_STORE", "host");
  const Result host = run({}, {.attention = Attention::kPlugin}, script, 128);
  EXPECT_EQ(host.logits, device.logits);
  EXPECT_EQ(device.stat("hit_rate"), 0);
  EXPECT_GT(host.stat("hit_rate"), 0.2);
}

TEST_F(PluginTest, ThePapersPresetChoosesPerQueryHead) {
  const Variable preset("CLUSTERKV_PRESET", "paper");
  const Script script = [](Engine& engine) {
    prompt_and_tokens(engine, 1500, 8);
    engine.decode({{.id = 1, .position = 1508, .has_logits = true},
                   {.id = 2, .position = 1509, .has_logits = true}});
  };
  const Result flash = run({}, {}, script);
  const Result ours = run({}, {.attention = Attention::kPlugin}, script, 256);
  EXPECT_LT(ours.stat("attended_tokens"), 16 + 256 + 40);
  EXPECT_EQ(ours.stat("estimated_mass"), 0);
  EXPECT_EQ(ours.stat("exact_rows"), 2 + 2);  // two tokens in a step cannot choose per query head
  EXPECT_LT(distance(ours.logits, flash.logits), 0.2);
}

TEST_F(PluginTest, TheNumberOfThreadsChangesNothing) {
  // Nor does it in the engine's own attention, but for the order of sums.
  const Script script = [](Engine& e) { prompt_and_tokens(e, 1500, 8); };
  const auto with = [&](Attention attention, int threads) {
    return run({}, {.attention = attention, .threads = threads}, script, 128).logits;
  };
  const double noise = distance(with(Attention::kFlash, 1), with(Attention::kFlash, 2));
  EXPECT_LE(distance(with(Attention::kPlugin, 1), with(Attention::kPlugin, 2)), 1.25 * noise);
}

TEST_F(PluginTest, SeveralTokensOfASequenceAttendInOneStep) {
  const Result ours = expect_equal({}, {}, [](Engine& engine) {
    prompt_and_tokens(engine, 500, 3);
    for (int step = 0; step < 4; ++step) {
      std::vector<Token> draft;
      for (int i = 0; i < 5; ++i) {
        draft.push_back({.id = 11 * i + step, .position = 503 + 5 * step + i, .has_logits = true});
      }
      engine.decode(draft);
    }
  });
  EXPECT_EQ(ours.stat("cache_rows"), 1 + 4 * 5);
}

TEST_F(PluginTest, TokensRemovedAtTheEndAreForgotten) {
  const Result ours = expect_equal({}, {}, [](Engine& engine) {
    prompt_and_tokens(engine, 600, 6);
    llama_memory_seq_rm(engine.memory(), 0, 400, -1);
    for (int i = 0; i < 6; ++i) engine.token(0, 400 + i, 50 + i);
  });
  EXPECT_EQ(ours.stat("cuts"), 1);
  EXPECT_EQ(ours.stat("sequences"), 1);
}

TEST_F(PluginTest, CellsFilledAgainBetweenDecodesAreSeen) {
  // Removed, and filled again by a prompt that the plugin does not see.
  const Result ours = expect_equal({}, {}, [](Engine& engine) {
    prompt_and_tokens(engine, 600, 6);
    llama_memory_seq_rm(engine.memory(), 0, 300, -1);
    engine.prompt(0, 300, 306, 2);
    for (int i = 0; i < 4; ++i) engine.token(0, 606 + i, 50 + i);
  });
  EXPECT_EQ(ours.stat("cuts"), 1);
}

TEST_F(PluginTest, AContextShiftIsSeen) {
  const Result ours = expect_equal({}, {}, [](Engine& engine) {
    prompt_and_tokens(engine, 600, 6);
    llama_memory_seq_rm(engine.memory(), 0, 10, 210);
    llama_memory_seq_add(engine.memory(), 0, 210, -1, -200);
    for (int i = 0; i < 6; ++i) engine.token(0, 406 + i, 50 + i);
  });
  EXPECT_EQ(ours.stat("exact_rows"), 2 + 1);
}

TEST_F(PluginTest, StepsThatTheEngineGaveUpAreForgotten) {
  const Result ours = expect_equal({.num_layers = 6}, {}, [](Engine& engine) {
    prompt_and_tokens(engine, 600, 4);
    for (int i = 0; i < 4; ++i) {
      // Somewhere between its layers, with tokens of which the plugin saw nothing before.
      const int position = 604 + 51 * i;
      engine.prompt(0, position, 50, i);
      EXPECT_TRUE(engine.give_up_after(130 - 30 * i, {.id = 5, .position = position + 50}));
      llama_memory_seq_rm(engine.memory(), 0, position + 50, -1);
      engine.token(0, position + 50, 50 + i);
    }
  });
  EXPECT_EQ(ours.stat("sequences"), 1);
}

TEST_F(PluginTest, KeysThatTurnWhileMasksStayAreSeen) {
  const Result ours = expect_equal({}, {}, [](Engine& engine) {
    prompt_and_tokens(engine, 600, 4);
    llama_memory_seq_add(engine.memory(), 0, 300, -1, 50);
    for (int i = 0; i < 4; ++i) engine.token(0, 654 + i, 50 + i);
  });
  EXPECT_EQ(ours.stat("cuts"), 1);
}

TEST_F(PluginTest, ARestoredStateIsSeen) {
  const Result ours = expect_equal({}, {}, [](Engine& engine) {
    engine.prompt(0, 0, 300, 1);
    const auto before = engine.state();
    engine.prompt(0, 300, 300, 2);
    for (int i = 0; i < 6; ++i) engine.token(0, 600 + i, 7 * i);
    // The same cells, of which the first 300 hold what they did.
    engine.restore(before);
    engine.prompt(0, 300, 306, 3);
    for (int i = 0; i < 6; ++i) engine.token(0, 606 + i, 50 + i);
    // All of them other tokens.
    llama_memory_clear(engine.memory(), false);
    engine.prompt(0, 0, 300, 4);
    const auto other = engine.state();
    engine.restore(before);
    engine.prompt(0, 300, 20, 5);
    for (int i = 0; i < 6; ++i) engine.token(0, 320 + i, 50 + i);
    engine.restore(other);
    for (int i = 0; i < 6; ++i) engine.token(0, 300 + i, 50 + i);
  });
  EXPECT_EQ(ours.stat("sequences"), 1);
  EXPECT_GE(ours.stat("cuts"), 1);
}

TEST_F(PluginTest, ASequenceThatEndsMakesRoomForAnother) {
  const Result ours = expect_equal({}, {}, [](Engine& engine) {
    for (int life = 0; life < 3; ++life) {
      engine.prompt(0, 0, 600, life);
      for (int i = 0; i < 4; ++i) engine.token(0, 600 + i, i);
      llama_memory_clear(engine.memory(), false);
    }
  });
  EXPECT_EQ(ours.stat("sequences"), 1);
}

TEST_F(PluginTest, WithoutRoomStepsAreAnsweredExactly) {
  const Variable limit("CLUSTERKV_MAX_TOKENS", "500");
  const Script script = [](Engine& e) { prompt_and_tokens(e, 700, 4); };
  const Result flash = run({}, {}, script);
  const Result ours = run({}, {.attention = Attention::kPlugin}, script, 128);
  EXPECT_EQ(ours.stat("cache_rows"), 0);
  EXPECT_EQ(ours.stat("refused_steps"), 2);
  EXPECT_THAT(ours.log, HasSubstr("no room"));
  EXPECT_LT(distance(ours.logits, flash.logits), 3e-3);
}

}  // namespace
}  // namespace clusterkv::llama_cpp::testing
