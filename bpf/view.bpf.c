/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A name as the task sees it: from the dentry up through the mounts to the task's root. Whoever has a
 * mount namespace, a root or a user namespace of his own gives files what names he likes; so of these
 * names nothing is loosened. bpf_d_path is refused in tracing programs: the walk is our own.
 */

/* A root that names are canonical below, and the mount namespace it is of. */
struct home {
	u64 mount, dentry, namespace;
};

/* Of the process that canonical names are those of, and of ourselves: nobody else mounts there. */
static volatile struct home homes[2];

static __always_inline void home_take(u32 index, struct task_struct *task)
{
	struct path root;

	BPF_CORE_READ_INTO(&root, task, fs, root);
	homes[index].mount = (u64)root.mnt;
	homes[index].dentry = (u64)root.dentry;
	homes[index].namespace = (u64)BPF_CORE_READ(task, nsproxy, mnt_ns);
}

/* Run once, before anything is attached, by whom /proc/1 is the process that mounts are read of. */
SEC("syscall")
int find_homes(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	home_take(0, BPF_CORE_READ(task, nsproxy, pid_ns_for_children, child_reaper));
	home_take(1, task);
	return 0;
}

#define PLAIN_MOUNTS 65536

/*
 * Bit per id of a mount: in its namespace every file below it is called as it canonically is. Written
 * by userspace at any time.
 */
u64 plain_mounts[PLAIN_MOUNTS / 64] SEC(".data.plain");

static __always_inline struct mount *mount_of(struct vfsmount *mnt)
{
	return (void *)mnt - bpf_core_field_offset(struct mount, mnt);
}

/* Whether the task sees the file by its canonical name for sure. Short: each open passes here. */
static __always_inline bool is_plain(struct task_struct *task, const struct path *path)
{
	const struct fs_struct *fs = task->fs;
	struct mount *mount = mount_of(path->mnt);
	u64 root_mount, root, namespace;
	u32 id;

	if (!fs)
		return false;
	root_mount = (u64)fs->root.mnt;
	root = (u64)fs->root.dentry;
	namespace = (u64)BPF_CORE_READ(mount, mnt_ns);
	if ((root_mount != homes[0].mount || root != homes[0].dentry ||
	     namespace != homes[0].namespace) &&
	    (root_mount != homes[1].mount || root != homes[1].dentry ||
	     namespace != homes[1].namespace))
		return false;
	id = BPF_CORE_READ(mount, mnt_id);
	if (id >= PLAIN_MOUNTS)
		return false;
	return ((volatile u64 *)plain_mounts)[id / 64] >> id % 64 & 1;
}

#define VIEW_NONE 0   /* the file is not below the task's root */
#define VIEW_FOUND 1  /* the end of aw_walk.path */
#define VIEW_FAILED 2 /* disturbed all the time, or too long, or too many mounts */

/* Where a walk is; in scratch memory, as in identity.bpf.c. */
struct viewing {
	u64 from, from_mount;
	u64 dentry, mount; /* struct mount */
	u64 top;	   /* of the mount: a dentry */
	u64 root, root_mount;
	u32 outcome;
	u32 disturbed;
};

struct view_walk {
	struct aw_walk *into;
	struct viewing *at;
};

#define VIEW_STEPS (AW_PATH_MAX / 2 + 512) /* components, and mounts upon each other */

static long view_step(u32 index, struct view_walk *walk)
{
	struct viewing *at = walk->at;
	struct dentry *dentry = (void *)at->dentry;
	struct mount *mount = (void *)at->mount, *parent;
	struct dentry_link link;

	if (at->dentry == at->root && at->mount == at->root_mount) {
		at->outcome = VIEW_FOUND;
		return 1;
	}
	if (at->dentry == at->top) {
		parent = BPF_CORE_READ(mount, mnt_parent);
		if (!parent || parent == mount) {
			at->outcome = parent ? VIEW_NONE : VIEW_FAILED;
			return 1;
		}
		at->dentry = (u64)BPF_CORE_READ(mount, mnt_mountpoint);
		at->mount = (u64)parent;
		at->top = (u64)BPF_CORE_READ(parent, mnt.mnt_root);
		return 0;
	}
	if (dentry_link_read(&link, dentry))
		return 1;
	if (link.parent == dentry) { /* moved out of what the mount shows */
		at->outcome = VIEW_NONE;
		return 1;
	}
	if (!component_put(walk->into, &link))
		return 1;
	at->dentry = (u64)link.parent;
	return 0;
}

static long view_again(u32 index, struct view_walk *walk)
{
	struct viewing *at = walk->at;
	u32 renames = sequence_of(rename_lock_at), mounts = sequence_of(mount_lock_at);
	struct mount *mount = (void *)at->from_mount;

	at->dentry = at->from;
	at->mount = at->from_mount;
	at->top = (u64)BPF_CORE_READ(mount, mnt.mnt_root);
	at->outcome = VIEW_FAILED;
	walk->into->off = AW_PATH_MAX;
	bpf_loop(VIEW_STEPS, view_step, walk, 0);
	at->disturbed = (renames | mounts) & 1 || renames != sequence_of(rename_lock_at) ||
			mounts != sequence_of(mount_lock_at);
	return !at->disturbed;
}

/*
 * The name of viewing.from as the current task sees it: VIEW_*. Not static: so the verifier looks at it
 * once.
 */
__noinline int view_walk(struct aw_walk *into)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct view_walk walk = {.into = into};
	struct viewing *at;
	struct path root;

	if (!into)
		return VIEW_FAILED;
	at = walk.at = (struct viewing *)into->address;
	BPF_CORE_READ_INTO(&root, task, fs, root);
	at->root = (u64)root.dentry;
	at->root_mount = (u64)mount_of(root.mnt);
	bpf_loop(WALKS, view_again, &walk, 0);
	if (at->disturbed)
		return VIEW_FAILED;
	if (at->outcome == VIEW_FOUND && into->off == AW_PATH_MAX) { /* the root itself */
		into->off = AW_PATH_MAX - 1;
		into->path[AW_PATH_MAX - 1] = '/';
	}
	return at->outcome;
}
