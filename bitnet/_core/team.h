/* A team of threads that waits close to the work. Included by threads.pyx only.
 *
 * A job is a function and a number of units; members claim units one after the other. The caller is a member. It does
 * not wait for members that never came: on a busy machine a member may get no CPU for milliseconds, and by then the
 * caller has done the work alone. It waits only for units that a member has begun.
 *
 * Members spin for a bounded time between jobs, then park on a condition variable: a matrix product of a small
 * model takes less than a wake-up. One word, `job`, says which job it is, how many threads it may have, and
 * whether it is open. A member joins by raising `working` and then looking at `job` once more; the caller closes the
 * job and then looks at `working`. In the one order of these four steps either the member sees the job closed, and
 * leaves, or the caller sees the member, and waits. So nobody reads the fields of a job while they change.
 *
 * Between processes: a child of fork has no members; the team starts anew there. */
#ifndef BITNET_TEAM_H
#define BITNET_TEAM_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "kernels/target.h"

enum { TEAM_MAX_THREADS = 1024, TEAM_SPIN_NS = 100000, TEAM_STACK_BYTES = 1 << 20 };

/* `member` is 0 for the caller, and below the number of threads of the job. */
typedef void (*team_task)(void *data, ptrdiff_t unit, int member);

static struct {
    pthread_mutex_t callers; /* one job at a time: a second caller waits here */
    pthread_mutex_t lock;    /* guards the two conditions */
    pthread_cond_t wake, left;
    int started; /* members that exist, the callers not counted; guarded by `callers` */
    int is_pinned; /* whether members stay on a CPU each; set before there are any */

    team_task task;
    void *data;
    ptrdiff_t units;

    /* On cache lines of their own: the spinning members read `job`, all claim from `next`. */
    BITNET_ALIGN64 _Atomic uint64_t job; /* number << 16 | threads; no threads: closed */
    BITNET_ALIGN64 _Atomic ptrdiff_t next;
    BITNET_ALIGN64 _Atomic int working; /* members, the caller not counted, that have joined and not left */
    _Atomic int parked;
    _Atomic int is_caller_parked;
} team = {
    .callers = PTHREAD_MUTEX_INITIALIZER,
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .wake = PTHREAD_COND_INITIALIZER,
    .left = PTHREAD_COND_INITIALIZER,
};

static int64_t team_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void team_work(team_task task, void *data, ptrdiff_t units, int member) {
    for (;;) {
        const ptrdiff_t unit = atomic_fetch_add_explicit(&team.next, 1, memory_order_relaxed);
        if (unit >= units) return;
        task(data, unit, member);
    }
}

/* Waits until `job` differs from `seen`, and returns it. */
static uint64_t team_wait_for_job(uint64_t seen) {
    const int64_t until = team_now_ns() + TEAM_SPIN_NS;
    uint64_t job;
    do {
        for (int i = 0; i < 64; i++) {
            job = atomic_load(&team.job);
            if (job != seen) return job;
            BITNET_PAUSE();
        }
    } while (team_now_ns() < until);

    /* `parked` goes up before `job` is read again, and the caller writes `job` before it reads `parked`: one of the
     * two sees the other. */
    pthread_mutex_lock(&team.lock);
    atomic_fetch_add(&team.parked, 1);
    while ((job = atomic_load(&team.job)) == seen) pthread_cond_wait(&team.wake, &team.lock);
    atomic_fetch_sub(&team.parked, 1);
    pthread_mutex_unlock(&team.lock);
    return job;
}

typedef struct {
    int member;
    uint64_t seen;
} team_start;

static team_start team_starts[TEAM_MAX_THREADS];

static void *team_member(void *argument) {
    const int member = ((team_start *)argument)->member;
    uint64_t seen = ((team_start *)argument)->seen;
    if (team.is_pinned) bitnet_stay_on_cpu(member); /* the first one is left to the caller, who is not ours */
    for (;;) {
        seen = team_wait_for_job(seen);
        if (member >= (int)(seen & 0xffff)) continue;
        atomic_fetch_add(&team.working, 1);
        if (atomic_load(&team.job) == seen) team_work(team.task, team.data, team.units, member);
        if (atomic_fetch_sub(&team.working, 1) == 1 && atomic_load(&team.is_caller_parked)) {
            pthread_mutex_lock(&team.lock);
            pthread_cond_signal(&team.left);
            pthread_mutex_unlock(&team.lock);
        }
    }
    return NULL;
}

