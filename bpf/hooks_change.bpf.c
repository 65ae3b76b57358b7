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

/* One use, by the name that is left and by the one that is taken. True: it stays. */
static __always_inline bool use_stays(struct aw_record *record, struct aw_walk *walk, bool back,
				      u32 use)
{
	struct aw_question *question = &walk->question;
	u32 rule;

	use_ask(record, walk, back, use);
	if (!stops(question))
		return false;
	rule = question->rule;
	use_ask(record, walk, !back, use);
	if (stops(question))
		return false;
	stays(&record->header, rule);
	return true;
}

/* What else is asked of a move, each by itself: all at once is too much for 6.1 to look at. */
#define STAYS_BACK USES			    /* and the uses of the second name, of an exchange */
#define STAYS_BELOW (2 * USES)		    /* the first name */
#define STAYS_BELOW_ALONE (STAYS_BELOW + 1) /* ... of what is no directory */
#define STAYS_MADE (STAYS_BELOW + 2)
#define STAYS_BELOW_NEW (STAYS_BELOW + 3) /* the second name */
#define STAYS_MADE_NEW (STAYS_BELOW + 4)
#define STAYS_ASKS (STAYS_BELOW + 5)

/*
 * One of these, of the record that change_hook made. 1: it is refused. Uses: nothing gets a name by
 * which it may be used in place of one, or beside one, by which it may not, be that by a rule or by
 * default; of a program, as if it were run without arguments.
 */
__noinline int stays_hook(u32 ask)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (void *)bpf_task_pt_regs(task);
	struct aw_record *record = bpf_task_storage_get(&records, task, 0, 0);
	struct aw_walk *walk = walk_of_current();
	struct hooked hooked = {.record = record, .walk = walk};

	if (!record || !walk || !tagged(task, &hooked.subject))
		return 1; /* they were there a moment ago */
	hooked.call = BPF_CORE_READ(regs, orig_ax) + 1;
	if (ask < STAYS_BELOW) {
		bool back = ask >= STAYS_BACK;

		if (!use_stays(record, walk, back, back ? ask - STAYS_BACK : ask))
			return 0;
	} else {
		bool second = ask >= STAYS_BELOW_NEW;
		u32 kinds = AW_BELOW_TAKEN;

		if (ask == STAYS_BELOW_ALONE)
			kinds |= AW_BELOW_ITSELF;
		else if (ask == STAYS_MADE || ask == STAYS_MADE_NEW)
			kinds = AW_BELOW_MADE;
		below_judge(record, walk, second, kinds);
		if (!refused(&record->header))
			return 0;
	}
	return hook_answer(&hooked, 0, record->header.length, &activity, RING_ACTIVITY);
}

/* Which of them. */
static __always_inline u32 stays_asks(const struct change *asked)
{
	bool exchanges = asked->how & CHANGE_EXCHANGES;
	struct dentry *moved = asked->first.dentry;
	u32 type, asks = 0;

	if (asked->op == AW_OP_SYMLINK)
		return 1 << STAYS_MADE;
	if (asked->op != AW_OP_RENAME && asked->op != AW_OP_LINK)
		return 0;
	type = BPF_CORE_READ(moved, d_inode, i_mode) & S_IFMT;
	if (type != S_IFLNK)
		asks = (1 << USES) - 1;
	if (exchanges)
		asks |= ((1 << USES) - 1) << STAYS_BACK;
	asks |= type == S_IFDIR ? 1 << STAYS_BELOW : 1 << STAYS_BELOW_ALONE;
	/* Where a symbolic link leads to has names below the link's own. */
	if (exchanges)
		asks |= 1 << STAYS_BELOW_NEW;
	else if (type == S_IFDIR || type == S_IFLNK)
		asks |= 1 << STAYS_MADE_NEW;
	return asks;
}

/*
 * 1: it is refused; else 2 * what stays_hook is to be asked. Not static: so the verifier looks at it
 * once, and not for each of the hooks.
 */
__noinline int change_hook(struct change *asked)
{
	struct aw_record *record;
	struct aw_walk *walk;
	struct hooked hooked;
	bool moves;
	int found;

	if (!asked)
		return 0;
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
	/* What was left for the end of the call is written over. */
	if (asked->how & CHANGE_LAYERED)
		walk->hooked.call = 0;
	if (record->header.flags & AW_FLAG_ANONYMOUS)
		return 0; /* such as a memfd, which has no name to deny: told at the end */
	change_judge(record, walk, asked->words, false);
	if (asked->second.dentry) {
		changed_put(record, walk, &asked->second, true);
		change_judge(record, walk, asked->words, true);
	}
	if (record->header.verdict == AW_VERDICT_KILL)
		bpf_send_signal(SIGKILL);
	if (hook_answer(&hooked, 0, record->header.length, &activity, RING_ACTIVITY))
		return 1;
	if (asked->how & CHANGE_LAYERED)
		walk->hooked.call = 0;
	return stays_asks(asked) * 2;
}

/* In the hook's own function: it is one call less deep. */
static __always_inline int change_answer(struct change *asked)
{
	u32 asks = change_hook(asked);
	bool stays = asks & 1;

#pragma unroll
	for (u32 ask = 0; ask < STAYS_ASKS; ask++)
		if (!stays && asks >> (ask + 1) & 1)
			stays = stays_hook(ask);
	return DENIED(stays);
}

/* One that is to be made, or that goes: `dentry` in the directory `in`. */
static __always_inline int entry_hook(u32 op, u32 words, const struct path *in,
				      struct dentry *dentry, u32 mode)
{
	struct change change = {.op = op, .words = words, .mode = mode};

	change.first.mnt = in ? in->mnt : 0;
	change.first.dentry = dentry;
	return change_answer(&change);
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
	return change_answer(&change);
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
	return change_answer(&change);
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
	return change_answer(&change);
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
