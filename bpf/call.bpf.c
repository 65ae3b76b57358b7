/* SPDX-License-Identifier: GPL-2.0 */
/* A system call at its end: which one it was, through which entry, with which arguments. */

/* What a call number means, for either entry. */
#define CALL_OPEN 1
#define CALL_OPENAT 2
#define CALL_OPENAT2 3
#define CALL_CREAT 4
#define CALL_BY_HANDLE 5
#define CALL_CONNECT 6
#define CALL_EXECVE 7
#define CALL_EXECVEAT 8
#define CALL_SOCKETCALL 9
/* From here on: changes of names and attributes, see change.bpf.c. */
#define CALL_RENAME 10
#define CALL_RENAMEAT 11
#define CALL_LINK 12
#define CALL_LINKAT 13
#define CALL_SYMLINK 14
#define CALL_SYMLINKAT 15
#define CALL_UNLINK 16
#define CALL_UNLINKAT 17
#define CALL_MKDIR 18
#define CALL_MKDIRAT 19
#define CALL_RMDIR 20
#define CALL_MKNOD 21
#define CALL_MKNODAT 22
#define CALL_TRUNCATE 23
#define CALL_FTRUNCATE 24
#define CALL_CHMOD 25
#define CALL_FCHMOD 26
#define CALL_FCHMODAT 27
#define CALL_FCHMODAT2 28
#define CALL_CHOWN 29
#define CALL_FCHOWN 30
#define CALL_FCHOWNAT 31
#define CALL_XATTR 32
#define CALL_FXATTR 33
#define CALL_XATTRAT 34
/* From here on: mounts, and user namespaces, see mount.bpf.c. */
#define CALL_MOUNT 35
#define CALL_UMOUNT 36
#define CALL_PIVOT_ROOT 37
#define CALL_MOVE_MOUNT 38
#define CALL_MOUNT_SETATTR 39
#define CALL_FSCONFIG 40
#define CALL_UNSHARE 41
#define CALL_CLONE 42
#define CALL_CLONE3 43

/* By number: a look-up, for this is asked of every call of everybody. x32 has its own from 512 on. */
static const u8 calls_64[548] = {
	[2] = CALL_OPEN,
	[42] = CALL_CONNECT,
	[59] = CALL_EXECVE,
	[76] = CALL_TRUNCATE,
	[77] = CALL_FTRUNCATE,
	[82] = CALL_RENAME,
	[83] = CALL_MKDIR,
	[84] = CALL_RMDIR,
	[85] = CALL_CREAT,
	[86] = CALL_LINK,
	[87] = CALL_UNLINK,
	[88] = CALL_SYMLINK,
	[90] = CALL_CHMOD,
	[91] = CALL_FCHMOD,
	[92] = CALL_CHOWN,
	[93] = CALL_FCHOWN,
	[94] = CALL_CHOWN,
	[133] = CALL_MKNOD,
	[188] = CALL_XATTR,
	[189] = CALL_XATTR,
	[190] = CALL_FXATTR,
	[197] = CALL_XATTR,
	[198] = CALL_XATTR,
	[199] = CALL_FXATTR,
	[257] = CALL_OPENAT,
	[258] = CALL_MKDIRAT,
	[259] = CALL_MKNODAT,
	[260] = CALL_FCHOWNAT,
	[263] = CALL_UNLINKAT,
	[264] = CALL_RENAMEAT,
	[265] = CALL_LINKAT,
	[266] = CALL_SYMLINKAT,
	[268] = CALL_FCHMODAT,
	[304] = CALL_BY_HANDLE,
	[316] = CALL_RENAMEAT,
	[322] = CALL_EXECVEAT,
	[437] = CALL_OPENAT2,
	[452] = CALL_FCHMODAT2,
	[463] = CALL_XATTRAT,
	[466] = CALL_XATTRAT,
	[56] = CALL_CLONE,
	[155] = CALL_PIVOT_ROOT,
	[165] = CALL_MOUNT,
	[166] = CALL_UMOUNT,
	[272] = CALL_UNSHARE,
	[429] = CALL_MOVE_MOUNT,
	[431] = CALL_FSCONFIG,
	[435] = CALL_CLONE3,
	[442] = CALL_MOUNT_SETATTR,
	[520] = CALL_EXECVE,
	[545] = CALL_EXECVEAT,
};

