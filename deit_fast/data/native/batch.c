/* Makes the views of a batch, on threads that live as long as the call. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "views.h"

struct work {
    const struct image *images;
    const struct view *views;
    const struct policy *policy;
    int count, border, side;
    uint8_t *out;
    atomic_int next, failed;
};

static void *make(void *given) {
    struct work *work = given;
    size_t after = augment_scratch(work->side), have = 0, bytes = (size_t)work->side * work->side * 3;
    void *scratch = NULL;
    for (int number; (number = atomic_fetch_add(&work->next, 1)) < work->count;) {
        const struct view *drawn = work->views + number;
        const struct image *image = work->images + drawn->image;
        uint8_t *view = work->out + number * bytes;
        size_t need = resize_scratch(image, drawn, work->border, work->side);
        if (need < after) need = after;
        if (need > have) {
            free(scratch);
            have = (need + 63) / 64 * 64;
            scratch = aligned_alloc(64, have);
        }
        if (!scratch) {
            atomic_store(&work->failed, 1);
            break;
        }
        resize_view(image, drawn, work->border, work->side, view, scratch);
        augment_view(view, work->side, drawn, work->policy, number, scratch);
    }
    free(scratch);
    return NULL;
}

/* Writes `count` views, uint8 [count, side, side, 3], to out. Returns 0, or 1 if it ran out of memory. */
__attribute__((visibility("default"))) int deit_fast_make_views(
    const struct image *images, const struct view *views, const struct policy *policy, int count, int border, int side,
    uint8_t *out, int threads
) {
    struct work work = {images, views, policy, count, border, side, out, 0, 0};
    pthread_t others[64];
    int started = 0;
    if (threads > count) threads = count;
    if (threads > 65) threads = 65;
    while (started < threads - 1 && !pthread_create(&others[started], NULL, make, &work)) started++;
    make(&work); /* this thread takes part, and makes all views if no other thread started */
    while (started) pthread_join(others[--started], NULL);
    return atomic_load(&work.failed);
}
