/* options.c: every option that more than one command knows, in the groups in which --help shows them. */
#include "cli/cli.h"

#define TEXT(name, letter, id, descr, arg) \
  { name, letter, POPT_ARG_STRING, NULL, id, descr, arg }
#define SWITCH(name, letter, id, descr) \
  { name, letter, POPT_ARG_NONE, NULL, id, descr, NULL }

const struct poptOption options_machine[] = {
    TEXT("model", 'm', OPT_MODEL, "checkpoint directory", "DIR"),
    TEXT("backend", 0, OPT_BACKEND, "ref, cpu or cuda; default: the best one here", "NAME"),
    TEXT("precision", 0, OPT_PRECISION, "bf16 (default), f32, or fp8 (CUDA only)", "NAME"),
    TEXT("threads", 't', OPT_THREADS, "CPU threads; default: one a core", "N"),
    TEXT("memory", 0, OPT_MEMORY, "most memory to use, such as 14G; default: what is available", "SIZE"),
    TEXT("vram", 0, OPT_VRAM, "cuda: most device memory to use, such as 8G; default: what is free", "SIZE"),
    SWITCH("profile", 0, OPT_PROFILE, "print time by operation at the end"),
    SWITCH("verbose", 'v', OPT_VERBOSE, "say more about what is done"),
    SWITCH("help", 'h', OPT_HELP, "show this help"),
    POPT_TABLEEND};

const struct poptOption options_content[] = {
    TEXT("prompt", 'p', OPT_PROMPT, "what to show", "TEXT"),
    TEXT("negative", 'n', OPT_NEGATIVE, "what to avoid; default: the official text", "TEXT"),
    TEXT("image", 'i', OPT_IMAGE, "picture to start from (PNG, JPEG, WebP)", "FILE"),
    TEXT("last-frame", 0, OPT_LAST_FRAME, "picture to end with", "FILE"),
    TEXT("frame-image", 0, OPT_FRAME_IMAGE, "picture for frame N (may be repeated; -1 is the last)",
         "N:FILE"),
    TEXT("video", 0, OPT_VIDEO, "continue this clip from its last frames", "FILE"),
    TEXT("video-frames", 0, OPT_VIDEO_FRAMES, "how many of them: 1, 5, 9, ...; default 5", "N"),
    SWITCH("no-exif", 0, OPT_NO_EXIF, "ignore the picture's orientation tag, as generate.py does"),
    TEXT("size", 's', OPT_SIZE, "width x height; with a picture only the area counts", "WxH"),
    TEXT("frames", 'f', OPT_FRAMES, "number of frames, 4n+1", "N"),
    TEXT("fps", 0, OPT_FPS, "frames a second; default: the model's", "X"),
    TEXT("seed", 0, OPT_SEED, "seed of the noise; default: random, printed at the end", "N"),
    TEXT("rng", 0, OPT_RNG, "noise generator: torch-cpu (default) or philox", "NAME"),
    TEXT("noise", 0, OPT_NOISE, "take the noise from a safetensors file (\"noise\" [C,T,h,w])", "FILE"),
    POPT_TABLEEND};

const struct poptOption options_steps[] = {
    TEXT("steps", 0, OPT_STEPS, "denoising steps", "N"),
    TEXT("steps-high", 0, OPT_STEPS_HIGH, "two experts: steps on the high-noise one", "N"),
    TEXT("steps-low", 0, OPT_STEPS_LOW, "two experts: steps on the low-noise one", "N"),
    TEXT("shift", 0, OPT_SHIFT, "shift of the noise schedule", "X"),
    TEXT("sampler", 0, OPT_SAMPLER, "unipc (default), dpm++ or euler", "NAME"),
    TEXT("schedule", 0, OPT_SCHEDULE, "official (default) or diffusers", "NAME"),
    TEXT("sigmas", 0, OPT_SIGMAS, "explicit noise levels, falling, without the final 0", "A,B,..."),
    TEXT("boundary", 0, OPT_BOUNDARY, "two experts: part of the noise range of the low-noise one", "X"),
    TEXT("on-nan", 0, OPT_ON_NAN, "a value is not finite: fail (default), or retry the step of fp8 in bf16",
         "NAME"),
    POPT_TABLEEND};