static const u8 calls_32[467] = {
	[5] = CALL_OPEN,	[8] = CALL_CREAT,	    [9] = CALL_LINK,
	[10] = CALL_UNLINK,	[11] = CALL_EXECVE,	    [14] = CALL_MKNOD,
	[15] = CALL_CHMOD,	[16] = CALL_CHOWN,	    [38] = CALL_RENAME,
	[39] = CALL_MKDIR,	[40] = CALL_RMDIR,	    [83] = CALL_SYMLINK,
	[92] = CALL_TRUNCATE,	[93] = CALL_FTRUNCATE,	    [94] = CALL_FCHMOD,
	[95] = CALL_FCHOWN,	[102] = CALL_SOCKETCALL,    [182] = CALL_CHOWN,
	[193] = CALL_TRUNCATE,	[194] = CALL_FTRUNCATE,	    [198] = CALL_CHOWN,
	[207] = CALL_FCHOWN,	[212] = CALL_CHOWN,	    [226] = CALL_XATTR,
	[227] = CALL_XATTR,	[228] = CALL_FXATTR,	    [235] = CALL_XATTR,
	[236] = CALL_XATTR,	[237] = CALL_FXATTR,	    [295] = CALL_OPENAT,
	[296] = CALL_MKDIRAT,	[297] = CALL_MKNODAT,	    [298] = CALL_FCHOWNAT,
	[301] = CALL_UNLINKAT,	[302] = CALL_RENAMEAT,	    [303] = CALL_LINKAT,
	[304] = CALL_SYMLINKAT, [306] = CALL_FCHMODAT,	    [342] = CALL_BY_HANDLE,
	[353] = CALL_RENAMEAT,	[358] = CALL_EXECVEAT,	    [362] = CALL_CONNECT,
	[437] = CALL_OPENAT2,	[452] = CALL_FCHMODAT2,	    [463] = CALL_XATTRAT,
	[466] = CALL_XATTRAT,	[21] = CALL_MOUNT,	    [22] = CALL_UMOUNT,
	[52] = CALL_UMOUNT,	[120] = CALL_CLONE,	    [217] = CALL_PIVOT_ROOT,
	[310] = CALL_UNSHARE,	[429] = CALL_MOVE_MOUNT,    [431] = CALL_FSCONFIG,
	[435] = CALL_CLONE3,	[442] = CALL_MOUNT_SETATTR,
};

static __always_inline u32 call_of(u32 nr, bool compat)
{
	if (compat)
		return nr < sizeof(calls_32) ? calls_32[nr] : 0;
	nr &= ~0x40000000; /* x32 */
	return nr < sizeof(calls_64) ? calls_64[nr] : 0;
}

struct call {
	u64 nr;	  /* its orig_ax + 1 */
	u32 kind; /* CALL_* */
	bool compat;
	s32 result;
	u64 args[5];
};

static __always_inline void args_read(struct call *call, struct pt_regs *regs)
{
	call->args[0] = call->compat ? (u32)regs->bx : regs->di;
	call->args[1] = call->compat ? (u32)regs->cx : regs->si;
	call->args[2] = call->compat ? (u32)regs->dx : regs->dx;
	call->args[3] = call->compat ? (u32)regs->si : regs->r10;
	call->args[4] = call->compat ? (u32)regs->di : regs->r8;
}

static __always_inline struct file *file_of(struct task_struct *task, u32 fd)
{
	struct file *file = 0, **fds;

	if (fd >= BPF_CORE_READ(task, files, fdt, max_fds))
		return 0;
	fds = BPF_CORE_READ(task, files, fdt, fd);
	bpf_probe_read_kernel(&file, sizeof(file), fds + fd);
	return file;
}
