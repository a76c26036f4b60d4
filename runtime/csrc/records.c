/* Checking: nothing in a record is used before it has been found to be within its limits. */
#include <stdio.h>
#include <string.h>

#include "parts.h"

int record_bad(const Reader *reader, const char *what) {
    snprintf(reader->problem, 160, "step %lld: %s", (long long)reader->number, what);
    return 0;
}

/* a slot that can hold so many values of `size` bytes; -1 only where that is allowed */
static int slot_fits(const Reader *reader, int field, int64_t values, int64_t size, int optional) {
    int64_t number = reader->record[field];
    if (number == -1)
        return optional || record_bad(reader, "a slot is missing");
    if (!within(number, 0, reader->slot_count - 1) || reader->slots[number].bytes < values * size)
        return record_bad(reader, "a slot is not there or too small");
    return 1;
}

static int weights_fit(const Reader *reader, int field, int64_t count, int64_t size,
                       int optional) {
    int64_t offset = reader->record[field];
    if (offset == -1)
        return optional || record_bad(reader, "weights are missing");
    if (!within(offset, 0, reader->blob_bytes) || offset % 8 ||
        count > (reader->blob_bytes - offset) / size)
        return record_bad(reader, "weights lie outside of what there is");
    return 1;
}

static int sizes_fit(const Reader *reader) {
    const int64_t *f = reader->record;
    for (int i = F_CIN; i <= F_WOUT; i++)
        if (!within(f[i], 1, MAX_SIDE))
            return record_bad(reader, "a size is out of range");
    if (f[F_HIN] > MAX_VALUES / f[F_WIN] || f[F_HOUT] > MAX_VALUES / f[F_WOUT] ||
        rounded_up((int32_t)f[F_CIN], BLOCK) > MAX_VALUES / (f[F_HIN] * f[F_WIN]) ||
        rounded_up((int32_t)f[F_COUT], BLOCK) > MAX_VALUES / (f[F_HOUT] * f[F_WOUT]))
        return record_bad(reader, "an activation is too large");
    if (!within(f[F_ZERO], 0, 255) || !within(f[F_OUT_ZERO], 0, 255))
        return record_bad(reader, "a zero point is out of range");
    return 1;
}

static int64_t values_in(const int64_t *f) {
    return (int64_t)blocks((int32_t)f[F_CIN]) * BLOCK * f[F_HIN] * f[F_WIN];
}

static int64_t values_out(const int64_t *f) {
    return (int64_t)blocks((int32_t)f[F_COUT]) * BLOCK * f[F_HOUT] * f[F_WOUT];
}

/* the window stays within the image and its padding, at every output */
static int window_fits(const Reader *reader) {
    const int64_t *f = reader->record;
    /* a pool may take in the whole image, and needs no room to unfold it */
    int pools = f[F_KIND] == LARGEST || f[F_KIND] == MEAN;
    for (int i = F_KH; i <= F_SX; i++)
        if (!within(f[i], 1, pools && i <= F_KW ? MAX_SIDE : MAX_KERNEL))
            return record_bad(reader, "a kernel or stride is out of range");
    if (!within(f[F_TOP], 0, f[F_KH] - 1) || !within(f[F_LEFT], 0, f[F_KW] - 1))
        return record_bad(reader, "padding is out of range");
    int64_t below = (f[F_HOUT] - 1) * f[F_SY] - f[F_TOP];
    int64_t right = (f[F_WOUT] - 1) * f[F_SX] - f[F_LEFT];
    if (below >= f[F_HIN] || right >= f[F_WIN])
        return record_bad(reader, "windows lie outside of the image");
    int64_t taps = f[F_KH] * f[F_KW];
    if ((pools ? values_out(f) : values_in(f)) > MAX_VALUES * 8 / taps)
        return record_bad(reader, "the window is too large for the image");
    return 1;
}

static int has_epilogue(int64_t kind) {
    return within(kind, LOOKUP, PRODUCT);
}

static int channels_fit(const Reader *reader) {
    int64_t cout = reader->record[F_COUT];
    int none = !has_epilogue(reader->record[F_KIND]);
    return weights_fit(reader, F_GAIN, cout, 4, none) &&
           weights_fit(reader, F_BIAS, cout, 4, none) &&
           weights_fit(reader, F_SLOPE1, cout, 4, 1) && weights_fit(reader, F_SLOPE2, cout, 4, 1);
}

