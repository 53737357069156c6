/* SIMDe under the intrinsics' own names, and plain C for those that its version 0.7.4 (Debian 12) lacks. A newer
 * SIMDe defines them as macros, and is then asked instead. */
#ifndef BITNET_EMULATED_SIMDE_H
#define BITNET_EMULATED_SIMDE_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <math.h>
#include <stdint.h>
#include <string.h>

#if BITNET_EMULATED == 86
#  include <simde/x86/avx2.h>
#  include <simde/x86/avx512.h>

/* Macros, as a newer SIMDe has the types. */
#  define __mmask64 uint64_t
#  define __mmask16 uint16_t

#  ifndef _mm256_zeroupper
#    define _mm256_zeroupper() ((void)0)
#  endif

/* AVX-VNNI is another encoding of what AVX-512 has. */
#  ifndef _mm256_dpbusd_avx_epi32
#    define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32
#  endif

/* The lanes of a vector of floats or integers, and back. */
#  define LANES(type, name, from) \
      type name[sizeof(from) / sizeof(type)]; \
      memcpy(name, &(from), sizeof(from))
#  define VECTOR(type, lanes) \
      type vector; \
      memcpy(&vector, lanes, sizeof(vector)); \
      return vector

#  ifndef _mm512_cvtps_pd
static __m512d _mm512_cvtps_pd(__m256 a) {
    LANES(float, in, a);
    double out[8];
    for (int i = 0; i < 8; i++) out[i] = in[i];
    VECTOR(__m512d, out);
}
#  endif

#  ifndef _mm512_extractf32x8_ps
static __m256 _mm512_extractf32x8_ps(__m512 a, int half) {
    LANES(float, in, a);
    VECTOR(__m256, in + 8 * half);
}
#  endif

#  ifndef _mm512_cvtps_epi32
static __m512i _mm512_cvtps_epi32(__m512 a) {
    LANES(float, in, a);
    int32_t out[16];
    for (int i = 0; i < 16; i++) out[i] = in[i] >= -0x1p31f && in[i] < 0x1p31f ? (int32_t)nearbyintf(in[i]) : INT32_MIN;
    VECTOR(__m512i, out);
}
#  endif

#  ifndef _mm512_cvtepi32_epi8
static __m128i _mm512_cvtepi32_epi8(__m512i a) {
    LANES(uint32_t, in, a);
    uint8_t out[16];
    for (int i = 0; i < 16; i++) out[i] = (uint8_t)in[i];
    VECTOR(__m128i, out);
}
#  endif

#  ifndef _mm512_srai_epi32
static __m512i _mm512_srai_epi32(__m512i a, unsigned shift) {
    LANES(int32_t, lanes, a);
    for (int i = 0; i < 16; i++) lanes[i] >>= shift > 31 ? 31 : shift;
    VECTOR(__m512i, lanes);
}
#  endif

#  ifndef _mm512_reduce_max_epu32
static uint32_t _mm512_reduce_max_epu32(__m512i a) {
    LANES(uint32_t, in, a);
    uint32_t max = 0;
    for (int i = 0; i < 16; i++) max = in[i] > max ? in[i] : max;
    return max;
}
#  endif

#  ifndef _mm512_reduce_add_epi32
static int32_t _mm512_reduce_add_epi32(__m512i a) {
    LANES(uint32_t, in, a);
    uint32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += in[i];
    return (int32_t)sum;
}
#  endif

#  ifndef _mm512_mask_loadu_epi8
static __m512i _mm512_mask_loadu_epi8(__m512i before, uint64_t mask, const void *from) {
    LANES(uint8_t, lanes, before);
    for (int i = 0; i < 64; i++)
        if (mask >> i & 1) lanes[i] = ((const uint8_t *)from)[i];
    VECTOR(__m512i, lanes);
}
#  endif

#  ifndef _mm512_maskz_loadu_epi8
#    define _mm512_maskz_loadu_epi8(mask, from) _mm512_mask_loadu_epi8(_mm512_setzero_si512(), mask, from)
#  endif

#  ifndef _mm512_maskz_loadu_ps
static __m512 _mm512_maskz_loadu_ps(uint16_t mask, const void *from) {
    float lanes[16] = {0};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) lanes[i] = ((const float *)from)[i];
    VECTOR(__m512, lanes);
}
#  endif

#  ifndef _mm512_mask_storeu_epi32
static void _mm512_mask_storeu_epi32(void *to, uint16_t mask, __m512i a) {
    LANES(int32_t, lanes, a);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) ((int32_t *)to)[i] = lanes[i];
}
#  endif

#  ifndef _mm512_cvtepi16_epi32
static __m512i _mm512_cvtepi16_epi32(__m256i a) {
    LANES(int16_t, in, a);
    int32_t out[16];
    for (int i = 0; i < 16; i++) out[i] = in[i];
    VECTOR(__m512i, out);
}
#  endif

#  ifndef _mm512_cvtepu8_epi16
static __m512i _mm512_cvtepu8_epi16(__m256i a) {
    LANES(uint8_t, in, a);
    uint16_t out[32];
    for (int i = 0; i < 32; i++) out[i] = in[i];
    VECTOR(__m512i, out);
}
#  endif

#  ifndef _mm512_cvtepi32_ps
static __m512 _mm512_cvtepi32_ps(__m512i a) {
    LANES(int32_t, in, a);
    float out[16];
    for (int i = 0; i < 16; i++) out[i] = (float)in[i];
    VECTOR(__m512, out);
}
#  endif

#  ifndef _mm512_shuffle_epi32
static __m512i _mm512_shuffle_epi32(__m512i a, int order) {
    LANES(uint32_t, in, a);
    uint32_t out[16];
    for (int i = 0; i < 16; i++) out[i] = in[i / 4 * 4 + (order >> 2 * (i % 4) & 3)];
    VECTOR(__m512i, out);
}
#  endif

#  ifndef _mm512_reduce_add_epi64
static int64_t _mm512_reduce_add_epi64(__m512i a) {
    LANES(uint64_t, in, a);
    uint64_t sum = 0;
    for (int i = 0; i < 8; i++) sum += in[i];
    return (int64_t)sum;
}
#  endif

#elif BITNET_EMULATED == 64
#  include <simde/arm/neon.h>

#  ifndef vcvtnq_s32_f32
static int32x4_t vcvtnq_s32_f32(float32x4_t a) {
    float in[4];
    int32_t out[4];
    vst1q_f32(in, a);
    for (int i = 0; i < 4; i++) {
        if (in[i] != in[i])
            out[i] = 0;
        else
            out[i] = in[i] < -0x1p31f ? INT32_MIN : in[i] >= 0x1p31f ? INT32_MAX : (int32_t)nearbyintf(in[i]);
    }
    return vld1q_s32(out);
}
#  endif

#  ifndef vcvt_high_f64_f32
static float64x2_t vcvt_high_f64_f32(float32x4_t a) {
    float in[4];
    vst1q_f32(in, a);
    const double out[2] = {in[2], in[3]};
    return vld1q_f64(out);
}
#  endif

#else
#  error "BITNET_EMULATED is 86 (x86) or 64 (Arm)"
#endif

#endif
