/* SPDX-License-Identifier: GPL-2.0 */
/*
 * BPF LSM: what is denied before it happens. Each hook judges by the kernel's own objects, tells what it
 * denies, and leaves its answer for the end of the call, where the rest is told (syscalls.bpf.c). These
 * programs are never skipped; nothing here depends on a tracing program. What other programs on the
 * same hook have returned is zero: the kernel asks nobody after a refusal.
 */

/* Written out: some verifiers refuse what clang makes of a condition. */
#define DENIED(denied)                                                                             \
	({                                                                                         \
		int result_ = 0;                                                                   \
		if (denied)                                                                        \
			asm volatile("%0 = %1" : "=r"(result_) : "i"(-EPERM));                     \
		result_;                                                                           \
	})

struct hooked {
	struct aw_subject subject;
	struct aw_record *record;
	struct aw_walk *walk;
	u64 call; /* orig_ax + 1 of the call it is in */
};

/* What a hook found about the one who asks. */
#define HOOK_NOBODY 0 /* not tagged, or nothing is asked of such an event: go on */
#define HOOK_ASKS 1
#define HOOK_BLIND 2 /* there is no memory to judge it in */

static __always_inline int hook_begin(struct hooked *hooked, u16 kind, u32 lists, u32 sort)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs;
	int asking;

	if (is_early() || !tagged(task, &hooked->subject))
		return HOOK_NOBODY;
	if (!scratch_get(task, &hooked->record, &hooked->walk, kind)) {
		if (!hooked->subject.session->agents ||
		    hooked->subject.session->state == AW_SESSION_PROVISIONAL ||
		    control.in_force == AW_POLICY_NONE)
			return HOOK_NOBODY;
		COUNT(unjudged);
		return HOOK_BLIND;
	}
	asking = question_begin(hooked->walk, hooked->subject.tag, hooked->subject.session, lists,
				sort);
	if (asking != QUESTION_OPEN)
		return HOOK_NOBODY;
	hooked->walk->question.preventing = 1;
	regs = (void *)bpf_task_pt_regs(task);
	hooked->call = BPF_CORE_READ(regs, orig_ax) + 1;
	header_fill(&hooked->record->header, task, &hooked->subject, kind, 0);
	hooked->record->header.flags |= AW_FLAG_HOOK;
	return HOOK_ASKS;
}

static __always_inline bool refused(const struct aw_header *header)
{
	return header->verdict == AW_VERDICT_KILL || header->verdict == AW_VERDICT_DENY;
}

/* The answer is in the record's header. True: it is refused, and that is told. */
static __always_inline bool hook_answer(struct hooked *hooked, void *file, u32 length, void *ring,
					u32 which)
{
	struct aw_header *header = &hooked->record->header;
	struct aw_hooked *left = &hooked->walk->hooked;

	left->call = hooked->call;
	left->file = (u64)file;
	left->generation = header->generation;
	left->rule = header->rule;
	left->verdict = header->verdict;
	left->told = refused(header);
	if (!left->told)
		return false;
	header->length = length;
	record_send(ring, which, &hooked->subject, hooked->record, sizeof(*hooked->record), 0);
	return true;
}

/* Opening, and what is received as if it had been opened. */

/*
 * A file that a file system opens on behalf of one of its own, such as the lower file of an overlay: it
 * is nobody's wish by that name, and only rules say something about it.
 */
static __always_inline bool is_backing(u32 mode)
{
	return mode & FMODE_NOACCOUNT;
}

static __always_inline int file_judge(struct file *file, bool opens)
{
	u32 granted = file->f_flags, mode = file->f_mode, at = sizeof(struct aw_open);
	struct hooked hooked;
	int found;

	if (opens && mode & FMODE_EXEC)
		return 0;
	found = hook_begin(&hooked, AW_KIND_OPEN, AW_LISTS_OPEN, AW_SORT_NAME);
	if (found != HOOK_ASKS)
		return DENIED(found == HOOK_BLIND);
	hooked.record->open.open_flags = granted;
	hooked.record->open.result = -EPERM;
	hooked.record->open.path_len = 0;
	hooked.record->open.asked_len = 0;
	__builtin_memset(hooked.record->open.pad, 0, sizeof(hooked.record->open.pad));
	open_file(hooked.record, hooked.walk, bpf_get_current_task_btf(), file, &at);
	if (!opens)
		hooked.record->header.flags &= ~AW_FLAG_CREATED;
	if (is_backing(mode))
		hooked.walk->question.ruled = AW_RULED_ALONE;
	open_judge(hooked.record, hooked.walk);
	return DENIED(hook_answer(&hooked, file, at, &activity, RING_ACTIVITY));
}

