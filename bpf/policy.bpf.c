/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The policy in the kernel: automata walked over the subjects of an event, byte by byte, and the rules
 * that are considered for what was found (agentwatch/policy/image.py does the same steps). All state is
 * kept in scratch memory, not on the stack: of that the verifier knows nothing, so it looks at each
 * loop once.
 */

/* What each image is: the loader gives it the size that policy_mask stands for. */
struct aw_policy_image {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__uint(value_size, 65536);
};

/* Which one is in force, and which is the next, is in aw_control: an event reads it once. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, AW_POLICY_SLOTS);
	__uint(key_size, 4);
	__array(values, struct aw_policy_image);
} policies SEC(".maps");

/* Bytes of an image - 1. */
const volatile u64 policy_mask SEC(".rodata.policy") = 65535;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct aw_mark);
} marks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct aw_session_key);
	__type(value, struct aw_project);
} projects SEC(".maps");

struct aw_mounts { /* of a file system, in the order they are tried (agentwatch/mounts.py) */
	u32 count;
	u32 partial; /* 1: there are more, or longer ones, than there is room for */
	struct aw_mount mounts[AW_MOUNTS];
};

/* By kernel dev_t. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32);
	__type(value, struct aw_mounts);
} mounts SEC(".maps");

#define PATHS_ANCHORED 0
#define PATHS_FLOATING 1
#define ARGS_ANCHORED 2
#define ARGS_FLOATING 3
#define ADDRESSES 4
#define PORTS 5
#define PROJECTS 6
#define PATHS_BEGUN 7
#define NO_SET 8 /* the header's words for it are zero */

#define ARGS_PIECES 2048 /* of AW_PATH_MAX bytes each */

#define OP_COND 1
#define OP_PRED 2
#define OP_WORD 3
#define OP_ANCHOR 4
#define OP_UNLESS (1U << 28)
#define OP_LAST (1U << 27)
#define EVERY_SUBJECT 0xff

struct judge {
	const char *policy;
	struct aw_walk *walk;
	struct aw_record *record;
};

static __always_inline const char *policy_of(const struct aw_question *question)
{
	u32 slot = question->slot, zero = 0;
	void *image = bpf_map_lookup_elem(&policies, &slot);

	return image ? bpf_map_lookup_elem(image, &zero) : 0;
}

static __always_inline u32 word(const char *policy, u64 at)
{
	return *(const u32 *)(policy + PINNED((at << 2) & (policy_mask & ~3ULL)));
}

static __always_inline u64 entry(const char *policy, u64 at, u64 mask)
{
	return *(const u64 *)(policy + PINNED((at << 3) & mask));
}

/* Lists of conditions: their bits, and those of their own that say they were met. */

static long condition_step(u32 index, struct judge *judge)
{
	struct aw_machine *machine = &judge->walk->machine;
	u32 condition = word(judge->policy, machine->conditions + index);
	u64 *bits = &judge->walk->bits[(condition >> 6) & (AW_CONDITION_WORDS - 1)];

	if (machine->clearing)
		*bits &= ~(1ULL << (condition & 63));
	else
		*bits |= 1ULL << (condition & 63);
	return 0;
}

/* Predicates of the new image; of an uncertain subject only those that restrict. */
static long predicate_step(u32 index, struct judge *judge)
{
	struct aw_walk *walk = judge->walk;
	struct aw_machine *machine = &walk->machine;
	u32 predicate = word(judge->policy, machine->predicates + index);

	if (walk->question.uncertain & (1U << (machine->subject & 7))) {
		u32 roles = word(judge->policy, AW_POLICY_ROLES);

		if (!(word(judge->policy, roles + ((predicate >> 5) & 7)) >> (predicate & 31) & 1))
			return 0;
	}
	walk->question.found[(predicate >> 6) & 3] |= 1ULL << (predicate & 63);
	return 0;
}

