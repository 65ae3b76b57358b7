/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A file's other names, behind its canonical one: as the task sees it, and as it was called when the
 * policy was loaded, whatever links, overlays or mounts lead to it now. A name that is the canonical
 * one is none of them.
 */

/* Files that restricting rules are about, by what they are; filled by userspace. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct aw_file_key);
	__type(value, struct aw_known);
} known_files SEC(".maps");

/* What is asked, and the answer; behind `viewing`, in scratch memory. */
struct naming {
	struct viewing viewing;
	u64 inode;   /* of the file */
	u64 private; /* of an open file of an overlay: what it opened below; else 0 */
	u32 path_at, path_len, path_dev; /* the canonical name, in the record */
	u32 at;				 /* where the next string goes */
	u32 bit;			 /* AW_UNRESOLVED_* of the canonical name */
	u16 view_len, known_len;	 /* the answer: those that were put */
};

_Static_assert(sizeof(struct naming) <= sizeof(((struct aw_walk *)0)->address), "naming");

static __always_inline struct naming *naming_of(struct aw_walk *walk)
{
	return (struct naming *)walk->address;
}

static __always_inline struct aw_known *known_lookup(struct inode *inode)
{
	struct aw_file_key key = {};
	struct aw_known *known;

	key.dev = BPF_CORE_READ(inode, i_sb, s_dev);
	key.inode = BPF_CORE_READ(inode, i_ino);
	known = bpf_map_lookup_elem(&known_files, &key);
	if (known && known->versioned && known->generation != BPF_CORE_READ(inode, i_generation))
		return 0;
	return known;
}

/*
 * What a file of an overlay has open below: the first member of its private data or, before 6.13, all
 * of that, which begins with no pointer. Which it is cannot be asked of BTF: overlayfs may be a module
 * that is not loaded yet.
 */
static __always_inline struct file *below_of(struct file *private)
{
	struct file *first = 0;

	bpf_probe_read_kernel(&first, sizeof(first), private);
	return first && BPF_CORE_READ(first, f_inode) ? first : private;
}

#define OVERLAYS 2 /* lie upon each other at most */

/* The file, or in an overlay what it is of in the layers. */
static __always_inline struct aw_known *known_find(const struct naming *naming)
{
	struct file *private = (void *)naming->private;
	struct inode *inode = (void *)naming->inode;
	struct aw_known *known = known_lookup(inode);

#pragma unroll
	for (int i = 0; i < OVERLAYS; i++) {
		if (known || !private ||
		    BPF_CORE_READ(inode, i_sb, s_magic) != OVERLAYFS_SUPER_MAGIC)
			return known;
		private = below_of(private);
		inode = BPF_CORE_READ(private, f_inode);
		known = known_lookup(inode);
		private = BPF_CORE_READ(private, private_data);
	}
	return known;
}

struct same_walk {
	struct aw_walk *walk;
	struct aw_record *record;
	u32 at, differs;
};

#define SAME_CHUNK 32

static long same_step(u32 index, struct same_walk *same)
{
	struct aw_machine *machine = &same->walk->machine;
	u64 done = (u64)index * SAME_CHUNK, at = same->at + done, off = machine->off + done;
	u64 left = machine->len - 1 - done;
	const char *one, *other;

	if (done >= machine->len - 1)
		return 1;
	same->differs = 1;
	if (at > RECORD_MAX - SAME_CHUNK || off > AW_TEXT_MAX - SAME_CHUNK)
		return 1;
	one = (const char *)same->record + PINNED(at);
	other = (const char *)same->walk + PINNED(off);
	for (int i = 0; i < SAME_CHUNK; i++) {
		if (i >= left)
			break;
		if (one[i] != other[i])
			return 1;
	}
	same->differs = 0;
	return 0;
}

/* Whether what is in the record is the canonical name, as policy_name has put that. */
static __always_inline bool is_canonical(struct aw_walk *walk, struct aw_record *record, u32 at,
					 u32 len)
{
	struct same_walk same = {.walk = walk, .record = record, .at = at};

	/* Not there, or not all of it: then it may be another. */
	if (!walk->machine.len || len + 1 != walk->machine.len)
		return false;
	bpf_loop(AW_PATH_MAX / SAME_CHUNK + 8, same_step, &same, 0);
	return !same.differs;
}