/* Has `threads - 1` members where the operating system grants them; returns how many threads there are. */
static int team_grow(int threads) {
    if (team.started >= threads - 1) return threads;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return team.started + 1;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, TEAM_STACK_BYTES);
    /* Signals are for the threads of the application, but for those that tell of a fault in this very thread, and the
     * profiler's. */
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    sigdelset(&all, SIGABRT);
    sigdelset(&all, SIGTRAP);
    sigdelset(&all, SIGPROF);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (team.started < threads - 1) {
        team_start *start = &team_starts[team.started];
        pthread_t thread;
        start->member = team.started + 1;
        start->seen = atomic_load(&team.job);
        if (pthread_create(&thread, &attributes, team_member, start) != 0) break;
        team.started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return team.started + 1 < threads ? team.started + 1 : threads;
}

static void team_pin(void) { team.is_pinned = 1; }

static void team_wait_until_left(void) {
    const int64_t until = team_now_ns() + TEAM_SPIN_NS;
    do {
        for (int i = 0; i < 64; i++) {
            if (atomic_load(&team.working) == 0) return;
            BITNET_PAUSE();
        }
    } while (team_now_ns() < until);

    pthread_mutex_lock(&team.lock);
    atomic_store(&team.is_caller_parked, 1);
    while (atomic_load(&team.working) != 0) pthread_cond_wait(&team.left, &team.lock);
    atomic_store(&team.is_caller_parked, 0);
    pthread_mutex_unlock(&team.lock);
}

/* Runs task(data, unit, member) once for each unit from 0 on, on at most `threads` threads; returns when all are
 * done. Must not be called from a task. */
static void team_run(team_task task, void *data, ptrdiff_t units, int threads) {
    if (threads > units) threads = (int)units;
    if (threads <= 1) {
        for (ptrdiff_t unit = 0; unit < units; unit++) task(data, unit, 0);
        return;
    }
    pthread_mutex_lock(&team.callers);
    threads = team_grow(threads);
    team.task = task;
    team.data = data;
    team.units = units;
    atomic_store_explicit(&team.next, 0, memory_order_relaxed);
    const uint64_t number = (atomic_load(&team.job) >> 16) + 1;
    atomic_store(&team.job, number << 16 | (uint64_t)threads);
    if (atomic_load(&team.parked) > 0) {
        pthread_mutex_lock(&team.lock);
        pthread_cond_broadcast(&team.wake);
        pthread_mutex_unlock(&team.lock);
    }
    team_work(task, data, units, 0);
    atomic_store(&team.job, number << 16);
    team_wait_until_left();
    pthread_mutex_unlock(&team.callers);
}

/* For a task to tell its caller of something, whichever member finds it, and however many. */
static void team_raise_flag(int *flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }

typedef struct {
    int threads;
    _Atomic int arrived;
} team_meeting;

static void team_meet(void *data, ptrdiff_t unit, int member) {
    (void)unit;
    (void)member;
    team_meeting *meeting = data;
    atomic_fetch_add(&meeting->arrived, 1);
    /* A member that gets no CPU must not hang the others. */
    const int64_t until = team_now_ns() + 100 * TEAM_SPIN_NS;
    while (atomic_load(&meeting->arrived) < meeting->threads && team_now_ns() < until) BITNET_PAUSE();
}

/* A barrier by itself, to measure: each of the threads waits until all have come. */
static void team_barrier(int threads) {
    team_meeting meeting = {.threads = threads};
    team_run(team_meet, &meeting, threads, threads);
}

/* The members are the parent's: the child starts without. A lock that another thread held at the fork would stay
 * locked for ever, so all are made anew. */
static void team_after_fork(void) {
    pthread_mutex_init(&team.callers, NULL);
    pthread_mutex_init(&team.lock, NULL);
    pthread_cond_init(&team.wake, NULL);
    pthread_cond_init(&team.left, NULL);
    team.started = 0;
    atomic_store(&team.working, 0);
    atomic_store(&team.parked, 0);
    atomic_store(&team.is_caller_parked, 0);
}

static int team_prepare(void) { return pthread_atfork(NULL, NULL, team_after_fork); }

static int team_size(void) {
    pthread_mutex_lock(&team.callers);
    const int size = team.started + 1;
    pthread_mutex_unlock(&team.callers);
    return size;
}

#endif
