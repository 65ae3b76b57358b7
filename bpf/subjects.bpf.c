/* SPDX-License-Identifier: GPL-2.0 */
/* What the automata are walked over: argv in parts, names with their mount point in front, addresses. */

/* The virtual symbol of what is reachable from a state, and that of what is sticky below directories. */
#define AW_SYMBOL_REACH 8
#define AW_SYMBOL_BELOW 9

/*
 * The lists of what is reachable from where the sets are: a state's own, else its default row's. Not
 * static: so the verifier looks at it once.
 */
__noinline int policy_reach(struct aw_walk *walk)
{
	struct judge judge = {.walk = walk};
	struct aw_machine *machine;
	u64 mask = policy_mask & ~7ULL;

	if (!walk)
		return 0;
	judge.policy = policy_of(&walk->question);
	if (!judge.policy)
		return 0;
	machine = &walk->machine;
	machine->found = machine->clearing = 0;
	for (int i = 0; i < AW_SETS - 1; i++) {
		struct aw_set *set = &machine->sets[i];
		u64 usual = set->rows + DEFAULT_OF(set->state) * DEFAULT_CELLS, found;

		if (!set->classes)
			continue;
		found = entry(judge.policy, set->state + AW_SYMBOL_REACH, mask);
		if ((u32)(found >> 32) != (u32)set->state)
			found = entry(judge.policy, usual + AW_SYMBOL_REACH, mask);
		if (!(u32)found)
			continue;
		walk->found[machine->found & (AW_FOUND - 1)] = found;
		machine->found++;
	}
	if (machine->found)
		lists_take(&judge);
	return 0;
}

/*
 * Of argv only the beginning could be read: what that accepted loosens nothing any more, and what may
 * follow restricts.
 */
static __always_inline void args_cut(struct aw_walk *walk)
{
	struct judge judge = {.walk = walk};
	struct aw_question *question = &walk->question;
	u32 roles;

	question->uncertain |= 1U << AW_SUBJECT_ARGS;
	judge.policy = policy_of(question);
	if (!judge.policy)
		return;
	roles = word(judge.policy, AW_POLICY_ROLES);
	for (int i = 0; i < 3; i++)
		question->found[i] &= word(judge.policy, roles + 2 * i) |
				      (u64)word(judge.policy, roles + 2 * i + 1) << 32;
	policy_reach(walk);
}

/* Over argv[0], of any length, to its NUL. */
static long first_step(u32 index, struct judge *judge)
{
	struct aw_walk *walk = judge->walk;
	struct aw_question *question = &walk->question;
	long len = bpf_probe_read_user_str(walk->path, AW_PATH_MAX, (void *)question->args);
	bool cut;

	if (len < 0) {
		question->unread |= 1 << AW_SUBJECT_ARGS;
		return 1;
	}
	len += !len; /* older kernels do not count the NUL of an empty string */
	/* One that fills the buffer was cut, or ends just here: the next look tells. */
	cut = len == AW_PATH_MAX;
	len -= cut;
	if (len > question->args_size)
		len = question->args_size;
	question->args += len;
	question->args_size -= len;
	return !cut || !question->args_size;
}

#define EARLY_MAX 1000 /* tokens */

/*
 * The next token of an exec that is still to be, from its caller's memory, which another thread may write
 * to: enough to refuse what is honestly asked. What cannot be read is asked again when it is in place.
 */
static __always_inline int args_early(struct aw_walk *walk)
{
	struct aw_question *question = &walk->question;
	struct aw_machine *machine = &walk->machine;
	u64 token = 0;
	long len = 0;

	if (machine->begins)
		question->argv += question->argv_size; /* argv[0] is never asked */
	machine->off = AW_FRONT;
	machine->ends = 1;
	if (question->early++ >= EARLY_MAX ||
	    bpf_probe_read_user(&token, question->argv_size == 8 ? 8 : 4, (void *)question->argv))
		goto later;
	if (token) {
		len = bpf_probe_read_user_str(walk->path, AW_PATH_MAX, (void *)token);
		if (len < 0 || len >= AW_PATH_MAX)
			goto later;
		len += !len; /* older kernels do not count the NUL of an empty string */
		machine->ends = 0;
	}
	question->argv += question->argv_size;
	machine->len = len;
	return 1;
later:
	question->later |= 1U << AW_SUBJECT_ARGS;
	return 0;
}

/*
 * The next part of argv, put where names are as well; 0: it cannot be read. Not static: so the verifier
 * looks at it once.
 */
