/* SPDX-License-Identifier: GPL-2.0 */
/* BPF LSM: changes of names and attributes, by the names of what would be changed. */

static __always_inline u32 stricter(u32 verdict, u32 than)
{
	return verdict && (!than || verdict < than);
}

/* Judges the name in `walk`; what is stricter than the answer before stands. */
static __always_inline int change_judge(struct aw_record *record, struct aw_walk *walk, u32 words,
					struct name *name)
{
	struct aw_question *question;
	struct aw_header *header;

	if (!record || !walk || !name)
		return 0;
	question = &walk->question;
	header = &record->header;
	question->kinds = AW_CHANGE;
	question->words = AW_WORD_WRITE | words;
	if (words & AW_WORD_OPEN)
		question->kinds |= AW_OPEN;
	question->unread = question->uncertain = 0;
	if (name->failed || name->flags & AW_FLAG_ANONYMOUS)
		question->unread = 1 << AW_SUBJECT_FILE;
	question_name(walk, 0, AW_SUBJECT_FILE, AW_SYMBOL_FILE, 0, name->len, name->dev, false);
	policy_judge(walk, 0);
	header->generation = question->generation;
	if (stricter(question->verdict, header->verdict)) {
		header->verdict = question->verdict;
		header->rule = question->rule;
	}
	return 0;
}

struct change {
	u32 op, mode;
	u32 words;     /* AW_WORD_* besides that of writing */
	u32 exchanges; /* 1: the second one goes where the first was */
	struct path first, second;
};

/*
 * What goes elsewhere takes along what is denied by its name, the directory's or of what is below it: so
 * it stays, by that rule.
 */
static __always_inline void below_judge(struct aw_record *record, struct aw_walk *walk,
					struct name *name)
{
	struct aw_question *question = &walk->question;
	struct aw_header *header = &record->header;

	question->unread = question->uncertain = 0;
	if (name->failed || name->flags & AW_FLAG_ANONYMOUS)
		question->unread = 1 << AW_SUBJECT_FILE;
	question->below = 1;
	question_name(walk, 0, AW_SUBJECT_FILE, AW_SYMBOL_FILE, 0, name->len, name->dev, false);
	policy_judge(walk, 0);
	question->below = 0;
	if (question->verdict != AW_VERDICT_KILL && question->verdict != AW_VERDICT_DENY)
		return;
	header->verdict = AW_VERDICT_DENY;
	header->rule = question->rule;
	header->flags |= AW_FLAG_BELOW;
}

static __noinline int change_hook(struct change *asked)
{
	u32 at = sizeof(struct aw_change);
	struct aw_change *change;
	struct hooked hooked;
	struct name name;
	bool moves;
	int found;

	moves = asked->op == AW_OP_RENAME || asked->op == AW_OP_LINK;
	/* Rules on programs, too, are about what is moved. */
	found = hook_begin(&hooked, AW_KIND_CHANGE, moves ? AW_LISTS_EXEC : AW_LISTS_OPEN,
			   AW_SORT_NAME);
	if (found != HOOK_ASKS)
		return DENIED(found == HOOK_BLIND);
	hooked.walk->question.lists = AW_LISTS_OPEN;
	change = &hooked.record->change;
	__builtin_memset((void *)change + sizeof(change->header), 0,
			 sizeof(*change) - sizeof(change->header));
	change->op = asked->op;
	change->mode = asked->mode;
	change->result = -EPERM;
	name_of(&name, &asked->first, hooked.walk);
	change->path_dev = name.dev;
	change->path_len =
		put_name(hooked.record, &at, &name, hooked.walk->path, AW_UNRESOLVED_PATH);
	change_judge(hooked.record, hooked.walk, asked->words, &name);
	if (asked->second.dentry) {
		name_of(&name, &asked->second, hooked.walk);
		change->new_dev = name.dev;
		change->new_len = put_name(hooked.record, &at, &name, hooked.walk->path,
					   AW_UNRESOLVED_NEW_PATH);
		change_judge(hooked.record, hooked.walk, asked->words, &name);
	}
	if (moves && !refused(&change->header)) {
		name_of(&name, &asked->first, hooked.walk);
		below_judge(hooked.record, hooked.walk, &name);
	}
	if (asked->exchanges && !refused(&change->header)) {
		name_of(&name, &asked->second, hooked.walk);
		below_judge(hooked.record, hooked.walk, &name);
	}
	change->header.length = at;
	if (change->header.verdict == AW_VERDICT_KILL)
		bpf_send_signal(SIGKILL);
	return DENIED(hook_answer(&hooked, 0, at, &activity, RING_ACTIVITY));
}

/* One that is to be made, or that goes: `dentry` in the directory `in`. */
static __always_inline int entry_hook(u32 op, u32 words, const struct path *in,
				      struct dentry *dentry, u32 mode)
{
	struct change change = {.op = op, .words = words, .mode = mode};

