/* A barrier for the threads of a team, which spin at it while they are alone on their cores.
 *
 * A layer has some ten barriers, a few microseconds apart, and waking a thread that sleeps takes
 * tens of them. So it pays to spin, and for long: one that waits for a core can be late by
 * milliseconds. But then spinning takes the core that the late thread needs. So a team that spun in
 * vain spins briefly for some steps, and for more steps each time that happens.
 */
#pragma once
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PATIENT_NS = 2000000, BRIEF_NS = 50000, FEWEST_STEPS = 8, MOST_STEPS = 512 };
enum { PAUSES = 32 }; /* between two looks at the clock */

/* What was learned about the machine. It holds for all models of the process. */
typedef struct {
    _Atomic int brief_steps; /* so many are left in which threads spin briefly */
    _Atomic int next_length; /* of the next time */
} patience_t;

typedef struct {
    int threads;
    patience_t *patience;
    _Alignas(64) _Atomic int arrived;
    _Alignas(64) _Atomic int round;
    _Alignas(64) _Atomic int sleeping;
} barrier_t;

static inline int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline void pause_thread(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* Call it once before each step. */
static void begin_step(patience_t *patience) {
    if (patience->brief_steps > 0) patience->brief_steps--;
    else if (patience->next_length > FEWEST_STEPS) patience->next_length--;
}

static void spun_in_vain(patience_t *patience) {
    int length = patience->next_length;
    if (length < FEWEST_STEPS) length = FEWEST_STEPS;
    patience->brief_steps = length;
    patience->next_length = 2 * length < MOST_STEPS ? 2 * length : MOST_STEPS;
}

/* Returns whether the round ended meanwhile. */
static int spin(barrier_t *barrier, int round) {
    int is_brief = barrier->patience->brief_steps > 0;
    int64_t end = now_ns() + (is_brief ? BRIEF_NS : PATIENT_NS);
    do {
        for (int i = 0; i < PAUSES; i++) {
            if (atomic_load_explicit(&barrier->round, memory_order_acquire) != round) return 1;
            pause_thread();
        }
    } while (now_ns() < end);
    if (!is_brief) spun_in_vain(barrier->patience);
    return 0;
}

/* Returns when each thread of the team has called it. */
static void meet(barrier_t *barrier) {
    int round = atomic_load(&barrier->round);
    if (atomic_fetch_add(&barrier->arrived, 1) == barrier->threads - 1) {
        atomic_store(&barrier->arrived, 0);
        atomic_fetch_add(&barrier->round, 1);
        if (atomic_load(&barrier->sleeping))
            syscall(SYS_futex, &barrier->round, FUTEX_WAKE_PRIVATE, INT32_MAX, 0, 0, 0);
    } else if (!spin(barrier, round)) {
        atomic_fetch_add(&barrier->sleeping, 1);
        while (atomic_load(&barrier->round) == round)
            syscall(SYS_futex, &barrier->round, FUTEX_WAIT_PRIVATE, round, 0, 0, 0);
        atomic_fetch_sub(&barrier->sleeping, 1);
    }
}
