/* The controls of the emulator: what the tests set and ask. C linkage, so that ctypes reaches them too.
 * Defaults come from the environment: SPARSE24_EMULATOR_SM (86), _VERSION (801), _DRIVER (1), _DEVICES (1),
 * _DEFERRED (1), _STRICT (0), _FATES (none), _LOG (0; 1 prints each refusal and violation to stderr). */
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Forgets every object, block, queue, count and violation, and reads the environment again. Pointers and opaque
 * structs from before are dead. Not for use while another thread is inside a call. */
void emulator_reset(void);

void emulator_set_device_count(int count);
/* 80, 86, 89, 90, 100, 120; 75 is too old for cuSPARSELt. */
void emulator_set_sm(int sm);
/* 603, 701, 801, 901 or 1000, as cusparseLtGetVersion gives it. */
void emulator_set_version(int version);
/* 0: as on a machine without a driver. */
void emulator_set_driver(int present);
/* 0: an asynchronous operation runs inside the call that queues it. Turning it off runs what is queued. */
void emulator_set_deferred(int deferred);
/* 1: memory that the arena does not know is the host's, and touching it from the device is a violation and a fault. */
void emulator_set_strict(int strict);
/* 1: cusparseLtMatmul answers success at once, and neither looks at its arguments nor computes: for those who time
 * what is around it. */
void emulator_set_idle(int idle);
/* The algorithm id that the next searches end with; -1: the emulator's own rule (README). */
void emulator_set_search_winner(int id);

/* The n-th API call from now (1: the next) of any of the three interfaces returns `status` and does nothing.
 * n = 0 cancels. Functions that return text neither count nor fail. */
void emulator_fail_at(long n, int status);
/* API calls since the last reset. */
long emulator_calls(void);

/* What was done that the real library would not report: newline separated "function: rule [label]", "" when clean.
 * The text stays valid until this thread asks again. */
const char* emulator_violations(void);
void emulator_clear_violations(void);

/* Calls answered with an error status because a rule was broken, and the last one as "function: rule [label]". */
long emulator_refusals(void);
const char* emulator_last_refusal(void);

/* Objects that need a destroy call and did not get one (handles, matrix descriptors, selections since 0.8, plans,
 * streams, events, graphs, cuBLASLt objects), with those overwritten by another Init. */
long emulator_live_objects(void);
/* Bytes of cudaMalloc and its kin not yet freed. */
size_t emulator_live_memory(void);

/* Calls that waited for queued work, calls that allocated memory, and products that were run, since the last reset. */
long emulator_synchronizations(void);
long emulator_allocations(void);
long emulator_launches(void);

#ifdef __cplusplus
}
#endif
