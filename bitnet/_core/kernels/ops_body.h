/* The operations of ops_kernel.h, for the instruction set whose header includes this file: it defines OPS(name),
 * OPS_HALVES, OPS_BRAINS and OPS_BYTES, which take 16 float16, bfloat16 or int8 as floats, OPS_TO_HALVES, which rounds
 * 16 floats to float16, OPS_FUSE, which gives a * b + c of 16 floats, rounded once, OPS_RAISE,
 * which makes the larger of each lane of two, a NaN of the second not counting, OPS_TILE, how many vectors of a row of
 * the cache go side by side, and OPS(tile), which multiplies them (ops_attend.h); OPS_DOTS and OPS(dots) are the same for
 * an int8 cache (ops_attend_int8.h). Not guarded: it is included once for each. */

typedef float OPS(f32x16) BITNET_VECTOR;
typedef int32_t OPS(i32x16) BITNET_VECTOR;
typedef uint32_t OPS(u32x16) BITNET_VECTOR;
typedef int8_t OPS(i8x16) BITNET_VECTOR_16;

#define f32x16 OPS(f32x16)
#define i32x16 OPS(i32x16)
#define u32x16 OPS(u32x16)
#define i8x16 OPS(i8x16)

/* 16 numbers as stored, from the i-th on. */
BITNET_INLINE void OPS(take)(const int dtype, const void *row, ptrdiff_t i, f32x16 *to) {
    if (dtype == OPS_FLOAT32) {
        *to = *(const f32x16 *)((const float *)row + i);
    } else if (dtype == OPS_FLOAT16) {
        OPS_HALVES((const uint16_t *)row + i, to);
    } else if (dtype == OPS_BFLOAT16) {
        OPS_BRAINS((const uint16_t *)row + i, to);
    } else {
        OPS_BYTES((const int8_t *)row + i, to);
    }
}

/* The i-th number as stored. */
BITNET_INLINE float OPS(take_one)(const int dtype, const void *row, ptrdiff_t i) {
    if (dtype == OPS_FLOAT32) return ((const float *)row)[i];
    if (dtype == OPS_FLOAT16) return ops_half_to_float(((const uint16_t *)row)[i]);
    if (dtype == OPS_BFLOAT16) return ops_float_of((uint32_t)((const uint16_t *)row)[i] << 16);
    return (float)((const int8_t *)row)[i];
}

