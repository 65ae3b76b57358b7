/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Identities, first half: does a name have a path component that some identity's glob must have? The
 * engine applies the whole glob (agentwatch/engine.py) and confirms the tag or takes the session away.
 */

/*
 * What one byte leaves for the next is in aw_walk and not here: before 6.7 the verifier looks at the
 * first turn of a bpf_loop only, and takes out whatever what it knows of the stack rules out there.
 */
struct scan {
	const struct aw_exec *exec;
	const char *text; /* behind it */
	struct aw_walk *walk;
	u32 len, hit;
};

/*
 * A component ends with its string, slash or none. The lengths are read anew for each byte: where the
 * verifier follows each turn of a loop, what it learns of them in one must not count in the next.
 */
static __always_inline bool is_end(const struct aw_exec *exec, u32 index)
{
	u32 path = *(const volatile u16 *)&exec->path_len;

	return index == path || index == path + *(const volatile u16 *)&exec->asked_len;
}

/* Word by word: of a char array, clang would clear every byte by itself, in each of many states. */
static __always_inline void literal_clear(char *literal)
{
	u64 *words = (u64 *)literal;

#pragma unroll
	for (int i = 0; i < AW_LITERAL_MAX / 8; i++)
		words[i] = 0;
}

static __always_inline void scan_component(struct scan *scan)
{
	struct aw_walk *walk = scan->walk;

	if (walk->size && walk->size < AW_LITERAL_MAX && literal_known(walk))
		scan->hit = 1;
	walk->size = 0;
	literal_clear(walk->literal);
}

static long scan_byte(u32 index, struct scan *scan)
{
	bool done = index >= scan->len || index >= 2 * AW_PATH_MAX - SHORT;
	char byte = '/';

	/* The bound above is below the record's own size. */
	if (!done)
		byte = scan->text[index];
	if (byte == '/' || is_end(scan->exec, index))
		scan_component(scan);
	if (done)
		return 1;
	if (byte != '/') {
		u64 size = PINNED(scan->walk->size);

		if (size < AW_LITERAL_MAX)
			scan->walk->literal[PINNED(size & (AW_LITERAL_MAX - 1))] = byte;
		scan->walk->size++;
	}
	return scan->hit != 0;
}

/*
 * Over the first `len` bytes of the strings of the current task's record: path, asked, cwd, in one go.
 * Not static: so the verifier looks at it once, and not in every state that its caller can be in. And it
 * gets its own aw_walk: 6.1 takes no key of a map from memory that came as an argument.
 */
__noinline bool is_candidate(struct aw_record *record, u32 len)
{
	struct aw_walk *walk = walk_of_current();
	struct scan scan = {};

	if (!record || !walk)
		return true; /* the engine looks closer */
	scan.exec = &record->exec;
	scan.text = (const char *)record + sizeof(struct aw_exec);
	scan.walk = walk;
	scan.len = len;
	walk->size = 0;
	literal_clear(walk->literal);
	bpf_loop(2 * AW_PATH_MAX, scan_byte, &scan, 0);
	return scan.hit;
}