static long list_step(u32 index, struct judge *judge)
{
	struct aw_walk *walk = judge->walk;
	struct aw_machine *machine = &walk->machine;
	u32 list = walk->found[index & (AW_FOUND - 1)], count;
	u32 seen = word(judge->policy, list);
	u64 *bits = &walk->bits[(seen >> 6) & (AW_CONDITION_WORDS - 1)];

	if (seen && *bits & (1ULL << (seen & 63)))
		return 0;
	count = word(judge->policy, list + 1);
	if (machine->kept < AW_KEPT) {
		if (seen)
			*bits |= 1ULL << (seen & 63);
		walk->kept[machine->kept & (AW_KEPT - 1)] = list;
		machine->kept++;
		machine->conditions = list + 2;
		if (count)
			bpf_loop(count, condition_step, judge, 0);
	} else {
		machine->crowded = 1;
	}
	list += 2 + count;
	count = word(judge->policy, list);
	machine->predicates = list + 1;
	if (count && walk->question.sort == AW_SORT_EXEC)
		bpf_loop(count, predicate_step, judge, 0);
	return 0;
}

static __always_inline void lists_take(struct judge *judge)
{
	struct aw_machine *machine = &judge->walk->machine;

	bpf_loop(machine->found, list_step, judge, 0);
	machine->found = 0;
}

static long forget_step(u32 index, struct judge *judge)
{
	struct aw_walk *walk = judge->walk;
	struct aw_machine *machine = &walk->machine;
	u32 list = walk->kept[index & (AW_KEPT - 1)], seen = word(judge->policy, list);
	u32 count = word(judge->policy, list + 1);

	if (seen)
		walk->bits[(seen >> 6) & (AW_CONDITION_WORDS - 1)] &= ~(1ULL << (seen & 63));
	machine->conditions = list + 2;
	if (count)
		bpf_loop(count, condition_step, judge, 0);
	return 0;
}

/*
 * A state: bits 0 to 21 say where its cells begin, 22 to 30 which default row has the transitions that
 * it has not itself, 31 whether there is something to look up behind any byte.
 */
#define CLASSES 256
#define FIRST_CLASS 8 /* cells below it are symbols' */
#define CELLS (FIRST_CLASS + CLASSES)
#define DEFAULT_CELLS 272 /* from one default row to the next */
#define DEFAULT_OF(state) ((state) >> 22 & 511)
#define STICKY(state) ((s32)(state) < 0)

/* The list that a state has at a virtual symbol, to be looked at later: the walk must be short. */
static __always_inline void look(const char *policy, u64 mask, struct aw_walk *walk, u64 state,
				 u64 symbol)
{
	struct aw_machine *machine = &walk->machine;
	u64 found = entry(policy, state + symbol, mask);

	if ((u32)(found >> 32) == (u32)state) {
		walk->found[machine->found & (AW_FOUND - 1)] = found;
		machine->found++;
	}
}

/* One set over n bytes. */
static __always_inline void set_walk(const char *policy, struct aw_walk *walk, struct aw_set *set,
				     u64 off, u64 n)
{
	u64 mask = policy_mask, at = set->classes, row;
	u64 state = set->state; /* in its lower half; the mask is blind to the upper one */
	u32 own = DEFAULT_OF(state);
	const u8 *bytes = (const u8 *)walk + PINNED(off), *classes;
	const u64 *usual;

	row = set->rows + own * DEFAULT_CELLS;
	if (at > mask - CLASSES || row > (mask >> 3) - CELLS)
		return;
	mask &= ~7ULL;
	classes = (const u8 *)policy + PINNED(at);
	/* The default row is kept at hand: so few bytes wait for the state before them. */
	usual = (const u64 *)(policy + PINNED(row << 3));
#pragma unroll
	for (u32 i = 0; i < AW_CHUNK; i++) {
		u64 class, next;

		if (i >= n)
			break;
		class = FIRST_CLASS + classes[bytes[i]];
		next = entry(policy, state + class, mask);
		if ((u32)(next >> 32) != (u32)state) {
			if (DEFAULT_OF(state) != own) {
				own = DEFAULT_OF(state);
				row = set->rows + own * DEFAULT_CELLS;
				if (row > (mask >> 3) - CELLS)
					break;
				usual = (const u64 *)(policy + PINNED(row << 3));
			}
			next = usual[class];
		}
		state = next;
		if (STICKY(state))
			look(policy, mask, walk, state, walk->machine.sticky);
	}
	set->state = (u32)state;
}

