/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A system call at its end: which one it was, through which entry, with which arguments. For both
 * loaders; lists are X(...), for one of them has no tables in its programs.
 */

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

/* clang-format off */
/* Which numbers they have, for either entry: X(number, CALL_*). x32 has its own from 512 on. */
#define CALLS_64(X) \
	X(2, CALL_OPEN) X(42, CALL_CONNECT) X(59, CALL_EXECVE) X(76, CALL_TRUNCATE) \
	X(77, CALL_FTRUNCATE) X(82, CALL_RENAME) X(83, CALL_MKDIR) X(84, CALL_RMDIR) \
	X(85, CALL_CREAT) X(86, CALL_LINK) X(87, CALL_UNLINK) X(88, CALL_SYMLINK) \
	X(90, CALL_CHMOD) X(91, CALL_FCHMOD) X(92, CALL_CHOWN) X(93, CALL_FCHOWN) \
	X(94, CALL_CHOWN) X(133, CALL_MKNOD) X(188, CALL_XATTR) X(189, CALL_XATTR) \
	X(190, CALL_FXATTR) X(197, CALL_XATTR) X(198, CALL_XATTR) X(199, CALL_FXATTR) \
	X(257, CALL_OPENAT) X(258, CALL_MKDIRAT) X(259, CALL_MKNODAT) X(260, CALL_FCHOWNAT) \
	X(263, CALL_UNLINKAT) X(264, CALL_RENAMEAT) X(265, CALL_LINKAT) \
	X(266, CALL_SYMLINKAT) X(268, CALL_FCHMODAT) X(304, CALL_BY_HANDLE) \
	X(316, CALL_RENAMEAT) X(322, CALL_EXECVEAT) X(437, CALL_OPENAT2) \
	X(452, CALL_FCHMODAT2) X(463, CALL_XATTRAT) X(466, CALL_XATTRAT) \
	X(56, CALL_CLONE) X(155, CALL_PIVOT_ROOT) X(165, CALL_MOUNT) X(166, CALL_UMOUNT) \
	X(272, CALL_UNSHARE) X(429, CALL_MOVE_MOUNT) X(431, CALL_FSCONFIG) \
	X(435, CALL_CLONE3) X(442, CALL_MOUNT_SETATTR) \
	X(520, CALL_EXECVE) X(545, CALL_EXECVEAT)

#define CALLS_32(X) \
	X(5, CALL_OPEN) X(8, CALL_CREAT) X(9, CALL_LINK) X(10, CALL_UNLINK) \
	X(11, CALL_EXECVE) X(14, CALL_MKNOD) X(15, CALL_CHMOD) X(16, CALL_CHOWN) \
	X(38, CALL_RENAME) X(39, CALL_MKDIR) X(40, CALL_RMDIR) X(83, CALL_SYMLINK) \
	X(92, CALL_TRUNCATE) X(93, CALL_FTRUNCATE) X(94, CALL_FCHMOD) X(95, CALL_FCHOWN) \
	X(102, CALL_SOCKETCALL) X(182, CALL_CHOWN) X(193, CALL_TRUNCATE) \
	X(194, CALL_FTRUNCATE) X(198, CALL_CHOWN) X(207, CALL_FCHOWN) X(212, CALL_CHOWN) \
	X(226, CALL_XATTR) X(227, CALL_XATTR) X(228, CALL_FXATTR) X(235, CALL_XATTR) \
	X(236, CALL_XATTR) X(237, CALL_FXATTR) X(295, CALL_OPENAT) X(296, CALL_MKDIRAT) \
	X(297, CALL_MKNODAT) X(298, CALL_FCHOWNAT) X(301, CALL_UNLINKAT) \
	X(302, CALL_RENAMEAT) X(303, CALL_LINKAT) X(304, CALL_SYMLINKAT) \
	X(306, CALL_FCHMODAT) X(342, CALL_BY_HANDLE) X(353, CALL_RENAMEAT) \
	X(358, CALL_EXECVEAT) X(362, CALL_CONNECT) X(437, CALL_OPENAT2) \
	X(452, CALL_FCHMODAT2) X(463, CALL_XATTRAT) X(466, CALL_XATTRAT) \
	X(21, CALL_MOUNT) X(22, CALL_UMOUNT) X(52, CALL_UMOUNT) X(120, CALL_CLONE) \
	X(217, CALL_PIVOT_ROOT) X(310, CALL_UNSHARE) X(429, CALL_MOVE_MOUNT) \
	X(431, CALL_FSCONFIG) X(435, CALL_CLONE3) X(442, CALL_MOUNT_SETATTR)

/* clang-format on */

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

static __always_inline u32 open_flags(const struct call *call)
{
	u64 flags = 0;

	switch (call->kind) {
	case CALL_OPEN:
		return call->args[1];
	case CALL_CREAT:
		return O_CREAT | O_WRONLY | O_TRUNC;
	case CALL_OPENAT2: /* struct open_how begins with them */
		bpf_probe_read_user(&flags, sizeof(flags), (void *)call->args[2]);
		return flags;
	}
	return call->args[2]; /* openat, open_by_handle_at */
}

