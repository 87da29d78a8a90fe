/* guidance.h: from the passes' velocities to the one the solver sees. x F32 sample, cond, uncond and
 * skip F32 velocities, all of one shape, in backend memory. */
#ifndef WAN_PIPELINE_GUIDANCE_H
#define WAN_PIPELINE_GUIDANCE_H

#include "backend/backend.h"

typedef struct guidance_params {
  double scale; /* 1: cond alone (uncond may be null) */
  float sigma;  /* of this step: adaptive projected guidance works on x0 = x - sigma * v */
  bool zero_star;
  bool apg;
  double apg_eta, apg_norm, apg_momentum;
  double skip_scale; /* used when skip is given */
} guidance_params;

/* Plain:    v = u + g (c - u)                                   (Ho & Salimans, arXiv 2207.12598)
 * CFG-Zero*: a = <c,u>/<u,u>; v = a u + g (c - a u)              (arXiv 2503.18886)
 * APG: on denoised predictions D = x - sigma v: d = Dc - Du + momentum * d_before, cut to norm r,
 *   split into parts along and across Dc: D = Dc + (g - 1) (across + eta * along) (arXiv 2410.02416)
 * Skip-layer guidance adds skip_scale (c - s)                    (Stability AI, SD 3.5)
 * momentum F32 like x, kept between steps, zero before the first; null unless apg. out may be cond. */
void guidance_combine(backend *be, const guidance_params *p, tensor x, tensor cond, tensor uncond,
                      tensor skip, tensor momentum, tensor out);

#endif
