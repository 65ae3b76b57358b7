/* SPDX-License-Identifier: GPL-2.0 */
/*
 * open, connect, changes and mounts, at the end of the call. One program on tp_btf/sys_exit: the arguments are still in
 * the registers, what the kernel read from the caller's memory is still mapped, the result and the
 * kernel's own objects are known, and calls through the 32-bit entry come by too. It costs calls that
 * are none of ours a few ns more than per-call tracepoints would, and needs no tracefs
 * (docs/decisions/0002-sys-exit.md).
 */

/*
 * The kernel's own view of what was opened: names and access. Not inlined: what it has on the stack is
 * not needed any more where the open is judged.
 */
static __noinline void open_file(struct aw_record *record, struct aw_walk *walk,
				 struct task_struct *task, struct file *file, u32 *at)
{
	u32 asked = record->open.open_flags, granted = BPF_CORE_READ(file, f_flags);
	u32 type = BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT, flags = 0;
	u32 mode = BPF_CORE_READ(file, f_mode);
	struct path path;
	struct name name;
	u32 path_at = *at;

	BPF_CORE_READ_INTO(&path, file, f_path);
	name_of(&name, &path, walk);
	record->open.path_dev = name.dev;
	record->open.path_len = put_name(record, at, &name, walk->path, AW_UNRESOLVED_PATH);
	others_put(record, walk, task, file, &path, &name, path_at, record->open.path_len, at,
		   AW_UNRESOLVED_PATH);
	record->open.view_len = naming_of(walk)->view_len;
	record->open.known_len = naming_of(walk)->known_len;
	flags |= name.flags;
	record->open.open_flags = (asked & ~O_ACCMODE) | (granted & O_ACCMODE);
	if (type == S_IFDIR)
		flags |= AW_FLAG_DIRECTORY;
	/* Not the access mode: 3 asks for both and grants neither, and so does O_PATH. */
	if (mode & FMODE_READ)
		flags |= AW_FLAG_READS;
	if ((mode & FMODE_WRITE) || ((asked & O_TRUNC) && !(granted & O_PATH)))
		flags |= AW_FLAG_CHANGES;
	if (mode & FMODE_CREATED)
		flags |= AW_FLAG_CHANGES | AW_FLAG_CREATED;
	record->header.flags |= flags;
}

/* The names are where open_file left them. Not static: so the verifier looks at it once. */
__noinline int open_judge(struct aw_record *record, struct aw_walk *walk)
{
	u32 flags, words = AW_WORD_OPEN, kinds = AW_OPEN;

	if (!record || !walk)
		return 0;
	flags = record->header.flags;
	if (flags & AW_FLAG_READS) {
		kinds |= AW_READ;
		words |= AW_WORD_READ;
	}
	if (flags & AW_FLAG_CHANGES) {
		kinds |= AW_CHANGE;
		words |= AW_WORD_WRITE;
		if (record->open.open_flags & O_TRUNC && !(flags & AW_FLAG_CREATED))
			words |= AW_WORD_TRUNCATE;
	}
	if (flags & AW_FLAG_CREATED)
		words |= AW_WORD_CREATE;
	walk->question.kinds = kinds;
	walk->question.words = words;
	if (record->header.unresolved & AW_UNRESOLVED_PATH)
		walk->question.unread = 1 << AW_SUBJECT_FILE;
	question_name(walk, 0, AW_SUBJECT_FILE, AW_SYMBOL_FILE, walk->question.names[0].at,
		      record->open.path_len, record->open.path_dev, flags & AW_FLAG_ANONYMOUS);
	if (record->open.view_len || record->open.known_len)
		question_others(walk);
	question_ask(walk, record, &record->header);
	return 0;
}

/*
 * Who else has a table of descriptors. The walk goes from process to process, and through the threads
 * of each; where it is, is in scratch memory, as in identity.bpf.c.
 */
struct sharing {
	u64 files;
	u64 leader;	/* of the process at hand */
	u64 head, node; /* of its list of threads, and one of them: the same at its end */
	u32 tgid;
	u32 alone; /* 1: nobody has it */
};

struct sharing_walk {
	struct aw_walk *walk;
};

#define TASKS_MAX (1 << 18) /* with more than that on the machine, it is taken as shared */

