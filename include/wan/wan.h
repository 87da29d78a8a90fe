/* wan.h: the public interface of libwan, Wan2.2 video generation.
 *
 * Ownership: every *_create/_open call hands the caller an object that the matching *_destroy/_close
 * releases; on failure *out is set to NULL and nothing has to be released. Strings and arrays in
 * parameter structures stay the caller's and need to live only for the duration of the call.
 * Errors: fallible functions return a wan_status; wan_context_error() gives the one message that
 * explains it, valid until the next call on the same context. The library never prints, exits or
 * aborts. Threads: one context must not be used by two threads at once (wan_context_cancel() is the
 * exception, it may be called from any thread or signal handler); separate contexts are independent.
 * Parameter structures start with their own size, so that later versions can add fields:
 * initialise them with the matching *_init function.
 */
#ifndef WAN_WAN_H
#define WAN_WAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define WAN_API __attribute__((visibility("default")))
#else
#define WAN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define WAN_VERSION_MAJOR 0
#define WAN_VERSION_MINOR 1
#define WAN_VERSION_PATCH 0
/* "major.minor.patch" of the library that is running. */
WAN_API const char *wan_version(void);

typedef enum wan_status {
  WAN_OK = 0,
  WAN_ERR_ARGUMENT,    /* a parameter is out of its range or contradicts another */
  WAN_ERR_IO,          /* a file can't be opened, read or written */
  WAN_ERR_FORMAT,      /* a file's content is not what its format demands */
  WAN_ERR_UNSUPPORTED, /* well formed, but a variant that this build does not run */
  WAN_ERR_MEMORY,      /* an allocation failed, or a memory limit would be exceeded */
  WAN_ERR_NUMERIC,     /* a non-finite value appeared in a computation */
  WAN_ERR_BACKEND,     /* a compute library or device driver failed */
  WAN_ERR_CANCELLED,   /* wan_context_cancel() was called */
  WAN_ERR_NETWORK      /* a remote service could not be reached or refused */
} wan_status;

/* A short constant name, such as "format error". */
WAN_API const char *wan_status_name(wan_status status);

/* ---- Context: settings, error message, memory accounting, cancellation ---- */

typedef struct wan_context wan_context;

typedef enum wan_precision {
  WAN_PRECISION_DEFAULT = 0, /* bf16 */
  WAN_PRECISION_BF16,        /* bf16 operands, f32 accumulation, f32 residual stream */
  WAN_PRECISION_F32,         /* everything in f32: the exact path */
  WAN_PRECISION_FP8          /* as bf16, the transformer's large products and self-attention in 8 bits */
} wan_precision;

typedef enum wan_log_level { WAN_LOG_ERROR, WAN_LOG_NOTICE, WAN_LOG_INFO, WAN_LOG_DEBUG } wan_log_level;
typedef void (*wan_log_fn)(void *user, wan_log_level level, const char *message);

typedef struct wan_context_params {
  size_t size;
  const char *backend; /* "ref", "cpu", "cuda", or NULL: the best one this machine runs */
  wan_precision precision;
  int threads;           /* CPU threads; 0: one per available core */
  uint64_t memory_limit; /* bytes of host memory the engine may hold; 0: what the machine has available */
  bool profile;          /* collect per-operation times, see wan_context_profile() */
  wan_log_fn log;        /* NULL: silent */
  void *log_user;
  /* Bytes of the device's memory the process may take, the driver's own share included; 0: what is free there
   * less a reserve. A run that can't keep to it is refused before it starts. */
  uint64_t device_limit;
  /* Open no device: the context can plan for `backend` ("cuda" with a device_limit) but not compute. */
  bool plan_only;
} wan_context_params;

WAN_API void wan_context_params_init(wan_context_params *params);
WAN_API wan_status wan_context_create(const wan_context_params *params, wan_context **out);
WAN_API void wan_context_destroy(wan_context *context);
/* The message of the last failure, "" if there was none. context may be NULL. */
WAN_API const char *wan_context_error(const wan_context *context);
/* Ask the running call to stop within one transformer block; it returns WAN_ERR_CANCELLED. */
WAN_API void wan_context_cancel(wan_context *context);
/* Bytes now held and the most ever held by this context: prepared weights, weights used in place in a mapped
 * file while they are loaded, activations, caches. On the CPU this follows the process's resident set. */
