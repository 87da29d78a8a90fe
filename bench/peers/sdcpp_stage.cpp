/* sdcpp_stage.cpp: one stage of Wan in stable-diffusion.cpp, timed like wan_bench_stages and printed in its
 * form. Built by bench/peers/sdcpp.sh against that project's sources.
 *
 *   sdcpp_stage STAGE --model FILE [--threads N] [--runs N] [--type bf16|f16|f32|q8_0] [--flash 1]
 *               [--direct 1] [--stdin 1] [--warm first] [--cpu-time 1]
 *     dit         --latent T,h,w    one pass of the transformer in FILE (safetensors)
 *     vae-decode  --latent T,h,w    FILE is Wan2.1_VAE.pth or Wan2.2_VAE.pth
 *     vae-encode  --video F,H,W
 *     text        --tokens N        FILE is models_t5_umt5-xxl-enc-bf16.pth
 *
 * The program itself refuses transformers that have not 30 or 40 blocks and text encoders that have not 24:
 * the runners below are its own with the number of blocks of the file, which is the only change. Peak memory
 * is the process's. */
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model.h"
#include "rng_philox.hpp"
#include "t5.hpp"
#include "wan.hpp"

struct Options {
  std::string stage, model, type, warm;
  long long dim[3] = {0, 0, 0};
  int tokens = 512, runs = 3, threads = 1;
  bool flash = false, direct = false, interactive = false, cpu_time = false;
};

[[noreturn]] static void die(const std::string &what) {
  fprintf(stderr, "sdcpp_stage: %s\n", what.c_str());
  exit(1);
}

