/* All that the kernels know about the compiler (gcc or clang), the architecture and the operating system.
 *
 * A kernel is plain C inside a target region:
 *
 *     BITNET_TARGET("avx2")
 *     BITNET_KERNEL void i2_panel_avx2(...) { _mm256_...; _mm256_zeroupper(); }
 *     BITNET_TARGET_END
 *
 * so that the extension is built at the ABI's floor, and only the functions between the two lines may hold
 * instructions of that set. */
#ifndef BITNET_TARGET_H
#define BITNET_TARGET_H

#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* BITNET_EMULATED: the tests compile the kernels over SIMDe, whose functions stand for the intrinsics, to run
 * instruction sets that the machine at hand lacks (tests/emulated). */
#if defined(BITNET_EMULATED)
#  define BITNET_X86 (BITNET_EMULATED == 86)
#  define BITNET_ARM (BITNET_EMULATED == 64)
#elif defined(__x86_64__)
#  define BITNET_X86 1
#  define BITNET_ARM 0
#  include <cpuid.h>
#  include <immintrin.h>
#elif defined(__aarch64__)
#  define BITNET_X86 0
#  define BITNET_ARM 1
#  include <arm_neon.h>
#  if defined(__linux__)
#    include <sys/auxv.h>
#  elif defined(__APPLE__)
#    include <sys/sysctl.h>
#  endif
#else
#  define BITNET_X86 0
#  define BITNET_ARM 0
#endif

/* What must hold whoever calls: checked in the debug build (BITNET_DEBUG=1, setup.py), else not even computed. */
#if defined(BITNET_DEBUG)
#  include <assert.h>
#  define BITNET_ASSERT(condition) assert(condition)
#  define BITNET_IS_DEBUG 1
#else
#  define BITNET_ASSERT(condition) ((void)0)
#  define BITNET_IS_DEBUG 0
#endif

/* Memory that nobody may touch, told to the address sanitizer where there is one. */
#if defined(__SANITIZE_ADDRESS__)
#  define BITNET_HAS_ASAN 1
#elif defined(__has_feature)
#  define BITNET_HAS_ASAN __has_feature(address_sanitizer)
#else
#  define BITNET_HAS_ASAN 0
#endif
#if BITNET_HAS_ASAN
void __asan_poison_memory_region(void const volatile *address, size_t length);
void __asan_unpoison_memory_region(void const volatile *address, size_t length);
#  define BITNET_POISON(address, length) __asan_poison_memory_region((address), (length))
#  define BITNET_UNPOISON(address, length) __asan_unpoison_memory_region((address), (length))
#else
#  define BITNET_POISON(address, length) ((void)(address), (void)(length))
#  define BITNET_UNPOISON(address, length) ((void)(address), (void)(length))
#endif

/* ---- target regions: clang and gcc spell them differently ---- */

#define BITNET_PRAGMA(text) _Pragma(#text)
#if defined(BITNET_EMULATED)
#  define BITNET_TARGET(features)
#  define BITNET_TARGET_END
#elif defined(__clang__)
#  define BITNET_TARGET(features) \
     BITNET_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#  define BITNET_TARGET_END BITNET_PRAGMA(clang attribute pop)
#else
#  define BITNET_TARGET(features) BITNET_PRAGMA(GCC push_options) BITNET_PRAGMA(GCC target(features))
#  define BITNET_TARGET_END BITNET_PRAGMA(GCC pop_options)
#endif

/* Helpers of a kernel must be inlined: out of line they would be an AVX function that is no kernel. */
#define BITNET_INLINE static inline __attribute__((always_inline))
#define BITNET_KERNEL static __attribute__((noinline))
#define BITNET_PREFETCH(address) __builtin_prefetch((address), 0, 3)
#define BITNET_PREFETCH_L2(address) __builtin_prefetch((address), 0, 2)
#define BITNET_PREFETCH_WRITE(address) __builtin_prefetch((address), 1, 3)
#define BITNET_ALIGN64 __attribute__((aligned(64)))
/* Before a loop that is not to be unrolled. */
#define BITNET_KEEP_LOOP BITNET_PRAGMA(GCC unroll 1)
/* The place of the highest bit of n, which is not 0. */
#define BITNET_LOG2(n) (63 - __builtin_clzll((unsigned long long)(n)))
#define BITNET_SQRT(x) __builtin_sqrtf(x)
#define BITNET_INFINITY __builtin_inff()
#define BITNET_ABS(x) __builtin_fabsf(x)
#define BITNET_ERF(x) __builtin_erff(x)
/* a * b + c, rounded once. */
#define BITNET_FMA(a, b, c) __builtin_fmaf(a, b, c)
/* A type of 16 numbers of 4 bytes, wherever in memory. */
#define BITNET_VECTOR __attribute__((vector_size(64), aligned(4), may_alias))
#define BITNET_VECTOR_16 __attribute__((vector_size(16)))
/* Integers of a vector as floats, of a vector type. */
#define OPS_CONVERT(v, type) __builtin_convertvector(v, type)
/* The lanes of such a vector in another order. */
#if defined(__clang__)
#  define OPS_SHUFFLE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#  define OPS_SHUFFLE(v, ...) \
     __builtin_shuffle(v, (int32_t __attribute__((vector_size(64)))){__VA_ARGS__})
