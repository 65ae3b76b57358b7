/* SPDX-License-Identifier: GPL-2.0 */
/* What goes into a record, piece by piece: for both loaders. */

/*
 * The strings of a record go one after the other behind its fixed struct. `at` is where the next one
 * goes, from the start of the record. Each returns the bytes it put; a string that does not fit is
 * cut to SHORT, and one that was cut or could not be read sets its bit in unresolved.
 */
#define SHORT 1024
#define RECORD_MAX ((u32)sizeof(struct aw_record))

/* For the verifier: an address is computed from `off` only after off was checked. */
#define PINNED(off)                                                                                \
	({                                                                                         \
		u64 pinned_ = (off);                                                               \
		asm volatile("" : "+r"(pinned_));                                                  \
		pinned_;                                                                           \
	})

static __always_inline u32 put_name(struct aw_record *record, u32 *at, const struct name *name,
				    const char *buffer, u32 bit)
{
	u64 len = PINNED(name->len), off = PINNED(*at), skipped;
	char *to = (char *)record;

	if (name->failed)
		record->header.unresolved |= bit;
	if (len > AW_PATH_MAX)
		return 0;
	len = PINNED(len); /* or both bounds become one, which older verifiers do not see through */
	if (!len)
		return 0;
	skipped = PINNED((AW_PATH_MAX - len) & (AW_PATH_MAX - 1));
	if (off <= RECORD_MAX - AW_PATH_MAX) {
		bpf_probe_read_kernel(to + PINNED(off), len, buffer + skipped);
	} else {
		/* Of a name that is cut, its beginning is missing: the end tells most. */
		if (len > SHORT) {
			record->header.unresolved |= bit;
			skipped = AW_PATH_MAX - SHORT;
			len = SHORT;
		}
		if (off > RECORD_MAX - SHORT) {
			record->header.unresolved |= bit;
			return 0;
		}
		bpf_probe_read_kernel(to + PINNED(off), len, buffer + skipped);
	}
	*at += len;
	return len;
}

static __always_inline long read_string(void *to, u32 max, const void *from, bool user)
{
	return user ? bpf_probe_read_user_str(to, max, from)
		    : bpf_probe_read_kernel_str(to, max, from);
}

static __always_inline u32 put_string(struct aw_record *record, u32 *at, const void *from,
				      bool user, u32 bit)
{
	char *to = (char *)record;
	u64 off = PINNED(*at);
	long len = -1;

	/* With room for one byte more than is kept: a string that fills that too was longer. */
	if (off < RECORD_MAX - AW_PATH_MAX) {
		len = read_string(to + PINNED(off), AW_PATH_MAX + 1, from, user);
		if (len > AW_PATH_MAX)
			record->header.unresolved |= bit;
	} else if (off < RECORD_MAX - SHORT) {
		len = read_string(to + PINNED(off), SHORT + 1, from, user);
		if (len > SHORT)
			record->header.unresolved |= bit;
	}
	if (len < 0 || len > AW_PATH_MAX + 1) {
		record->header.unresolved |= bit;
		return 0;
	}
	if (!len) /* of an empty text older kernels do not count the NUL */
		return 0;
	len--; /* its NUL */
	*at += len;
	return len;
}

static __always_inline u8 stdin_kind(struct task_struct *task)
{
	struct file *file = 0, **fds = BPF_CORE_READ(task, files, fdt, fd);
	struct inode *inode;
	u32 mode, major, minor;

	bpf_probe_read_kernel(&file, sizeof(file), fds);
	if (!file)
		return AW_STDIN_NULL;
	inode = BPF_CORE_READ(file, f_inode);
	mode = BPF_CORE_READ(inode, i_mode) & S_IFMT;
	if (mode == S_IFIFO)
		return AW_STDIN_PIPE;
	if (mode == S_IFSOCK)
		return AW_STDIN_SOCKET;
	if (mode != S_IFCHR)
		return AW_STDIN_FILE;
	major = BPF_CORE_READ(inode, i_rdev) >> MINORBITS;
	minor = BPF_CORE_READ(inode, i_rdev) & ((1 << MINORBITS) - 1);
	if (major == 1 && minor == 3)
		return AW_STDIN_NULL;
	/* tty and serial lines; /dev/tty; System V and Unix98 pseudo terminals */
	if (major == 4 || major == 5 || (major >= 136 && major <= 143))
		return AW_STDIN_TTY;
	return AW_STDIN_FILE;
}

static __always_inline u32 exec_argv(struct aw_record *record, struct task_struct *task, u32 at)
{
	unsigned long start = BPF_CORE_READ(task, mm, arg_start);
	unsigned long size = BPF_CORE_READ(task, mm, arg_end) - start;
	char *to = (char *)record;
	u64 off = PINNED(at);
	long failed = -1;
	u32 len;

	if (off <= RECORD_MAX - AW_ARGV_MAX) {
		len = size > AW_ARGV_MAX ? AW_ARGV_MAX : size;
		failed = bpf_probe_read_user(to + PINNED(off), len, (void *)start);
	} else if (off <= RECORD_MAX - SHORT) {
		len = size > SHORT ? SHORT : size;
		failed = bpf_probe_read_user(to + PINNED(off), len, (void *)start);
	}
	if (failed) {
		record->header.unresolved |= AW_UNRESOLVED_ARGV;
		return 0;
	}
	if (len < size)
		record->header.flags |= AW_FLAG_ARGV_CUT;
	return len;
}