WAN_API uint64_t wan_context_memory(const wan_context *context);
WAN_API uint64_t wan_context_memory_peak(const wan_context *context);
/* The same of the device's own memory, counted apart from the host's: all this process has there, the
 * driver's context and the libraries' workspaces included. 0 with a backend that computes in host memory. */
WAN_API uint64_t wan_context_device_memory(const wan_context *context);
WAN_API uint64_t wan_context_device_memory_peak(const wan_context *context);
/* Name of the backend in use ("cpu", ...). */
WAN_API const char *wan_context_backend(const wan_context *context);
/* A table of per-operation calls, time, FLOP/s and GB/s as text; empty unless params.profile.
 * Caller frees it with wan_free(). NULL when memory is short. */
WAN_API char *wan_context_profile(wan_context *context);
WAN_API void wan_free(void *p);

/* ---- Model: an opened checkpoint directory ---- */

typedef struct wan_model wan_model;

/* dir: an official Wan2.2 (or Wan2.1 text-to-video) checkpoint directory, the diffusers layout of the
 * same, or the MLX port's. Files are mapped; weights are loaded when a call needs them. */
WAN_API wan_status wan_model_open(wan_context *context, const char *dir, wan_model **out);
WAN_API void wan_model_close(wan_model *model);

typedef enum wan_family { WAN_FAMILY_T2V = 0, WAN_FAMILY_I2V, WAN_FAMILY_TI2V } wan_family;
/* What an opened model is, and the values that zero or NULL stand for in wan_generate_params. */
typedef struct wan_model_info {
  size_t size;
  wan_family family;
  int experts;       /* 2 for the A14B models */
  int width, height; /* default size */
  int multiple;      /* widths and heights are multiples of this */
  int frames, steps; /* defaults */
  double fps, shift, guidance_low, guidance_high, boundary;
  const char *negative; /* the official negative prompt; a constant */
  uint64_t fingerprint; /* see docs/CLI.md, "wan info" */
} wan_model_info;
WAN_API void wan_model_info_init(wan_model_info *info);
WAN_API wan_status wan_model_get_info(wan_model *model, wan_model_info *info);
/* What the directory holds (also of an incomplete one), as text or JSON; caller frees with wan_free(). */
WAN_API wan_status wan_model_describe(wan_context *context, const char *dir, bool json, char **out);

/* ---- Generation ---- */

typedef enum wan_stage {
  WAN_STAGE_PREPARE = 0,
  WAN_STAGE_TEXT,
  WAN_STAGE_ENCODE, /* VAE encoding of the given picture or video */
  WAN_STAGE_DENOISE,
  WAN_STAGE_DECODE, /* VAE decoding and video encoding, overlapped */
  WAN_STAGE_FINISH,
  WAN_STAGE_COUNT
} wan_stage;
WAN_API const char *wan_stage_name(wan_stage stage);

typedef struct wan_progress {
  wan_stage stage;
  int step, steps; /* of the stage: denoising steps, decoded frames, text layers */
  double fraction; /* of the whole run, 0..1, never decreasing */
  double seconds_elapsed;
  double seconds_left;                        /* estimate; negative while there is none yet */
  const char *expert;                         /* "high", "low" or NULL */
  uint64_t memory;                            /* bytes held now */
  uint64_t memory_peak;                       /* most bytes held in this stage so far */
  uint64_t device_memory, device_memory_peak; /* the same on the device */
  int retries;                                /* steps that were made again so far (wan_on_nan) */
} wan_progress;
typedef void (*wan_progress_fn)(void *user, const wan_progress *progress);
/* A rough picture of the current x0 estimate: rgb[height*width*3], valid during the call. */
typedef void (*wan_preview_fn)(void *user, int step, int width, int height, const uint8_t *rgb);
/* One finished frame, in order; return false to cancel. */
typedef bool (*wan_frame_fn)(void *user, int index, int width, int height, const uint8_t *rgb);