#endif
#if defined(BITNET_EMULATED)
#  define BITNET_DPBUSD_512(sum, unsigned_bytes, bytes) (sum = _mm512_dpbusd_epi32(sum, unsigned_bytes, bytes))
#else
/* gcc 12 moves the sums of the intrinsic from register to register, and half of 16 to memory. */
#  define BITNET_DPBUSD_512(sum, unsigned_bytes, bytes) \
      __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(bytes))
#endif
/* AVX-VNNI, which gcc knows since 11 and clang since 12; older ones leave its kernels out of the tables. */
#if BITNET_X86 && (defined(BITNET_EMULATED) || (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11))
#  define BITNET_HAS_AVXVNNI 1
#  define BITNET_AVXVNNI_ROW(...) __VA_ARGS__,
#  define BITNET_DPBUSD_AVX(sum, unsigned_bytes, bytes) _mm256_dpbusd_avx_epi32(sum, unsigned_bytes, bytes)
#else
#  define BITNET_HAS_AVXVNNI 0
#  define BITNET_AVXVNNI_ROW(...)
#endif
/* A sum that stays in its x86 register, and is added to where that is written: gcc 12 reorders a loop's additions until it
 * has no registers left, and copies sums about. */
#if defined(BITNET_EMULATED)
#  define BITNET_KEEP_SUM(value) ((void)0)
#else
#  define BITNET_KEEP_SUM(value) __asm__ volatile("" : "+x"(value))
#endif
/* A value in an x86 vector register about which the compiler then knows nothing. */
#define BITNET_OPAQUE_VECTOR(value) __asm__ volatile("" : "+v"(value))

#if BITNET_X86 && !defined(BITNET_EMULATED)
#  define BITNET_PAUSE() __builtin_ia32_pause()
#elif BITNET_ARM && !defined(BITNET_EMULATED)
#  define BITNET_PAUSE() __asm__ volatile("isb")
#else
#  define BITNET_PAUSE() ((void)0)
#endif

/* Whether pages that were given back with MADV_DONTNEED come again as zeros. */
#if defined(__linux__)
#  define BITNET_DONTNEED_ZEROES 1
#else
#  define BITNET_DONTNEED_ZEROES 0
#endif

/* Of Linux, and read in a quarter of the time of the exact one. */
#if defined(CLOCK_MONOTONIC_COARSE)
#  define BITNET_COARSE_CLOCK CLOCK_MONOTONIC_COARSE
#else
#  define BITNET_COARSE_CLOCK CLOCK_MONOTONIC
#endif

/* ---- questions about the machine ---- */

/* CPUs that this thread may run on. */
static inline int bitnet_allowed_cpus(void) {
#ifdef CPU_COUNT
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
    /* No affinity here, or more CPUs than the set has places for. */
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

/* Keep this thread on the CPU with this number among those that it may run on, counted round and round; 0 where that is not
 * possible. */
static inline int bitnet_stay_on_cpu(int number) {
#ifdef CPU_COUNT
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
    number %= CPU_COUNT(&allowed);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || number-- > 0) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        return sched_setaffinity(0, sizeof one, &one) == 0;
    }
#endif
    (void)number;
    return 0;
}

#if BITNET_X86 && !defined(BITNET_EMULATED)

static inline void bitnet_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t r[4]) {
    __cpuid_count(leaf, subleaf, r[0], r[1], r[2], r[3]);
}

static inline uint64_t bitnet_xgetbv(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

#elif BITNET_ARM && !defined(BITNET_EMULATED)

static inline int bitnet_has_dot_product(void) {
#  if defined(__linux__)
    return (getauxval(AT_HWCAP) & (1ul << 20)) != 0; /* HWCAP_ASIMDDP of asm/hwcap.h */
#  elif defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, NULL, 0) == 0 && has;
#  else
    return 0;
#  endif
}

#endif

#endif
