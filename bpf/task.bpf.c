/* SPDX-License-Identifier: GPL-2.0 */
/* Tags: who is an agent's, and of which session. */

/*
 * 1: whoever looks into task storage finds what is there. Before 6.2 nobody does on a CPU where somebody
 * was preempted in the middle of a look. Set before anything is attached.
 */
static volatile u32 storage_sure;

/*
 * Self first (every thread has its own copy), then the leader, then the mirror, each only where it can
 * know more than the one before: this runs for every call of everybody.
 */
static __always_inline struct aw_tag *tag_find(struct task_struct *task, struct task_struct *leader)
{
	struct aw_tag *tag = bpf_task_storage_get(&tags, task, 0, 0);
	u32 tgid = task->tgid;

	if (!tag && task->pid != task->tgid && leader)
		tag = bpf_task_storage_get(&tags, leader, 0, 0);
	if (!tag && (control.untracked || !storage_sure))
		tag = bpf_map_lookup_elem(&mirror, &tgid);
	return tag;
}

/* A child that could not be tagged dies at its first hook: untagged is not harmless. */
static __always_inline void kill_if_doomed(struct task_struct *task)
{
	u32 tgid = task->tgid;

	if (control.doomed && bpf_map_lookup_elem(&doomed, &tgid))
		bpf_send_signal(SIGKILL);
}

struct aw_subject {
	struct aw_tag *tag;
	struct aw_session *session;
};

/* The session of a tag: none where it is over, even if another of the same key has begun. */
static __always_inline bool session_of(struct aw_subject *subject)
{
	struct aw_session_key key = subject->tag->session;

	subject->session = bpf_map_lookup_elem(&sessions, &key);
	/* A second look: what was found is used for another entry, should it be replaced just now. */
	if (subject->session && subject->session->since != subject->tag->since)
		subject->session = bpf_map_lookup_elem(&sessions, &key);
	if (subject->session && subject->session->since != subject->tag->since)
		subject->session = 0;
	return subject->session;
}

/* False for a task that is nobody's, or whose session is over. */
static __always_inline bool tagged_below(struct task_struct *task, struct task_struct *leader,
					 struct aw_subject *subject)
{
	subject->tag = tag_find(task, leader);
	subject->session = 0;
	if (!subject->tag) {
		kill_if_doomed(task);
		return false;
	}
	return session_of(subject);
}

static __always_inline bool tagged(struct task_struct *task, struct aw_subject *subject)
{
	return tagged_below(task, task->group_leader, subject);
}

static __always_inline struct aw_session_key key_of(struct task_struct *task)
{
	struct aw_session_key key = {};

	key.start = BPF_CORE_READ(task, group_leader, start_boottime);
	key.tgid = task->tgid;
	return key;
}

/*
 * Puts `from` on `task`; 0 when at least one of the two places took it, and the mirror did where that
 * is all that those look at who refuse connections.
 */
static __always_inline int tag_set(struct task_struct *task, const struct aw_tag *from)
{
	struct aw_tag copy = *from;
	u32 tgid = task->tgid;
	bool leads = task->pid == task->tgid;
	struct aw_tag *tag;
	long full = 0;

	tag = bpf_task_storage_get(&tags, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (tag) {
		*tag = copy;
	} else {
		COUNT(untracked);
		control.untracked = 1;
	}
	if (leads) {
		full = bpf_map_update_elem(&mirror, &tgid, &copy, BPF_ANY);
		if (full) {
			COUNT(mirror_full);
			control.mirror_full = 1;
		}
	}
	scratch_create(task);
	return full && (!tag || control.refusing);
}

static __always_inline void tag_remove(struct task_struct *task)
{
	bpf_task_storage_delete(&tags, task);
	scratch_delete(task);
}

static __always_inline void doom(struct task_struct *child)
{
	u32 tgid = child->tgid, one = 1;

	COUNT(doomed);
	/* Counted first: who finds the entry counts it back. */
	__sync_fetch_and_add(&control.doomed, 1);
	if (!bpf_map_update_elem(&doomed, &tgid, &one, BPF_NOEXIST))
		return;
	__sync_fetch_and_add(&control.doomed, -1);
	/* No room even here: then at least nobody goes on making such children. */
	if (!bpf_map_lookup_elem(&doomed, &tgid))
		bpf_send_signal(SIGKILL);
}