/* Part of what is between machine->off and off + len: by one set to the end, then by the next one. */
static long chunk_step(u32 index, struct judge *judge)
{
	struct aw_walk *walk = judge->walk;
	struct aw_machine *machine = &walk->machine;
	struct aw_set *set = &machine->sets[machine->turn & (AW_SETS - 1)];
	u64 done = set->done, n = machine->len, off = machine->off + done;

	if (done >= n || set->state == set->dead || off > AW_TEXT_MAX - AW_CHUNK)
		return ++machine->turn >= AW_SETS - 1;
	set_walk(judge->policy, walk, set, off, n - done);
	set->done = done + AW_CHUNK;
	if (machine->found)
		lists_take(judge);
	return 0;
}

static __always_inline void set_enter(const char *policy, struct aw_set *set, u32 number)
{
	u32 at = AW_POLICY_SETS + 4 * number;

	set->classes = word(policy, at);
	set->state = word(policy, at + 1);
	set->rows = word(policy, at + 2);
	set->dead = word(policy, at + 3);
	if (!set->classes)
		set->state = set->dead;
}

static __always_inline void sets_enter(struct judge *judge, u32 anchored, u32 floating, u32 begun)
{
	struct aw_machine *machine = &judge->walk->machine;

	set_enter(judge->policy, &machine->sets[0], anchored);
	set_enter(judge->policy, &machine->sets[1], floating);
	set_enter(judge->policy, &machine->sets[2], begun);
	set_enter(judge->policy, &machine->sets[3], NO_SET);
}

/* The lists of all sets, behind the last byte or before the first. */
static __always_inline void sets_look(struct judge *judge, bool first)
{
	struct aw_machine *machine = &judge->walk->machine;
	u64 mask = policy_mask & ~7ULL;

#pragma unroll
	for (int i = 0; i < AW_SETS - 1; i++) {
		struct aw_set *set = &machine->sets[i];

		if (set->state == set->dead || (first && !STICKY(set->state)))
			continue;
		look(judge->policy, mask, judge->walk, set->state,
		     first ? machine->sticky : machine->last);
	}
}

/* Over what is between machine->off and off + len. Not static: so the verifier looks at it once. */
__noinline int policy_walk(struct aw_walk *walk)
{
	struct judge judge = {.walk = walk};
	struct aw_machine *machine;

	if (!walk)
		return 0;
	judge.policy = policy_of(&walk->question);
	if (!judge.policy)
		return 0;
	machine = &walk->machine;
	machine->found = 0;
	machine->clearing = 0;
	if (machine->begins)
		sets_look(&judge, true);
	machine->turn = 0;
	machine->sets[0].done = machine->sets[1].done = machine->sets[2].done = 0;
	bpf_loop(AW_SETS * (AW_TEXT_MAX / AW_CHUNK + 1), chunk_step, &judge, 0);
	if (machine->ends)
		sets_look(&judge, false);
	if (machine->found)
		lists_take(&judge);
	return 0;
}

/* The subjects. */

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
		if (question->args_size)
			bpf_loop(ARGS_PIECES, first_step, &judge, 0);
	}
	n = question->args_size;
	if (n > AW_PATH_MAX)
		n = AW_PATH_MAX;
	if (question->unread & (1U << AW_SUBJECT_ARGS) ||
	    (n && bpf_probe_read_user(walk->path, n, (void *)question->args))) {
		question->unread |= 1U << AW_SUBJECT_ARGS;
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

static long project_step(u32 index, struct judge *judge)
{
	struct aw_walk *walk = judge->walk;
	struct aw_machine *machine = &walk->machine;
	struct aw_project *project = project_of(&walk->question);
	u64 begun = (u64)index * 16, off = machine->off + begun, n;
	const u8 *name;

	machine->named = 0;
	if (!project || project->len >= machine->len || project->len > AW_PROJECT_MAX)
		return 1;
	n = project->len;
	machine->project = n;
	if (off > AW_TEXT_MAX - 32 || begun > AW_PROJECT_MAX - 16)
		return 1;
	name = (const u8 *)walk + PINNED(off);
	for (int i = 0; i < 16; i++) {
		if (begun + i == n) {
			machine->named = name[i] == '/';
			return 1;
		}
		if (project->path[PINNED(begun) + i] != name[i])
			return 1;
	}
	return 0;
}

/* The same name from the end of the session's project on; 0: it is elsewhere. Not static: see above. */
__noinline int policy_project(struct aw_walk *walk)
{
	struct judge judge = {.walk = walk};
	struct aw_machine *machine;

	if (!walk)
		return 0;
	machine = &walk->machine;
	if (!machine->len)
		return 0;
	machine->named = 0;
	bpf_loop(AW_PROJECT_MAX / 16 + 1, project_step, &judge, 0);
	if (!machine->named)
		return 0;
	machine->off += machine->project;
	machine->len -= machine->project;
	return 1;
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
	u32 sort = judge->walk->question.sort, pass;
	bool there;

	machine->begins = machine->ends;
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
		if (machine->begins)
			sets_enter(judge, ARGS_ANCHORED, ARGS_FLOATING, NO_SET);
		there = sort == AW_SORT_EXEC && policy_args(judge->walk);
	} else if (pass & 1) {
		if (pass > 3 || (pass == 3 && sort != AW_SORT_EXEC))
			return 1;
		sets_enter(judge, PATHS_ANCHORED, PATHS_FLOATING, PATHS_BEGUN);
		there = policy_name(judge->walk, judge->record, pass >> 1);
	} else {
		sets_enter(judge, PROJECTS, NO_SET, NO_SET);
		there = machine->sets[0].classes && policy_project(judge->walk);
	}
	if (there)
		policy_walk(judge->walk);
	return 0;
}