typedef enum wan_sampler { WAN_SAMPLER_UNIPC = 0, WAN_SAMPLER_DPMPP, WAN_SAMPLER_EULER } wan_sampler;
typedef enum wan_schedule { WAN_SCHEDULE_OFFICIAL = 0, WAN_SCHEDULE_DIFFUSERS } wan_schedule;
/* What a value that is not finite does to a run: end it, or make the step again in bf16 (from fp8). */
typedef enum wan_on_nan { WAN_ON_NAN_FAIL = 0, WAN_ON_NAN_RETRY } wan_on_nan;
typedef enum wan_rng { WAN_RNG_TORCH_CPU = 0, WAN_RNG_PHILOX } wan_rng;

typedef struct wan_image {
  int width, height;
  const uint8_t *rgb; /* height*width*3 */
} wan_image;

/* A picture that the frame `frame` (counted from 0; negative: from the end, -1 is the last) has to show. */
typedef struct wan_frame_image {
  int frame;
  const char *path;
} wan_frame_image;

typedef struct wan_generate_params {
  size_t size;
  const char *prompt;                  /* UTF-8 */
  const char *negative;                /* NULL: the official default text; "": an empty prompt */
  const char *image_path;              /* picture to start from; NULL: text to video */
  wan_image image;                     /* the same from memory, used when image_path is NULL and rgb is not */
  const char *last_image_path;         /* picture of the last frame (first-last-frame to video); NULL: none */
  const wan_frame_image *frame_images; /* further pictures; the models were trained on the first frame only */
  int frame_image_count;
  const char *video_path; /* continue this clip: its last frames become the first ones; NULL: none */
  int video_frames;       /* how many of them, 4n+1; 0: 5 */
  bool no_exif;           /* ignore the picture's EXIF orientation, as the official code does */
  int width, height;      /* 0: the model's default; with a picture only the area counts */
  int frames;   /* 4n+1, others are rounded down as the official code does; 0: the model's default */
  int steps;    /* 0: the model's default */
  double shift; /* 0: the model's default */
  double guidance_low, guidance_high;  /* negative: the model's default; single-expert models use _low */
  double guidance_start, guidance_end; /* part of the steps (0..1) with guidance; default 0..1 */
  wan_sampler sampler;
  wan_schedule schedule;
  const float *sigmas;       /* explicit sigmas, `steps` of them; NULL: from the schedule */
  int steps_high, steps_low; /* two-expert models: explicit split instead of the boundary; 0: boundary */
  double boundary;           /* two-expert models: 0: the model's default (0.875, 0.9) */
  bool cfg_zero_star;        /* optimised guidance scale (CFG-Zero*, arXiv 2503.18886) */
  int zero_init_steps;       /* CFG-Zero*: first steps whose velocity is zero */
  double apg_eta;            /* adaptive projected guidance (arXiv 2410.02416): weight of the parallel part */
  double apg_norm;           /*   norm threshold, 0: none */
  double apg_momentum;       /*   momentum */
  bool apg;                  /*   switch */
  const int *skip_layers;    /* skip-layer guidance: blocks left out of an extra pass */
  int skip_layer_count;
  double skip_layer_scale, skip_layer_start, skip_layer_end;
  int64_t seed; /* negative: random; the one used is in wan_generate_result */
  wan_rng rng;
  const char *noise_path;       /* safetensors with "noise" [C,T,h,w] F32 instead of a generator */
  const char *output_path;      /* .mp4 .webm .gif, a PNG pattern or directory; NULL: frames only */
  int crf;                      /* -1: the default */
  double fps;                   /* 0: the model's default */
  const char *save_latent_path; /* write the final latent ("latent" [C,T,h,w]) here; NULL: no */
  const char *from_latent_path; /* decode this latent instead of generating; NULL: generate */
  const char *checkpoint_path;  /* state saved after every step; resumes from it if it exists */
  wan_progress_fn progress;
  wan_preview_fn preview;
  int preview_every; /* steps between previews (each decodes one frame with the VAE); 0: 1 */
  wan_frame_fn frame;
  void *user;
  const char *original_prompt; /* what wan_extend() made `prompt` from, to be recorded; NULL: nothing */
  wan_on_nan on_nan;
} wan_generate_params;

