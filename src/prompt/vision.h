/* vision.h: pictures and clips as vision-language models of the Qwen-VL family take them: which size,
 * which frames, from which source (what the official code does in qwen_vl_utils.py). */
#ifndef WAN_PROMPT_VISION_H
#define WAN_PROMPT_VISION_H

#include "media/media.h"

enum {
  VISION_FACTOR = 28,          /* patches of 14 pixels, merged two by two */
  VISION_FRAME_FACTOR = 2,     /* clips: frames are merged in pairs */
  VISION_CLIP_MIN = 128,       /* clips: squares of side factor that a frame has at least */
  VISION_SOURCE_MAX = 64 << 20 /* bytes of a picture that comes as a data URL or from a server */
};

/* The size near width x height with sides that are multiples of factor and an area within
 * [min_pixels, max_pixels]; 0 stands for the defaults of wan_vision_params. */
wan_status vision_smart_resize(core_ctx *ctx, int width, int height, int factor, double min_pixels,
                               double max_pixels, int *out_width, int *out_height);
/* How many of `total` frames at video_fps are taken. */
wan_status vision_smart_nframes(core_ctx *ctx, const wan_vision_params *p, int total, double video_fps,
                                int *out);
/* n positions spread evenly over first..last, rounded as torch.linspace().round() does. */
void vision_frame_indices(int first, int last, int n, int *index);
/* The largest area of one frame of a clip of n. */
double vision_clip_max_pixels(const wan_vision_params *p, int n);

/* A picture from a path, a file:// or data:image/...;base64, address, or (p->allow_remote) from the web, as
 * it is. */
wan_status vision_source(core_ctx *ctx, const char *source, const wan_vision_params *p, picture *out);
/* The same, resized. */
wan_status vision_picture(core_ctx *ctx, const char *source, const wan_vision_params *p, picture *out);

/* Frames sampled from a video file (path or file://). Fills out; its arrays are core_free'd by the caller. */
wan_status vision_clip(core_ctx *ctx, const char *source, const wan_vision_params *p, wan_vision_frames *out);
/* The same from pictures that are its frames; the last is repeated where their number is odd. */
wan_status vision_clip_pictures(core_ctx *ctx, const char *const *sources, int count,
                                const wan_vision_params *p, wan_vision_frames *out);
void vision_clip_free(core_ctx *ctx, wan_vision_frames *frames);

/* rgb [in_h][in_w][3] to planes [3][h][w] of floats that hold whole numbers: PyTorch's bicubic resize with
 * antialias, as torchvision applies it to 8-bit clips. */
wan_status vision_resize_planes(core_ctx *ctx, const uint8_t *rgb, int in_width, int in_height, int width,
                                int height, float *out);

#endif
