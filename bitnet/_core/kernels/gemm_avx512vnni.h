/* Many tokens on AVX512-VNNI. Layout and contract: gemm_kernel.h.
 *
 *   vpdpbusd   u8 codes x i8 inputs, four neighbours summed into the row's i32 lane
 *   vpermw     looks 32 rows' triples up in a table of 32 i16 sums; it reads the low five bits of each index
 *   vpaddw     adds them up
 *   vpmaddubsw builds the tables: (input + 128) x weight, pairs summed to i16; vpshufb brings the inputs to all words
 *
 * On Zen 4 vpermw and vpaddw run beside vpdpbusd: registers only, 232 G multiply-accumulates a second of vpdpbusd alone,
 * 272 of the other two alone, 337 of both together. gemm_expand_avx512vnni.h says how indices lie.
 *
 * Related: T-MAC (arXiv:2407.00088) and bitnet.cpp look sums of pairs and triples up by byte shuffles on AVX2. */
#ifndef BITNET_GEMM_AVX512VNNI_H
#define BITNET_GEMM_AVX512VNNI_H

#include "gemm_kernel.h"

#if BITNET_X86 && BITNET_HAS_ASM
BITNET_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

/* Weights of the 27 triples as bytes: (d0, d1), and (d2, -d0 - d1 - d2), which takes away the 128 that inputs come with:
 * its input is 128. */
static const int8_t GEMM_FIRST_TWO[64] BITNET_ALIGN64 = {
    -1, -1, 0, -1, 1, -1, -1, 0, 0, 0, 1, 0, -1, 1, 0, 1, 1, 1, -1, -1, 0, -1, 1, -1,
    -1, 0, 0, 0, 1, 0, -1, 1, 0, 1, 1, 1, -1, -1, 0, -1, 1, -1, -1, 0, 0, 0, 1, 0,
    -1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
};
static const int8_t GEMM_THIRD[64] BITNET_ALIGN64 = {
    -1, 3, -1, 2, -1, 1, -1, 2, -1, 1, -1, 0, -1, 1, -1, 0, -1, -1, 0, 2, 0, 1, 0, 0,
    0, 1, 0, 0, 0, -1, 0, 0, 0, -1, 0, -2, 1, 1, 1, 0, 1, -1, 1, 0, 1, -1, 1, -2,
    1, -1, 1, -2, 1, -3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
};

BITNET_KERNEL void gemm_prepare_avx512vnni(const int8_t *x, ptrdiff_t x_stride, ptrdiff_t steps, uint8_t *inputs,
                                           int32_t *sums) {
    const __m512i first_i8x64 = _mm512_load_si512(GEMM_FIRST_TWO), third_i8x64 = _mm512_load_si512(GEMM_THIRD);
    const __m512i flip_u8x64 = _mm512_set1_epi8((char)0x80);
    const __m512i inputs_u8x64 = _mm512_broadcast_i32x4(_mm_setr_epi32(0, -1, -1, -1));
    uint8_t *dots = inputs + steps * GEMM_TABLE_BYTES;
    int32_t sums_i32x8[8];
    for (ptrdiff_t step = 0; step < steps; step++, inputs += GEMM_TABLE_BYTES)
        for (int t = 0; t < GEMM_TOKENS; t++) {
            const int8_t *at = x + t * x_stride + step * GEMM_COLS;
            memcpy(dots + step * GEMM_INPUT_BYTES + 4 * t, at, 4);
            memcpy(dots + step * GEMM_INPUT_BYTES + 16 + 4 * t, at + 4, 4);
            /* Bytes 4 to 15 of each lane: groups 2, 3 and 4, plus 128; byte 0: 128, in place of one of group 1. */
            const __m512i all_i8x64 = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(at + 4)));
            const __m512i all_u8x64 = _mm512_ternarylogic_epi32(all_i8x64, inputs_u8x64, flip_u8x64, 0x6a); /* a & b ^ c */
            for (int j = 0; j < 4; j++) {
                const __m512i two_u8x64 = _mm512_shuffle_epi8(all_u8x64, _mm512_set1_epi16((int16_t)(0x0804 + 0x0101 * j)));
                const __m512i one_u8x64 = _mm512_shuffle_epi8(all_u8x64, _mm512_set1_epi16((int16_t)(0x000c + j)));
                const __m512i two_i16x32 = _mm512_maddubs_epi16(two_u8x64, first_i8x64);
                const __m512i one_i16x32 = _mm512_maddubs_epi16(one_u8x64, third_i8x64);
                _mm512_store_si512(inputs + 256 * j + 64 * t, _mm512_add_epi16(two_i16x32, one_i16x32));
            }
        }
    __m256i all_i32x8 = _mm256_setzero_si256();
    for (ptrdiff_t step = 0; step < steps; step++)
        all_i32x8 = _mm256_dpbusd_epi32(all_i32x8, _mm256_set1_epi8(1),
                                        _mm256_load_si256((const __m256i *)(dots + step * GEMM_INPUT_BYTES)));
    _mm256_storeu_si256((__m256i *)sums_i32x8, all_i32x8);
    for (int t = 0; t < GEMM_TOKENS; t++) sums[t] += sums_i32x8[t] + sums_i32x8[4 + t];
    _mm256_zeroupper();
}