static long sharing_step(u32 index, struct sharing_walk *ctx)
{
	struct sharing *sharing = (struct sharing *)ctx->walk->address;
	struct task_struct *task, *leader = (void *)sharing->leader;
	struct list_head *node = (void *)sharing->node;

	if (sharing->node != sharing->head) {
		task = (void *)node - bpf_core_field_offset(struct task_struct, thread_node);
		if ((u64)BPF_CORE_READ(task, files) == sharing->files)
			return 1;
		sharing->node = (u64)BPF_CORE_READ(node, next);
		return 0;
	}
	node = BPF_CORE_READ(leader, tasks.next);
	leader = (void *)node - bpf_core_field_offset(struct task_struct, tasks);
	sharing->leader = (u64)leader;
	if (!node || BPF_CORE_READ(leader, tgid) == sharing->tgid) {
		sharing->alone = !!node;
		return 1;
	}
	node = (void *)BPF_CORE_READ(leader, signal);
	sharing->head = (u64)node + bpf_core_field_offset(struct signal_struct, thread_head);
	node = (void *)sharing->head;
	sharing->node = (u64)BPF_CORE_READ(node, next);
	if (!sharing->node)
		sharing->node = sharing->head;
	return 0;
}

/*
 * Whether another process has this one's descriptors as its own (CLONE_FILES). To be asked once this
 * process must die: from then on a fork of its own fails, and one by another process that has them
 * leaves that in the list. Not static: so the verifier looks at it once.
 */
__noinline int sharing_walk(struct aw_walk *walk)
{
	struct sharing_walk ctx = {.walk = walk};

	if (!walk)
		return 0;
	bpf_loop(TASKS_MAX, sharing_step, &ctx, 0);
	return 0;
}

static __always_inline bool is_shared(struct task_struct *task, struct aw_walk *walk)
{
	struct sharing *sharing = (struct sharing *)walk->address;
	struct files_struct *files = BPF_CORE_READ(task, files);

	_Static_assert(sizeof(*sharing) <= sizeof(walk->address), "sharing");
	if (BPF_CORE_READ(files, count.counter) <= 1)
		return false;
	sharing->files = (u64)files;
	sharing->leader = (u64)BPF_CORE_READ(task, group_leader);
	sharing->head = sharing->node = 0;
	sharing->tgid = task->tgid;
	sharing->alone = 0;
	sharing_walk(walk);
	return !sharing->alone;
}

/* Everybody of the session dies at the end of the call he is in, before he has what it read. */
static __always_inline void end_at_once(struct aw_record *record, struct aw_session *session)
{
	session->state = AW_SESSION_ENDING;
	control.held = 1; /* after the state: see Probes._tell_held */
	record->header.flags |= AW_FLAG_SHARED;
}

/* By the policy in force, where no hook has asked it already. */
static __always_inline void open_ask(struct aw_record *record, struct aw_walk *walk,
				     const struct aw_subject *subject)
{
	int asking =
		question_begin(walk, subject->tag, subject->session, AW_LISTS_OPEN, AW_SORT_NAME);

	if (asking == QUESTION_IDLE)
		record->header.generation = walk->question.generation;
	else if (asking)
		open_judge(record, walk);
}

static __always_inline void open_end(struct task_struct *task, const struct aw_subject *subject,
				     const struct call *call)
{
	struct aw_record *record;
	struct aw_walk *walk;
	u32 at = sizeof(struct aw_open);
	bool left;
	struct file *file;
	const void *asked;

	if (!scratch_get(task, &record, &walk, AW_KIND_OPEN))
		return;
	left = hook_left(walk, call->nr);
	if (left && walk->hooked.told && call->result == -EPERM)
		return;
	header_fill(&record->header, task, subject, AW_KIND_OPEN, 0);
	record->open.open_flags = open_flags(call);
	record->open.result = call->result;
	record->open.path_dev = 0;
	record->open.path_len = 0;
	record->open.asked_len = 0;
	record->open.view_len = record->open.known_len = 0;
	__builtin_memset(record->open.pad, 0, sizeof(record->open.pad));
	if (call->compat)
		record->header.flags |= AW_FLAG_COMPAT;
	if (call->result >= 0) {
		file = file_of(task, call->result);
		if (file)
			open_file(record, walk, task, file, &at);
		else
			open_gone(record, call);
		if (left && walk->hooked.file == (u64)file) {
			record->header.generation = walk->hooked.generation;
			record->header.rule = walk->hooked.rule;
			record->header.verdict = walk->hooked.verdict;
		} else {
			open_ask(record, walk, subject);
		}
		if (record->header.verdict == AW_VERDICT_KILL && is_shared(task, walk))
			end_at_once(record, subject->session);
	}
	asked = open_asked(call);
	if (asked)
		record->open.asked_len = put_string(record, &at, asked, true, AW_UNRESOLVED_ASKED);
	record->header.length = at;
	record_send(&activity, RING_ACTIVITY, subject, record, sizeof(*record),
		    &record->open.result);
}

