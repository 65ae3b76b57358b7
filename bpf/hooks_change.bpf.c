/* SPDX-License-Identifier: GPL-2.0 */
/* BPF LSM: changes of names and attributes, by the names of what would be changed. */

static __always_inline u32 stricter(u32 verdict, u32 than)
{
	return verdict && (!than || verdict < than);
}

#define CHANGE_EXCHANGES 1 /* the second one goes where the first was */
#define CHANGE_LAYERED 2   /* below what the call itself was about: see hooks_layer.bpf.c */

struct change {
	u32 op, mode;
	u32 words; /* AW_WORD_* besides that of writing */
	u32 how;   /* CHANGE_* */
	struct path first, second;
};

/* Not inlined: what it has on the stack is gone where changed_put goes on to other names. */
static __noinline u32 changed_name(struct aw_record *record, u32 *at, const struct name *name,
				   const char *buffer, u32 bit)
{
	return put_name(record, at, name, buffer, bit);
}

/*
 * Puts one of the two names and its others into the record, whose length grows with them. Not inlined:
 * what it has on the stack is not needed any more where the change is judged.
 */
static __noinline void changed_put(struct aw_record *record, struct aw_walk *walk,
				   const struct path *path, bool second)
{
	u32 bit = second ? AW_UNRESOLVED_NEW_PATH : AW_UNRESOLVED_PATH;
	struct task_struct *task = bpf_get_current_task_btf();
	struct aw_change *change = &record->change;
	u32 at = record->header.length, len;
	struct name name;

	name_of(&name, path, walk);
	len = changed_name(record, &at, &name, walk->path, bit);
	others_put(record, walk, task, 0, path, &name, record->header.length, len, &at, bit);
	if (second) {
		change->new_dev = name.dev;
		change->new_len = len;
		change->new_view_len = naming_of(walk)->view_len;
		change->new_known_len = naming_of(walk)->known_len;
	} else {
		record->header.flags |= name.flags & AW_FLAG_ANONYMOUS;
		change->path_dev = name.dev;
		change->path_len = len;
		change->view_len = naming_of(walk)->view_len;
		change->known_len = naming_of(walk)->known_len;
	}
	record->header.length = at;
}

/*
 * Asks about one of the two names, and about its others, as what a subject is: AW_SUBJECT_* and its
 * symbol. here: it still is in `walk`.
 */
static __always_inline void changed_ask_as(struct aw_record *record, struct aw_walk *walk,
					   bool second, bool here, u32 subject, u32 symbol)
{
	struct aw_question *question = &walk->question;
	struct aw_other_name *others = question->others;
	const struct aw_change *change = &record->change; /* or a mounting: see mount.bpf.c */
	u32 at = sizeof(*change), len = change->path_len, dev = change->path_dev;
	u32 bit = AW_UNRESOLVED_PATH;

	if (record->header.kind == AW_KIND_MOUNT)
		at = sizeof(record->mounting);

	others[0].len = change->view_len;
	others[1].len = change->known_len;
	if (second) {
		at += len + change->view_len + change->known_len;
		bit = AW_UNRESOLVED_NEW_PATH;
		len = change->new_len;
		dev = change->new_dev;
		others[0].len = change->new_view_len;
		others[1].len = change->new_known_len;
	}
	others[0].at = at + len;
	others[1].at = at + len + others[0].len;
	question->unread = record->header.unresolved & bit ? 1U << (subject & 7) : 0;
	question->uncertain = 0;
	question_name(walk, 0, subject, symbol, here ? 0 : at, len, dev, false);
	names_judge(walk, record);
}

static __always_inline void changed_ask(struct aw_record *record, struct aw_walk *walk, bool second,
					bool here)
{
	changed_ask_as(record, walk, second, here, AW_SUBJECT_FILE, AW_SYMBOL_FILE);
}

/* Judges what changed_put has just put; what is stricter than the answer before stands. */
static __always_inline void change_judge(struct aw_record *record, struct aw_walk *walk, u32 words,
					 bool second)
{
	struct aw_question *question = &walk->question;
	struct aw_header *header = &record->header;

	question->kinds = AW_CHANGE;
	question->words = AW_WORD_WRITE | words;
	if (words & AW_WORD_OPEN)
		question->kinds |= AW_OPEN;
	changed_ask(record, walk, second, !question->names[0].at);
	header->generation = question->generation;
	if (stricter(question->verdict, header->verdict)) {
		header->verdict = question->verdict;
		header->rule = question->rule;
	}
}

static __always_inline bool stops(const struct aw_question *question)
{
	return question->verdict == AW_VERDICT_KILL || question->verdict == AW_VERDICT_DENY;
}

/* The answer for good: whatever kind of event the rule is about, it keeps the name where it is. */
static __always_inline void stays(struct aw_header *header, u32 rule)
{
	header->verdict = AW_VERDICT_DENY;
	header->rule = rule;
	header->flags |= AW_FLAG_BELOW;
}

/*
 * What goes elsewhere takes along what is denied below it, AW_BELOW_TAKEN: so it stays, by that rule.
 * And where it goes, names come about below it: those of AW_BELOW_MADE.
 */
static __always_inline void below_judge(struct aw_record *record, struct aw_walk *walk, bool second,
					u32 kinds)
{
	struct aw_question *question = &walk->question;

	question->below = kinds;
	changed_ask(record, walk, second, false);
	question->below = 0;
	if (stops(question))
		stays(&record->header, question->rule);
}

#define USES 3