static __always_inline const void *open_asked(const struct call *call)
{
	switch (call->kind) {
	case CALL_OPEN:
	case CALL_CREAT:
		return (void *)call->args[0];
	case CALL_BY_HANDLE:
		return 0;
	}
	return (void *)call->args[1];
}

#define NONE 0xff

struct change_call { /* arguments by their number, NONE where the call has none */
	u8 op;
	u8 fd, asked;	      /* a name, and the directory it begins in: NONE is the current one */
	u8 new_fd, new_asked; /* the second name, or the text of a symbolic link */
	u8 mode, flags;
	u8 pad;
};

/* X(CALL_*, op, fd, asked, new_fd, new_asked, mode, flags) */
#define CHANGE_CALLS(X)                                                                            \
	X(CALL_RENAME, AW_OP_RENAME, NONE, 0, NONE, 1, NONE, NONE)                                 \
	X(CALL_RENAMEAT, AW_OP_RENAME, 0, 1, 2, 3, NONE, NONE)                                     \
	X(CALL_LINK, AW_OP_LINK, NONE, 0, NONE, 1, NONE, NONE)                                     \
	X(CALL_LINKAT, AW_OP_LINK, 0, 1, 2, 3, NONE, 4)                                            \
	X(CALL_SYMLINK, AW_OP_SYMLINK, NONE, 1, NONE, 0, NONE, NONE)                               \
	X(CALL_SYMLINKAT, AW_OP_SYMLINK, 1, 2, NONE, 0, NONE, NONE)                                \
	X(CALL_UNLINK, AW_OP_DELETE, NONE, 0, NONE, NONE, NONE, NONE)                              \
	X(CALL_UNLINKAT, AW_OP_DELETE, 0, 1, NONE, NONE, NONE, 2)                                  \
	X(CALL_MKDIR, AW_OP_MKDIR, NONE, 0, NONE, NONE, 1, NONE)                                   \
	X(CALL_MKDIRAT, AW_OP_MKDIR, 0, 1, NONE, NONE, 2, NONE)                                    \
	X(CALL_RMDIR, AW_OP_RMDIR, NONE, 0, NONE, NONE, NONE, NONE)                                \
	X(CALL_MKNOD, AW_OP_CREATE, NONE, 0, NONE, NONE, 1, NONE)                                  \
	X(CALL_MKNODAT, AW_OP_CREATE, 0, 1, NONE, NONE, 2, NONE)                                   \
	X(CALL_TRUNCATE, AW_OP_TRUNCATE, NONE, 0, NONE, NONE, NONE, NONE)                          \
	X(CALL_FTRUNCATE, AW_OP_TRUNCATE, 0, NONE, NONE, NONE, NONE, NONE)                         \
	X(CALL_CHMOD, AW_OP_CHMOD, NONE, 0, NONE, NONE, 1, NONE)                                   \
	X(CALL_FCHMOD, AW_OP_CHMOD, 0, NONE, NONE, NONE, 1, NONE)                                  \
	X(CALL_FCHMODAT, AW_OP_CHMOD, 0, 1, NONE, NONE, 2, NONE)                                   \
	X(CALL_FCHMODAT2, AW_OP_CHMOD, 0, 1, NONE, NONE, 2, 3)                                     \
	X(CALL_CHOWN, AW_OP_CHOWN, NONE, 0, NONE, NONE, NONE, NONE)                                \
	X(CALL_FCHOWN, AW_OP_CHOWN, 0, NONE, NONE, NONE, NONE, NONE)                               \
	X(CALL_FCHOWNAT, AW_OP_CHOWN, 0, 1, NONE, NONE, NONE, 4)                                   \
	X(CALL_XATTR, AW_OP_XATTR, NONE, 0, NONE, NONE, NONE, NONE)                                \
	X(CALL_FXATTR, AW_OP_XATTR, 0, NONE, NONE, NONE, NONE, NONE)                               \
	X(CALL_XATTRAT, AW_OP_XATTR, 0, 1, NONE, NONE, NONE, 2)

/* A name as a call gives it. */
struct given {
	u64 asked;  /* in the caller's memory; 0: the file is the descriptor's */
	s32 fd;	    /* AT_FDCWD for none */
	bool empty; /* an empty text is the descriptor's file */
};

/* Not by an index: older verifiers lose track of a stack read at one that varies. */
static __always_inline u64 arg_of(const struct call *call, u8 number)
{
	switch (number) {
	case 0:
		return call->args[0];
	case 1:
		return call->args[1];
	case 2:
		return call->args[2];
	case 3:
		return call->args[3];
	case 4:
		return call->args[4];
	}
	return 0;
}