/*
 * What was opened is gone already: another thread closed it. Taken from what was asked for; where that
 * is in memory that the other thread may have written to as well, it is the worst.
 */
static __always_inline void open_gone(struct aw_record *record, const struct call *call)
{
	u32 asked = record->open.open_flags, access = asked & O_ACCMODE, flags = 0;

	if (call->kind == CALL_OPENAT2)
		flags = AW_FLAG_READS | AW_FLAG_CHANGES;
	else if (!(asked & O_PATH)) {
		if (access == O_RDONLY || access == O_RDWR)
			flags |= AW_FLAG_READS;
		if (access == O_WRONLY || access == O_RDWR || asked & (O_CREAT | O_TRUNC))
			flags |= AW_FLAG_CHANGES;
	}
	record->header.flags |= flags;
	record->header.unresolved |= AW_UNRESOLVED_PATH;
}

#define UNIX_PATH_MAX 108

struct user_address { /* struct sockaddr_in, _in6, _un as the caller wrote it */
	u16 family;
	union {
		struct {
			u8 port[2];
			u8 v4[4];
		};
		struct {
			u8 port6[2];
			u8 flow[4];
			u8 v6[16];
		};
		char path[UNIX_PATH_MAX];
	};
	u16 pad;
};

static __always_inline void address_from_socket(struct aw_connect *connect, struct sock *sk)
{
	connect->port = __builtin_bswap16(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (connect->family == AF_INET)
		BPF_CORE_READ_INTO((u32 *)connect->address, sk, __sk_common.skc_daddr);
	else
		BPF_CORE_READ_INTO((struct in6_addr *)connect->address, sk,
				   __sk_common.skc_v6_daddr);
	connect->header.flags |= AW_FLAG_FROM_SOCKET;
}

/*
 * The family and the socket of a call's file, 0 where it has none, with what that says of the connection.
 * begun: whether there is one to be told of.
 */
static __always_inline u16 family_of(struct file *file, struct aw_connect *connect, bool begun,
				     struct sock **of)
{
	struct socket *socket = 0;
	struct sock *sk = 0;
	u16 family = 0;

	if (file && (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) == S_IFSOCK)
		socket = BPF_CORE_READ(file, private_data);
	if (socket)
		sk = BPF_CORE_READ(socket, sk);
	if (sk) {
		family = BPF_CORE_READ(sk, __sk_common.skc_family);
		connect->protocol = family == AF_UNIX ? 0 : BPF_CORE_READ(sk, sk_protocol);
	}
	/* Another thread may have rewritten the family since the call read it: the peer tells. */
	if (begun && (family == AF_INET || family == AF_INET6) &&
	    (connect->family == AF_INET || connect->family == AF_INET6 ||
	     BPF_CORE_READ(sk, __sk_common.skc_dport))) {
		connect->family = family;
		address_from_socket(connect, sk);
	}
	*of = sk;
	return family;
}

/* As the caller gave it. Bytes of a unix address are kept aside; returns how many of them. */
static __always_inline u32 address_from_user(struct aw_connect *connect, const struct call *call,
					     struct user_address *user)
{
	u32 size = call->args[2];

	if (size > sizeof(u16) + UNIX_PATH_MAX)
		size = sizeof(u16) + UNIX_PATH_MAX;
	if (size < sizeof(u16) || bpf_probe_read_user(user, size & 127, (void *)call->args[1])) {
		connect->header.unresolved |= AW_UNRESOLVED_ADDRESS;
		return 0;
	}
	connect->family = user->family;
	if (user->family == AF_INET) {
		connect->port = user->port[0] << 8 | user->port[1];
		__builtin_memcpy(connect->address, user->v4, 4);
	} else if (user->family == AF_INET6) {
		connect->port = user->port[0] << 8 | user->port[1];
		__builtin_memcpy(connect->address, user->v6, 16);
	} else if (user->family == AF_UNIX) {
		return size - sizeof(u16);
	}
	return 0;
}

/* A pathname ends at its NUL; an abstract name is all of its bytes, NULs included. */
static __always_inline u32 put_unix(struct aw_record *record, u64 at, const char *path, u64 len)
{
	char *to = (char *)record;
	u64 kept;

	if (!len || len > UNIX_PATH_MAX || at > RECORD_MAX - SHORT)
		return 0;
	kept = len = PINNED(len); /* so that what is masked below is what is read */
	if (path[0]) {
		long end = bpf_probe_read_kernel_str(to + at, len & 127, path);

		/* sun_path need not be terminated */
		if (end < 1)
			return 0;
		kept = end - 1;
		if (end == len && path[(len - 1) & 127])
			kept = len;
	}
	if (kept > UNIX_PATH_MAX)
		return 0;
	kept = PINNED(kept);
	bpf_probe_read_kernel(to + at, kept & 127, path);
	return kept;
}