/* Not static: so the verifier looks at it once. */
__noinline int view_put(struct aw_walk *walk, struct aw_record *record)
{
	struct naming *naming;
	struct name name = {};
	u32 at, outcome;

	if (!walk || !record)
		return 0;
	naming = naming_of(walk);
	outcome = view_walk(walk);
	at = naming->at;
	if (outcome == VIEW_FAILED)
		record->header.unresolved |= naming->bit;
	if (outcome != VIEW_FOUND)
		return 0;
	name.len = AW_PATH_MAX - walk->off;
	naming->view_len = put_name(record, &at, &name, walk->path, naming->bit);
	naming->at = at;
	return 0;
}

static __always_inline void known_put(struct naming *naming, struct aw_record *record,
				      const struct aw_known *known)
{
	u32 len = known->len;
	u64 at = PINNED(naming->at);

	if (!len || len > AW_KNOWN_MAX)
		return;
	if (at > RECORD_MAX - AW_KNOWN_MAX - 8) { /* no room, and it may be what a rule is about */
		record->header.unresolved |= naming->bit;
		return;
	}
	bpf_probe_read_kernel((char *)record + PINNED(at), len, known->path);
	naming->known_len = len;
	naming->at += len;
}

/* Answers `naming`. Not static: so the verifier looks at it once. */
__noinline int other_names(struct aw_walk *walk, struct aw_record *record, u32 viewed)
{
	struct aw_known *known = 0;
	struct naming *naming;
	struct aw_question_name *canonical;

	if (!walk || !record)
		return 0;
	naming = naming_of(walk);
	naming->view_len = naming->known_len = 0;
	if (control.known && naming->inode)
		known = known_find(naming);
	if (!viewed && !known)
		return 0;
	walk->question.names[0].at = naming->path_at; /* `path` is used for others now */
	if (viewed)
		view_put(walk, record);
	if (!naming->view_len && !known)
		return 0;
	canonical = &walk->question.names[0];
	canonical->at = naming->path_at;
	canonical->len = naming->path_len;
	canonical->dev = naming->path_dev;
	canonical->subject = canonical->symbol = canonical->plain = 0;
	walk->question.unread = 0;
	policy_name(walk, record, 0);
	if (naming->view_len &&
	    is_canonical(walk, record, naming->at - naming->view_len, naming->view_len)) {
		naming->at -= naming->view_len;
		naming->view_len = 0;
	}
	if (!known)
		return 0;
	known_put(naming, record, known);
	if (naming->known_len &&
	    is_canonical(walk, record, naming->at - naming->known_len, naming->known_len)) {
		naming->at -= naming->known_len;
		naming->known_len = 0;
	}
	return 0;
}

/*
 * Puts the other names of what has the canonical one into the record, behind what is there: the bytes
 * of both are in `naming` then, and 0 for none. file: NULL where nothing is open. path: of no mount
 * where that is not known, and nor is the view then. path_at: where the canonical name is in the record;
 * names[0] says whether it still is in `path`, too. bit: what is unresolved if one cannot be read.
 */
static __always_inline void others_put(struct aw_record *record, struct aw_walk *walk,
				       struct task_struct *task, struct file *file,
				       const struct path *path, const struct name *name,
				       u32 path_at, u32 path_len, u32 *at, u32 bit)
{
	struct naming *naming = naming_of(walk);
	bool viewed;

	naming->view_len = naming->known_len = 0;
	walk->question.names[0].at = 0;
	if (name->failed || name->flags & AW_FLAG_ANONYMOUS)
		return;
	viewed = path->mnt && !is_plain(task, path);
	if (!viewed && !control.known)
		return;
	naming->viewing.from = (u64)path->dentry;
	naming->viewing.from_mount = (u64)mount_of(path->mnt);
	naming->inode =
		(u64)(file ? BPF_CORE_READ(file, f_inode) : BPF_CORE_READ(path->dentry, d_inode));
	naming->private = file ? (u64)BPF_CORE_READ(file, private_data) : 0;
	naming->path_at = path_at;
	naming->path_len = path_len;
	naming->path_dev = name->dev;
	naming->at = *at;
	naming->bit = bit;
	other_names(walk, record, viewed);
	*at = naming->at;
}
