/* SPDX-License-Identifier: GPL-2.0 */
/*
 * BPF LSM: what a file system does to the files of another one for whoever uses it, as an overlay does
 * to those of its layers. No hook on paths is asked about that, only these, which know of no mount; it
 * is done by credentials that are lent, and everything else is left to the hooks on paths.
 */

static __always_inline bool is_lent(void)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return BPF_CORE_READ(task, cred) != BPF_CORE_READ(task, real_cred);
}

static __always_inline int layer_hook(u32 op, u32 words, struct dentry *dentry,
				      struct dentry *second, u32 mode)
{
	struct change change = {.op = op, .words = words, .mode = mode, .how = CHANGE_LAYERED};

	if (!is_lent())
		return 0;
	change.first.dentry = dentry;
	change.second.dentry = second;
	return change_answer(&change);
}

SEC("lsm/inode_create")
int BPF_PROG(lsm_inode_create, struct inode *dir, struct dentry *dentry, unsigned int mode)
{
	return layer_hook(AW_OP_CREATE, AW_WORD_CREATE | AW_WORD_OPEN, dentry, 0, mode);
}

SEC("lsm/inode_mknod")
int BPF_PROG(lsm_inode_mknod, struct inode *dir, struct dentry *dentry, unsigned int mode)
{
	return layer_hook(AW_OP_CREATE, AW_WORD_CREATE, dentry, 0, mode);
}

SEC("lsm/inode_mkdir")
int BPF_PROG(lsm_inode_mkdir, struct inode *dir, struct dentry *dentry, unsigned int mode)
{
	return layer_hook(AW_OP_MKDIR, AW_WORD_MKDIR, dentry, 0, mode);
}

SEC("lsm/inode_rmdir")
int BPF_PROG(lsm_inode_rmdir, struct inode *dir, struct dentry *dentry)
{
	return layer_hook(AW_OP_RMDIR, AW_WORD_RMDIR, dentry, 0, 0);
}

SEC("lsm/inode_unlink")
int BPF_PROG(lsm_inode_unlink, struct inode *dir, struct dentry *dentry)
{
	return layer_hook(AW_OP_DELETE, AW_WORD_DELETE, dentry, 0, 0);
}

SEC("lsm/inode_symlink")
int BPF_PROG(lsm_inode_symlink, struct inode *dir, struct dentry *dentry)
{
	return layer_hook(AW_OP_SYMLINK, AW_WORD_SYMLINK, dentry, 0, 0);
}

SEC("lsm/inode_link")
int BPF_PROG(lsm_inode_link, struct dentry *dentry, struct inode *dir, struct dentry *new_dentry)
{
	return layer_hook(AW_OP_LINK, AW_WORD_LINK, dentry, new_dentry, 0);
}

/* Asked twice of an exchange, once each way. */
SEC("lsm/inode_rename")
int BPF_PROG(lsm_inode_rename, struct inode *dir, struct dentry *dentry, struct inode *new_dir,
	     struct dentry *new_dentry)
{
	return layer_hook(AW_OP_RENAME, AW_WORD_RENAME, dentry, new_dentry, 0);
}

/* Newer kernels pass a mapping of users first. */
SEC("lsm/inode_setattr")
int BPF_PROG(lsm_inode_setattr, void *first, void *second, void *third)
{
	struct dentry *dentry = setattr_maps ? second : first;
	struct iattr *asked = setattr_maps ? third : second;
	u32 valid = BPF_CORE_READ(asked, ia_valid);

	if (valid & ATTR_SIZE)
		return layer_hook(AW_OP_TRUNCATE, AW_WORD_TRUNCATE, dentry, 0, 0);
	if (valid & ATTR_MODE)
		return layer_hook(AW_OP_CHMOD, AW_WORD_CHMOD, dentry, 0, 0);
	if (valid & (ATTR_UID | ATTR_GID))
		return layer_hook(AW_OP_CHOWN, AW_WORD_CHOWN, dentry, 0, 0);
	return 0;
}
