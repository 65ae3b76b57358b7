/* SPDX-License-Identifier: GPL-2.0 */
/* Every map, and the counters. The loader may resize a map before it is created. */

#define RING_LIFECYCLE 0
#define RING_ACTIVITY 1

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} lifecycle SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 << 20);
} activity SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct aw_tag);
} tags SEC(".maps");

/* By tgid, for whoever cannot read task storage, and for children whose storage failed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32);
	__type(value, struct aw_tag);
} mirror SEC(".maps");

/* A tag counts while its session is here: one delete takes it off the whole tree. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct aw_session_key);
	__type(value, struct aw_session);
} sessions SEC(".maps");

/* Of processes forked by untagged ones while agents that run already are looked for. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32);
	__type(value, struct aw_origin);
} origins SEC(".maps");

/* Processes that are to be tagged, with all that comes from them, and the session they belong to. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct aw_session_key);
	__type(value, struct aw_session_key);
} adoptees SEC(".maps");

/* Children with no tag anywhere. Preallocated: it is needed when memory is not to be had. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, u32);
} doomed SEC(".maps");

/* Processes that die at the end of the call they are in. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u32);
	__type(value, u32);
} condemned SEC(".maps");

/* Literal path components of all identities' globs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(key_size, AW_LITERAL_MAX);
	__uint(value_size, 4);
} literals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct aw_counters);
} counters SEC(".maps");

struct aw_control control = {.abi = AW_ABI, .in_force = AW_POLICY_NONE, .next = AW_POLICY_NONE};

/*
 * Programs may outlive their daemon, and the next one's run beside them on the same maps until these go.
 * Each object is an instance, in the order they came. What records acts for one of them alone; what
 * decides never stops because another has come: it only waits until it is its own turn.
 */
const volatile u32 instance SEC(".rodata.instance") = 0;

static __always_inline bool is_recorder(void)
{
	return *(volatile u32 *)&control.recorder == instance;
}

/* A hook may run the newest program first and no other after a refusal, so both cannot look at once. */
static __always_inline bool is_early(void)
{
	return *(volatile u32 *)&control.recorder < instance;
}

/* Counters are added to atomically: newer kernels preempt tracing programs. */
#define COUNT(field)                                                                               \
	do {                                                                                       \
		u32 zero_ = 0;                                                                     \
		struct aw_counters *counters_ = bpf_map_lookup_elem(&counters, &zero_);            \
		if (counters_)                                                                     \
			__sync_fetch_and_add(&counters_->field, 1);                                \
	} while (0)
