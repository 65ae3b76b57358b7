/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Changes of names and attributes, at the end of the call. What was changed the kernel has let go of by
 * then: known are the text that the caller gave, which another thread may have rewritten, and the
 * directory where it begins. Calls on a descriptor have the file itself.
 */

#define OF_KIND(kind, op, ...) [kind - CALL_RENAME] = {op, __VA_ARGS__},

#define INDICES 32 /* more than there are: a power of two, for the mask that bounds the index */

_Static_assert(CALL_MOUNT - CALL_RENAME <= INDICES, "change_calls");

static const struct change_call change_calls[INDICES] = {CHANGE_CALLS(OF_KIND)};

/* The directory that a name begins in, or the descriptor's file; false where it is gone. */
static __always_inline bool given_path(struct task_struct *task, const struct given *given,
				       bool relative, struct path *path)
{
	struct file *file;

	if (given->asked && !relative) {
		BPF_CORE_READ_INTO(path, task, fs, root);
		return true;
	}
	if (given->fd == AT_FDCWD) {
		BPF_CORE_READ_INTO(path, task, fs, pwd);
		return true;
	}
	file = file_of(task, given->fd);
	if (!file)
		return false;
	BPF_CORE_READ_INTO(path, file, f_path);
	return true;
}

/*
 * Where a name begins, put into the record; its length. Sets AW_FLAG_BASE but for a descriptor's own
 * file. Not static: so the verifier looks at it once.
 */
__noinline int change_base(struct aw_record *record, struct aw_walk *walk, struct given *given,
			   bool second)
{
	u32 bit = second ? AW_UNRESOLVED_NEW_PATH : AW_UNRESOLVED_PATH;
	u32 at;
	struct task_struct *task = bpf_get_current_task_btf();
	struct path path = {};
	struct name name;
	char first = 0;
	u32 len;

	if (!record || !walk || !given)
		return 0;
	at = record->header.length;
	if (given->asked && bpf_probe_read_user(&first, 1, (void *)given->asked)) {
		record->header.unresolved |= bit;
		return 0;
	}
	if (given->empty && !first)
		given->asked = 0;
	if (!given_path(task, given, first != '/', &path)) {
		record->header.unresolved |= bit;
		return 0;
	}
	name_of(&name, &path, walk);
	if (given->asked)
		record->header.flags |= AW_FLAG_BASE;
	else
		record->header.flags |= name.flags;
	len = put_name(record, &at, &name, walk->path, bit);
	others_put(record, walk, task, 0, &path, &name, record->header.length, len, &at, bit);
	if (second) {
		record->change.new_dev = name.dev;
		record->change.new_len = len;
		record->change.new_view_len = naming_of(walk)->view_len;
		record->change.new_known_len = naming_of(walk)->known_len;
	} else {
		record->change.path_dev = name.dev;
		record->change.path_len = len;
		record->change.view_len = naming_of(walk)->view_len;
		record->change.known_len = naming_of(walk)->known_len;
	}
	record->header.length = at;
	return 0;
}

static __always_inline u32 change_asked(struct aw_record *record, u64 asked, u32 bit)
{
	u32 at = record->header.length, len;

	if (!asked)
		return 0;
	len = put_string(record, &at, (void *)asked, true, bit);
	record->header.length = at;
	return len;
}

/* By which call, with what names: into the record, whose length grows with them. */
static __always_inline void change_given(struct aw_record *record, struct aw_walk *walk,
					 const struct call *call, const struct change_call *how)
{
	u32 flags = how->flags == NONE ? 0 : arg_of(call, how->flags);
	bool done = call->result >= 0;
	struct given given;

	if (call->kind == CALL_UNLINKAT && flags & AT_REMOVEDIR)
		record->change.op = AW_OP_RMDIR;
	given.fd = how->fd == NONE ? AT_FDCWD : arg_of(call, how->fd);
	given.asked = how->asked == NONE ? 0 : arg_of(call, how->asked);
	given.empty = flags & AT_EMPTY_PATH && call->kind != CALL_UNLINKAT;
	if (done)
		change_base(record, walk, &given, false);
	record->change.asked_len = change_asked(record, given.asked, AW_UNRESOLVED_ASKED);
	if (how->new_asked == NONE)
		return;
	given.fd = how->new_fd == NONE ? AT_FDCWD : arg_of(call, how->new_fd);
	given.asked = arg_of(call, how->new_asked);
	given.empty = false;
	if (done && how->op != AW_OP_SYMLINK)
		change_base(record, walk, &given, true);
	record->change.new_asked_len = change_asked(record, given.asked, AW_UNRESOLVED_NEW_ASKED);
}

/* What an LSM hook let happen: its names are the kernel's own, and it is judged already. */
static __always_inline void change_hooked(struct aw_record *record,
					  const struct aw_subject *subject, s32 result)
{
	record->header.flags &= ~AW_FLAG_HOOK;
	record->change.result = result;
	record_send(&activity, RING_ACTIVITY, subject, record, sizeof(*record),
		    &record->change.result);
}

static __always_inline void change_end(struct task_struct *task, const struct aw_subject *subject,
				       const struct call *call)
{
	const struct change_call *how;
	struct aw_change *change;
	struct aw_record *record;
	struct aw_walk *walk;
	u32 which;

	if (!scratch_get(task, &record, &walk, AW_KIND_CHANGE))
		return;
	if (hook_left(walk, call->nr) && record->header.kind == AW_KIND_CHANGE) {
		if (!walk->hooked.told || call->result != -EPERM)
			change_hooked(record, subject, call->result);
		return;
	}
	which = call->kind - CALL_RENAME;
	/* So that the check is of what is used: 6.1 forgets others that are equal. */
	barrier_var(which);
	if (which >= CALL_MOUNT - CALL_RENAME)
		return;
	barrier_var(which); /* older verifiers forget the comparison where the value is put aside */
	how = &change_calls[which & (INDICES - 1)];
	change = &record->change;
	__builtin_memset(change, 0, sizeof(*change));
	header_fill(&change->header, task, subject, AW_KIND_CHANGE, sizeof(*change));
	change->result = call->result;
	change->op = how->op;
	if (how->mode != NONE)
		change->mode = arg_of(call, how->mode);
	if (call->compat)
		change->header.flags |= AW_FLAG_COMPAT;
	change_given(record, walk, call, how);
	record_send(&activity, RING_ACTIVITY, subject, record, sizeof(*record), &change->result);
}
