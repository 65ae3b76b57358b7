/* SPDX-License-Identifier: GPL-2.0 */
/* What a call says that mounts, or makes a user namespace. For both loaders. */

/* In the order in which the kernel looks at them. */
static __always_inline u32 mount_op(u64 flags)
{
	if ((flags & MS_MGC_MSK) == MS_MGC_VAL)
		flags &= ~(u64)MS_MGC_MSK;
	if (flags & MS_REMOUNT)
		return AW_OP_REMOUNT;
	if (flags & MS_BIND)
		return AW_OP_MOUNT;
	if (flags & MS_PROPAGATION)
		return AW_OP_REMOUNT;
	return flags & MS_MOVE ? AW_OP_MOVE : AW_OP_MOUNT;
}

static __always_inline u64 clone_flags(const struct call *call)
{
	u64 flags = call->args[0];

	if (call->kind == CALL_CLONE3) /* struct clone_args begins with them */
		bpf_probe_read_user(&flags, sizeof(flags), (void *)call->args[0]);
	return flags;
}

/*
 * What a call says. Kept in aw_walk.said: of the stack, 6.1 counts what all functions of a chain of
 * calls have, and aw_walk.address is where other names are worked out.
 */
struct mount_call {
	struct call call;
	struct given point, source;
	u64 fstype;	 /* text; 0: none */
	u64 context;	 /* struct file of what was configured; 0: none */
	u8 names;	 /* 1: point is a name that begins where it says */
	u8 names_source; /* the same, of source */
	u8 known;	 /* 1: fstype is the kernel's */
};

static __always_inline void given_as(struct given *given, u64 asked, s32 fd, bool empty)
{
	given->asked = asked;
	given->fd = fd;
	given->empty = empty;
}

static __always_inline void mounts_said(struct aw_mounting *mounting, struct mount_call *how,
					const struct call *call)
{
	u64 flags = call->args[3];

	mounting->mount_flags = flags;
	mounting->op = mount_op(flags);
	given_as(&how->point, call->args[1], AT_FDCWD, false);
	given_as(&how->source, call->args[0], AT_FDCWD, false);
	how->names = 1;
	if (mounting->op == AW_OP_MOUNT && !(flags & MS_BIND))
		how->fstype = call->args[2];
}

/* What fsmount and open_tree made had no place before. */
static __always_inline void moves_said(struct aw_mounting *mounting, struct mount_call *how,
				       const struct call *call, struct file *from)
{
	u64 flags = call->args[4];

	mounting->mount_flags = flags;
	mounting->op = AW_OP_MOVE;
	given_as(&how->point, call->args[3], call->args[2], flags & MOVE_MOUNT_T_EMPTY_PATH);
	given_as(&how->source, call->args[1], call->args[0], flags & MOVE_MOUNT_F_EMPTY_PATH);
	how->names = how->names_source = 1;
	if (from && BPF_CORE_READ(from, f_mode) & FMODE_NEED_UNMOUNT) {
		mounting->op = AW_OP_MOUNT;
		how->fstype = (u64)BPF_CORE_READ(from, f_inode, i_sb, s_type, name);
		how->known = 1;
	}
}

/* Not static: so the verifier looks at it once. */
__noinline int mount_said(struct aw_record *record, struct aw_walk *walk)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct aw_mounting *mounting;
	const struct call *call;
	struct mount_call *how;

	if (!record || !walk)
		return 0;
	mounting = &record->mounting;
	how = (struct mount_call *)walk->said;
	_Static_assert(sizeof(*how) <= sizeof(walk->said), "mount_call");
	call = &how->call;
	__builtin_memset((void *)how + sizeof(*call), 0, sizeof(*how) - sizeof(*call));
	how->point.fd = how->source.fd = AT_FDCWD;
	how->names = 1;
	switch (call->kind) {
	case CALL_MOUNT:
		mounts_said(mounting, how, call);
		break;
	case CALL_UMOUNT:
		mounting->op = AW_OP_UMOUNT;
		how->point.asked = call->args[0];
		break;
	case CALL_PIVOT_ROOT: /* by now, names begin elsewhere */
		mounting->op = AW_OP_MOVE;
		how->point.asked = call->args[1];
		how->source.asked = call->args[0];
		how->names = 0;
		break;
	case CALL_MOVE_MOUNT:
		moves_said(mounting, how, call, file_of(task, call->args[0]));
		break;
	case CALL_MOUNT_SETATTR:
		mounting->op = AW_OP_REMOUNT;
		given_as(&how->point, call->args[1], call->args[0], call->args[2] & AT_EMPTY_PATH);
		break;
	case CALL_FSCONFIG:
		mounting->op = AW_OP_REMOUNT;
		how->context = (u64)file_of(task, call->args[0]);
		if (!how->context)
			record->header.unresolved |= AW_UNRESOLVED_PATH;
		how->names = 0;
		break;
	default:
		mounting->op = AW_OP_USERNS;
		mounting->mount_flags = CLONE_NEWUSER;
		how->names = 0;
	}
	return 0;
}

/* Whether it is one of ours: most calls of some numbers are about something else. */
static __always_inline bool mounts_nothing(const struct call *call)
{
	if (call->kind == CALL_FSCONFIG)
		return (u32)call->args[1] != FSCONFIG_CMD_RECONFIGURE;
	return call->kind >= CALL_UNSHARE && !(clone_flags(call) & CLONE_NEWUSER);
}
