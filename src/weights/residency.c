/* residency.c: a group of weights is in the backend's hands while it works. File pages that were read only to
 * make the backend's copy leave this process at once; pages used in place leave it when the group is streamed
 * (all stay in the system's page cache for as long as it sees fit). So the process holds each weight once.
 */
#include "core/file.h"
#include "weights/weights.h"

void weight_group_add(weight_group *group, weight *w) {
  if (group->count < WEIGHT_GROUP_MAX) group->item[group->count] = w;
  group->count++; /* counting on lets acquire report a group that is too small */
}

static int items(const weight_group *group) {
  return group->count < WEIGHT_GROUP_MAX ? group->count : WEIGHT_GROUP_MAX;
}

size_t weight_group_bytes(backend *be, const weight_group *group) {
  size_t bytes = 0;
  for (int i = 0; i < items(group); i++) bytes += backend_weight_bytes(be, group->item[i]);
  return bytes;
}

static void drop_pages(const weight *w) {
  if (w->role != WEIGHT_TABLE) core_map_drop(w->src.data, tensor_bytes(&w->src));
}

static wan_status load(backend *be, weight *w) {
  if (w->data) return WAN_OK;
  CORE_TRY(backend_weight_load(be, w));
  if (w->data_bytes && !be->dry) drop_pages(w); /* copied */
  return WAN_OK;
}

static void unload(backend *be, weight *w) {
  bool in_place = w->place_bytes > 0;
  backend_weight_unload(be, w);
  if (in_place && !be->dry) drop_pages(w);
}

wan_status weight_group_acquire(backend *be, weight_group *group) {
  if (group->count > WEIGHT_GROUP_MAX)
    return core_fail(be->ctx, WAN_ERR_ARGUMENT, "a weight group of %d entries exceeds the limit of %d",
                     group->count, WEIGHT_GROUP_MAX);
  for (int i = 0; i < items(group); i++) {
    wan_status status = load(be, group->item[i]);
    if (status == WAN_OK) continue;
    if (!group->users) weight_group_drop(be, group); /* don't hold memory for a use that won't happen */
    return status;
  }
  group->users++;
  return WAN_OK;
}

void weight_group_release(backend *be, weight_group *group, residency_mode mode) {
  if (group->users > 0) group->users--;
  if (group->users || mode == RESIDENCY_KEEP) return;
  for (int i = 0; i < items(group); i++) unload(be, group->item[i]);
}

void weight_group_prefetch(backend *be, weight_group *group) {
  if (be->dry) return; /* every other backend reads weights from the mapping */
  for (int i = 0; i < items(group); i++) {
    const weight *w = group->item[i];
    if (!w->data && w->role != WEIGHT_TABLE) core_map_prefetch(w->src.data, tensor_bytes(&w->src));
  }
}

/* Where the group is streamed the pages stay mapped: the next pass will read them again, and clean pages cost
 * nobody anything. */
void weight_group_load_ahead(backend *be, weight_group *group, residency_mode mode) {
  for (int i = 0; i < items(group); i++) {
    weight *w = group->item[i];
    if (w->data || w->role == WEIGHT_TABLE) continue;
    backend_weight_prefetch(be, w);
    if (mode == RESIDENCY_KEEP && w->data_bytes && !be->dry) drop_pages(w);
  }
}

void weight_group_drop(backend *be, weight_group *group) {
  for (int i = 0; i < items(group); i++) {
    unload(be, group->item[i]);
    backend_weight_forget(be, group->item[i]);
  }
}