SEC("lsm/file_open")
int BPF_PROG(lsm_file_open, struct file *file)
{
	return file_judge(file, true);
}

SEC("lsm/file_receive")
int BPF_PROG(lsm_file_receive, struct file *file)
{
	return file_judge(file, false);
}

/* Executing. */

/* Where the caller keeps argv; false where the new program gets another one, as a script's does. */
static __always_inline bool argv_of(struct aw_question *question, struct linux_binprm *bprm)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (void *)bpf_task_pt_regs(task);
	struct call call;

	if (bprm->interp != bprm->filename)
		return false;
	call.compat = task->thread_info.status & TS_COMPAT;
	call.kind = call_of(regs->orig_ax, call.compat);
	args_read(&call, regs);
	question->argv_size = call.compat ? 4 : 8;
	question->argv = call.args[call.kind == CALL_EXECVEAT ? 2 : 1];
	return question->argv && (call.kind == CALL_EXECVE || call.kind == CALL_EXECVEAT);
}

/* What argv says is not known before the new program is in place, and decided there. */
static __noinline int exec_hook(struct linux_binprm *bprm, struct file *file)
{
	u32 at = sizeof(struct aw_exec);
	struct aw_question *question;
	struct task_struct *task = bpf_get_current_task_btf();
	struct hooked hooked;
	struct aw_exec *exec;
	struct path path;
	struct name name;
	int found;

	found = hook_begin(&hooked, AW_KIND_EXEC, AW_LISTS_EXEC, AW_SORT_EXEC);
	if (found != HOOK_ASKS)
		return DENIED(found == HOOK_BLIND);
	exec = &hooked.record->exec;
	__builtin_memset((void *)exec + sizeof(exec->header), 0,
			 sizeof(*exec) - sizeof(exec->header));
	exec->result = -EPERM;
	exec->uid = bpf_get_current_uid_gid();
	exec->stdin_kind = stdin_kind(task);
	if (bprm)
		exec->argc = bprm->argc;
	BPF_CORE_READ_INTO(&path, file, f_path);
	name_of(&name, &path, hooked.walk);
	exec->header.flags |= name.flags;
	exec->path_dev = name.dev;
	exec->path_len = put_name(hooked.record, &at, &name, hooked.walk->path, AW_UNRESOLVED_PATH);
	if (bprm)
		exec->asked_len =
			put_string(hooked.record, &at, bprm->filename, false, AW_UNRESOLVED_ASKED);
	BPF_CORE_READ_INTO(&path, task, fs, pwd);
	name_of(&name, &path, hooked.walk);
	exec->cwd_dev = name.dev;
	exec->cwd_len = put_name(hooked.record, &at, &name, hooked.walk->path, AW_UNRESOLVED_CWD);
	at = exec_others(hooked.record, hooked.walk, task, file, at);
	question = &hooked.walk->question;
	question->ruled = bprm ? 0 : AW_RULED_OBJECT;
	exec_question(hooked.record, hooked.walk);
	if (!bprm || !argv_of(question, bprm))
		question->later = 1 << AW_SUBJECT_ARGS;
	question_ask(hooked.walk, hooked.record, &exec->header);
	return DENIED(hook_answer(&hooked, file, at, &lifecycle, RING_LIFECYCLE));
}

/* For each interpreter of a script as well. */
SEC("lsm/bprm_check_security")
int BPF_PROG(lsm_bprm_check_security, struct linux_binprm *bprm)
{
	return exec_hook(bprm, bprm->file);
}

/*
 * The old program is gone: nothing that was known of it may loosen what the new one does. process_exec,
 * right behind this, says what the new one is; where the kernel skips that, nothing is known of it.
 */
SEC("lsm/bprm_committed_creds")
int BPF_PROG(lsm_bprm_committed_creds)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct aw_tag *tag, *mirrored;
	struct aw_subject subject;
	struct aw_former *former;
	u32 tgid = task->tgid;

	if (!tagged(task, &subject))
		return 0;
	tag = subject.tag;
	/* Else what it says of the old program would be found again: there is no way back any more. */
	if (!storage_sure && !bpf_task_storage_get(&tags, task, 0, 0))
		bpf_send_signal(SIGKILL);
	former = bpf_task_storage_get(&formers, task, 0, 0);
	/* Of two instances the newer one comes first: then it is done. */
	if (former && former->instance > instance && former->successor == tag->image)
		return 0;
	if (former) {
		former->image = tag->image;
		former->predicates[0] = tag->predicates[0];
		former->predicates[1] = tag->predicates[1];
		former->predicates[2] = tag->predicates[2];
		former->instance = instance;
	}
	tag->image = bpf_ktime_get_boot_ns();
	tag->predicates[0] = tag->predicates[1] = tag->predicates[2] = 0;
	if (former)
		former->successor = tag->image;
	mirrored = bpf_map_lookup_elem(&mirror, &tgid);
	if (mirrored)
		*mirrored = *tag;
	return 0;
}

