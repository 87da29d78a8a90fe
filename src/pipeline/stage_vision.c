/* stage_vision.c: the stages of vision-language inputs: sizes and numbers are printed, pixels are written as
 * they are given to such a model: planes of whole numbers 0..255. */
#include "pipeline/stage.h"
#include "prompt/vision.h"

static wan_status print(stage_call *c, char *text) {
  c->text = text;
  return text ? WAN_OK : WAN_ERR_MEMORY;
}

wan_status stage_smart_resize(stage_call *c) {
  const wan_vision_params *v = &c->p->vision;
  int width, height;
  if (v->width < 1 || v->height < 1)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT, "the smart-resize stage needs --size WIDTHxHEIGHT");
  CORE_TRY(vision_smart_resize(c->ctx, v->width, v->height, v->factor, (double)v->min_pixels,
                               (double)v->max_pixels, &width, &height));
  return print(c, core_asprintf(c->ctx, "%dx%d", width, height));
}

wan_status stage_smart_nframes(stage_call *c) {
  int n;
  if (c->p->total_frames < 1)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT,
                     "the smart-nframes stage needs --total-frames and --video-fps");
  CORE_TRY(vision_smart_nframes(c->ctx, &c->p->vision, c->p->total_frames, c->p->video_fps, &n));
  return print(c, core_asprintf(c->ctx, "%d", n));
}

wan_status stage_vision_image(stage_call *c) {
  wan_vision_frames f = {0};
  const char *source = c->p->image_path;
  if (!source) return core_fail(c->ctx, WAN_ERR_ARGUMENT, "the vision-image stage needs --image");
  CORE_TRY(vision_clip_pictures(c->ctx, &source, 1, &c->p->vision, &f));
  wan_status s =
      stage_output(c, 1, &(named_tensor){"image", TENSOR_OF(DT_F32, f.pixels, 3, f.height, f.width)});
  vision_clip_free(c->ctx, &f);
  return s;
}

/* The pictures of --frame-image in the order of their frames, or the file of --video. */
static wan_status read_clip(stage_call *c, wan_vision_frames *f) {
  const wan_generate_params *g = &c->p->generate;
  int n = g->frame_image_count;
  if (!n == !g->video_path)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT,
                     "the vision-video stage needs either --video or --frame-image");
  if (!n) return vision_clip(c->ctx, g->video_path, &c->p->vision, f);
  const char **sources = core_calloc(c->ctx, (size_t)n, sizeof *sources);
  if (!sources) return WAN_ERR_MEMORY;
  wan_status s = WAN_OK;
  for (int i = 0; i < n; i++) {
    int frame = g->frame_images[i].frame;
    if (frame < 0 || frame >= n || sources[frame])
      s = core_fail(c->ctx, WAN_ERR_ARGUMENT, "%d pictures are given: they have to be the frames 0 to %d", n,
                    n - 1);
    else
      sources[frame] = g->frame_images[i].path;
  }
  if (s == WAN_OK) s = vision_clip_pictures(c->ctx, sources, n, &c->p->vision, f);
  core_free(c->ctx, sources);
  return s;
}

wan_status stage_vision_video(stage_call *c) {
  wan_vision_frames f = {0};
  CORE_TRY(read_clip(c, &f));
  float fps = (float)f.fps;
  wan_status s =
      stage_output(c, 3,
                   (named_tensor[]){{"video", TENSOR_OF(DT_F32, f.pixels, f.frames, 3, f.height, f.width)},
                                    {"index", TENSOR_OF(DT_I32, f.index, f.frames)},
                                    {"fps", TENSOR_OF(DT_F32, &fps, 1)}});
  vision_clip_free(c->ctx, &f);
  return s;
}