typedef struct wan_generate_result {
  size_t size;
  int64_t seed;
  int width, height, frames;
  double fps;
  double seconds[WAN_STAGE_COUNT];
  uint64_t memory_peak[WAN_STAGE_COUNT];
  uint64_t device_memory_peak[WAN_STAGE_COUNT];
  int retries; /* steps that were made again (wan_on_nan) */
} wan_generate_result;

WAN_API void wan_generate_params_init(wan_generate_params *params);
/* Fill params from settings as wan_video_settings() returns them. Strings and arrays live in *storage,
 * which the caller frees with wan_free() once params is no longer used. */
WAN_API wan_status wan_generate_params_from_json(wan_context *context, const char *json,
                                                 wan_generate_params *params, void **storage);
/* result may be NULL. On any failure no output file is left behind; a checkpoint file and a latent that was
 * finished before are kept. */
WAN_API wan_status wan_generate(wan_model *model, const wan_generate_params *params,
                                wan_generate_result *result);
WAN_API void wan_generate_result_init(wan_generate_result *result);
/* Frame `index` (negative: from the end) of a video as a PNG file. */
WAN_API wan_status wan_video_frame(wan_context *context, const char *path, int index, const char *png_path);
/* Write rgb[height*width*3] as a PNG file. */
WAN_API wan_status wan_write_png(wan_context *context, const char *path, int width, int height,
                                 const uint8_t *rgb);
/* The settings stored in a video written by wan_generate(), as JSON text; free with wan_free(). */
WAN_API wan_status wan_video_settings(wan_context *context, const char *path, char **json);
/* The same of a checkpoint file (checkpoint_path). */
WAN_API wan_status wan_checkpoint_settings(wan_context *context, const char *path, char **json);

/* ---- Planning ---- */

typedef struct wan_plan {
  size_t size;
  int width, height, frames, steps, experts;
  int64_t tokens;
  double flops[WAN_STAGE_COUNT];
  double seconds[WAN_STAGE_COUNT];              /* estimate for this machine */
  uint64_t memory_peak[WAN_STAGE_COUNT];        /* bytes of host memory */
  bool fits;                                    /* within the context's memory limits */
  uint64_t device_memory_peak[WAN_STAGE_COUNT]; /* bytes of device memory; 0: the backend has none */
  uint64_t device_budget;                       /* bytes of device memory that may be used */
  uint64_t weights[WAN_STAGE_COUNT];            /* bytes of a stage's weights in the backend's form */
  uint64_t resident[WAN_STAGE_COUNT];           /* bytes of them that stay loaded; the rest is streamed */
  int blocks, blocks_resident;                  /* of the transformer */
  bool timed;                                   /* seconds are known: false for a context that plans only */
  char refusal[512]; /* when it does not fit: what is short, and the smallest change that would make it fit */
} wan_plan;
WAN_API void wan_plan_init(wan_plan *plan);
/* Expected memory and time. Memory follows from the checkpoint's headers; for the time, samples of the run's
 * operations are timed with some of its weights, which takes a few seconds. */
WAN_API wan_status wan_plan_generate(wan_model *model, const wan_generate_params *params, wan_plan *out);
/* The steps a run would take as text, one line each: step, timestep, sigma, expert, guidance. */
WAN_API wan_status wan_plan_steps(wan_model *model, const wan_generate_params *params, char **text);

/* ---- Measuring ---- */

typedef struct wan_bench_params {
  size_t size;
  const char *model;         /* checkpoint directory; NULL: random weights of the official sizes */
  const char *stage;         /* only stages whose names start so; NULL: all */
  int repeat;                /* counted runs of a stage, after one that is not; 0: 3 */
  int width, height, frames; /* 0: the official sizes, on a processor smaller ones */
  int tokens;                /* of the prompt; 0: 512 */
  int layers;                /* random weights: of transformer and text encoder; 0: all, on a processor 2 */
} wan_bench_params;