__noinline int policy_args(struct aw_walk *walk)
{
	struct judge judge = {.walk = walk};
	struct aw_question *question;
	struct aw_machine *machine;
	u64 n;

	if (!walk)
		return 0;
	machine = &walk->machine;
	question = &walk->question;
	if (machine->begins) {
		machine->subject = AW_SUBJECT_ARGS;
		machine->sticky = AW_SYMBOL_STICKY;
		machine->last = AW_SYMBOL_FINAL;
		if (question->argv)
			question->early = 0;
		else if (question->args_size)
			bpf_loop(ARGS_PIECES, first_step, &judge, 0);
	}
	if (question->argv)
		return args_early(walk);
	n = question->args_size;
	if (n > AW_PATH_MAX)
		n = AW_PATH_MAX;
	if (question->unread & (1U << AW_SUBJECT_ARGS) ||
	    (n && bpf_probe_read_user(walk->path, n, (void *)question->args))) {
		if (machine->begins)
			question->unread |= 1U << AW_SUBJECT_ARGS;
		else
			args_cut(walk);
		machine->ends = 1;
		return 0;
	}
	question->args += n;
	question->args_size -= n;
	machine->off = AW_FRONT;
	machine->len = n;
	machine->ends = !question->args_size;
	return 1;
}

/* Where a file system is mounted: written in front of the name. */
static long mount_step(u32 index, struct judge *judge)
{
	struct aw_walk *walk = judge->walk;
	struct aw_machine *machine = &walk->machine;
	struct aw_question *question = &walk->question;
	u32 dev = question->names[machine->which & 1].dev, root_len, point_len;
	struct aw_mounts *mounted = bpf_map_lookup_elem(&mounts, &dev);
	struct aw_mount *mount;
	u64 off = machine->off;

	if (!mounted || index >= mounted->count || index >= AW_MOUNTS)
		return 1;
	mount = &mounted->mounts[index];
	root_len = mount->root_len;
	point_len = mount->point_len;
	if (root_len > machine->len || root_len > AW_ROOT_MAX || point_len > AW_POINT_MAX ||
	    off > AW_TEXT_MAX - 256 || off < AW_FRONT)
		return 0;
	if (root_len) {
		const u8 *name = (const u8 *)walk + PINNED(off);

		for (u32 i = 0; i < AW_ROOT_MAX / 8; i++) {
			u64 differs = *(u64 *)(name + 8 * i) ^ *(u64 *)(mount->root + 8 * i);

			if (root_len < 8 * i + 8)
				differs &= (1ULL << (root_len % 8 * 8)) - 1;
			if (differs)
				return 0;
			if (root_len <= 8 * i + 8)
				break;
		}
		if (root_len < machine->len && name[root_len & 127] != '/')
			return 0;
	}
	off = off + root_len - point_len;
	if (off > AW_TEXT_MAX - 256)
		return 0;
	if (point_len)
		bpf_probe_read_kernel((char *)walk + PINNED(off), point_len & 255, mount->point);
	machine->off = off;
	machine->len += point_len - root_len;
	machine->named = 1;
	return 1;
}

static __always_inline void foreign(struct aw_walk *walk)
{
	struct aw_machine *machine = &walk->machine;
	u32 dev = walk->question.names[machine->which & 1].dev;
	struct aw_mounts *mounted = bpf_map_lookup_elem(&mounts, &dev);
	u64 off = machine->off - 3;

	if (!mounted || mounted->partial) /* nobody here knows its name; userspace may */
		walk->question.look = 1;
	if (off > AW_TEXT_MAX - 3)
		return;
	__builtin_memcpy((char *)walk + PINNED(off), "[?]", 3);
	machine->off = off;
	machine->len += 3;
}

/* From a record, where put_name left it. */
static __always_inline bool name_copy(struct aw_walk *walk, struct aw_record *record, u64 at,
				      u64 len)
{
	if (!record)
		return false;
	if (!len)
		return true;
	if (at <= RECORD_MAX - AW_PATH_MAX)
		return !bpf_probe_read_kernel(walk->path, len, (char *)record + PINNED(at));
	if (at > RECORD_MAX - SHORT || len > SHORT)
		return false;
	return !bpf_probe_read_kernel(walk->path, len, (char *)record + PINNED(at));
}

/*
 * A name, with what is in front of it and the separator behind. 0: there is none to walk. Not static:
 * so the verifier looks at it once.
 */