/* Registers: zmm8 + 4 t + p has the i32 sums of token t and panel p, zmm24 + 2 t + q the i16 sums of token t and the
 * panels 2 q and 2 q + 1. In assembly, because gcc 12 keeps half of these 24 in memory. */
#define GEMM_DOT(input, t, a, b, c, d)                                                                 \
    "vpbroadcastd " input "(%[d]), %%zmm" t "\n\tvpdpbusd %%zmm" t ", %%zmm0, %%zmm" a                  \
    "\n\tvpdpbusd %%zmm" t ", %%zmm1, %%zmm" b "\n\tvpdpbusd %%zmm" t ", %%zmm2, %%zmm" c              \
    "\n\tvpdpbusd %%zmm" t ", %%zmm3, %%zmm" d "\n\t"
#define GEMM_DOTS(w0, w1, w2, w3, x0, x1, x2, x3)                                                      \
    "vmovdqa64 " w0 "(%[w]), %%zmm0\n\tvmovdqa64 " w1 "(%[w]), %%zmm1\n\t"                            \
    "vmovdqa64 " w2 "(%[w]), %%zmm2\n\tvmovdqa64 " w3 "(%[w]), %%zmm3\n\t"                            \
    GEMM_DOT(x0, "4", "8", "9", "10", "11") GEMM_DOT(x1, "5", "12", "13", "14", "15")                  \
    GEMM_DOT(x2, "6", "16", "17", "18", "19") GEMM_DOT(x3, "7", "20", "21", "22", "23")
#define GEMM_LOOK_UP(table, t, u, v, a, b)                                                             \
    "vmovdqa64 " table "(%[x]), %%zmm" t "\n\tvpermw %%zmm" t ", %%zmm0, %%zmm" u                      \
    "\n\tvpermw %%zmm" t ", %%zmm1, %%zmm" v "\n\tvpaddw %%zmm" u ", %%zmm" a ", %%zmm" a             \
    "\n\tvpaddw %%zmm" v ", %%zmm" b ", %%zmm" b "\n\t"
#define GEMM_LOOK_UPS(x0, x1, x2, x3)                                                                  \
    GEMM_LOOK_UP(x0, "2", "4", "5", "24", "25") GEMM_LOOK_UP(x1, "3", "6", "7", "26", "27")            \
    GEMM_LOOK_UP(x2, "2", "4", "5", "28", "29") GEMM_LOOK_UP(x3, "3", "6", "7", "30", "31")
#define GEMM_TRIPLES(w0, w1) "vmovdqa64 " w0 "(%[w]), %%zmm0\n\tvmovdqa64 " w1 "(%[w]), %%zmm1\n\t"
#define GEMM_NEXT_TRIPLES "vpsrlw $8, %%zmm0, %%zmm0\n\tvpsrlw $8, %%zmm1, %%zmm1\n\t"
/* The halves of the i16 sums, added to the i32 sums, and to those from before. */
#define GEMM_WIDEN(from, low, high)                                                                    \
    "vpslld $16, %%zmm" from ", %%zmm" low "\n\tvpsrad $16, %%zmm" low ", %%zmm" low                   \
    "\n\tvpsrad $16, %%zmm" from ", %%zmm" high "\n\t"
#define GEMM_ADD(at, narrow, sum)                                                                      \
    "vpaddd %%zmm" narrow ", %%zmm" sum ", %%zmm" sum "\n\tvpaddd " at "(%%rax), %%zmm" sum           \
    ", %%zmm" sum "\n\tvmovdqu32 %%zmm" sum ", " at "(%%rcx)\n\t"
#define GEMM_OUT(t, a, b, s0, s1, s2, s3)                                                              \
    "movq " t "(%[before]), %%rax\n\tmovq " t "(%[y]), %%rcx\n\t"                                      \
    GEMM_WIDEN(a, "0", "1") GEMM_WIDEN(b, "2", "3") GEMM_ADD("0", "0", s0) GEMM_ADD("64", "1", s1)     \
    GEMM_ADD("128", "2", s2) GEMM_ADD("192", "3", s3)
/* They come from the third-level cache. */
#define GEMM_FETCH(t)                                                                                  \
    "movq " t "(%[before]), %%rax\n\tprefetcht0 (%%rax)\n\tprefetcht0 64(%%rax)\n\t"                 \
    "prefetcht0 128(%%rax)\n\tprefetcht0 192(%%rax)\n\t"