	change.first.mnt = in ? in->mnt : 0;
	change.first.dentry = dentry;
	return change_hook(&change);
}

static __always_inline int path_hook(u32 op, u32 words, const struct path *path, u32 mode)
{
	return entry_hook(op, words, path, path->dentry, mode);
}

/* Before the file is there: file_open alone would leave an empty one behind. */
SEC("lsm/path_mknod")
int BPF_PROG(lsm_path_mknod, const struct path *dir, struct dentry *dentry, unsigned int mode)
{
	u32 words = AW_WORD_CREATE;

	if ((mode & S_IFMT) == S_IFREG || !(mode & S_IFMT))
		words |= AW_WORD_OPEN;
	return entry_hook(AW_OP_CREATE, words, dir, dentry, mode);
}

SEC("lsm/path_unlink")
int BPF_PROG(lsm_path_unlink, const struct path *dir, struct dentry *dentry)
{
	return entry_hook(AW_OP_DELETE, AW_WORD_DELETE, dir, dentry, 0);
}

SEC("lsm/path_mkdir")
int BPF_PROG(lsm_path_mkdir, const struct path *dir, struct dentry *dentry, unsigned int mode)
{
	return entry_hook(AW_OP_MKDIR, AW_WORD_MKDIR, dir, dentry, mode);
}

SEC("lsm/path_rmdir")
int BPF_PROG(lsm_path_rmdir, const struct path *dir, struct dentry *dentry)
{
	return entry_hook(AW_OP_RMDIR, AW_WORD_RMDIR, dir, dentry, 0);
}

SEC("lsm/path_symlink")
int BPF_PROG(lsm_path_symlink, const struct path *dir, struct dentry *dentry)
{
	return entry_hook(AW_OP_SYMLINK, AW_WORD_SYMLINK, dir, dentry, 0);
}

SEC("lsm/path_rename")
int BPF_PROG(lsm_path_rename, const struct path *dir, struct dentry *dentry,
	     const struct path *new_dir, struct dentry *new_dentry, unsigned int flags)
{
	struct change change = {.op = AW_OP_RENAME, .words = AW_WORD_RENAME};

	change.exchanges = flags & RENAME_EXCHANGE;

	change.first.mnt = dir->mnt;
	change.first.dentry = dentry;
	change.second.mnt = new_dir->mnt;
	change.second.dentry = new_dentry;
	return change_hook(&change);
}

/* Both names are on the same mount, or there is no link. */
SEC("lsm/path_link")
int BPF_PROG(lsm_path_link, struct dentry *dentry, const struct path *new_dir,
	     struct dentry *new_dentry)
{
	struct change change = {.op = AW_OP_LINK, .words = AW_WORD_LINK};

	change.first.mnt = change.second.mnt = new_dir->mnt;
	change.first.dentry = dentry;
	change.second.dentry = new_dentry;
	return change_hook(&change);
}

SEC("lsm/path_truncate")
int BPF_PROG(lsm_path_truncate, const struct path *path)
{
	return path_hook(AW_OP_TRUNCATE, AW_WORD_TRUNCATE, path, 0);
}

/* ftruncate, where kernels ask about it by itself. */
SEC("lsm/file_truncate")
int BPF_PROG(lsm_file_truncate, struct file *file)
{
	struct change change = {.op = AW_OP_TRUNCATE, .words = AW_WORD_TRUNCATE};

	BPF_CORE_READ_INTO(&change.first, file, f_path);
	return change_hook(&change);
}

SEC("lsm/path_chmod")
int BPF_PROG(lsm_path_chmod, const struct path *path, unsigned int mode)
{
	return path_hook(AW_OP_CHMOD, AW_WORD_CHMOD, path, mode);
}

SEC("lsm/path_chown")
int BPF_PROG(lsm_path_chown, const struct path *path)
{
	return path_hook(AW_OP_CHOWN, AW_WORD_CHOWN, path, 0);
}

/* No mount is known here: the canonical name needs none. */
SEC("lsm/inode_setxattr")
int BPF_PROG(lsm_inode_setxattr, void *map, struct dentry *dentry)
{
	return entry_hook(AW_OP_XATTR, AW_WORD_XATTR, 0, dentry, 0);
}

SEC("lsm/inode_removexattr")
int BPF_PROG(lsm_inode_removexattr, void *map, struct dentry *dentry)
{
	return entry_hook(AW_OP_XATTR, AW_WORD_XATTR, 0, dentry, 0);
}

/* Access lists, where kernels ask about them by themselves. */
SEC("lsm/inode_set_acl")
int BPF_PROG(lsm_inode_set_acl, void *map, struct dentry *dentry)
{
	return entry_hook(AW_OP_XATTR, AW_WORD_XATTR, 0, dentry, 0);
}

SEC("lsm/inode_remove_acl")
int BPF_PROG(lsm_inode_remove_acl, void *map, struct dentry *dentry)
{
	return entry_hook(AW_OP_XATTR, AW_WORD_XATTR, 0, dentry, 0);
}