/* Lanes added in a fixed tree. */
BITNET_INLINE float OPS(total)(const f32x16 *lanes) {
    f32x16 s = *lanes;
    s += OPS_SHUFFLE(s, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    s += OPS_SHUFFLE(s, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3);
    s += OPS_SHUFFLE(s, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1);
    return s[0] + s[1];
}

BITNET_INLINE float OPS(dot_of)(const int dtype, const void *row, const float *x, ptrdiff_t n) {
    f32x16 lanes[2] = {{0}, {0}};
    ptrdiff_t i = 0;
    for (; i + 32 <= n; i += 32) {
        BITNET_PREFETCH((const char *)row + i * (dtype == OPS_INT8 ? 1 : dtype == OPS_FLOAT32 ? 4 : 2) + 2048);
        for (int k = 0; k < 2; k++) {
            f32x16 w;
            OPS(take)(dtype, row, i + 16 * k, &w);
            lanes[k] += w * *(const f32x16 *)(x + i + 16 * k);
        }
    }
    lanes[0] += lanes[1];
    float rest = 0;
    for (; i < n; i++) rest += OPS(take_one)(dtype, row, i) * x[i];
    return OPS(total)(&lanes[0]) + rest;
}

/* e^x, for x up to 88; 0 below -87. Cody and Waite's reduction to [-ln 2 / 2, ln 2 / 2], then a polynomial of degree
 * 6 (Taylor; its error there is below 1.3e-7). */
BITNET_INLINE void OPS(exp)(f32x16 *x_to) {
    static const float terms[] = {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f};
    const f32x16 x = *x_to, zero = {0};
    const i32x16 is_low = x < -87.0f;
    f32x16 whole, r, p = zero + terms[0];
    /* Adding and taking away 1.5 * 2^23 rounds to an integer. */
    OPS_FUSE(x, zero + 1.44269504f, zero + 12582912.0f, &whole);
    const u32x16 bits = (u32x16)whole;
    whole -= 12582912.0f;
    OPS_FUSE(whole, zero - 0.693359375f, x, &r);
    OPS_FUSE(whole, zero + 2.12194440e-4f, r, &r);
    for (int i = 1; i < 7; i++) OPS_FUSE(p, r, zero + terms[i], &p);
    /* The low bits of `bits` are the integer; as an exponent they scale p. */
    const u32x16 scaled = (u32x16)p + (bits << 23);
    *x_to = (f32x16)((i32x16)scaled & ~is_low);
}

BITNET_INLINE float OPS(exp_one)(float x) {
    f32x16 lanes = (f32x16){0} + x;
    OPS(exp)(&lanes);
    return lanes[0];
}

BITNET_KERNEL void OPS(rms_norm)(const float *x, const float *gain, float eps, ptrdiff_t n, float *y) {
    const float scale = 1.0f / BITNET_SQRT(OPS(dot_of)(OPS_FLOAT32, x, x, n) / (float)n + eps);
    ptrdiff_t i = 0;
    for (; i + 16 <= n; i += 16)
        *(f32x16 *)(y + i) = *(const f32x16 *)(x + i) * scale * *(const f32x16 *)(gain + i);
    for (; i < n; i++) y[i] = x[i] * scale * gain[i];
    OPS_END();
}

BITNET_KERNEL void OPS(rope)(float *x, const float *cosine, const float *sine, ptrdiff_t half) {
    ptrdiff_t i = 0;
    for (; i + 16 <= half; i += 16) {
        const f32x16 a = *(f32x16 *)(x + i), b = *(f32x16 *)(x + half + i);
        const f32x16 c = *(const f32x16 *)(cosine + i), s = *(const f32x16 *)(sine + i);
        *(f32x16 *)(x + i) = a * c - b * s;
        *(f32x16 *)(x + half + i) = b * c + a * s;
    }
    for (; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cosine[i] - b * sine[i];
        x[half + i] = b * cosine[i] + a * sine[i];
    }
    OPS_END();
}

/* 16 values of a gate's function. GELU by the error function has no vector form here and goes one by one. */
BITNET_INLINE void OPS(activate)(const int function, f32x16 *x_to) {
    f32x16 x = *x_to;
    if (function == OPS_RELU2) {
        x = (f32x16)((i32x16)x & ~(x <= 0.0f)); /* NaN stays */
        *x_to = x * x;
    } else if (function == OPS_GELU) {
        for (int i = 0; i < 16; i++) x[i] = 0.5f * x[i] * (1.0f + BITNET_ERF(x[i] * 0.70710678f));
        *x_to = x;
    } else {
        /* x * sigmoid(z): of x itself, or of twice the argument of the tanh. A power beyond e^87 is 1 / sigmoid = inf. */
        f32x16 z = x;
        if (function == OPS_GELU_TANH) z = (x + x * x * x * 0.044715f) * 1.59576912f;
        f32x16 power = -z;
        const i32x16 is_high = power > 87.0f;
        const f32x16 highest = (f32x16){0} + 87.0f;
        power = (f32x16)(((i32x16)highest & is_high) | ((i32x16)power & ~is_high));
        OPS(exp)(&power);
        *x_to = x / (power + 1.0f);
    }
}

BITNET_INLINE void OPS(gate_of)(const int function, const float *gate, const float *up, ptrdiff_t n, float *y) {
    ptrdiff_t i = 0;
    for (; i + 16 <= n; i += 16) {
        f32x16 x = *(const f32x16 *)(gate + i);
        OPS(activate)(function, &x);
        *(f32x16 *)(y + i) = x * *(const f32x16 *)(up + i);
    }
    if (i < n) {
        f32x16 x = {0};
        memcpy(&x, gate + i, (size_t)(n - i) * sizeof(float));
        OPS(activate)(function, &x);
        for (ptrdiff_t k = 0; i + k < n; k++) y[i + k] = x[k] * up[i + k];
    }
}

BITNET_KERNEL void OPS(gate)(int function, const float *gate, const float *up, ptrdiff_t n, float *y) {
    switch (function) {
    case OPS_RELU2: OPS(gate_of)(OPS_RELU2, gate, up, n, y); break;
    case OPS_SILU: OPS(gate_of)(OPS_SILU, gate, up, n, y); break;
    case OPS_GELU: OPS(gate_of)(OPS_GELU, gate, up, n, y); break;
    default: OPS(gate_of)(OPS_GELU_TANH, gate, up, n, y); break;
    }
    OPS_END();
}

BITNET_KERNEL void OPS(add)(const float *x, ptrdiff_t n, float *y) {
    ptrdiff_t i = 0;
    for (; i + 16 <= n; i += 16) *(f32x16 *)(y + i) += *(const f32x16 *)(x + i);
    for (; i < n; i++) y[i] += x[i];
    OPS_END();
}

BITNET_KERNEL float OPS(dot)(int dtype, const void *row, const float *x, ptrdiff_t n) {
    float sum;
    switch (dtype) {
    case OPS_FLOAT32: sum = OPS(dot_of)(OPS_FLOAT32, row, x, n); break;
    case OPS_FLOAT16: sum = OPS(dot_of)(OPS_FLOAT16, row, x, n); break;
    case OPS_BFLOAT16: sum = OPS(dot_of)(OPS_BFLOAT16, row, x, n); break;
    default: sum = OPS(dot_of)(OPS_INT8, row, x, n); break;
    }
    OPS_END();
    return sum;
}

BITNET_INLINE void OPS(load_of)(const int dtype, const void *row, ptrdiff_t n, float *y) {
    ptrdiff_t i = 0;
    for (; i + 16 <= n; i += 16) {
        f32x16 x;
        OPS(take)(dtype, row, i, &x);
        *(f32x16 *)(y + i) = x;
    }
    for (; i < n; i++) y[i] = OPS(take_one)(dtype, row, i);
}

BITNET_KERNEL void OPS(load)(int dtype, const void *row, ptrdiff_t n, float *y) {
    switch (dtype) {
    case OPS_FLOAT32: OPS(load_of)(OPS_FLOAT32, row, n, y); break;
    case OPS_FLOAT16: OPS(load_of)(OPS_FLOAT16, row, n, y); break;
    case OPS_BFLOAT16: OPS(load_of)(OPS_BFLOAT16, row, n, y); break;
    default: OPS(load_of)(OPS_INT8, row, n, y); break;
    }
    OPS_END();
}

BITNET_INLINE void OPS(store_of)(int dtype, const float *x, ptrdiff_t n, void *row) {
    if (dtype == OPS_FLOAT32) {
        memcpy(row, x, (size_t)n * sizeof(float));
        return;
    }
    ptrdiff_t i = 0;
    for (; i + 16 <= n; i += 16) OPS_TO_HALVES(x + i, (uint16_t *)row + i);
    for (; i < n; i++) ((uint16_t *)row)[i] = ops_float_to_half(x[i]);
}

BITNET_KERNEL void OPS(store)(int dtype, const float *x, ptrdiff_t n, void *row) {
    OPS(store_of)(dtype, x, n, row);
    OPS_END();
}

#include "ops_attend.h"
#include "ops_floats.h"

#undef f32x16
#undef i32x16
#undef u32x16
#undef OPS_FUSE
#undef OPS_RAISE
#undef i8x16
#undef OPS_DOTS
#undef OPS_BIAS
#undef OPS
#undef OPS_HALVES
#undef OPS_TO_HALVES
#undef OPS_TILE
#undef OPS_BRAINS
#undef OPS_BYTES
#undef OPS_END