/* The rules. */

static __always_inline bool op_holds(struct judge *judge, u32 op)
{
	struct aw_walk *walk = judge->walk;
	struct aw_question *question = &walk->question;
	struct aw_machine *machine = &walk->machine;
	u32 arg = op & 0xffffff, subject = 1U << ((op >> 24) & 7);
	bool loosens = op & OP_UNLESS || machine->verdict == AW_VERDICT_ALLOW;

	switch (op >> 29) {
	case OP_COND:
		if (question->uncertain & subject && loosens)
			return false;
		if (question->unread & subject)
			return !loosens;
		return walk->bits[(arg >> 6) & (AW_CONDITION_WORDS - 1)] >> (arg & 63) & 1;
	case OP_PRED:
		if (!question->known)
			return !loosens;
		return question->predicates[(arg >> 6) & 3] >> (arg & 63) & 1;
	case OP_WORD:
		return question->words & op & 0x7ffffff;
	case OP_ANCHOR:
		if (question->uncertain & subject && loosens)
			return false;
		return machine->through || (question->unread & subject && !loosens);
	}
	return false;
}

/* Whether a cgroup program sees such a connect, and so can refuse it. */
static __always_inline bool preventable(const struct aw_question *question)
{
	return question->words & (AW_WORD_INET | AW_WORD_INET6) &&
	       question->words & (AW_WORD_TCP | AW_WORD_UDP) && !(question->words & AW_WORD_LITE);
}

static __always_inline void rule_holds(struct judge *judge)
{
	struct aw_question *question = &judge->walk->question;
	struct aw_machine *machine = &judge->walk->machine;
	u32 id = word(judge->policy, machine->rule);

	if (machine->verdict == AW_VERDICT_ALLOW) {
		for (int i = 0; i < 5; i++)
			if (machine->kinds >> i & 1)
				machine->allowed[i] |= machine->agents;
	} else if (machine->verdict == AW_VERDICT_LOOK) {
		machine->looked = machine->rule;
		machine->look = id;
	} else {
		machine->best = machine->rule;
		question->verdict = machine->verdict;
		question->rule = id;
	}
}

/* Whether a rule is for this event, and can still change what is decided. */
static __always_inline bool rule_enter(struct judge *judge, u32 rule)
{
	struct aw_question *question = &judge->walk->question;
	struct aw_machine *machine = &judge->walk->machine;
	u32 head = word(judge->policy, rule + 1), verdict = head & 255;
	u64 agents = word(judge->policy, rule + 2);

	if (head >> 16 & 255 && !preventable(question))
		verdict = head >> 16 & 255;
	machine->rule = rule;
	machine->verdict = verdict;
	machine->kinds = head >> 8 & 255;
	if (!(machine->kinds & question->kinds))
		return false;
	if (verdict == AW_VERDICT_ALLOW
		    ? !machine->defaults
		    : rule >= (verdict == AW_VERDICT_LOOK ? machine->looked : machine->best))
		return false;
	agents |= (u64)word(judge->policy, rule + 3) << 32;
	machine->agents = agents;
	return !~agents || agents & question->agents;
}

