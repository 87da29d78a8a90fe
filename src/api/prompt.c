/* prompt.c: the calls of wan.h for prompt extension and vision-language sizes. What is handed out leaves the
 * context's account: the caller frees it with wan_free(). */
#include <string.h>

#include "api/context.h"
#include "prompt/extend.h"
#include "prompt/vision.h"

wan_status wan_extend(wan_context *c, const wan_extend_params *params, wan_extend_result *result) {
  wan_extend_params p;
  wan_extend_result full = {0};
  wan_extend_params_init(&p);
  CONTEXT_ADOPT(p, params);
  wan_status s = extend_prompt(&c->core, &p, &full);
  full.size = result->size;
  memcpy(result, &full, full.size < sizeof full ? full.size : sizeof full);
  return context_done(c, s);
}

void wan_extend_result_free(wan_extend_result *result) {
  if (result) extend_result_free(result);
}

const char *wan_extend_system_prompt(wan_family family, wan_language language, bool with_prompt,
                                     bool with_image) {
  return extend_system_prompt(family, language, with_prompt, with_image);
}

wan_status wan_extend_result_json(wan_context *c, const wan_extend_result *result, char **json) {
  char *text = NULL;
  wan_status s = extend_result_json(&c->core, result, &text);
  return context_hand_out(c, s, text, json);
}

/* ---- Vision-language sizes ---- */

static wan_vision_params adopt(const wan_vision_params *params) {
  wan_vision_params p;
  wan_vision_params_init(&p);
  if (params) CONTEXT_ADOPT(p, params);
  return p;
}

wan_status wan_smart_resize(wan_context *c, const wan_vision_params *params, int width, int height,
                            int *out_width, int *out_height) {
  wan_vision_params p = adopt(params);
  return context_done(c, vision_smart_resize(&c->core, width, height, p.factor, (double)p.min_pixels,
                                             (double)p.max_pixels, out_width, out_height));
}

wan_status wan_smart_nframes(wan_context *c, const wan_vision_params *params, int total_frames,
                             double video_fps, int *out) {
  wan_vision_params p = adopt(params);
  return context_done(c, vision_smart_nframes(&c->core, &p, total_frames, video_fps, out));
}

wan_status wan_vision_image(wan_context *c, const char *source, const wan_vision_params *params, int *width,
                            int *height, uint8_t **rgb) {
  wan_vision_params p = adopt(params);
  picture out;
  wan_status s = vision_picture(&c->core, source, &p, &out);
  *rgb = out.rgb;
  if (s == WAN_OK) {
    *width = out.width;
    *height = out.height;
    core_mem_add(&c->core, -((int64_t)out.width * out.height * 3));
  }
  return context_done(c, s);
}

static wan_status hand_out_frames(wan_context *c, wan_status s, const wan_vision_frames *full,
                                  wan_vision_frames *out) {
  size_t size = out->size;
  memcpy(out, full, size < sizeof *full ? size : sizeof *full);
  out->size = size;
  int64_t pixels = (int64_t)full->frames * 3 * full->height * full->width;
  if (s == WAN_OK)
    core_mem_add(&c->core,
                 -(pixels * (int64_t)sizeof *full->pixels + full->frames * (int64_t)sizeof *full->index));
  return context_done(c, s);
}

wan_status wan_vision_video(wan_context *c, const char *source, const wan_vision_params *params,
                            wan_vision_frames *out) {
  wan_vision_params p = adopt(params);
  wan_vision_frames full = {0};
  wan_status s = vision_clip(&c->core, source, &p, &full);
  return hand_out_frames(c, s, &full, out);
}

wan_status wan_vision_pictures(wan_context *c, const char *const *sources, int count,
                               const wan_vision_params *params, wan_vision_frames *out) {
  wan_vision_params p = adopt(params);
  wan_vision_frames full = {0};
  wan_status s = vision_clip_pictures(&c->core, sources, count, &p, &full);
  return hand_out_frames(c, s, &full, out);
}

void wan_vision_frames_free(wan_vision_frames *frames) {
  if (frames) vision_clip_free(NULL, frames);
}
