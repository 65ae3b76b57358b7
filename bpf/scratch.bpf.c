/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Memory to build records in, one piece per tagged task: a per-CPU buffer would be shared with whatever
 * preempts us. Created when the tag is set, and again where that failed. Each value stays under 8 KiB with
 * its storage header: that is what newer kernels' allocator for local storage can give.
 */

struct aw_record {
	union {
		struct aw_header header;
		struct aw_fork fork;
		struct aw_exec exec;
		struct aw_exit exit;
		struct aw_open open;
		struct aw_connect connect;
	};
	char room[AW_DATA_MAX];
};

struct aw_walk {
	char path[AW_PATH_MAX + 256]; /* filled from the end; a name may be read past it */
	char literal[AW_LITERAL_MAX] __attribute__((aligned(8)));
	u32 size; /* of the path component that `literal` begins with */
	u32 off;  /* where in `path` the name begins */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct aw_record);
} records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct aw_walk);
} walks SEC(".maps");

static __always_inline void scratch_create(struct task_struct *task)
{
	bpf_task_storage_get(&records, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	bpf_task_storage_get(&walks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

static __always_inline void scratch_delete(struct task_struct *task)
{
	bpf_task_storage_delete(&records, task);
	bpf_task_storage_delete(&walks, task);
}
