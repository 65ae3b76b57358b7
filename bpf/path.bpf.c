/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Canonical names: from a dentry up to the root of its file system, whatever mounts, chroots and
 * namespaces lie between. bpf_d_path is refused in tracing programs and would tell the task's view.
 */

#ifndef AW_BCC /* which is told where the lock is when it compiles this */
/* Where the kernel keeps what no type tells of; 0 where it does not say, or is not asked. */
static volatile u64 rename_lock_at, mount_lock_at, preempt_count_at, per_cpu_offset_at;
/* 1: hooks on inode_setattr are passed a mapping of users first. */
static volatile u32 setattr_maps;

struct pcpu_hot {
	int preempt_count;
} __attribute__((preserve_access_index));

static __always_inline u64 symbol_at(const char *name, u32 size)
{
	u64 found = 0;

	return bpf_kallsyms_lookup_name(name, size, 0, &found) ? 0 : found;
}

/* Run once, before anything is attached: libbpf would read all of /proc/kallsyms for a __ksym. */
SEC("syscall")
int find_symbols(void *ctx)
{
	static const char rename[] = "rename_lock", mount[] = "mount_lock";
	static const char offset[] = "__per_cpu_offset";
	static const char count[] = "__preempt_count", hot[] = "pcpu_hot";
	static const char busy[] = "bpf_task_storage_busy", recur[] = "bpf_task_storage_get_recur";
	static const char since[] = "bpf_lsm_inode_post_setattr"; /* no type tells of it */
	u64 at = 0;

	setattr_maps = symbol_at(since, sizeof(since)) != 0;
	rename_lock_at = symbol_at(rename, sizeof(rename));
	mount_lock_at = symbol_at(mount, sizeof(mount));
	per_cpu_offset_at = symbol_at(offset, sizeof(offset));
	if (bpf_core_type_exists(struct pcpu_hot)) {
		at = symbol_at(hot, sizeof(hot));
		if (at)
			at += bpf_core_field_offset(struct pcpu_hot, preempt_count);
	} else {
		at = symbol_at(count, sizeof(count));
	}
	if (per_cpu_offset_at)
		preempt_count_at = at;
	/* The second one came with looks that nothing stops; the first is gone where none ever waits. */
	storage_sure = symbol_at(recur, sizeof(recur)) ||
		       (rename_lock_at && !symbol_at(busy, sizeof(busy)));
	return 0;
}

#endif

/* How far a walk is, is in aw_walk, for the same reason as in identity.bpf.c. */
struct walk {
	struct dentry *from, *dentry;
	struct aw_walk *into;
	u32 failed;
};

/* d_parent and d_name as they lie in struct dentry: one read for both where they are neighbours. */
struct dentry_link {
	struct dentry *parent;
	u64 hash_len;
	const unsigned char *name;
};

static __always_inline long dentry_link_read(struct dentry_link *link, struct dentry *dentry)
{
	if (bpf_core_field_offset(dentry->d_name) == bpf_core_field_offset(dentry->d_parent) + 8)
		return bpf_probe_read_kernel(link, sizeof(*link), &dentry->d_parent);
	link->parent = BPF_CORE_READ(dentry, d_parent);
	link->hash_len = BPF_CORE_READ(dentry, d_name.hash_len);
	link->name = BPF_CORE_READ(dentry, d_name.name);
	return !link->parent;
}

/* Puts a component in front of what is there; false where there is no room, or it cannot be read. */
static __always_inline bool component_put(struct aw_walk *into, const struct dentry_link *link)
{
	u32 len = link->hash_len >> 32, off;

	if (!len || len > 255 || into->off < len + 1)
		return false;
	barrier_var(len); /* what is masked is what is read */
	off = (into->off - len) & (AW_PATH_MAX - 1);
	if (bpf_probe_read_kernel(into->path + off, len & 255, link->name))
		return false;
	off = (off - 1) & (AW_PATH_MAX - 1);
	into->path[off] = '/';
	into->off = off;
	return true;
}

static long walk_step(u32 index, struct walk *walk)
{
	struct dentry_link link;

	if (dentry_link_read(&link, walk->dentry)) {
		walk->failed = 1;
		return 1;
	}
	if (link.parent == walk->dentry)
		return 1;
	if (!component_put(walk->into, &link)) {
		walk->failed = 1;
		return 1;
	}
	walk->dentry = link.parent;
	return 0;
}