const struct poptOption options_guidance[] = {
    TEXT("guidance", 'g', OPT_GUIDANCE,
         "guidance scale, or LOW,HIGH for two experts; 1 makes one pass a step", "X[,X]"),
    TEXT("guidance-low", 0, OPT_GUIDANCE_LOW, "of the low-noise expert", "X"),
    TEXT("guidance-high", 0, OPT_GUIDANCE_HIGH, "of the high-noise expert", "X"),
    TEXT("guidance-interval", 0, OPT_GUIDANCE_INTERVAL, "part of the run with guidance, such as 0,0.8",
         "A,B"),
    SWITCH("cfg-zero-star", 0, OPT_CFG_ZERO_STAR, "CFG-Zero*: optimised scale (arXiv 2503.18886)"),
    TEXT("zero-init", 0, OPT_ZERO_INIT, "CFG-Zero*: first N steps with zero velocity", "N"),
    SWITCH("apg", 0, OPT_APG, "adaptive projected guidance (arXiv 2410.02416)"),
    TEXT("apg-eta", 0, OPT_APG_ETA, "  weight of the parallel part; default 0", "X"),
    TEXT("apg-norm", 0, OPT_APG_NORM, "  norm threshold; default 0: none", "X"),
    TEXT("apg-momentum", 0, OPT_APG_MOMENTUM, "  momentum; default -0.5", "X"),
    TEXT("slg-layers", 0, OPT_SLG_LAYERS, "skip-layer guidance: blocks left out of an extra pass", "A,B,..."),
    TEXT("slg-scale", 0, OPT_SLG_SCALE, "  its scale; default 2.8", "X"),
    TEXT("slg-interval", 0, OPT_SLG_INTERVAL, "  part of the run; default 0.01,0.2", "A,B"),
    POPT_TABLEEND};

const struct poptOption options_output[] = {
    TEXT("output", 'o', OPT_OUTPUT, ".mp4, .webm, .gif, a folder or a pattern like f-%04d.png", "FILE"),
    TEXT("crf", 0, OPT_CRF, "quality of the video, smaller is better; default 10 for MP4", "N"),
    TEXT("save-latent", 0, OPT_SAVE_LATENT, "also write the latent (safetensors)", "FILE"),
    TEXT("from-latent", 0, OPT_FROM_LATENT, "decode this latent, generate nothing", "FILE"),
    TEXT("checkpoint", 0, OPT_CHECKPOINT, "save after each step; resume when it exists; removed at the end",
         "FILE"),
    TEXT("preview", 0, OPT_PREVIEW, "after each step, write one frame as it looks now (PNG)", "FILE"),
    TEXT("replay", 0, OPT_REPLAY, "take the settings of a video made by wan", "FILE"),
    SWITCH("dry-run", 0, OPT_DRY_RUN, "print the table of steps and stop"),
    TEXT("progress", 0, OPT_PROGRESS, "bar, plain, json or none; default: bar on a terminal, else plain",
         "NAME"),
    POPT_TABLEEND};

const struct poptOption options_service[] = {
    TEXT("extend-method", 0, OPT_EXTEND_METHOD, "local_qwen (default), dashscope or openai", "NAME"),
    TEXT("extend-url", 0, OPT_EXTEND_URL, "address of the service; default: the method's", "URL"),
    TEXT("extend-model", 0, OPT_EXTEND_MODEL, "name of the language model; default: the method's", "NAME"),
    TEXT("extend-lang", 0, OPT_EXTEND_LANG, "language of the result: zh (default) or en", "NAME"),
    TEXT("extend-system", 0, OPT_EXTEND_SYSTEM, "what the language model is told, instead of our text",
         "FILE"),
    TEXT("extend-timeout", 0, OPT_EXTEND_TIMEOUT, "seconds for it, retries included; default 180", "X"),
    POPT_TABLEEND};