__noinline int policy_name(struct aw_walk *walk, struct aw_record *record, u32 which)
{
	struct judge judge = {.walk = walk};
	struct aw_machine *machine;
	struct aw_question_name *name;
	u64 len, at, off;
	char *bytes = (char *)walk;

	if (!walk)
		return 0;
	which &= 1;
	machine = &walk->machine;
	name = &walk->question.names[which];
	len = name->len;
	at = name->at;
	machine->len = 0;
	machine->which = which;
	machine->subject = name->subject;
	if (len > AW_PATH_MAX || walk->question.unread & (1U << (name->subject & 7)))
		return 0;
	machine->off = AW_FRONT + AW_PATH_MAX - len;
	if (at) {
		machine->off = AW_FRONT;
		if (!name_copy(walk, record, at, len)) {
			walk->question.unread |= 1U << (name->subject & 7);
			return 0;
		}
	}
	machine->len = len;
	machine->named = 0;
	if (!name->plain) {
		bpf_loop(AW_MOUNTS, mount_step, &judge, 0);
		if (!machine->named)
			foreign(walk);
	}
	off = machine->off + machine->len;
	if (off > AW_TEXT_MAX - 256)
		return 0;
	if (!machine->len) {
		if (name->plain)
			return 0;
		machine->len = 1;
		bytes[PINNED(off)] = '/';
		off++;
	}
	bytes[PINNED(off)] = '/';
	machine->len++;
	off = machine->off;
	if (off > AW_TEXT_MAX - 256)
		return 0;
	if (walk->question.below && machine->len == 2 && bytes[PINNED(off)] == '/')
		machine->len = 1; /* the root directory's name is its separator */
	if (bytes[PINNED(off)] == '[')
		walk->question.uncertain |= 1U << (name->subject & 7);
	machine->last = name->symbol;
	machine->sticky = name->symbol + 1;
	return 1;
}

static __always_inline struct aw_project *project_of(const struct aw_question *question)
{
	struct aw_session_key key = question->session;

	return bpf_map_lookup_elem(&projects, &key);
}

#define PROJECT_AROUND 1 /* the name is in the project */
#define PROJECT_BELOW 2	 /* the project is in the directory */
#define MEMO_FIRST 32	 /* bytes noted of a name that has nothing in common with the last one */
#define MEMO_LEAST 16

static long project_step(u32 index, struct judge *judge)
{
	struct aw_walk *walk = judge->walk;
	struct aw_machine *machine = &walk->machine;
	u64 begun = (u64)index * 8, off = machine->off + begun, differs, n;
	const u8 *name;

	if (off > AW_TEXT_MAX - 16 || begun > AW_PROJECT_MAX - 8)
		return 1;
	n = machine->project - begun;
	name = (const u8 *)walk + PINNED(off);
	differs = *(u64 *)name ^ *(u64 *)(judge->project->path + PINNED(begun));
	if (n >= 8)
		return differs != 0;
	differs &= (1ULL << n * 8) - 1;
	if (differs)
		return 1;
	if (judge->project->len >= machine->len)
		machine->named = PROJECT_BELOW;
	else if (name[n & 7] == '/')
		machine->named = PROJECT_AROUND;
	return 1;
}

/*
 * The same name from the end of the session's project on: PROJECT_*, or 0: it is elsewhere. Not static:
 * see above.
 */
__noinline int policy_project(struct aw_walk *walk)
{
	struct judge judge = {.walk = walk};
	struct aw_machine *machine;
	bool above;

	if (!walk)
		return 0;
	machine = &walk->machine;
	if (!machine->len)
		return 0;
	judge.project = project_of(&walk->question);
	if (!judge.project || judge.project->len > AW_PROJECT_MAX)
		return 0;
	above = judge.project->len >= machine->len;
	if (above && !walk->question.below)
		return 0;
	machine->named = 0;
	machine->project = above ? machine->len : judge.project->len;
	bpf_loop(AW_PROJECT_MAX / 8 + 1, project_step, &judge, 0);
	if (machine->named == PROJECT_AROUND) {
		machine->off += machine->project;
		machine->len -= machine->project;
	}
	return machine->named;
}

/*
 * How much of a name is as it was in the last one, and how much is to be noted for the next one: more
 * than is known, where the last two have more in common. Not static: so the verifier looks at it once.
 */
