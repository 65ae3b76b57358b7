/* SPDX-License-Identifier: GPL-2.0 */
/*
 * BPF LSM: mounts by their mount point, and the making of user namespaces. Where the kernel has what is
 * mounted as its own object, a directory below which something is denied stays where it is; mount(2) has
 * it as text alone, and what is opened below is judged by its canonical name all the same.
 */

struct mounting {
	u32 op, words;
	u64 flags;
	u32 takes; /* 1: what is below the source goes to the mount point */
	u32 pad;
	struct path point;	    /* no dentry: of none */
	struct path source;	    /* no dentry: none, or `asked` */
	const char *asked, *fstype; /* the kernel's copies; 0: none */
};

/* What is not a name, behind the names. */
static __noinline void mounted_put(struct aw_record *record, const struct mounting *asked)
{
	struct aw_mounting *mounting = &record->mounting;
	u32 at = record->header.length;

	if (asked->asked)
		mounting->source_asked_len =
			put_string(record, &at, asked->asked, false, AW_UNRESOLVED_NEW_ASKED);
	if (asked->fstype)
		mounting->fstype_len =
			put_string(record, &at, asked->fstype, false, AW_UNRESOLVED_NEW_ASKED);
	record->header.length = at;
}

static __noinline int mount_hook(struct mounting *asked)
{
	struct aw_question *question;
	struct aw_record *record;
	struct aw_walk *walk;
	struct hooked hooked;
	int found;

	/* Rules on programs, too, are about what is taken along. */
	found = hook_begin(&hooked, AW_KIND_MOUNT, asked->takes ? AW_LISTS_EXEC : AW_LISTS_OPEN,
			   AW_SORT_NAME);
	if (found != HOOK_ASKS)
		return DENIED(found == HOOK_BLIND);
	record = hooked.record;
	walk = hooked.walk;
	question = &walk->question;
	question->lists = AW_LISTS_OPEN;
	question->kinds = AW_MOUNT;
	question->words = asked->words;
	__builtin_memset((void *)record + sizeof(record->header), 0,
			 sizeof(record->mounting) - sizeof(record->header));
	record->header.length = sizeof(record->mounting);
	record->mounting.op = asked->op;
	record->mounting.mount_flags = asked->flags;
	record->mounting.result = -EPERM;
	if (asked->point.dentry) {
		changed_put(record, walk, &asked->point, false);
		changed_ask(record, walk, false, !question->names[0].at);
	} else {
		policy_judge(walk, 0);
	}
	record->header.generation = question->generation;
	record->header.verdict = question->verdict;
	record->header.rule = question->rule;
	if (asked->source.dentry) {
		changed_put(record, walk, &asked->source, true);
		if (asked->takes && !refused(&record->header))
			below_judge(record, walk, true, AW_BELOW_TAKEN);
	}
	mounted_put(record, asked);
	if (record->header.verdict == AW_VERDICT_KILL)
		bpf_send_signal(SIGKILL);
	return DENIED(hook_answer(&hooked, 0, record->header.length, &activity, RING_ACTIVITY));
}

static __always_inline u32 word_of_mount(u32 op)
{
	return AW_WORD_MOUNT << (op - AW_OP_MOUNT);
}

SEC("lsm/sb_mount")
int BPF_PROG(lsm_sb_mount, const char *source, const struct path *path, const char *type,
	     unsigned long flags)
{
	struct mounting mounting = {.flags = flags, .asked = source};

	mounting.op = mount_op(flags);
	mounting.words = word_of_mount(mounting.op);
	mounting.point.mnt = path->mnt;
	mounting.point.dentry = path->dentry;
	if (mounting.op == AW_OP_MOUNT && !(flags & MS_BIND))
		mounting.fstype = type;
	return mount_hook(&mounting);
}

/* Of what fsmount and open_tree made, and of what hangs somewhere already and is moved. */
SEC("lsm/move_mount")
int BPF_PROG(lsm_move_mount, const struct path *from, const struct path *to)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct mounting mounting = {.op = AW_OP_MOUNT, .takes = 1};
	struct mnt_namespace *in = BPF_CORE_READ(mount_of(from->mnt), mnt_ns);

	if (in == BPF_CORE_READ(task, nsproxy, mnt_ns))
		mounting.op = AW_OP_MOVE;
	else
		mounting.fstype = BPF_CORE_READ(from->dentry, d_sb, s_type, name);
	mounting.words = word_of_mount(mounting.op);
	mounting.point.mnt = to->mnt;
	mounting.point.dentry = to->dentry;
	mounting.source.mnt = from->mnt;
	mounting.source.dentry = from->dentry;
	return mount_hook(&mounting);
}

/* Where the old root goes. Sandboxes do this with the whole of it: nothing has another name after. */
SEC("lsm/sb_pivotroot")
int BPF_PROG(lsm_sb_pivotroot, const struct path *old, const struct path *new)
{
	struct mounting mounting = {.op = AW_OP_MOVE, .words = AW_WORD_MOVE};

	mounting.point.mnt = old->mnt;
	mounting.point.dentry = old->dentry;
	mounting.source.mnt = new->mnt;
	mounting.source.dentry = new->dentry;
	return mount_hook(&mounting);
}

/* A file system that is configured anew by fsconfig; of mount(2), sb_mount has been asked. */
SEC("lsm/sb_remount")
int BPF_PROG(lsm_sb_remount, struct super_block *super)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (void *)bpf_task_pt_regs(task);
	struct mounting mounting = {.op = AW_OP_REMOUNT, .words = AW_WORD_REMOUNT};
	bool compat = task->thread_info.status & TS_COMPAT;

	if (call_of(regs->orig_ax, compat) == CALL_MOUNT)
		return 0;
	mounting.point.dentry = super->s_root;
	return mount_hook(&mounting);
}

SEC("lsm/sb_umount")
int BPF_PROG(lsm_sb_umount, struct vfsmount *mnt, int flags)
{
	struct mounting mounting = {
		.op = AW_OP_UMOUNT, .words = AW_WORD_UMOUNT, .flags = (u32)flags};
	struct mount *mount = mount_of(mnt);
	struct mount *parent = BPF_CORE_READ(mount, mnt_parent);

	mounting.point.mnt = (void *)parent + bpf_core_field_offset(struct mount, mnt);
	mounting.point.dentry = BPF_CORE_READ(mount, mnt_mountpoint);
	mounting.source.mnt = mnt;
	mounting.source.dentry = BPF_CORE_READ(mnt, mnt_root);
	return mount_hook(&mounting);
}

SEC("lsm/userns_create")
int BPF_PROG(lsm_userns_create, const void *cred)
{
	struct mounting mounting = {
		.op = AW_OP_USERNS, .words = AW_WORD_USERNS, .flags = CLONE_NEWUSER};

	return mount_hook(&mounting);
}
