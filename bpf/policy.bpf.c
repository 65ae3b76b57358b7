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
#define NO_SET 8

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
	struct aw_project *project;
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

		if (!roles ||
		    !(word(judge->policy, roles + ((predicate >> 5) & 7)) >> (predicate & 31) & 1))
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
#define FIRST_CLASS 10 /* cells below it are symbols' */
#define CELLS (FIRST_CLASS + CLASSES)
#define DEFAULT_CELLS 272 /* from one default row to the next */
#define DEFAULT_OF(state) ((state) >> 22 & 511)
#define DEFAULT_BITS (511 << 22)
#define STICKY(state) ((s32)(state) < 0)

struct cell {
	u32 next, of; /* states */
};

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

#define AW_STEPS 4 /* of which one after the other does not ask for the end */

/* scalar += pointer */
#define AT(base, offset)                                                                           \
	({                                                                                         \
		u64 at_ = (offset);                                                                \
		asm volatile("%0 += %1" : "+r"(at_) : "r"(base));                                  \
		(const void *)at_;                                                                 \
	})

/* Behind the byte at hand, or out of the loop: with `i` bytes taken. */
#define STEP(at)                                                                                   \
	do {                                                                                       \
		u64 class = FIRST_CLASS + *(const u8 *)AT(classes, bytes[at]);                     \
		const struct cell *cell = AT(policy, ((state + class) << 3) & mask);               \
                                                                                                   \
		if (cell->of != (u32)state) {                                                      \
			if ((state & DEFAULT_BITS) != own) {                                       \
				i = (at);                                                          \
				goto done;                                                         \
			}                                                                          \
			cell = usual + class;                                                      \
		}                                                                                  \
		state = cell->next;                                                                \
		if (STICKY(state)) {                                                               \
			i = (at) + 1;                                                              \
			goto done;                                                                 \
		}                                                                                  \
	} while (0)

/*
 * One set over up to n bytes: until there is something to look up behind one of them, or another
 * default row is needed. How many it took. For every byte of every event, so with as few instructions
 * as there can be: what is rare is left to the next call.
 */
static __noinline u64 set_walk(const char *policy, struct aw_set *set, const u8 *bytes, u64 n)
{
	u64 mask = policy_mask, at = set->classes, i;
	u64 state = (u32)set->state, own = state & DEFAULT_BITS;
	u64 row = set->rows + DEFAULT_OF(state) * DEFAULT_CELLS;
	const struct cell *usual;
	const u8 *classes;

	if (at > mask - CLASSES || row > (mask >> 3) - CELLS)
		return n;
	mask &= ~7ULL;
	classes = (const u8 *)policy + PINNED(at);
	/* The default row is kept at hand: so few bytes wait for the state before them. */
	usual = (const struct cell *)(policy + PINNED(row << 3));
	for (i = 0; i + AW_STEPS <= AW_CHUNK && i + AW_STEPS <= n; i += AW_STEPS) {
#pragma unroll
		for (u32 j = 0; j < AW_STEPS; j++)
			STEP(i + j);
	}
	for (; i < AW_CHUNK && i < n; i++)
		STEP(i);
done:
	set->state = state;
	return i;
}

/* What one of the sets found among the bytes that the memo is to know. */
static __always_inline void memo_note(struct aw_walk *walk)
{
	struct aw_memo *memo = &walk->memo;
	u32 slot = (walk->machine.slot + walk->machine.turn) & (AW_SETS - 1);
	u32 count = memo->counts[slot];

	if (count < AW_MEMO_LISTS) {
		memo->lists[slot][count] = walk->found[0];
		memo->counts[slot] = count + 1;
	} else {
		walk->machine.spoilt = 1;
	}
}

/* The next set: where it is behind what the memo knows, with what it found there. */
static __always_inline void set_begin(struct judge *judge, struct aw_set *set, u32 slot)
{
	struct aw_walk *walk = judge->walk;
	struct aw_machine *machine = &walk->machine;
	struct aw_memo *memo = &walk->memo;

	machine->begun = 1;
	machine->done = machine->skip;
	machine->noting = machine->stop != 0;
	machine->until = machine->noting ? machine->stop : machine->len;
	if (machine->skip) {
		set->state = memo->states[slot];
		machine->found = memo->counts[slot];
		for (int i = 0; i < AW_MEMO_LISTS; i++)
			walk->found[i] = memo->lists[slot][i];
	} else if (machine->stop) {
		memo->counts[slot] = 0;
	}
}

/* Part of what is between machine->off and off + len: by one set to the end, then by the next one. */
static long chunk_step(u32 index, struct judge *judge)
{
	struct aw_walk *walk = judge->walk;
	struct aw_machine *machine = &walk->machine;
	u32 turn = machine->turn & (AW_SETS - 1), slot = (machine->slot + turn) & (AW_SETS - 1);
	struct aw_set *set = &machine->sets[turn];
	bool known = false;
	u64 done, n, off;

	if (!machine->begun && set->state != set->dead) {
		set_begin(judge, set, slot);
		known = machine->found;
	}
	done = machine->done;
	n = machine->until;
	off = machine->off + done;
	if (known || done >= n || set->state == set->dead || off > AW_TEXT_MAX - AW_CHUNK) {
		if (known) {
			/* Looked at below, before the walk goes on. */
		} else if (machine->begun && machine->noting) {
			walk->memo.states[slot] = set->state;
			machine->noting = 0;
			machine->until = machine->len;
			return 0;
		} else {
			machine->begun = 0;
			return ++machine->turn >= AW_SETS - 1;
		}
	} else {
		machine->done = done + set_walk(judge->policy, set, (const u8 *)walk + PINNED(off),
						n - done);
		if (!STICKY(set->state))
			return 0;
		look(judge->policy, policy_mask & ~7ULL, walk, set->state, machine->sticky);
		if (machine->found && machine->noting)
			memo_note(walk);
	}
	if (machine->found)
		lists_take(judge);
	return 0;
}

static __always_inline void set_enter(const char *policy, struct aw_set *set, u32 number)
{
	u32 at = AW_POLICY_SETS + 4 * number;

	set->classes = number == NO_SET ? 0 : word(policy, at);
	if (!set->classes) {
		set->state = set->dead = 0;
		return;
	}
	set->state = word(policy, at + 1);
	set->rows = word(policy, at + 2);
	set->dead = word(policy, at + 3);
}

static __always_inline void sets_enter(struct judge *judge, u32 anchored, u32 floating, u32 begun)
{
	struct aw_machine *machine = &judge->walk->machine;

	set_enter(judge->policy, &machine->sets[0], anchored);
	set_enter(judge->policy, &machine->sets[1], floating);
	set_enter(judge->policy, &machine->sets[2], begun);
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
	if (machine->found)
		lists_take(&judge);
	machine->turn = machine->begun = 0;
	bpf_loop(AW_SETS * 2 * AW_TEXT_MAX, chunk_step, &judge, 0);
	if (machine->ends)
		sets_look(&judge, false);
	if (machine->found)
		lists_take(&judge);
	return 0;
}
