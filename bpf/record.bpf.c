/* SPDX-License-Identifier: GPL-2.0 */
/* Building and sending a record: get its memory, fill its header, put its strings, send. */

#define WAKE_NS (2 * 1000 * 1000) /* between two wake-ups of the reader */

static __always_inline void header_fill(struct aw_header *header, struct task_struct *task,
					const struct aw_subject *subject, u16 kind, u32 length)
{
	header->length = length;
	header->kind = kind;
	header->flags = subject->session->state == AW_SESSION_PROVISIONAL ? AW_FLAG_PROVISIONAL : 0;
	header->time = bpf_ktime_get_boot_ns();
	header->generation = 0;
	header->tgid = task->tgid;
	header->tid = task->pid;
	header->start = BPF_CORE_READ(task, group_leader, start_boottime);
	header->session_start = subject->tag->session.start;
	header->session_tgid = subject->tag->session.tgid;
	header->unresolved = 0;
	header->rule = 0;
	header->verdict = 0;
}

/* The task's scratch memory, made anew where it is missing; false (counted) where it cannot be had. */
static __always_inline bool scratch_get(struct task_struct *task, struct aw_record **record,
					struct aw_walk **walk, u16 kind)
{
	*record = bpf_task_storage_get(&records, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	*walk = bpf_task_storage_get(&walks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (*record && *walk)
		return true;
	COUNT(unrecorded[kind & (AW_KINDS - 1)]);
	return false;
}

/* Never wake the reader per event; it polls. Only for what it must act on, and not too often. */
static __always_inline u64 wake_flags(const struct aw_header *header)
{
	u64 now = header->time;

	bool judged = header->generation && !header->verdict;

	if ((judged || !(control.wake_kinds & (1U << (header->kind & 31)))) &&
	    !(header->flags & AW_FLAG_CANDIDATE))
		return BPF_RB_NO_WAKEUP;
	if (now - control.woken < WAKE_NS)
		return BPF_RB_NO_WAKEUP;
	control.woken = now;
	return BPF_RB_FORCE_WAKEUP;
}

/*
 * Calls that failed changed nothing and cost their caller next to nothing: where somebody makes them
 * faster than they are read, they give way before they push out what did happen.
 */
static __always_inline bool gives_way(void *ring, const s32 *result)
{
	return result && *result < 0 && *result != -EINPROGRESS &&
	       bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) >
		       bpf_ringbuf_query(ring, BPF_RB_RING_SIZE) / 2;
}

/* result: of the call the record is about, NULL for none. */
static __always_inline void record_send(void *ring, u32 which, const struct aw_subject *subject,
					void *record, u32 max, const s32 *result)
{
	struct aw_header *header = record;
	u32 kind = header->kind & (AW_KINDS - 1), length = header->length, zero = 0;
	struct aw_counters *count = bpf_map_lookup_elem(&counters, &zero);
	bool lost;

	if (!count)
		return;
	header->cpu = bpf_get_smp_processor_id();
	header->sequence = __sync_fetch_and_add(&count->sequence[which], 1) + 1;
	if (header->unresolved)
		__sync_fetch_and_add(&count->unresolved[kind], 1);
	lost = gives_way(ring, result);
	if (!lost) {
		u64 flags = wake_flags(header);

		barrier_var(length); /* so that the bound is of what is used: 6.1 forgets others */
		if (length > max)
			length = max;
		lost = bpf_ringbuf_output(ring, record, length, flags);
	}
	if (lost) {
		__sync_fetch_and_add(&count->lost[kind], 1);
		__sync_fetch_and_add(&subject->session->lost, 1);
	} else {
		__sync_fetch_and_add(&count->emitted[kind], 1);
	}
}