/* Some ops of the rule at hand. */
static __always_inline void ops_step(struct judge *judge)
{
	struct aw_machine *machine = &judge->walk->machine;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		u32 op = word(judge->policy, machine->op);
		bool holds;

		if (!machine->ops) {
			rule_holds(judge);
			return;
		}
		holds = op_holds(judge, op);

		if (op & OP_UNLESS) {
			machine->carved &= holds;
			if (op & OP_LAST) {
				if (machine->carved) {
					machine->ops = 0;
					return;
				}
				machine->carved = 1;
			}
		} else if (!holds) {
			machine->ops = 0;
			return;
		}
		machine->op++;
		machine->ops--;
	}
	if (!machine->ops)
		rule_holds(judge);
}

/* The next list: of all events of the sort, those that were kept, those of what is unread. */
static __always_inline bool list_enter(struct judge *judge)
{
	struct aw_walk *walk = judge->walk;
	struct aw_question *question = &walk->question;
	struct aw_machine *machine = &walk->machine;
	u32 index = machine->list++, list;

	machine->through = 0;
	if (index == 0) {
		list = word(judge->policy, AW_POLICY_BASE + question->lists);
	} else if (index <= machine->kept) {
		list = walk->kept[(index - 1) & (AW_KEPT - 1)];
		machine->through = 1;
	} else if (index == machine->kept + 1 && question->unread) {
		list = word(judge->policy, AW_POLICY_UNREAD + question->lists);
	} else {
		return false;
	}
	if (!list)
		return true;
	list += 2 + word(judge->policy, list + 1);
	list += 1 + word(judge->policy, list);
	machine->rules = word(judge->policy, list);
	machine->rules_at = list + 1;
	return true;
}

/* One step of deciding: the next list, else the next rule, else some of its ops. */
static long decide_step(u32 index, struct judge *judge)
{
	struct aw_machine *machine = &judge->walk->machine;

	if (!machine->ops) {
		if (!machine->rules)
			return !list_enter(judge);
		machine->rules--;
		if (!rule_enter(judge, word(judge->policy, machine->rules_at++)))
			return 0;
		machine->ops = word(judge->policy, machine->rule + 4);
		machine->op = machine->rule + 5;
		machine->carved = 1;
	}
	ops_step(judge);
	return 0;
}

static long default_step(u32 index, struct judge *judge)
{
	struct aw_question *question = &judge->walk->question;
	struct aw_machine *machine = &judge->walk->machine;
	u64 at = machine->defaults + 1 + 6 * index, agents;
	u32 head = word(judge->policy, at + 1), verdict = head & 255;
	u32 kind = word(judge->policy, at + 2) & question->kinds;

	agents = word(judge->policy, at + 3) | (u64)word(judge->policy, at + 4) << 32;
	agents &= question->agents;
	for (int i = 0; i < 5; i++)
		if (kind >> i & 1)
			agents &= ~machine->allowed[i];
	if (!kind || !agents)
		return 0;
	if (head >> 16 & 255 && !preventable(question))
		verdict = head >> 16 & 255;
	if (question->look) /* what would allow it may be by a name that only userspace knows */
		verdict = AW_VERDICT_LOOK;
	if (machine->best < word(judge->policy, at + 5))
		return 1;
	if (verdict == AW_VERDICT_LOOK) {
		if (!machine->look)
			machine->look = word(judge->policy, at);
		machine->looked = 0;
	} else {
		question->verdict = verdict;
		question->rule = word(judge->policy, at);
		machine->best = 0;
	}
	return 1;
}

/* What is allowed to be opened is allowed to be read and changed, and the other way round. */
static __always_inline void defaults_apply(struct judge *judge)
{
	struct aw_question *question = &judge->walk->question;
	struct aw_machine *machine = &judge->walk->machine;
	u64 all = ~0ULL, *allowed = machine->allowed;

	if (question->lists == AW_LISTS_OPEN) {
		if (question->kinds & AW_READ)
			all &= allowed[1];
		if (question->kinds & AW_CHANGE)
			all &= allowed[2];
		allowed[1] |= allowed[3];
		allowed[2] |= allowed[3];
		if (question->kinds & (AW_READ | AW_CHANGE))
			allowed[3] |= all;
	}
	bpf_loop(word(judge->policy, machine->defaults), default_step, judge, 0);
}

/* An agent's process is not of a session of none. */
#define NO_AGENT (1ULL << 63)