/* One line of the table. Strings are valid during the call. */
typedef struct wan_bench_row {
  size_t size;
  const char *stage;   /* "product" (with fp8 also "product-8bit") and "copy": the ceilings; "dit-5b", ... */
  const char *what;    /* its size in words */
  const char *skipped; /* NULL, or why it was not run */
  int runs;
  double seconds, seconds_min, seconds_max; /* median, fastest, slowest */
  double
      seconds_floor; /* operations or weights at the measured ceiling, whichever takes longer; 0: ceilings */
  double flops, bytes;         /* of one run; bytes: of the weights, or copied */
  int64_t tokens;              /* of transformer and text encoder */
  bool streamed;               /* not all weights fit: some are loaded anew in every run */
  uint64_t memory_peak;        /* bytes of host memory the engine held */
  uint64_t device_memory_peak; /* of device memory; 0 where there is none */
} wan_bench_row;
typedef void (*wan_bench_fn)(void *user, const wan_bench_row *row);
WAN_API void wan_bench_params_init(wan_bench_params *params);
/* Time the two ceilings of the machine, then the stages beside what these make possible. */
WAN_API wan_status wan_bench(wan_context *context, const wan_bench_params *params, wan_bench_fn row,
                             void *user);

/* ---- Prompt extension: a language model writes a prompt out (docs/PROMPTS.md) ---- */

typedef enum wan_extend_method {
  WAN_EXTEND_LOCAL_QWEN = 0, /* the OpenAI protocol at an address of this machine; needs no key */
  WAN_EXTEND_DASHSCOPE,      /* DashScope's own protocol; key: $DASH_API_KEY, address: $DASH_API_URL */
  WAN_EXTEND_OPENAI          /* the OpenAI chat-completions protocol; key: $WAN_EXTEND_KEY */
} wan_extend_method;
typedef enum wan_language { WAN_LANGUAGE_ZH = 0, WAN_LANGUAGE_EN } wan_language;

typedef struct wan_extend_params {
  size_t size;
  wan_extend_method method;
  wan_family family;     /* what the prompt is for */
  const char *prompt;    /* UTF-8; may be empty where a picture is given */
  const char *image;     /* picture: path, file://, data URL, or http(s):// (see allow_remote); NULL: none */
  wan_image pixels;      /* the same from memory, used when image is NULL and rgb is not */
  wan_language language; /* of the result */
  int64_t seed;          /* negative: random */
  const char *model;     /* NULL: the method's default; WAN_EXTEND_OPENAI has none */
  const char *url;       /* base address; NULL: the method's default; WAN_EXTEND_OPENAI has none */
  const char *key;       /* NULL: from the environment */
  const char *system_prompt; /* NULL: the one of the task and language */
  double timeout;            /* seconds for everything, retries included; 0: 180 */
  int attempts;              /* 0: 4 */
  bool allow_remote;         /* image may be an http:// or https:// address */
  bool no_exif;              /* ignore the picture's EXIF orientation */
} wan_extend_params;

typedef struct wan_extend_result {
  size_t size;
  bool status;         /* is prompt an extended one? */
  char *prompt;        /* the extended prompt; the original one where the extension failed */
  int64_t seed;        /* the one used */
  char *system_prompt; /* the one used */
  char *message;       /* the service's answer as JSON, or the reason of the failure */
  char *model;         /* the one asked */
} wan_extend_result;

WAN_API void wan_extend_params_init(wan_extend_params *params);
WAN_API void wan_extend_result_init(wan_extend_result *result);
/* The result is filled in on failure, too (the original prompt and the reason), as far as memory allows. */
WAN_API wan_status wan_extend(wan_context *context, const wan_extend_params *params,
                              wan_extend_result *result);
WAN_API void wan_extend_result_free(wan_extend_result *result); /* the strings in it */
/* The system prompt of a task and language; with_prompt: the user gives a text, with_image: a picture. */
WAN_API const char *wan_extend_system_prompt(wan_family family, wan_language language, bool with_prompt,
                                             bool with_image);