/* What is done by a name, other than changing what has it: reading, running, and connecting. */
static __always_inline void use_ask(struct aw_record *record, struct aw_walk *walk, bool second,
				    u32 use)
{
	struct aw_question *question = &walk->question;
	u32 subject = AW_SUBJECT_FILE, symbol = AW_SYMBOL_FILE;

	question->lists = AW_LISTS_OPEN;
	question->kinds = AW_READ | AW_OPEN;
	question->words = AW_WORD_READ | AW_WORD_OPEN;
	if (use == 1) {
		question->lists = AW_LISTS_EXEC;
		question->kinds = AW_EXEC;
		question->words = AW_WORD_NAMED;
		subject = AW_SUBJECT_EXE;
		symbol = AW_SYMBOL_EXE;
	} else if (use == 2) {
		question->lists = AW_LISTS_CONNECT;
		question->kinds = AW_CONNECT;
		question->words = words_of_connect(AF_UNIX, 0);
		subject = AW_SUBJECT_UNIX;
		symbol = AW_SYMBOL_UNIX;
	}
	changed_ask_as(record, walk, second, false, subject, symbol);
}

/*
 * Nothing gets a name by which it may be used in place of one, or beside one, by which it may not, be
 * that by a rule or by default. Of a program, as if it were run without arguments.
 */
static __always_inline void uses_judge(struct aw_record *record, struct aw_walk *walk, u32 type,
				       bool exchanges)
{
	struct aw_question *question = &walk->question;
	u32 rule;

	/* Older verifiers look at all ways through a loop for each of its turns. */
#pragma unroll
	for (u32 turn = 0; turn < 2 * USES; turn++) {
		bool back = turn >= USES;
		u32 use = back ? turn - USES : turn;

		if (back && !exchanges)
			continue;
		if (!back && (use == 2 ? type == S_IFREG : type == S_IFSOCK))
			continue;
		use_ask(record, walk, back, use);
		if (!stops(question))
			continue;
		rule = question->rule;
		use_ask(record, walk, !back, use);
		if (stops(question))
			continue;
		stays(&record->header, rule);
		return;
	}
	question->lists = AW_LISTS_OPEN;
}

/* 1: it is refused. Not static: so the verifier looks at it once, and not for each of the hooks. */
__noinline int change_hook(struct change *asked)
{
	struct aw_record *record;
	struct aw_walk *walk;
	struct hooked hooked;
	bool moves, brings, exchanges;
	struct dentry *moved;
	u32 type, taken;
	int found;

	if (!asked)
		return 0;
	exchanges = asked->how & CHANGE_EXCHANGES;
	moves = asked->op == AW_OP_RENAME || asked->op == AW_OP_LINK;
	/* Rules on programs, too, are about what is moved. */
	found = hook_begin(&hooked, AW_KIND_CHANGE, moves ? AW_LISTS_EXEC : AW_LISTS_OPEN,
			   AW_SORT_NAME);
	if (found != HOOK_ASKS)
		return found == HOOK_BLIND;
	record = hooked.record;
	walk = hooked.walk;
	walk->question.lists = AW_LISTS_OPEN;
	__builtin_memset((void *)record + sizeof(record->header), 0,
			 sizeof(record->change) - sizeof(record->header));
	record->header.length = sizeof(record->change);
	record->change.op = asked->op;
	record->change.mode = asked->mode;
	record->change.result = -EPERM;
	changed_put(record, walk, &asked->first, false);
	/* Who is asked of a layer has written over what was left for the end of the call. */
	if (asked->how & CHANGE_LAYERED)
		walk->hooked.call = 0;
	if (record->header.flags & AW_FLAG_ANONYMOUS)
		return 0; /* such as a memfd, which has no name to deny: told at the end */
	change_judge(record, walk, asked->words, false);
	if (asked->second.dentry) {
		changed_put(record, walk, &asked->second, true);
		change_judge(record, walk, asked->words, true);
	}
	moved = asked->first.dentry;
	type = BPF_CORE_READ(moved, d_inode, i_mode) & S_IFMT;
	if (moves && type != S_IFLNK && !refused(&record->header))
		uses_judge(record, walk, type, exchanges);
	/* Where a symbolic link leads to has names below the link's own. */
	brings = type == S_IFDIR || type == S_IFLNK;
	taken = AW_BELOW_TAKEN | (type == S_IFDIR ? 0 : AW_BELOW_ITSELF);
	if ((moves || asked->op == AW_OP_SYMLINK) && !refused(&record->header))
		below_judge(record, walk, false, moves ? taken : AW_BELOW_MADE);
	if (moves && (exchanges || brings) && !refused(&record->header))
		below_judge(record, walk, true, exchanges ? AW_BELOW_TAKEN : AW_BELOW_MADE);
	if (record->header.verdict == AW_VERDICT_KILL)
		bpf_send_signal(SIGKILL);
	if (asked->how & CHANGE_LAYERED && !refused(&record->header))
		return 0;
	return hook_answer(&hooked, 0, record->header.length, &activity, RING_ACTIVITY);
}

/* One that is to be made, or that goes: `dentry` in the directory `in`. */
static __always_inline int entry_hook(u32 op, u32 words, const struct path *in,
				      struct dentry *dentry, u32 mode)
{
	struct change change = {.op = op, .words = words, .mode = mode};

	change.first.mnt = in ? in->mnt : 0;
	change.first.dentry = dentry;
	return DENIED(change_hook(&change));
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

	change.how = flags & RENAME_EXCHANGE ? CHANGE_EXCHANGES : 0;

	change.first.mnt = dir->mnt;
	change.first.dentry = dentry;
	change.second.mnt = new_dir->mnt;
	change.second.dentry = new_dentry;
	return DENIED(change_hook(&change));
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
	return DENIED(change_hook(&change));
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
	return DENIED(change_hook(&change));
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

/* No mount is known here: the canonical name needs none, nor does what the file is known by. */
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
