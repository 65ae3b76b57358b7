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

static __always_inline u32 call_of(u32 nr, bool compat)
{
	if (!compat)
		nr &= ~0x40000000; /* x32 */
	if (nr == 437)
		return CALL_OPENAT2; /* the newer numbers are common to all */
	if (!compat) {
		switch (nr) {
		case 2:
			return CALL_OPEN;
		case 42:
			return CALL_CONNECT;
		case 59:
		case 520:
			return CALL_EXECVE;
		case 85:
			return CALL_CREAT;
		case 257:
			return CALL_OPENAT;
		case 304:
			return CALL_BY_HANDLE;
		case 322:
		case 545:
			return CALL_EXECVEAT;
		}
		return 0;
	}
	switch (nr) {
	case 5:
		return CALL_OPEN;
	case 8:
		return CALL_CREAT;
	case 11:
		return CALL_EXECVE;
	case 102:
		return CALL_SOCKETCALL;
	case 295:
		return CALL_OPENAT;
	case 342:
		return CALL_BY_HANDLE;
	case 358:
		return CALL_EXECVEAT;
	case 362:
		return CALL_CONNECT;
	}
	return 0;
}

struct call {
	u64 nr;	  /* its orig_ax + 1 */
	u32 kind; /* CALL_* */
	bool compat;
	s32 result;
	u64 args[4];
};

static __always_inline void args_read(struct call *call, struct pt_regs *regs)
{
	call->args[0] = call->compat ? (u32)regs->bx : regs->di;
	call->args[1] = call->compat ? (u32)regs->cx : regs->si;
	call->args[2] = call->compat ? (u32)regs->dx : regs->dx;
	call->args[3] = call->compat ? (u32)regs->si : regs->r10;
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