/* "ld-linux-x86-64.so.2", "ld-musl-x86_64.so.1": what rules say of those is about running them by name. */
static __always_inline bool is_loader(struct file *file)
{
	const unsigned char *name = BPF_CORE_READ(file, f_path.dentry, d_name.name);
	char begins[4] = {};

	bpf_probe_read_kernel(begins, 3, name);
	return begins[0] == 'l' && begins[1] == 'd' && begins[2] == '-';
}

static __always_inline bool is_executing(void)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return BPF_CORE_READ_BITFIELD_PROBED(task, in_execve);
}

/*
 * What the kernel itself maps for a new program: the program, which has been asked about, and what that
 * names as its interpreter, which is any program of the agent's choice.
 */
static __always_inline bool is_asked(struct file *file)
{
	struct aw_walk *walk;

	if (!is_executing())
		return false;
	if (is_loader(file))
		return true;
	walk = walk_of_current();
	return walk && walk->hooked.file == (u64)file; /* the last one that was asked about */
}

SEC("lsm/mmap_file")
int BPF_PROG(lsm_mmap_file, struct file *file, unsigned long asked, unsigned long prot)
{
	if (!file || !(prot & PROT_EXEC) || is_asked(file))
		return 0;
	return exec_hook(0, file);
}

SEC("lsm/file_mprotect")
int BPF_PROG(lsm_file_mprotect, struct vm_area_struct *area, unsigned long asked,
	     unsigned long prot)
{
	struct file *file = area->vm_file;

	if (!file || !(prot & PROT_EXEC) || area->vm_flags & VM_EXEC || is_executing())
		return 0;
	return exec_hook(0, file);
}

/* The child has its tag before it can be seen by anybody, or there is none: see storage_sure. */
SEC("lsm/task_alloc")
int BPF_PROG(lsm_task_alloc, struct task_struct *child)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct aw_subject subject;
	struct aw_tag *tag, copy;
	int result = 0;

	if (!tagged(task, &subject))
		return 0;
	copy = *subject.tag;
	tag = bpf_task_storage_get(&tags, child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (tag)
		*tag = copy;
	else
		asm volatile("%0 = %1" : "=r"(result) : "i"(-EAGAIN));
	return result;
}

/*
 * A file without a name that the kernel makes for one purpose: "[io_uring]", "[userfaultfd]". Opened as
 * that, for a rule that names it; what a ring does afterwards no rule judges.
 */
SEC("lsm/inode_init_security_anon")
int BPF_PROG(lsm_inode_init_security_anon, struct inode *inode, const struct qstr *qstr)
{
	u32 at = sizeof(struct aw_open), len;
	struct hooked hooked;
	struct aw_open *open;
	struct name name;
	int found;

	found = hook_begin(&hooked, AW_KIND_OPEN, AW_LISTS_OPEN, AW_SORT_NAME);
	if (found != HOOK_ASKS)
		return DENIED(found == HOOK_BLIND);
	open = &hooked.record->open;
	__builtin_memset((void *)open + sizeof(open->header), 0,
			 sizeof(*open) - sizeof(open->header));
	open->result = -EPERM;
	len = BPF_CORE_READ(qstr, len);
	name.len = len > 255 ? 255 : len;
	name.dev = 0;
	name.flags = AW_FLAG_ANONYMOUS;
	name.failed = len > 255 ||
		      bpf_probe_read_kernel(hooked.walk->path + (AW_PATH_MAX - (name.len & 255)),
					    name.len & 255, BPF_CORE_READ(qstr, name));
	open->header.flags |= name.flags;
	open->path_len = put_name(hooked.record, &at, &name, hooked.walk->path, AW_UNRESOLVED_PATH);
	hooked.walk->question.ruled = AW_RULED_ALONE;
	hooked.walk->question.names[0].at = 0;
	open_judge(hooked.record, hooked.walk);
	return DENIED(hook_answer(&hooked, 0, at, &activity, RING_ACTIVITY));
}
