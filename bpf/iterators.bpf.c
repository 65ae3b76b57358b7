/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Run over all tasks on request. They do what only the kernel can: it knows a task's exact start time,
 * its tag, and each of its threads. What they tell is one aw_process for each process.
 */

static __always_inline void tell(struct bpf_iter__task *ctx, struct task_struct *task,
				 const struct aw_subject *subject)
{
	struct task_struct *parent = BPF_CORE_READ(task, real_parent);
	struct aw_process told = {};
	struct aw_origin *origin;

	/* Its last thread may be gone while somebody has still to wait for it. */
	if (task->pid != task->tgid || !BPF_CORE_READ(task, signal, live.counter))
		return;
	told.start = task->start_boottime;
	told.tgid = task->tgid;
	if (parent) {
		told.parent_tgid = BPF_CORE_READ(parent, tgid);
		told.parent_start = BPF_CORE_READ(parent, group_leader, start_boottime);
	}
	if (subject->session) {
		told.session_start = subject->tag->session.start;
		told.session_tgid = subject->tag->session.tgid;
		told.state = subject->session->state;
	}
	told.group = BPF_CORE_READ(task, signal, pids[PIDTYPE_PGID], numbers[0].nr);
	told.terminal = BPF_CORE_READ(task, signal, pids[PIDTYPE_SID], numbers[0].nr);
	origin = origin_of(task);
	if (origin) {
		told.first = origin->first;
		told.first_parent = origin->parent;
	}
	bpf_seq_write(ctx->meta->seq, &told, sizeof(told));
}

/* tagged(), for a task that is not the one running; a tag in the mirror alone counts as well. */
static __always_inline bool of_session(struct task_struct *task, struct aw_subject *subject)
{
	u32 tgid = task->tgid;

	subject->tag = tag_find(task, task->group_leader);
	if (!subject->tag)
		subject->tag = bpf_map_lookup_elem(&mirror, &tgid);
	subject->session = 0;
	return subject->tag && session_of(subject);
}

/* Every process that runs. */
SEC("iter/task")
int census(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct aw_subject subject;

	if (!task)
		return 0;
	of_session(task, &subject);
	tell(ctx, task, &subject);
	return 0;
}

/*
 * Tags those that `adoptees` names, or that come from one of them, each with all its threads. The first
 * tag sticks, unless it was only provisional.
 */
SEC("iter/task")
int adopt(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct aw_subject subject;
	struct aw_tag tag = {};

	if (!task)
		return 0;
	if (of_session(task, &subject) && subject.session->state != AW_SESSION_PROVISIONAL)
		return 0;
	if (!adopted_into(task, &tag))
		return 0;
	tag_set(task, &tag);
	if (of_session(task, &subject))
		tell(ctx, task, &subject);
	return 0;
}

/* A process whose tag was set before it had a number, and the mirror not since. */
static __always_inline void mirror_late(struct task_struct *task, struct aw_subject *subject)
{
	struct aw_tag tag = *subject->tag;
	u32 tgid = task->tgid;

	if (task->pid == task->tgid && BPF_CORE_READ(task, signal, live.counter) &&
	    !bpf_map_update_elem(&mirror, &tgid, &tag, BPF_NOEXIST))
		COUNT(reconciled);
}

/*
 * When the kernel skipped runs of process_fork (recursion_misses): a task without a tag whose parent
 * or leader has one gets it, if it is younger than that. Not a parent walk: one generation per run,
 * always from a tag. Those that lsm_task_alloc tagged are put into the mirror.
 */
SEC("iter/task")
int reconcile(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task, *from;
	struct aw_subject subject;
	struct aw_tag tag;

	if (!task)
		return 0;
	if (of_session(task, &subject)) {
		mirror_late(task, &subject);
		return 0;
	}
	from = task->pid == task->tgid ? task->real_parent : task->group_leader;
	if (!from || !of_session(from, &subject) || task->start_boottime < subject.tag->since)
		return 0;
	tag = *subject.tag;
	COUNT(reconciled);
	tag_set(task, &tag);
	if (of_session(task, &subject))
		tell(ctx, task, &subject);
	return 0;
}

/* Tags take over what is known of their images by now. */
SEC("iter/task")
int refresh(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct aw_subject subject;
	struct aw_tag *mirrored;
	struct aw_mark *mark;
	u64 image;
	u32 tgid;

	if (!task || !of_session(task, &subject))
		return 0;
	image = subject.tag->image;
	mark = bpf_map_lookup_elem(&marks, &image);
	if (!mark)
		return 0;
	subject.tag->agents = mark->agents;
	subject.tag->predicates[0] = mark->predicates[0];
	subject.tag->predicates[1] = mark->predicates[1];
	subject.tag->predicates[2] = mark->predicates[2] | (u64)mark->generation << 48;
	tgid = task->tgid;
	mirrored = task->pid == task->tgid ? bpf_map_lookup_elem(&mirror, &tgid) : 0;
	if (mirrored)
		*mirrored = *subject.tag;
	return 0;
}
