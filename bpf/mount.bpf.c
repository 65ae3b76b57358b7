/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Mounts, and user namespaces, in which one may mount without being root: at the end of the call. What
 * change.bpf.c says of names holds here as well.
 */

/* What change.bpf.c and hooks_change.bpf.c write to, and ask about. */
#define SAME_PLACE(field, as)                                                                      \
	_Static_assert(__builtin_offsetof(struct aw_mounting, field) ==                            \
			       __builtin_offsetof(struct aw_change, as),                           \
		       #field)
SAME_PLACE(result, result);
SAME_PLACE(path_dev, path_dev);
SAME_PLACE(path_len, path_len);
SAME_PLACE(source_dev, new_dev);
SAME_PLACE(source_len, new_len);
SAME_PLACE(view_len, view_len);
SAME_PLACE(source_view_len, new_view_len);
SAME_PLACE(known_len, known_len);
SAME_PLACE(source_known_len, new_known_len);

/* A file system that was configured anew has its root alone for a name. */
static __noinline int mount_configured(struct aw_record *record, struct aw_walk *walk,
				       struct file *context)
{
	struct fs_context *configured = BPF_CORE_READ(context, private_data);
	struct path path = {};
	struct name name;
	u32 at;

	if (!record || !walk)
		return 0;
	path.dentry = BPF_CORE_READ(configured, root);
	if (!path.dentry) {
		record->header.unresolved |= AW_UNRESOLVED_PATH;
		return 0;
	}
	at = record->header.length;
	name_of(&name, &path, walk);
	record->mounting.path_dev = name.dev;
	record->mounting.path_len = put_name(record, &at, &name, walk->path, AW_UNRESOLVED_PATH);
	record->header.length = at;
	return 0;
}

/* What the call said, into the record, whose length grows with it. */
static __always_inline void mount_given(struct aw_record *record, struct aw_walk *walk)
{
	struct mount_call *how = (struct mount_call *)walk->said;
	u64 asked = how->point.asked, source = how->source.asked;
	struct aw_mounting *mounting = &record->mounting;
	bool done = mounting->result >= 0;
	u32 at;

	if (done && how->context)
		mount_configured(record, walk, (struct file *)how->context);
	if (done && how->names)
		change_base(record, walk, &how->point, false);
	mounting->asked_len = change_asked(record, asked, AW_UNRESOLVED_ASKED);
	if (done && how->names_source)
		change_base(record, walk, &how->source, true);
	mounting->source_asked_len = change_asked(record, source, AW_UNRESOLVED_NEW_ASKED);
	if (!how->fstype)
		return;
	at = record->header.length;
	mounting->fstype_len =
		put_string(record, &at, (void *)how->fstype, !how->known, AW_UNRESOLVED_NEW_ASKED);
	record->header.length = at;
}

static __always_inline void mount_end(struct task_struct *task, const struct aw_subject *subject,
				      struct call *call)
{
	struct aw_mounting *mounting;
	struct aw_record *record;
	struct aw_walk *walk;

	/* The child of a clone passes here, too. */
	if ((call->kind == CALL_CLONE || call->kind == CALL_CLONE3) && !call->result)
		return;
	if (!scratch_get(task, &record, &walk, AW_KIND_MOUNT))
		return;
	if (call->result > 0)
		call->result = 0;
	if (hook_left(walk, call->nr) && record->header.kind == AW_KIND_MOUNT) {
		if (!walk->hooked.told || call->result != -EPERM)
			change_hooked(record, subject, call->result);
		return;
	}
	if (mounts_nothing(call))
		return;
	mounting = &record->mounting;
	__builtin_memset(mounting, 0, sizeof(*mounting));
	header_fill(&mounting->header, task, subject, AW_KIND_MOUNT, sizeof(*mounting));
	mounting->result = call->result;
	if (call->compat)
		mounting->header.flags |= AW_FLAG_COMPAT;
	((struct mount_call *)walk->said)->call = *call;
	mount_said(record, walk);
	mount_given(record, walk);
	walk->memo.len = walk->memo.project_len = 0;
	record_send(&activity, RING_ACTIVITY, subject, record, sizeof(*record), &mounting->result);
}