/* A seqlock begins with its count. */
static __always_inline u32 sequence_of(u64 lock)
{
	u32 sequence = 0;

	if (lock)
		bpf_probe_read_kernel(&sequence, sizeof(sequence), (void *)lock);
	return sequence;
}

#ifndef AW_BCC	 /* where one loop is all there is */
#define WALKS 64 /* a rename anywhere on the machine disturbs one, and some rename all the time */

static long walk_again(u32 index, struct walk *walk)
{
	struct aw_walk *into = walk->into;
	u32 before = sequence_of(rename_lock_at);

	walk->dentry = walk->from;
	walk->failed = 0;
	into->off = AW_PATH_MAX;
	bpf_loop(AW_PATH_MAX / 2, walk_step, walk, 0);
	into->disturbed = before & 1 || before != sequence_of(rename_lock_at);
	return !into->disturbed;
}

/* One walk that no rename disturbed, or a failed one. */
static __always_inline void walk_up(struct walk *walk, struct dentry *dentry, struct aw_walk *into)
{
	walk->from = walk->dentry = dentry;
	walk->into = into;
	walk->failed = 0;
	bpf_loop(WALKS, walk_again, walk, 0);
	if (into->disturbed)
		walk->failed = 1;
}

#endif

#ifndef NSFS_MAGIC
#define NSFS_MAGIC 0x6e736673
#endif

/* What a walk found. */
struct name {
	u32 len; /* bytes in aw_walk.path, up to its AW_PATH_MAX */
	u32 dev;
	u16 flags; /* AW_FLAG_ANONYMOUS, AW_FLAG_DELETED */
	bool failed;
};

/*
 * The kernel's own name of a file without a place: "memfd:x", "[eventfd]", nothing for a pipe; the end
 * of `path`. Its length, or -1: a file that was opened by handle before anybody looked it up is called
 * "/" as well, and its place is not known.
 */
static __always_inline long anonymous_name(struct dentry *dentry, char *path)
{
	struct dentry_link link;
	u64 at;
	u32 len;

	if (dentry_link_read(&link, dentry))
		return -1;
	len = link.hash_len >> 32;
	if (len > 255)
		return -1;
	at = AW_PATH_MAX - (len & 255);
	barrier_var(at); /* so that it is a number and no pointer that is checked */
	if (bpf_probe_read_kernel(path + at, len & 255, link.name))
		return -1;
	if (len == 1 && path[AW_PATH_MAX - 1] == '/')
		return -1;
	return len & 255;
}

/* Not static: so the verifier looks at it once, and not in every state its callers can be in. */
__noinline int name_of(struct name *name, const struct path *path, struct aw_walk *into)
{
	struct super_block *super;
	struct walk walk;
	char *buffer;
	long len;

	if (!name || !path || !into)
		return 0;
	buffer = into->path;
	super = BPF_CORE_READ(path->dentry, d_sb); /* one that is to be made has no inode yet */

	name->dev = BPF_CORE_READ(super, s_dev);
	name->flags = 0;
	walk_up(&walk, path->dentry, into);
	name->failed = walk.failed;
	name->len = AW_PATH_MAX - into->off;
	if (walk.dentry != BPF_CORE_READ(super, s_root) &&
	    walk.dentry != BPF_CORE_READ(path->mnt, mnt_root)) {
		if (walk.dentry != path->dentry) {
			name->failed = true; /* a tree that hangs nowhere */
			return 0;
		}
		len = anonymous_name(path->dentry, buffer);
		if (len < 0 && (BPF_CORE_READ(super, s_flags) & SB_NOUSER ||
				BPF_CORE_READ(super, s_magic) == NSFS_MAGIC))
			len = 0; /* a pidfd, a namespace: of a file system that nobody mounts */
		name->failed = len < 0;
		name->len = len < 0 ? 0 : len;
		name->flags = len < 0 ? 0 : AW_FLAG_ANONYMOUS;
	} else if (walk.dentry != path->dentry && !BPF_CORE_READ(path->dentry, d_hash.pprev) &&
		   BPF_CORE_READ(path->dentry, d_inode)) {
		name->flags =
			AW_FLAG_DELETED; /* one that is not there yet may be unhashed as well */
	}
	return 0;
}