static int lookup_fits(const Reader *reader) {
    const int64_t *f = reader->record;
    int64_t k = f[F_COUNT], r = f[F_LENGTH], taps = f[F_KH] * f[F_KW];
    if ((k != 16 && k != 32 && k != 64 && k != 256) || (r != 2 && r != 4 && r != 8))
        return record_bad(reader, "no such codebook");
    if (f[F_SPACES] != (f[F_CIN] + r - 1) / r || taps > MAX_SUM / 4 || f[F_KW] > 32)
        return record_bad(reader, "codebook and convolution do not fit together");
    int64_t bits = k == 16 ? 4 : k == 32 ? 5 : k == 64 ? 6 : 8;
    int64_t indices = f[F_SPACES] * taps * f[F_COUT];
    if (indices > MAX_BYTES)
        return record_bad(reader, "too many weights");
    int64_t offset = f[F_MULTIPLIERS];
    if (!weights_fit(reader, F_CODEWORDS, f[F_SPACES] * k * r, 1, 0) ||
        !weights_fit(reader, F_MULTIPLIERS, f[F_SPACES], 2, 0) ||
        !weights_fit(reader, F_INDICES, (indices * bits + 7) / 8, 1, 0))
        return 0;
    for (int64_t i = 0; i < f[F_SPACES]; i++) {
        int16_t m;
        memcpy(&m, reader->blob + offset + 2 * i, 2);
        if (m < 1)
            return record_bad(reader, "a multiplier is not positive");
    }
    return 1;
}

static int conv_fits(const Reader *reader) {
    const int64_t *f = reader->record;
    int64_t taps = f[F_KH] * f[F_KW];
    int integer = f[F_KIND] != FLOAT_CONV;
    int64_t groups = f[F_GROUPS];
    if (!within(groups, 1, f[F_CIN]) || f[F_CIN] % groups || f[F_COUT] % groups ||
        (f[F_KIND] == DEPTHWISE && (groups != f[F_CIN] || groups != f[F_COUT])) ||
        ((f[F_KIND] == LOOKUP || f[F_KIND] == DENSE) && groups != 1))
        return record_bad(reader, "groups do not fit the channels");
    int64_t products = f[F_CIN] / groups * taps;
    int64_t outputs = rounded_up((int32_t)f[F_COUT], CHANNEL_ROUND) + groups * BLOCK;
    if (products > MAX_BYTES / 4 / outputs || (integer && products > INT32_MAX / (255 * 127)))
        return record_bad(reader, "too many weights");
    if (!slot_fits(reader, F_INPUT, values_in(f), integer ? 1 : 4, 0) ||
        !slot_fits(reader, F_SECOND, values_out(f), 4, 1) ||
        !slot_fits(reader, F_REAL, values_out(f), 4, integer) ||
        !slot_fits(reader, F_CODED, values_out(f), 1, 1))
        return 0;
    if (f[F_KIND] == LOOKUP)
        return lookup_fits(reader);
    return weights_fit(reader, F_WEIGHTS, f[F_COUT] * products, integer ? 1 : 4, 0);
}

/* the other steps: what they read and write has the sizes that the record says */
static int plain_fits(const Reader *reader) {
    const int64_t *f = reader->record;
    int same_area = f[F_HIN] == f[F_HOUT] && f[F_WIN] == f[F_WOUT];
    int same = same_area && f[F_CIN] == f[F_COUT];
    int64_t kind = f[F_KIND];
    if (kind == PACK)
        return (same || record_bad(reader, "sizes differ")) &&
               slot_fits(reader, F_REAL, values_out(f), 4, 1) &&
               slot_fits(reader, F_CODED, values_out(f), 1, 1);
    if (!slot_fits(reader, F_INPUT, values_in(f), 4, 0))
        return 0;
    if (kind == QUANTISE)
        return (same || record_bad(reader, "sizes differ")) &&
               slot_fits(reader, F_CODED, values_out(f), 1, 0);
    if (!slot_fits(reader, F_REAL, values_out(f), 4, 0))
        return 0;
    if (kind == SUM || kind == PRODUCT)
        return (same || record_bad(reader, "sizes differ")) &&
               slot_fits(reader, F_SECOND, values_out(f), 4, 1);
    if (kind == LARGEST || kind == MEAN)
        return (f[F_CIN] == f[F_COUT] || record_bad(reader, "sizes differ")) && window_fits(reader);
    if (kind == JOIN)
        return (same_area && within(f[F_CHANNEL], 0, f[F_COUT] - f[F_CIN])) ||
               record_bad(reader, "a part lies outside of the whole");
    if (kind == RESHAPE)
        return f[F_CIN] * f[F_HIN] * f[F_WIN] == f[F_COUT] * f[F_HOUT] * f[F_WOUT] ||
               record_bad(reader, "sizes differ");
    return same || record_bad(reader, "sizes differ"); /* NORMALISE */
}

int record_fits(const Reader *reader) {
    int64_t kind = reader->record[F_KIND];
    if (!within(kind, 0, KINDS - 1))
        return record_bad(reader, "no such kind");
    for (int field = F_INPUT; field <= F_CODED; field++)
        if (!within(reader->record[field], -1, reader->slot_count - 1))
            return record_bad(reader, "there is no such slot");
    const char *names[MOST_LEVELS];
    if (!within(reader->record[F_LEVEL], -1, kernel_levels(names) - 1))
        return record_bad(reader, "there is no such instruction set");
    if (!sizes_fit(reader) || !weights_fit(reader, F_CONSTANTS, 6, 4, 0) || !channels_fit(reader))
        return 0;
    if (kind == LOOKUP || kind == DENSE || kind == DEPTHWISE || kind == FLOAT_CONV)
        return window_fits(reader) && conv_fits(reader);
    return plain_fits(reader);
}