const struct poptOption options_extend[] = {
    SWITCH("extend", 0, OPT_EXTEND, "let a language model write the prompt out first"),
    SWITCH("extend-required", 0, OPT_EXTEND_REQUIRED,
           "stop where that fails; default: go on with the prompt"),
    POPT_TABLEEND};

/* The flags of the official generate.py that are not above. Underscores may stand for dashes. */
const struct poptOption options_official[] = {
    TEXT("task", 0, OPT_TASK, "checked against the model", "NAME"),
    TEXT("ckpt-dir", 0, OPT_MODEL, "--model", "DIR"),
    TEXT("frame-num", 0, OPT_FRAMES, "--frames", "N"),
    TEXT("save-file", 0, OPT_OUTPUT, "--output", "FILE"),
    TEXT("base-seed", 0, OPT_SEED, "--seed", "N"),
    TEXT("sample-solver", 0, OPT_SAMPLER, "--sampler", "NAME"),
    TEXT("sample-steps", 0, OPT_STEPS, "--steps", "N"),
    TEXT("sample-shift", 0, OPT_SHIFT, "--shift", "X"),
    TEXT("sample-guide-scale", 0, OPT_GUIDANCE, "--guidance", "X"),
    TEXT("ulysses-size", 0, OPT_ULYSSES, "no effect: one process does the work", "N"),
    TEXT("offload-model", 0, OPT_NOTED + 0, "no effect: only the part in use is held, always", "BOOL"),
    SWITCH("t5-fsdp", 0, OPT_NOTED + 1, "no effect"),
    SWITCH("t5-cpu", 0, OPT_NOTED + 2, "no effect"),
    SWITCH("dit-fsdp", 0, OPT_NOTED + 3, "no effect"),
    SWITCH("convert-model-dtype", 0, OPT_NOTED + 4, "no effect: see --precision"),
    SWITCH("use-prompt-extend", 0, OPT_EXTEND, "--extend"),
    TEXT("prompt-extend-method", 0, OPT_EXTEND_METHOD, "--extend-method", "NAME"),
    TEXT("prompt-extend-model", 0, OPT_EXTEND_MODEL, "--extend-model", "NAME"),
    TEXT("prompt-extend-target-lang", 0, OPT_EXTEND_LANG, "--extend-lang", "NAME"),
    TEXT("src-root-path", 0, OPT_NOTED + 5, "no effect: for animate-14B", "DIR"),
    TEXT("refert-num", 0, OPT_NOTED + 6, "no effect: for animate-14B", "N"),
    SWITCH("replace-flag", 0, OPT_NOTED + 7, "no effect: for animate-14B"),
    SWITCH("use-relighting-lora", 0, OPT_NOTED + 8, "no effect: for animate-14B"),
    TEXT("num-clip", 0, OPT_NOTED + 9, "no effect: for s2v-14B", "N"),
    TEXT("audio", 0, OPT_NOTED + 10, "no effect: for s2v-14B", "FILE"),
    SWITCH("enable-tts", 0, OPT_NOTED + 11, "no effect: for s2v-14B"),
    TEXT("tts-prompt-audio", 0, OPT_NOTED + 12, "no effect: for s2v-14B", "FILE"),
    TEXT("tts-prompt-text", 0, OPT_NOTED + 13, "no effect: for s2v-14B", "TEXT"),
    TEXT("tts-text", 0, OPT_NOTED + 14, "no effect: for s2v-14B", "TEXT"),
    TEXT("pose-video", 0, OPT_NOTED + 15, "no effect: for s2v-14B", "FILE"),
    SWITCH("start-from-ref", 0, OPT_NOTED + 16, "no effect: for s2v-14B"),
    TEXT("infer-frames", 0, OPT_NOTED + 17, "no effect: for s2v-14B", "N"),
    POPT_TABLEEND};