__noinline int memo_begin(struct aw_walk *walk)
{
	struct aw_machine *machine;
	struct aw_memo *memo;
	u32 same = 0, len, i;
	u64 off;

	if (!walk)
		return 0;
	machine = &walk->machine;
	memo = &walk->memo;
	off = machine->off;
	if (off > AW_TEXT_MAX - AW_MEMO_TEXT)
		return 0;
	if (memo->generation != walk->question.generation || memo->slot != walk->question.slot) {
		memo->generation = walk->question.generation;
		memo->slot = walk->question.slot;
		memo->len = memo->project_len = 0;
	}
	len = machine->len;
	if (len > AW_MEMO_TEXT)
		len = AW_MEMO_TEXT;
	for (i = 0; i < AW_MEMO_TEXT / 8; i++) {
		if (*(u64 *)((char *)walk + PINNED(off) + 8 * i) != *(u64 *)(memo->text + 8 * i))
			break;
		if (8 * i + 8 > len)
			break;
		same += 8;
	}
	if (memo->len && same >= memo->len)
		machine->skip = memo->len;
	if (same < MEMO_LEAST)
		same = len < MEMO_FIRST ? 0 : MEMO_FIRST;
	if (same > machine->skip + 8)
		machine->stop = same;
	for (i = 0; i < AW_MEMO_TEXT / 8; i++)
		*(u64 *)(memo->text + 8 * i) = *(u64 *)((char *)walk + PINNED(off) + 8 * i);
	if (machine->stop || !machine->skip)
		memo->len = memo->project_len = 0;
	return 0;
}

/* The same for what of it is behind the project's directory. */
static __always_inline void memo_project(struct aw_walk *walk)
{
	struct aw_machine *machine = &walk->machine;
	struct aw_memo *memo = &walk->memo;

	machine->slot = AW_SETS - 1;
	if (memo->len <= machine->project)
		return;
	if (memo->project_len == memo->len && memo->project == machine->project) {
		machine->skip = memo->len - machine->project;
		return;
	}
	memo->project = machine->project;
	memo->project_len = 0;
	machine->stop = memo->len - machine->project;
}

/* After the walk: what was noted counts. */
static __always_inline void memo_end(struct aw_walk *walk)
{
	struct aw_machine *machine = &walk->machine;
	struct aw_memo *memo = &walk->memo;

	if (!machine->stop || machine->spoilt)
		return;
	if (machine->slot)
		memo->project_len = memo->len;
	else
		memo->len = machine->stop;
}

/* An address, or the port behind it. */
static __always_inline bool bytes_enter(struct judge *judge, u32 port)
{
	struct aw_machine *machine = &judge->walk->machine;

	machine->subject = port ? AW_SUBJECT_PORT : AW_SUBJECT_ADDR;
	if (judge->walk->question.unread & (1U << machine->subject))
		return false;
	sets_enter(judge, port ? PORTS : ADDRESSES, NO_SET, NO_SET);
	machine->last = AW_SYMBOL_FINAL;
	machine->sticky = AW_SYMBOL_STICKY;
	machine->off = AW_FRONT + (port ? 16 : 0);
	machine->len = port ? 2 : 16;
	return true;
}

/* One set, or two side by side, over one subject; of argv over a part of it. */
static long pass_step(u32 index, struct judge *judge)
{
	struct aw_machine *machine = &judge->walk->machine;
	u32 sort = judge->walk->question.sort, below = judge->walk->question.below, pass;
	bool args_later = judge->walk->question.later & (1U << AW_SUBJECT_ARGS);
	bool remembers = judge->walk->question.lists == AW_LISTS_OPEN && !below;
	u32 there;

	machine->begins = machine->ends;
	machine->skip = machine->stop = machine->slot = machine->spoilt = 0;
	pass = machine->pass;
	if (machine->ends)
		machine->pass++;
	else
		pass = 0;
	if (sort == AW_SORT_ADDRESS) {
		if (pass > 1)
			return 1;
		there = bytes_enter(judge, pass);
	} else if (pass == 0) {
		if (sort != AW_SORT_EXEC)
			return 0;
		if (machine->begins)
			sets_enter(judge, ARGS_ANCHORED, ARGS_FLOATING, NO_SET);
		there = !args_later && policy_args(judge->walk);
	} else if (pass & 1) {
		if (pass > 3 || (pass == 3 && sort != AW_SORT_EXEC))
			return 1;
		sets_enter(judge, PATHS_ANCHORED, PATHS_FLOATING, PATHS_BEGUN);
		there = policy_name(judge->walk, judge->record, pass >> 1);
		if (there && remembers)
			memo_begin(judge->walk);
	} else {
		if (!(judge->walk->question.words & AW_WORD_PROJECT))
			return 0;
		sets_enter(judge, PROJECTS, NO_SET, NO_SET);
		there = policy_project(judge->walk);
		if (there && remembers)
			memo_project(judge->walk);
	}
	if (there && below) {
		machine->sticky = AW_SYMBOL_BELOW;
		machine->ends = 0;
		if (there != PROJECT_BELOW) /* else all of the project is */
			policy_walk(judge->walk);
		machine->ends = 1;
		if (!(below & AW_BELOW_ITSELF))
			policy_reach(judge->walk);
	} else if (there) {
		policy_walk(judge->walk);
		memo_end(judge->walk);
	}
	return 0;
}