/* The result as a JSON object; free with wan_free(). */
WAN_API wan_status wan_extend_result_json(wan_context *context, const wan_extend_result *result, char **json);

/* ---- Pictures and clips sized for vision-language models of the Qwen-VL family ---- */

typedef struct wan_vision_params {
  size_t size;
  int factor; /* sides become multiples of it; 0: 28 */
  int64_t min_pixels,
      max_pixels;             /* of a picture or frame; 0: 4 and 16384 times factor^2, in clips 128 and 768 */
  int64_t total_pixels;       /* clips: of all frames together; 0: 24576 times factor^2 */
  int width, height;          /* aim at this size instead of the source's; 0: the source's */
  double fps;                 /* clips: frames taken a second; 0: 2 */
  int frames;                 /* clips: frames taken, whatever the rate; 0: by fps */
  int frames_min, frames_max; /* clips: limits of a number that comes from fps; 0: 4 and 768 */
  double start, end;          /* clips: part of the file in seconds; end 0: up to its end */
  bool allow_remote;          /* pictures may be http:// and https:// addresses */
  bool no_exif;               /* ignore the pictures' EXIF orientation */
} wan_vision_params;

typedef struct wan_vision_frames {
  size_t size;
  int frames, width, height;
  float *pixels; /* [frames][3][height][width], whole numbers 0..255 */
  int *index;    /* [frames] positions in the clip */
  double fps;    /* of the frames taken */
} wan_vision_frames;

WAN_API void wan_vision_params_init(wan_vision_params *params);
WAN_API void wan_vision_frames_init(wan_vision_frames *frames);
/* The size with the source's aspect that params allows for a picture. params may be NULL: the defaults. */
WAN_API wan_status wan_smart_resize(wan_context *context, const wan_vision_params *params, int width,
                                    int height, int *out_width, int *out_height);
/* How many of a clip's frames are taken. */
WAN_API wan_status wan_smart_nframes(wan_context *context, const wan_vision_params *params, int total_frames,
                                     double video_fps, int *out);
/* A picture (path, file://, data URL, http(s)://) at its size; free *rgb with wan_free(). */
WAN_API wan_status wan_vision_image(wan_context *context, const char *source, const wan_vision_params *params,
                                    int *width, int *height, uint8_t **rgb);
/* Frames of a video file (path or file://), or the given pictures as frames. */
WAN_API wan_status wan_vision_video(wan_context *context, const char *source, const wan_vision_params *params,
                                    wan_vision_frames *out);
WAN_API wan_status wan_vision_pictures(wan_context *context, const char *const *sources, int count,
                                       const wan_vision_params *params, wan_vision_frames *out);
WAN_API void wan_vision_frames_free(wan_vision_frames *frames); /* the arrays in it */

/* ---- Stages: one part of the pipeline on tensors in files (docs/CLI.md, "wan stage") ---- */

typedef struct wan_stage_params {
  size_t size;
  const char *stage;     /* tokenize clean text dit vae-encode vae-decode schedule denoise noise image */
  const char *model_dir; /* NULL where the stage needs no model */
  const char *in_path, *out_path; /* safetensors */
  const char *text;               /* tokenize, clean, text */
  const char *expert;             /* dit: "high" or "low" */
  const char *image_path;         /* image */
  int area_width, area_height;    /* image: only the product counts */
  int64_t shape[4];               /* noise: C,T,h,w */
  wan_generate_params
      generate;             /* seed, rng, steps, shift, sampler, guidance, ... for schedule, denoise, noise */
  wan_vision_params vision; /* smart-resize, smart-nframes, vision-image, vision-video */
  int total_frames;         /* smart-nframes: of the clip */
  double video_fps;         /* smart-nframes: of the clip */
} wan_stage_params;
WAN_API void wan_stage_params_init(wan_stage_params *params);
/* *text: what the stage prints (clean), or NULL; free with wan_free(). */
WAN_API wan_status wan_stage_run(wan_context *context, const wan_stage_params *params, char **text);

#ifdef __cplusplus
}
#endif
#endif
