/* SPDX-License-Identifier: GPL-2.0 */
/* fork, exec, exit: the tag goes with the task, and a process's last thread takes it along. */

static __always_inline void fork_record(struct task_struct *parent, struct task_struct *child,
					const struct aw_subject *subject)
{
	struct aw_fork fork = {};

	header_fill(&fork.header, parent, subject, AW_KIND_FORK, sizeof(fork));
	fork.child_start = child->start_boottime;
	fork.child_tgid = child->tgid;
	record_send(&lifecycle, RING_LIFECYCLE, subject, &fork, sizeof(fork), 0);
}

/* The origin of a process that was forked since we began to look; NULL for one that was there. */
static __always_inline struct aw_origin *origin_of(struct task_struct *task)
{
	struct aw_session_key key = key_of(task);
	struct aw_origin *origin = bpf_map_lookup_elem(&origins, &key.tgid);

	return origin && origin->start == key.start ? origin : 0;
}

/* The tag for a process that is to be adopted, or whose ancestor is; false: for nobody. */
static __always_inline bool adopted_into(struct task_struct *task, struct aw_tag *tag)
{
	struct aw_session_key key = key_of(task), *into = bpf_map_lookup_elem(&adoptees, &key);
	struct aw_origin *origin = into ? 0 : origin_of(task);
	struct aw_session *session;

	if (origin) {
		key = origin->first;
		into = bpf_map_lookup_elem(&adoptees, &key);
	}
	if (!into)
		return false;
	tag->session = *into;
	tag->image = BPF_CORE_READ(task, group_leader, start_boottime);
	session = bpf_map_lookup_elem(&sessions, &tag->session);
	if (!session)
		return false;
	tag->since = session->since;
	return true;
}

/*
 * A fork by somebody without a tag, while agents that run already are looked for: the child is tagged
 * where its parent is about to be, and else it is noted whose descendant it is. So one who forks and
 * exits as fast as it can is caught by the name of its first ancestor, however far it has come.
 */
static __always_inline void origin_note(struct task_struct *parent, struct task_struct *child)
{
	struct aw_origin origin = {}, *before = origin_of(parent);
	struct aw_subject subject;
	struct aw_tag tag = {};
	u32 tgid = child->tgid;

	if (adopted_into(parent, &tag)) {
		if (tag_set(child, &tag))
			doom(child);
		subject.tag = tag_find(child, child->group_leader);
		if (child->pid == child->tgid && subject.tag && session_of(&subject))
			fork_record(parent, child, &subject);
		return;
	}
	if (child->pid != child->tgid)
		return;
	if (before) {
		origin = *before;
	} else {
		origin.first = key_of(parent);
		if (parent->real_parent)
			origin.parent = key_of(parent->real_parent);
	}
	origin.start = child->start_boottime;
	if (bpf_map_update_elem(&origins, &tgid, &origin, BPF_ANY))
		COUNT(unlabelled);
}

#define PREEMPT_MASK 0xff

/*
 * Newer kernels run tracing programs with preemption on: whoever takes over meanwhile and comes by the
 * same program has its run skipped. Looked at from inside, once.
 */