/* After the walk. Not static: so the verifier looks at it once. */
__noinline int policy_decide(struct aw_walk *walk)
{
	struct judge judge = {.walk = walk};
	struct aw_question *question;
	struct aw_machine *machine;

	if (!walk)
		return 0;
	question = &walk->question;
	machine = &walk->machine;
	judge.policy = policy_of(question);
	if (!judge.policy)
		return 0;
	if (machine->crowded)
		question->unread = EVERY_SUBJECT;
	question->uncertain |= question->unread;
	if (question->agents & ~NO_AGENT)
		question->agents &= ~NO_AGENT;
	machine->list = machine->rules = machine->ops = 0;
	machine->best = machine->looked = ~0U;
	machine->look = 0;
	machine->defaults = word(judge.policy, AW_POLICY_DEFAULTS);
	for (int i = 0; i < 5; i++)
		machine->allowed[i] = 0;
	bpf_loop(1 << 20, decide_step, &judge, 0);
	if (machine->defaults)
		defaults_apply(&judge);
	if (!question->verdict && (machine->looked != ~0U || question->look)) {
		question->verdict = AW_VERDICT_LOOK;
		question->rule = machine->look;
	}
	return 0;
}

/* The predicates of a subject that could not be read, of those that restrict. */
static __always_inline void unread_predicates(struct judge *judge, u32 subject, u32 role)
{
	struct aw_question *question = &judge->walk->question;
	u32 at = word(judge->policy, AW_POLICY_UNREAD_ROLES + role);

	if (!at || !(question->unread & (1U << subject)))
		return;
	for (int i = 0; i < 3; i++)
		question->found[i] |= word(judge->policy, at + 2 * i) |
				      (u64)word(judge->policy, at + 2 * i + 1) << 32;
}

/*
 * Answers walk->question; generation 0: there is no policy. Not static: so the verifier looks at it
 * once. record: of an exec, NULL for the others.
 */
__noinline int policy_judge(struct aw_walk *walk, struct aw_record *record)
{
	struct judge judge = {.walk = walk, .record = record};
	struct aw_question *question;
	struct aw_machine *machine;

	if (!walk)
		return 0;
	question = &walk->question;
	machine = &walk->machine;
	question->verdict = question->rule = question->generation = 0;
	question->found[0] = question->found[1] = question->found[2] = 0;
	judge.policy = policy_of(question);
	if (!judge.policy || word(judge.policy, 0) != AW_POLICY_MAGIC ||
	    word(judge.policy, 1) != AW_POLICY_ABI)
		return 0;
	machine->kept = machine->crowded = 0;
	machine->len = machine->pass = 0;
	machine->ends = 1;
	question->look = 0;
	question->generation = word(judge.policy, AW_POLICY_GENERATION);
	if (word(judge.policy, AW_POLICY_SETS + 4 * PROJECTS) && project_of(question))
		question->words |= AW_WORD_PROJECT;
	bpf_loop(ARGS_PIECES + 8, pass_step, &judge, 0);
	if (question->sort == AW_SORT_EXEC) {
		unread_predicates(&judge, AW_SUBJECT_EXE, 0);
		unread_predicates(&judge, AW_SUBJECT_CWD, 1);
		unread_predicates(&judge, AW_SUBJECT_ARGS, 2);
	}
	if (question->deciding)
		policy_decide(walk);
	machine->clearing = 1;
	bpf_loop(machine->kept, forget_step, &judge, 0);
	return 0;
}

/*
 * The predicates of a tag's image, taken from what userspace knows where they are of another policy.
 * False: they are not known.
 */
static __always_inline bool predicates_of(struct aw_tag *tag, u32 generation)
{
	u64 image = tag->image;
	struct aw_mark *mark;

	if (tag->predicates[2] >> 48 == (generation & 0xffff))
		return true;
	mark = bpf_map_lookup_elem(&marks, &image);
	if (!mark)
		return false;
	if (mark->agents)
		tag->agents = mark->agents;
	if (mark->generation != generation)
		return false;
	tag->predicates[0] = mark->predicates[0];
	tag->predicates[1] = mark->predicates[1];
	tag->predicates[2] = mark->predicates[2] | (u64)generation << 48;
	return true;
}

#define QUESTION_OPEN 1
#define QUESTION_IDLE 2 /* no rule and no default is about such an event: it has its answer */