#define GEMM_CLEAR(z) "vpxord %%zmm" z ", %%zmm" z ", %%zmm" z "\n\t"
#define GEMM_CLEAR_4(a, b, c, d) GEMM_CLEAR(a) GEMM_CLEAR(b) GEMM_CLEAR(c) GEMM_CLEAR(d)

BITNET_KERNEL void gemm_multiply_avx512vnni(const uint8_t *weights, const uint8_t *inputs, ptrdiff_t steps,
                                            int32_t *const *before, int32_t *const *y, const uint8_t *next,
                                            ptrdiff_t next_stride) {
    BITNET_ASSERT((uintptr_t)weights % 64 == 0 && (uintptr_t)inputs % 64 == 0 && steps > 0 && steps <= GEMM_STEPS);
    const uint8_t *dots = inputs + steps * GEMM_TABLE_BYTES;
    BITNET_ASM(
        GEMM_FETCH("0") GEMM_FETCH("8") GEMM_FETCH("16") GEMM_FETCH("24")
        GEMM_CLEAR_4("8", "9", "10", "11") GEMM_CLEAR_4("12", "13", "14", "15") GEMM_CLEAR_4("16", "17", "18", "19")
        GEMM_CLEAR_4("20", "21", "22", "23") GEMM_CLEAR_4("24", "25", "26", "27") GEMM_CLEAR_4("28", "29", "30", "31")
        ".p2align 5\n"
        "1:\n\t"
        "prefetcht1 (%[next])\n\tprefetcht1 (%[next],%[stride])\n\t"
        GEMM_DOTS("0", "64", "128", "192", "0", "4", "8", "12")
        GEMM_TRIPLES("512", "576")
        GEMM_LOOK_UPS("0", "64", "128", "192")
        GEMM_NEXT_TRIPLES
        GEMM_LOOK_UPS("256", "320", "384", "448")
        "addq $64, %[next]\n\t"
        GEMM_DOTS("256", "320", "384", "448", "16", "20", "24", "28")
        GEMM_TRIPLES("640", "704")
        GEMM_LOOK_UPS("512", "576", "640", "704")
        GEMM_NEXT_TRIPLES
        GEMM_LOOK_UPS("768", "832", "896", "960")
        "addq $768, %[w]\n\taddq $1024, %[x]\n\taddq $32, %[d]\n\tdecq %[n]\n\tjnz 1b\n\t"
        GEMM_OUT("0", "24", "25", "8", "9", "10", "11") GEMM_OUT("8", "26", "27", "12", "13", "14", "15")
        GEMM_OUT("16", "28", "29", "16", "17", "18", "19") GEMM_OUT("24", "30", "31", "20", "21", "22", "23")
        "vzeroupper"
        : [w] "+r"(weights), [x] "+r"(inputs), [d] "+r"(dots), [n] "+r"(steps), [next] "+r"(next)
        : [stride] "r"(next_stride), [before] "r"(before), [y] "r"(y)
        : "memory", "cc", "rax", "rcx", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10",
          "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22",
          "zmm23", "zmm24", "zmm25", "zmm26", "zmm27", "zmm28", "zmm29", "zmm30", "zmm31");
}

BITNET_KERNEL void gemm_finish_avx512vnni(void *y, ptrdiff_t rows, int32_t sum, const float *scales, ptrdiff_t step,
                                          float factor) {
    const __m512i sum_i32x16 = _mm512_set1_epi32(sum);
    const __m512 factor_f32x16 = _mm512_set1_ps(factor);
    for (ptrdiff_t r = 0; r < rows; r += 16) {
        char *at = (char *)y + 4 * r;
        const __m512i exact_i32x16 = _mm512_sub_epi32(_mm512_loadu_si512(at), sum_i32x16);
        if (scales == NULL) {
            _mm512_storeu_si512(at, exact_i32x16);
        } else {
            const __m512 scale_f32x16 = step ? _mm512_loadu_ps(scales + r) : _mm512_set1_ps(scales[0]);
            _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_cvtepi32_ps(exact_i32x16),
                                               _mm512_mul_ps(scale_f32x16, factor_f32x16)));
        }
    }
    _mm256_zeroupper();
}

#undef GEMM_DOT
#undef GEMM_DOTS
#undef GEMM_LOOK_UP
#undef GEMM_LOOK_UPS
#undef GEMM_TRIPLES
#undef GEMM_NEXT_TRIPLES
#undef GEMM_WIDEN
#undef GEMM_ADD
#undef GEMM_OUT
#undef GEMM_FETCH
#undef GEMM_CLEAR
#undef GEMM_CLEAR_4

BITNET_TARGET_END
#endif

#endif