static __always_inline void preemption_note(void)
{
	u64 base = 0;
	u32 depth = 0;

	if (!preempt_count_at)
		return;
	if (bpf_probe_read_kernel(&base, sizeof(base),
				  (u64 *)per_cpu_offset_at + bpf_get_smp_processor_id()) ||
	    bpf_probe_read_kernel(&depth, sizeof(depth), (void *)(base + preempt_count_at)))
		return;
	control.preemption = depth & PREEMPT_MASK ? AW_PREEMPTION_NONE : AW_PREEMPTION_SOME;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(process_fork, struct task_struct *parent, struct task_struct *child)
{
	struct aw_subject subject;

	if (!is_recorder())
		return 0;
	if (!control.preemption)
		preemption_note();
	if (!tagged(parent, &subject)) {
		if (control.looking)
			origin_note(parent, child);
		return 0;
	}
	if (tag_set(child, subject.tag))
		doom(child);
	if (child->pid == child->tgid)
		fork_record(parent, child, &subject);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(process_exit, struct task_struct *task)
{
	struct aw_exit exit = {};
	struct aw_subject subject;
	u32 tgid = task->tgid;

	if (!is_recorder() || BPF_CORE_READ(task, signal, live.counter))
		return 0;
	if (control.doomed && !bpf_map_delete_elem(&doomed, &tgid))
		__sync_fetch_and_add(&control.doomed, -1);
	if (control.condemned && !bpf_map_delete_elem(&condemned, &tgid))
		__sync_fetch_and_add(&control.condemned, -1);
	if (control.looking)
		bpf_map_delete_elem(&origins, &tgid);
	if (!tagged(task, &subject)) {
		if (subject.tag)
			bpf_map_delete_elem(&mirror, &tgid);
		return 0;
	}
	header_fill(&exit.header, task, &subject, AW_KIND_EXIT, sizeof(exit));
	/* Two last threads may both see no other: the one that removes the mirror's entry tells. */
	if (bpf_map_delete_elem(&mirror, &tgid) && !control.mirror_full)
		return 0;
	if (BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT)
		exit.status = BPF_CORE_READ(task, signal, group_exit_code);
	else
		exit.status = BPF_CORE_READ(task, group_leader, exit_code);
	record_send(&lifecycle, RING_LIFECYCLE, &subject, &exit, sizeof(exit), 0);
	return 0;
}

/*
 * The names of an exec: executable, name asked for, working directory. Bytes of all three. Not inlined:
 * what it has on the stack is not needed any more where the exec is judged.
 */
static __noinline u32 exec_names(struct aw_record *record, struct aw_walk *walk,
				 struct task_struct *task, struct linux_binprm *bprm, u32 *at)
{
	struct aw_exec *exec = &record->exec;
	struct path path;
	struct name name;

	BPF_CORE_READ_INTO(&path, bprm, file, f_path);
	name_of(&name, &path, walk);
	record->header.flags |= name.flags;
	exec->path_dev = name.dev;
	exec->path_len = put_name(record, at, &name, walk->path, AW_UNRESOLVED_PATH);
	exec->asked_len = put_string(record, at, bprm->filename, false, AW_UNRESOLVED_ASKED);
	BPF_CORE_READ_INTO(&path, task, fs, pwd);
	name_of(&name, &path, walk);
	exec->cwd_dev = name.dev;
	exec->cwd_len = put_name(record, at, &name, walk->path, AW_UNRESOLVED_CWD);
	return exec->path_len + exec->asked_len + exec->cwd_len;
}

/* The executable's other names, of a process that is somebody's. Not inlined, as above. */
static __noinline u32 exec_others(struct aw_record *record, struct aw_walk *walk,
				  struct task_struct *task, struct file *file, u32 at)
{
	struct aw_exec *exec = &record->exec;
	struct name name = {.flags = record->header.flags, .dev = exec->path_dev};
	struct path path;

	name.failed = record->header.unresolved & AW_UNRESOLVED_PATH;
	BPF_CORE_READ_INTO(&path, file, f_path);
	others_put(record, walk, task, file, &path, &name, sizeof(*exec), exec->path_len, &at,
		   AW_UNRESOLVED_PATH);
	exec->view_len = naming_of(walk)->view_len;
	exec->known_len = naming_of(walk)->known_len;
	return at;
}

/* A session of its own for a process that is nobody's yet; what follows it inherits. */
static __noinline bool session_begin(struct task_struct *task, struct task_struct *leader,
				     struct aw_subject *subject)
{
	struct aw_session provisional = {.state = AW_SESSION_PROVISIONAL};
	struct aw_tag tag = {};

	tag.session = key_of(task);
	tag.since = provisional.since = bpf_ktime_get_boot_ns();
	/* With room in one place alone it goes on: better an agent that is watched than one that is not. */
	if (bpf_map_update_elem(&sessions, &tag.session, &provisional, BPF_ANY) ||
	    (tag_set(task, &tag) && !tag_find(task, leader))) {
		COUNT(unbegun);
		return false;
	}
	return tagged_below(task, leader, subject);
}

/* What is asked of an exec whose names are in its record, one behind the other. */
static __always_inline void exec_question(struct aw_record *record, struct aw_walk *walk)
{
	struct aw_question *question = &walk->question;
	struct aw_exec *exec = &record->exec;
	u32 unresolved = record->header.unresolved, at = sizeof(*exec);
	bool anonymous = record->header.flags & AW_FLAG_ANONYMOUS;

	question->kinds = AW_EXEC;
	question->words = AW_WORD_STDIN << (exec->stdin_kind & 7);
	question->words |= anonymous ? AW_WORD_ANONYMOUS : AW_WORD_NAMED;
	question->unread = question->uncertain = 0;
	if (unresolved & AW_UNRESOLVED_PATH)
		question->unread |= 1 << AW_SUBJECT_EXE;
	if (unresolved & AW_UNRESOLVED_CWD)
		question->unread |= 1 << AW_SUBJECT_CWD;
	if (unresolved & AW_UNRESOLVED_ARGV)
		question->unread |= 1 << AW_SUBJECT_ARGS;
	question_name(walk, 0, AW_SUBJECT_EXE, AW_SYMBOL_EXE, at, exec->path_len, exec->path_dev,
		      anonymous);
	at += exec->path_len + exec->asked_len;
	question_name(walk, 1, AW_SUBJECT_CWD, AW_SYMBOL_CWD, at, exec->cwd_len, exec->cwd_dev,
		      false);
	if (exec->view_len || exec->known_len)
		question_others(walk);
}

/* What a new program is asked, by the policy of a slot. */
static __always_inline void exec_ask(struct aw_record *record, struct aw_walk *walk,
				     struct task_struct *task, u32 slot)
{
	struct aw_question *question = &walk->question;

	question->slot = slot;
	exec_question(record, walk);
	question->args = BPF_CORE_READ(task, mm, arg_start);
	question->args_size = BPF_CORE_READ(task, mm, arg_end) - question->args;
	question_ask(walk, record, &record->header);
}

/* Gives the tag back what it said before lsm_bprm_committed_creds: an exec is of the program that makes it. */
static __always_inline void former_restore(struct task_struct *task, struct aw_tag *tag)
{
	struct aw_former *former = bpf_task_storage_get(&formers, task, 0, 0);

	if (!former || !former->successor || former->successor != tag->image)
		return;
	former->successor = 0;
	tag->image = former->image;
	tag->predicates[0] = former->predicates[0];
	tag->predicates[1] = former->predicates[1];
	tag->predicates[2] = former->predicates[2];
}

/*
 * Judges the exec by the program that made it, then gives the tag the predicates of the new one: by
 * the policy in force, and for the next one, if there is one, as a mark.
 */
static __always_inline void exec_judge(struct aw_record *record, struct aw_walk *walk,
				       struct task_struct *task, const struct aw_subject *subject)
{
	struct aw_question *question = &walk->question;
	struct aw_tag *tag = subject->tag, *mirrored;
	u32 tgid = task->tgid, next = *(volatile u32 *)&control.next;
	struct aw_mark *mark = &walk->mark;

	former_restore(task, tag);
	question_begin(walk, tag, subject->session, AW_LISTS_EXEC, AW_SORT_EXEC);
	exec_ask(record, walk, task, question->slot);
	tag->image = record->header.time;
	tag->predicates[0] = question->found[0];
	tag->predicates[1] = question->found[1];
	tag->predicates[2] = question->found[2] | (u64)question->generation << 48;
	mirrored = bpf_map_lookup_elem(&mirror, &tgid);
	if (mirrored)
		*mirrored = *tag;
	if (next == AW_POLICY_NONE)
		return;
	question->deciding = 0;
	exec_ask(record, walk, task, next);
	mark->agents = tag->agents;
	mark->predicates[0] = question->found[0];
	mark->predicates[1] = question->found[1];
	mark->predicates[2] = question->found[2];
	mark->generation = question->generation;
	bpf_map_update_elem(&marks, &record->header.time, mark, BPF_ANY);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(process_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct aw_subject subject;
	struct task_struct *parent;
	struct aw_record *record;
	struct aw_header *header;
	struct aw_walk *walk;
	struct aw_exec *exec;
	struct task_struct *leader = task->group_leader;
	bool known, candidate;
	u32 at = sizeof(*exec), names;

	if (!is_recorder())
		return 0;
	known = tagged_below(task, leader, &subject);
	if (!known && !control.identify)
		return 0;
	if (!scratch_get(task, &record, &walk, AW_KIND_EXEC))
		return 0;
	exec = &record->exec;
	header = &record->header;
	__builtin_memset(exec, 0, sizeof(*exec));
	names = exec_names(record, walk, task, bprm, &at);
	candidate = is_candidate(record, names);
	if (!known && (!candidate || !session_begin(task, leader, &subject))) {
		tag_remove(task);
		return 0;
	}
	{
		u16 flags = header->flags;
		u32 unresolved = header->unresolved;

		header_fill(header, task, &subject, AW_KIND_EXEC, 0);
		header->flags |= flags;
		header->unresolved = unresolved;
	}
	if (candidate)
		header->flags |= AW_FLAG_CANDIDATE;
	if (bprm->interp != bprm->filename)
		header->flags |= AW_FLAG_SCRIPT;
	at = exec_others(record, walk, task, BPF_CORE_READ(bprm, file), at);
	exec->argv_len = exec_argv(record, task, at);
	header->length = at + exec->argv_len;
	exec->argc = bprm->argc;
	exec->uid = bpf_get_current_uid_gid();
	exec->stdin_kind = stdin_kind(task);
	parent = BPF_CORE_READ(task, real_parent);
	exec->parent_tgid = BPF_CORE_READ(parent, tgid);
	exec->parent_start = BPF_CORE_READ(parent, group_leader, start_boottime);
	exec_judge(record, walk, task, &subject);
	record_send(&lifecycle, RING_LIFECYCLE, &subject, record, sizeof(*record),
		    &record->exec.result);
	return 0;
}