static double now(bool cpu_time) {
  if (cpu_time) return (double)clock() / CLOCKS_PER_SEC;
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static ggml_type type_of(const std::string &name) {
  const std::map<std::string, ggml_type> types = {
      {"f32", GGML_TYPE_F32}, {"f16", GGML_TYPE_F16}, {"bf16", GGML_TYPE_BF16}, {"q8_0", GGML_TYPE_Q8_0}};
  auto found = types.find(name);
  if (found == types.end()) die("unknown type " + name);
  return found->second;
}

/* The runners with fewer blocks: the constructor gets a map in which the file's blocks are as many as it
 * insists on, then everything is made again with the true number. */
static String2TensorStorage with_blocks(String2TensorStorage map, const std::string &prefix, int blocks) {
  map[prefix + ".blocks." + std::to_string(blocks - 1) + ".pretended"] = TensorStorage();
  return map;
}

static int count_blocks(const String2TensorStorage &map, const std::string &marker) {
  int blocks = 0;
  for (const auto &entry : map) {
    size_t at = entry.first.find(marker);
    if (at != std::string::npos)
      blocks = std::max(blocks, 1 + atoi(entry.first.c_str() + at + marker.size()));
  }
  return blocks;
}

struct CutWan : WAN::WanRunner {
  CutWan(ggml_backend_t backend, const String2TensorStorage &map, const std::string &prefix,
         SDVersion version, int pretended)
      : WanRunner(backend, false, with_blocks(map, prefix, pretended), prefix, version) {
    free_params_ctx();
    alloc_params_ctx();
    wan_params.num_layers = count_blocks(map, ".blocks.");
    wan = WAN::Wan(wan_params);
    wan.init(params_ctx, map, prefix);
  }
};

struct CutT5 : T5Runner {
  CutT5(ggml_backend_t backend, const String2TensorStorage &map, const std::string &prefix,
        int64_t vocabulary)
      : T5Runner(backend, false, map, prefix, true) {
    free_params_ctx();
    alloc_params_ctx();
    params.num_layers = count_blocks(map, ".block.");
    params.vocab_size = vocabulary;
    model = T5(params);
    model.init(params_ctx, map, prefix);
  }
};

/* The official text encoder's names in the form the program knows. */
static std::string text_name(std::string name) {
  static const std::vector<std::pair<std::string, std::string>> rules = {
      {"token_embedding.", "shared."},
      {".attn.", ".layer.0.SelfAttention."},
      {".norm1.", ".layer.0.layer_norm."},
      {".pos_embedding.embedding.", ".layer.0.SelfAttention.relative_attention_bias."},
      {".ffn.gate.0.", ".layer.1.DenseReluDense.wi_0."},
      {".ffn.fc1.", ".layer.1.DenseReluDense.wi_1."},
      {".ffn.fc2.", ".layer.1.DenseReluDense.wo."},
      {".norm2.", ".layer.1.layer_norm."},
      {"blocks.", "encoder.block."}};
  if (name == "norm.weight") return "encoder.final_layer_norm.weight";
  for (const auto &rule : rules) {
    size_t at = name.find(rule.first);
    if (at != std::string::npos) name.replace(at, rule.first.size(), rule.second);
  }
  return name;
}

struct Stage {
  Options o;
  ggml_backend_t backend = ggml_backend_cpu_init();
  ModelLoader loader;

  /* The .pth reader keeps five dimensions where the program has kernels of four: its safetensors reader joins
   * the last two, this does it for the other. */
  void join_dimensions() {
    for (auto &entry : loader.get_tensor_storage_map()) {
      TensorStorage &t = entry.second;
      if (t.n_dims != 5) continue;
      t.ne[3] *= t.ne[4];
      t.ne[4] = 1;
      t.n_dims = 4;
    }
  }

  /* Matrices and kernels in --type; what the program does not accept in it it keeps wider itself. */
  void choose_type() {
    if (o.type.empty()) return;
    for (auto &entry : loader.get_tensor_storage_map())
      if (ends_with(entry.first, "weight") && entry.second.n_dims > 1)
        entry.second.expected_type = type_of(o.type);
  }

  template <class Runner> void load(Runner &runner, const std::string &prefix) {
    std::map<std::string, ggml_tensor *> tensors;
    runner.set_flash_attention_enabled(o.flash);
    runner.set_conv2d_direct_enabled(o.direct);
    if (!runner.alloc_params_buffer()) die("no memory for the weights");
    runner.get_param_tensors(tensors, prefix);
    if (!loader.load_tensors(tensors, {}, o.threads)) die(o.model + ": not all tensors could be loaded");
  }

  void report(std::vector<double> seconds) {
    rusage u;
    getrusage(RUSAGE_SELF, &u);
    std::sort(seconds.begin(), seconds.end());
    if (seconds.empty()) die("no run");
    printf("{\"stage\": \"%s\", \"backend\": \"stable-diffusion.cpp\", \"type\": \"%s\", \"flash\": %s, "
           "\"direct\": "
           "%s, \"threads\": %d, \"seconds\": %.6f, \"min\": %.6f, \"max\": %.6f, \"runs\": %zu, "
           "\"rss_peak_bytes\": %lld}\n",
           o.stage.c_str(), o.type.c_str(), o.flash ? "true" : "false", o.direct ? "true" : "false",
           o.threads, seconds[seconds.size() / 2], seconds.front(), seconds.back(), seconds.size(),
           (long long)u.ru_maxrss * 1024);
  }

  /* As in wan_bench_stages: a run before the clock (of one latent frame with --warm first), then one run for
   * each line of input with --stdin, or --runs of them. */
  void repeat(const std::function<void(long long)> &body) {
    std::vector<double> seconds;
    char line[16];
    body(o.warm == "first" ? 1 : o.dim[0]);
    if (o.interactive) printf("ready\n"), fflush(stdout);
    for (int i = 0; o.interactive ? fgets(line, sizeof line, stdin) != nullptr : i < o.runs; i++) {
      double start = now(o.cpu_time);
      body(o.dim[0]);
      seconds.push_back(now(o.cpu_time) - start);
      if (o.interactive) printf("%.6f\n", seconds.back()), fflush(stdout);
    }
    report(seconds);
  }

  void dit() {
    const std::string prefix = "model.diffusion_model";
    if (!loader.init_from_file_and_convert_name(o.model, prefix + ".")) die(o.model + ": can't be read");
    SDVersion version = loader.get_sd_version();
    choose_type();
    auto map = loader.get_tensor_storage_map();
    bool small = version == VERSION_WAN2_2_TI2V;
    CutWan runner(backend, map, prefix, version, small ? 30 : 40);
    load(runner, prefix);
    std::shared_ptr<RNG> rng = std::make_shared<PhiloxRNG>();
    auto context = sd::randn<float>({4096, 512, 1}, rng);
    repeat([&](long long T) {
      auto x = sd::randn<float>({o.dim[2], o.dim[1], T, small ? 48 : 16}, rng);
      auto t = sd::Tensor<float>::from_vector(std::vector<float>(small ? (size_t)T : 1, 500.f));
      if (runner.compute(o.threads, x, t, context).empty()) die("the pass failed");
    });
  }

  void vae(bool decode) {
    bool wan22 = o.model.find("2.2") != std::string::npos;
    SDVersion version = wan22 ? VERSION_WAN2_2_TI2V : VERSION_WAN2;
    if (!loader.init_from_file_and_convert_name(o.model, "vae.", version)) die(o.model + ": can't be read");
    join_dimensions();
    choose_type();
    WAN::WanVAERunner runner(backend, false, loader.get_tensor_storage_map(), "first_stage_model", false,
                             version);
    load(runner, "first_stage_model");
    std::shared_ptr<RNG> rng = std::make_shared<PhiloxRNG>();
    repeat([&](long long T) {
      auto x = sd::randn<float>({o.dim[2], o.dim[1], T, decode ? (wan22 ? 48 : 16) : 3, 1}, rng);
      if (runner._compute(o.threads, x, decode).empty()) die("the pass failed");
    });
  }

  void text() {
    const std::string prefix = "text_encoders.t5xxl.transformer";
    if (!loader.init_from_file(o.model)) die(o.model + ": can't be read");
    String2TensorStorage renamed;
    for (auto &entry : loader.get_tensor_storage_map()) {
      TensorStorage t = entry.second;
      t.name = prefix + "." + text_name(entry.first);
      renamed[t.name] = t;
    }
    auto &map = loader.get_tensor_storage_map();
    map.clear();
    for (auto &entry : renamed) map[entry.first] = entry.second;
    choose_type();
    int64_t vocabulary = map[prefix + ".shared.weight"].ne[1];
    CutT5 runner(backend, map, prefix, vocabulary);
    load(runner, prefix);
    std::vector<int32_t> ids((size_t)o.tokens);
    for (size_t i = 0; i < ids.size(); i++) ids[i] = (int32_t)(i * 37 % (size_t)vocabulary);
    auto tokens = sd::Tensor<int32_t>::from_vector(ids);
    repeat([&](long long) {
      if (runner.compute(o.threads, tokens, {}).empty()) die("the pass failed");
    });
  }
};

static Options parse(int argc, char **argv) {
  Options o;
  o.stage = argc > 1 ? argv[1] : "";
  for (int i = 2; i + 1 < argc; i += 2) {
    std::string key = argv[i], value = argv[i + 1];
    if (key == "--model")
      o.model = value;
    else if (key == "--type")
      o.type = value;
    else if (key == "--warm")
      o.warm = value;
    else if (key == "--threads")
      o.threads = atoi(value.c_str());
    else if (key == "--runs")
      o.runs = atoi(value.c_str());
    else if (key == "--tokens")
      o.tokens = atoi(value.c_str());
    else if (key == "--flash")
      o.flash = value == "1";
    else if (key == "--direct")
      o.direct = value == "1";
    else if (key == "--cpu-time")
      o.cpu_time = value == "1";
    else if (key == "--stdin")
      o.interactive = value == "1";
    else if (key == "--latent" || key == "--video") {
      if (sscanf(value.c_str(), "%lld,%lld,%lld", &o.dim[0], &o.dim[1], &o.dim[2]) != 3) die("three numbers");
    } else
      die("unknown option " + key);
  }
  return o;
}

static void on_log(sd_log_level_t level, const char *text, void *) {
  if (level >= SD_LOG_WARN) fputs(text, stderr);
}

int main(int argc, char **argv) {
  Stage s;
  s.o = parse(argc, argv);
  sd_set_log_callback(on_log, nullptr);
  if (s.o.stage == "dit")
    s.dit();
  else if (s.o.stage == "vae-decode" || s.o.stage == "vae-encode")
    s.vae(s.o.stage == "vae-decode");
  else if (s.o.stage == "text")
    s.text();
  else
    die("the stage is dit, vae-decode, vae-encode or text");
}