/* A failed exec: only the name it asked for. Those that succeed are seen at sched_process_exec. */
static __always_inline void exec_failed(struct task_struct *task, const struct aw_subject *subject,
					const struct call *call)
{
	struct aw_record *record;
	struct aw_walk *walk;
	u32 at = sizeof(struct aw_exec);
	u64 asked = call->kind == CALL_EXECVE ? call->args[0] : call->args[1];

	if (!scratch_get(task, &record, &walk, AW_KIND_EXEC) ||
	    hook_told(walk, call->nr, call->result))
		return;
	__builtin_memset(&record->exec, 0, sizeof(record->exec));
	header_fill(&record->header, task, subject, AW_KIND_EXEC, 0);
	record->exec.result = call->result;
	record->exec.uid = bpf_get_current_uid_gid();
	if (call->compat)
		record->header.flags |= AW_FLAG_COMPAT;
	record->exec.asked_len = put_string(record, &at, (void *)asked, true, AW_UNRESOLVED_ASKED);
	record->header.length = at;
	record_send(&lifecycle, RING_LIFECYCLE, subject, record, sizeof(*record),
		    &record->exec.result);
}

/*
 * A session that is frozen or ends: whatever of it runs is stopped or killed as it leaves the kernel,
 * the child of a fork as well. Userspace alone would run after those that fork or wake each other.
 */
static __always_inline void hold(struct task_struct *task, struct task_struct *leader)
{
	struct aw_subject subject;

	if (!tagged_below(task, leader, &subject))
		return;
	if (subject.session->state == AW_SESSION_FROZEN)
		bpf_send_signal(SIGSTOP);
	else if (subject.session->state == AW_SESSION_ENDING)
		bpf_send_signal(SIGKILL);
}

/* A connect that a cgroup program refused, where the rule kills: it cannot send a signal itself. */
static __always_inline void execute(struct task_struct *task)
{
	u32 tgid = task->tgid;

	if (bpf_map_delete_elem(&condemned, &tgid))
		return;
	__sync_fetch_and_add(&control.condemned, -1);
	bpf_send_signal(SIGKILL);
}

/* By number: a look-up, for this is asked of every call of everybody. */
#define BY_NUMBER(nr, kind) [nr] = kind,

static const u8 calls_64[548] = {CALLS_64(BY_NUMBER)};
static const u8 calls_32[467] = {CALLS_32(BY_NUMBER)};

static __always_inline u32 call_of(u32 nr, bool compat)
{
	if (compat)
		return nr < sizeof(calls_32) ? calls_32[nr] : 0;
	nr &= ~0x40000000; /* x32 */
	return nr < sizeof(calls_64) ? calls_64[nr] : 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(sys_exit, struct pt_regs *regs, long ret)
{
	struct task_struct *task = bpf_get_current_task_btf(), *leader = task->group_leader;
	struct aw_subject subject;
	struct call call;

	if (!is_recorder())
		return 0;
	if (control.condemned)
		execute(task);
	if (control.doomed) /* a child of that kind passes here before its first instruction */
		kill_if_doomed(task);
	if (control.held)
		hold(task, leader);
	call.compat = task->thread_info.status & TS_COMPAT;
	call.nr = regs->orig_ax + 1;
	call.kind = call_of(regs->orig_ax, call.compat);
	if (!call.kind || !tagged_below(task, leader, &subject))
		return 0;
	call.result = ret;
	args_read(&call, regs);
	if (call.kind == CALL_SOCKETCALL) {
		u32 args[3] = {};

		if (call.args[0] != 3) /* SYS_CONNECT */
			return 0;
		bpf_probe_read_user(args, sizeof(args), (void *)call.args[1]);
		call.args[0] = args[0];
		call.args[1] = args[1];
		call.args[2] = args[2];
		call.kind = CALL_CONNECT;
	}
	if (call.kind == CALL_CONNECT)
		connect_end(task, &subject, &call);
	else if (call.kind >= CALL_MOUNT)
		mount_end(task, &subject, &call);
	else if (call.kind >= CALL_RENAME)
		change_end(task, &subject, &call);
	else if (call.kind != CALL_EXECVE && call.kind != CALL_EXECVEAT)
		open_end(task, &subject, &call);
	else if (call.result < 0)
		exec_failed(task, &subject, &call);
	return 0;
}