/* What is asked of an event by somebody who is tagged; 0: no policy in the kernel judges it. */
__noinline int question_begin(struct aw_walk *walk, struct aw_tag *tag, struct aw_session *session,
			      u32 lists, u32 sort)
{
	struct aw_question *question;
	const char *policy;

	if (!walk || !tag || !session)
		return 0;
	question = &walk->question;
	question->slot = control.in_force;
	question->verdict = question->rule = question->generation = 0;
	question->agents = session->agents;
	question->deciding = question->agents && session->state != AW_SESSION_PROVISIONAL;
	question->lists = lists;
	question->sort = sort;
	question->words = 0;
	question->unread = question->uncertain = 0;
	question->session = tag->session;
	question->names[0].len = 0;
	question->names[0].plain = 1;
	if (!question->deciding)
		return 0;
	policy = policy_of(question);
	if (!policy)
		return 0;
	question->generation = word(policy, AW_POLICY_GENERATION);
	if (lists == AW_LISTS_OPEN && !word(policy, AW_POLICY_UNREAD + AW_LISTS_OPEN) &&
	    !word(policy, AW_POLICY_DEFAULTS))
		return QUESTION_IDLE;
	question->known = predicates_of(tag, question->generation);
	question->agents |= tag->agents;
	question->predicates[0] = tag->predicates[0];
	question->predicates[1] = tag->predicates[1];
	question->predicates[2] = tag->predicates[2] & ((1ULL << 48) - 1);
	return QUESTION_OPEN;
}

static __always_inline void question_name(struct aw_walk *walk, u32 which, u32 subject, u32 symbol,
					  u32 at, u32 len, u32 dev, bool plain)
{
	struct aw_question_name *name = &walk->question.names[which];

	name->at = at;
	name->len = len;
	name->dev = dev;
	name->subject = subject;
	name->symbol = symbol;
	name->plain = plain;
}

/* An address as automata read it: IPv4 is mapped into IPv6. */
static __always_inline void question_address(struct aw_walk *walk, const u8 *address, u16 family,
					     u16 port)
{
	u32 *words = (u32 *)walk->path;
	const u32 *from = (const u32 *)address;
	bool mapped = family == AF_INET;

	words[0] = mapped ? 0 : from[0];
	words[1] = mapped ? 0 : from[1];
	words[2] = mapped ? 0xffff0000 : from[2];
	words[3] = mapped ? from[0] : from[3];
	walk->path[16] = port >> 8;
	walk->path[17] = port;
}

static __always_inline bool is_inet(u16 family)
{
	return family == AF_INET || family == AF_INET6;
}

static __always_inline u32 words_of_connect(u16 family, u32 protocol)
{
	u32 words = 0;

	switch (family) {
	case AF_UNIX:
		return AW_WORD_FAMILY_UNIX | AW_WORD_UNIX;
	case AF_INET:
		words = AW_WORD_INET;
		break;
	case AF_INET6:
		words = AW_WORD_INET6;
		break;
	case AF_NETLINK:
		words = AW_WORD_NETLINK;
		break;
	case AF_PACKET:
		words = AW_WORD_PACKET;
		break;
	case AF_VSOCK:
		words = AW_WORD_VSOCK;
	}
	switch (protocol) {
	case IPPROTO_TCP:
		return words | AW_WORD_TCP;
	case IPPROTO_UDP:
		return words | AW_WORD_UDP;
	case IPPROTO_UDPLITE:
		return words | AW_WORD_UDP | AW_WORD_LITE;
	case IPPROTO_ICMP:
		return words | AW_WORD_ICMP;
	case IPPROTO_ICMPV6:
		return words | AW_WORD_ICMPV6;
	case IPPROTO_SCTP:
		return words | AW_WORD_SCTP;
	}
	return words;
}

/* Asks it, writes the answer into the record and acts on it: on the current task. */
static __always_inline void question_ask(struct aw_walk *walk, struct aw_record *record,
					 struct aw_header *header)
{
	policy_judge(walk, record);
	if (!walk->question.deciding)
		return;
	header->generation = walk->question.generation;
	header->rule = walk->question.rule;
	header->verdict = walk->question.verdict;
	if (walk->question.verdict == AW_VERDICT_KILL)
		bpf_send_signal(SIGKILL);
}
