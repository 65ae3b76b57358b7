/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The probes for kernels that agentwatch.bpf.c does not load on, compiled by bcc on that machine, against
 * its kernel's headers: the same records, by raw tracepoints. They decide nothing: the engine does. A
 * tag is a process's, by tgid: there is no task storage. Memory is per CPU: tracing programs are not
 * preempted on such kernels. See docs/decisions/0014-bcc-loader.md.
 *
 * Given on the command line: AGENTWATCH_ABI, RENAME_LOCK (its address or 0), OBSERVER (our own tgid), ACTIVITY_PAGES,
 * LIFECYCLE_PAGES. bcc rewrites what looks like a method of a map, in this file and never in a macro.
 */
#include <linux/binfmts.h>
#include <linux/fdtable.h>
#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/fs_struct.h>
#include <linux/mount.h>
#include <linux/net.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/version.h>
#include <net/af_unix.h>
#include <net/sock.h>
#include <uapi/linux/mount.h>
#include "agentwatch.h"

_Static_assert(AW_ABI == AGENTWATCH_ABI, "this agentwatch has the headers of another one");

/* What the files for both loaders call as libbpf has it. */
#define AW_BCC
#define rename_lock_at RENAME_LOCK
#define PICK(_1, _2, _3, _4, name, ...) name
#define READ1(from, a)                                                                             \
	({                                                                                         \
		typeof((from)->a) read_;                                                           \
		bpf_probe_read_kernel(&read_, sizeof(read_), &(from)->a);                          \
		read_;                                                                             \
	})
#define READ2(from, a, b) READ1(READ1(from, a), b)
#define READ3(from, a, b, c) READ1(READ2(from, a, b), c)
#define READ4(from, a, b, c, d) READ1(READ3(from, a, b, c), d)
#define BPF_CORE_READ(from, ...) PICK(__VA_ARGS__, READ4, READ3, READ2, READ1)(from, __VA_ARGS__)
#define INTO1(to, from, a) bpf_probe_read_kernel(to, sizeof(*(to)), &(from)->a)
#define INTO2(to, from, a, b) INTO1(to, READ1(from, a), b)
#define INTO3(to, from, a, b, c) INTO1(to, READ2(from, a, b), c)
#define BPF_CORE_READ_INTO(to, from, ...)                                                          \
	PICK(__VA_ARGS__, 0, INTO3, INTO2, INTO1)(to, from, __VA_ARGS__)
#define bpf_core_field_offset(field) ((u64) & (field)) /* of fields that are compared */

/*
 * bpf_loop: as often as the verifier of an older kernel has patience for, by what is done. What the turns
 * change is kept in memory: moved from register to register before the next turn, it would have the program
 * fall through into the loop's head, which those verifiers take for a loop of another kind.
 */
#define TURNS_walk_on 192   /* components of a name, all over again where a rename disturbs */
#define TURNS_scan_byte 256 /* bytes of an exec's names */
#define bpf_loop(turns, step, context, flags)                                                      \
	_Pragma("clang loop unroll(disable)") for (u32 turn_ = 0; turn_ < TURNS_##step; turn_++)   \
	{                                                                                          \
		asm volatile("" : : "r"(context) : "memory");                                      \
		if (step(turn_, context))                                                          \
			break;                                                                     \
	}
#define bpf_get_current_task_btf() ((struct task_struct *)bpf_get_current_task())
#define barrier_var(var) asm volatile("" : "+r"(var))

#ifndef MS_PROPAGATION
#define MS_PROPAGATION (MS_SHARED | MS_PRIVATE | MS_SLAVE | MS_UNBINDABLE)
#endif

#define RING_LIFECYCLE 0
#define RING_ACTIVITY 1

struct aw_literal {
	char component[AW_LITERAL_MAX];
};

struct aw_record {
	union {
		struct aw_header header;
		struct aw_fork fork;
		struct aw_exec exec;
		struct aw_exit exit;
		struct aw_open open;
		struct aw_connect connect;
		struct aw_change change;
		struct aw_mounting mounting;
	};
	char room[AW_DATA_MAX];
};

struct aw_walk {
	char path[AW_PATH_MAX + 256]; /* filled from the end; a name may be read past it */
	char literal[AW_LITERAL_MAX] __attribute__((aligned(8)));
	u32 size; /* of the path component that `literal` begins with */
	u32 off;  /* where in `path` the name begins */
	u32 disturbed, spare;
	char address[136] __attribute__((aligned(8))); /* of a connect, as the caller wrote it */
	char said[120] __attribute__((aligned(8)));    /* by a mount */
};

/* All allocated at once: tracing programs must not allocate on these kernels. */
BPF_RINGBUF_OUTPUT(lifecycle, LIFECYCLE_PAGES);
BPF_RINGBUF_OUTPUT(activity, ACTIVITY_PAGES);
BPF_HASH(mirror, u32, struct aw_tag, 32768);
BPF_HASH(sessions, struct aw_session_key, struct aw_session, 4096);
BPF_HASH(doomed, u32, u32, 1024);
BPF_TABLE("hash", struct aw_literal, u32, literals, 1024);
BPF_PERCPU_ARRAY(counters, struct aw_counters, 1);
BPF_PERCPU_ARRAY(records, struct aw_record, 1);
BPF_PERCPU_ARRAY(walks, struct aw_walk, 1);
BPF_F_TABLE("array", u32, struct aw_control, control, 1, BPF_F_MMAPABLE);
BPF_TABLE("lru_hash", u32, struct aw_process, told, 1024); /* what the observer has asked for */

struct aw_subject {
	struct aw_tag *tag;
	struct aw_session *session;
};

static struct aw_walk *walk_of_current(void)
{
	int zero = 0;

	return walks.lookup(&zero);
}

static bool literal_known(const struct aw_walk *walk)
{
	return literals.lookup((struct aw_literal *)walk->literal);
}

struct walk;
static void walk_up(struct walk *walk, struct dentry *dentry, struct aw_walk *into);

/* bcc has no calls between functions: everything becomes one. */
#undef __noinline
#define __noinline static
#pragma clang attribute push(__attribute__((always_inline)), apply_to = function)
#include "path.bpf.c"
#include "call.bpf.c"
#include "fill.bpf.c"
#include "identity.bpf.c"
#include "mounting.bpf.c"
#pragma clang attribute pop

static long walk_on(u32 turn, struct walk *walk)
{
	struct aw_walk *into = walk->into;
	u32 before = into->spare;

	if (!walk_step(turn, walk))
		return 0;
	into->spare = sequence_of(rename_lock_at);
	into->disturbed = before & 1 || before != into->spare;
	if (!into->disturbed)
		return 1;
	walk->dentry = walk->from;
	walk->failed = 0;
	into->off = AW_PATH_MAX;
	return 0;
}

/* A walk that no rename disturbed, or a failed one. */
static void walk_up(struct walk *walk, struct dentry *dentry, struct aw_walk *into)
{
	walk->from = walk->dentry = dentry;
	walk->into = into;
	walk->failed = 0;
	into->off = AW_PATH_MAX;
	into->spare = sequence_of(rename_lock_at);
	into->disturbed = 1;
	bpf_loop(0, walk_on, walk, 0);
	if (into->disturbed)
		walk->failed = 1;
}

BPF_PERCPU_ARRAY(made, struct call, 1);

/* Programs that go on where one ends: all that there is to do is too much for one. */
#define ON_OPEN 0
#define ON_CONNECT 1
#define ON_CHANGE 2
#define ON_RENAME 3 /* a change of two names */
#define ON_CWD 4
#define ON_EXEC 5
#define ON_MOUNT 6
#define ON_SOURCE 7 /* of a mount */
BPF_PROG_ARRAY(on, 8);

/* What such a program has to do with. */
struct scene {
	struct task_struct *task;
	struct aw_record *record;
	struct aw_walk *walk;
	struct call *call; /* that is at its end */
};

static bool scene_set(struct scene *scene)
{
	int zero = 0;

	scene->task = (struct task_struct *)bpf_get_current_task();
	scene->record = records.lookup(&zero);
	scene->walk = walk_of_current();
	scene->call = made.lookup(&zero);
	return scene->record && scene->walk && scene->call;
}

/* Tags. */

static bool tagged(u32 tgid, struct aw_subject *subject)
{
	struct aw_session_key key;

	subject->tag = mirror.lookup(&tgid);
	if (!subject->tag)
		return false;
	key = subject->tag->session;
	subject->session = sessions.lookup(&key);
	return subject->session && subject->session->since == subject->tag->since;
}

static struct aw_session_key key_of(struct task_struct *task)
{
	struct aw_session_key key = {};

	key.start = BPF_CORE_READ(task, group_leader, start_boottime);
	key.tgid = BPF_CORE_READ(task, tgid);
	return key;
}

/* A child that could not be tagged dies at the end of its first call: untagged is not harmless. */
static void doom(u32 tgid)
{
	u32 zero = 0, one = 1;
	struct aw_counters *count = counters.lookup(&zero);
	struct aw_control *word = control.lookup(&zero);

	if (!count || !word)
		return;
	count->mirror_full++;
	count->doomed++;
	word->mirror_full = 1;
	/* Counted first: who finds the entry counts it back. */
	__sync_fetch_and_add(&word->doomed, 1);
	if (!doomed.insert(&tgid, &one))
		return;
	__sync_fetch_and_add(&word->doomed, -1);
	/* No room even here: then at least nobody goes on making such children. */
	if (!doomed.lookup(&tgid))
		bpf_send_signal(SIGKILL);
}

/* A session of its own for a process that is nobody's yet; what follows it inherits. */
static bool session_begin(struct task_struct *task, u32 tgid, struct aw_subject *subject)
{
	struct aw_session provisional = {.state = AW_SESSION_PROVISIONAL};
	struct aw_counters *count;
	struct aw_tag tag = {};
	int zero = 0;

	tag.session = key_of(task);
	tag.since = provisional.since = bpf_ktime_get_boot_ns();
	if (!sessions.update(&tag.session, &provisional) && !mirror.update(&tgid, &tag))
		return tagged(tgid, subject);
	count = counters.lookup(&zero);
	if (count)
		count->unbegun++;
	return false;
}

/* Records. */

#define WAKE_NS (2 * 1000 * 1000) /* between two wake-ups of the reader */

/* Of the task that runs; what is behind `length` bytes of the struct is filled by whoever calls. */
static void header_fill(struct aw_header *header, const struct aw_subject *subject, u16 kind,
			u32 length)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	u64 ids = bpf_get_current_pid_tgid();

	__builtin_memset(header, 0, sizeof(*header));
	header->length = length;
	header->kind = kind;
	if (subject->session->state == AW_SESSION_PROVISIONAL)
		header->flags = AW_FLAG_PROVISIONAL;
	header->time = bpf_ktime_get_boot_ns();
	header->tgid = ids >> 32;
	header->tid = ids;
	header->start = BPF_CORE_READ(task, group_leader, start_boottime);
	header->session_start = subject->tag->session.start;
	header->session_tgid = subject->tag->session.tgid;
}

/* Never wake the reader per event; it polls. Only for what it must act on, and not too often. */
static u64 wake_flags(const struct aw_header *header)
{
	int zero = 0;
	struct aw_control *word = control.lookup(&zero);

	if (!word || (!(word->wake_kinds & (1U << (header->kind & 31))) &&
		      !(header->flags & AW_FLAG_CANDIDATE)))
		return BPF_RB_NO_WAKEUP;
	if (header->time - word->woken < WAKE_NS)
		return BPF_RB_NO_WAKEUP;
	word->woken = header->time;
	return BPF_RB_FORCE_WAKEUP;
}

/* max: bytes that there are of it. */
static void record_send(u32 ring, const struct aw_subject *subject, void *record, u64 max)
{
	struct aw_header *header = record;
	u32 kind = header->kind & (AW_KINDS - 1);
	u64 length = PINNED(header->length);
	int zero = 0;
	struct aw_counters *count = counters.lookup(&zero);
	u64 flags = wake_flags(header);
	bool lost;

	if (!count)
		return;
	header->cpu = bpf_get_smp_processor_id();
	header->sequence = ++count->sequence[ring];
	if (header->unresolved)
		count->unresolved[kind]++;
	if (length > max)
		length = max;
	length = PINNED(length);
	if (ring == RING_LIFECYCLE)
		lost = lifecycle.ringbuf_output(record, length, flags);
	else
		lost = activity.ringbuf_output(record, length, flags);
	if (lost) {
		count->lost[kind]++;
		__sync_fetch_and_add(&subject->session->lost, 1);
	} else {
		count->emitted[kind]++;
	}
}

/* A file's name into the record; what is known of it besides, in `name`. */
static u32 file_put(struct aw_record *record, struct aw_walk *walk, const struct path *path,
		    struct name *name, u32 *at, u32 bit)
{
	name_of(name, path, walk);
	return put_name(record, at, name, walk->path, bit);
}

/* fork, exec, exit. */

int process_fork(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *child = (struct task_struct *)ctx->args[1];
	u32 tgid = bpf_get_current_pid_tgid() >> 32, born;
	struct aw_subject subject;
	struct aw_fork fork = {};

	if (!tagged(tgid, &subject))
		return 0;
	born = BPF_CORE_READ(child, tgid);
	if (born == tgid) /* a thread: its process has the tag */
		return 0;
	if (mirror.update(&born, subject.tag))
		doom(born);
	header_fill(&fork.header, &subject, AW_KIND_FORK, sizeof(fork));
	fork.child_start = BPF_CORE_READ(child, start_boottime);
	fork.child_tgid = born;
	record_send(RING_LIFECYCLE, &subject, &fork, sizeof(fork));
	return 0;
}

int process_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	u32 tgid = bpf_get_current_pid_tgid() >> 32, zero = 0;
	struct aw_control *word = control.lookup(&zero);
	struct aw_subject subject;
	struct aw_exit exit = {};
	bool known;

	if (!word || BPF_CORE_READ(task, signal, live.counter))
		return 0;
	if (word->doomed && !doomed.delete(&tgid))
		__sync_fetch_and_add(&word->doomed, -1);
	known = tagged(tgid, &subject);
	if (known)
		header_fill(&exit.header, &subject, AW_KIND_EXIT, sizeof(exit));
	/* Two last threads may both see no other: the one that removes the entry tells. */
	if (mirror.delete(&tgid) || !known)
		return 0;
	if (BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT)
		exit.status = BPF_CORE_READ(task, signal, group_exit_code);
	else
		exit.status = BPF_CORE_READ(task, group_leader, exit_code);
	record_send(RING_LIFECYCLE, &subject, &exit, sizeof(exit));
	return 0;
}

int process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct linux_binprm *bprm = (struct linux_binprm *)ctx->args[2];
	u32 tgid = bpf_get_current_pid_tgid() >> 32, zero = 0, at = sizeof(struct aw_exec);
	struct aw_control *word = control.lookup(&zero);
	struct aw_subject subject;
	struct scene scene;
	struct aw_exec *exec;
	struct path path;
	struct name name;

	if (!scene_set(&scene) || !word || (!tagged(tgid, &subject) && !word->identify))
		return 0;
	exec = &scene.record->exec;
	__builtin_memset(exec, 0, sizeof(*exec));
	BPF_CORE_READ_INTO(&path, bprm, file, f_path);
	exec->path_len = file_put(scene.record, scene.walk, &path, &name, &at, AW_UNRESOLVED_PATH);
	exec->path_dev = name.dev;
	exec->header.flags |= name.flags;
	exec->asked_len = put_string(scene.record, &at, BPF_CORE_READ(bprm, filename), false,
				     AW_UNRESOLVED_ASKED);
	on.call(ctx, ON_CWD);
	return 0;
}

int exec_cwd(struct bpf_raw_tracepoint_args *ctx)
{
	struct scene scene;
	struct aw_exec *exec;
	struct path path;
	struct name name;
	u32 at;

	if (!scene_set(&scene))
		return 0;
	exec = &scene.record->exec;
	at = sizeof(*exec) + exec->path_len + exec->asked_len;
	BPF_CORE_READ_INTO(&path, scene.task, fs, pwd);
	exec->cwd_len = file_put(scene.record, scene.walk, &path, &name, &at, AW_UNRESOLVED_CWD);
	exec->cwd_dev = name.dev;
	on.call(ctx, ON_EXEC);
	return 0;
}

/* The session of who has just become another program; false for nobody's. */
static bool exec_session(struct aw_record *record, struct task_struct *task, u32 names,
			 struct aw_subject *subject)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	bool candidate = names > TURNS_scan_byte || is_candidate(record, names);

	if (candidate)
		record->header.flags |= AW_FLAG_CANDIDATE;
	if (tagged(tgid, subject) || (candidate && session_begin(task, tgid, subject)))
		return true;
	mirror.delete(&tgid); /* of a session that is over */
	return false;
}

int exec_rest(struct bpf_raw_tracepoint_args *ctx)
{
	struct linux_binprm *bprm = (struct linux_binprm *)ctx->args[2];
	struct task_struct *parent;
	struct aw_subject subject;
	struct scene scene;
	struct aw_exec *exec;
	u32 names, at, flags, unresolved;

	if (!scene_set(&scene))
		return 0;
	exec = &scene.record->exec;
	names = exec->path_len + exec->asked_len + exec->cwd_len;
	at = sizeof(*exec) + names;
	if (!exec_session(scene.record, scene.task, names, &subject))
		return 0;
	flags = exec->header.flags;
	unresolved = exec->header.unresolved;
	header_fill(&exec->header, &subject, AW_KIND_EXEC, 0);
	exec->header.flags |= flags;
	exec->header.unresolved = unresolved;
	exec->argv_len = exec_argv(scene.record, scene.task, at);
	exec->header.length = at + exec->argv_len;
	exec->argc = BPF_CORE_READ(bprm, argc);
	exec->uid = bpf_get_current_uid_gid();
	exec->stdin_kind = stdin_kind(scene.task);
	parent = BPF_CORE_READ(scene.task, real_parent);
	exec->parent_tgid = BPF_CORE_READ(parent, tgid);
	exec->parent_start = BPF_CORE_READ(parent, group_leader, start_boottime);
	if (BPF_CORE_READ(bprm, interp) != BPF_CORE_READ(bprm, filename))
		exec->header.flags |= AW_FLAG_SCRIPT;
	subject.tag->image = exec->header.time;
	record_send(RING_LIFECYCLE, &subject, scene.record, sizeof(*scene.record));
	return 0;
}

/* A failed exec: only the name it asked for. */
static void exec_failed(struct aw_record *record, const struct aw_subject *subject,
			const struct call *call)
{
	u64 asked = call->kind == CALL_EXECVE ? call->args[0] : call->args[1];
	u32 at = sizeof(struct aw_exec);

	__builtin_memset(&record->exec, 0, sizeof(record->exec));
	header_fill(&record->header, subject, AW_KIND_EXEC, 0);
	record->exec.result = call->result;
	record->exec.uid = bpf_get_current_uid_gid();
	record->exec.asked_len = put_string(record, &at, (void *)asked, true, AW_UNRESOLVED_ASKED);
	record->header.length = at;
	if (call->compat)
		record->header.flags |= AW_FLAG_COMPAT;
	record_send(RING_LIFECYCLE, subject, record, sizeof(*record));
}

/* open. */

static void open_file(struct aw_record *record, struct aw_walk *walk, struct file *file, u32 *at)
{
	u32 asked = record->open.open_flags, granted = BPF_CORE_READ(file, f_flags);
	u32 mode = BPF_CORE_READ(file, f_mode), flags = 0;
	struct path path;
	struct name name;

	BPF_CORE_READ_INTO(&path, file, f_path);
	record->open.path_len = file_put(record, walk, &path, &name, at, AW_UNRESOLVED_PATH);
	record->open.path_dev = name.dev;
	record->open.open_flags = (asked & ~O_ACCMODE) | (granted & O_ACCMODE);
	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) == S_IFDIR)
		flags |= AW_FLAG_DIRECTORY;
	if (mode & 1 /* FMODE_READ */)
		flags |= AW_FLAG_READS;
	if (mode & 2 /* FMODE_WRITE */ || ((asked & O_TRUNC) && !(granted & O_PATH)))
		flags |= AW_FLAG_CHANGES;
	if (mode & 0x100000 /* FMODE_CREATED */)
		flags |= AW_FLAG_CHANGES | AW_FLAG_CREATED;
	record->header.flags |= name.flags | flags;
}

static void open_end(const struct scene *scene, const struct aw_subject *subject)
{
	struct task_struct *task = scene->task;
	struct aw_record *record = scene->record;
	const struct call *call = scene->call;
	struct aw_walk *walk = scene->walk;
	const void *asked = open_asked(call);
	u32 at = sizeof(struct aw_open);
	struct file *file;

	__builtin_memset(&record->open, 0, sizeof(record->open));
	header_fill(&record->header, subject, AW_KIND_OPEN, 0);
	record->open.open_flags = open_flags(call);
	record->open.result = call->result;
	if (call->compat)
		record->header.flags |= AW_FLAG_COMPAT;
	if (call->result >= 0) {
		file = file_of(task, call->result);
		if (file)
			open_file(record, walk, file, &at);
		else
			open_gone(record, call);
	}
	if (asked)
		record->open.asked_len = put_string(record, &at, asked, true, AW_UNRESOLVED_ASKED);
	record->header.length = at;
	record_send(RING_ACTIVITY, subject, record, sizeof(*record));
}

/* connect. */

/* Where a connected unix socket's peer is bound: a file, or an abstract name, put into `user`. */
static bool peer_put(struct aw_record *record, struct aw_walk *walk, struct sock *sk, u32 *at,
		     struct user_address *user, u32 *unix_len)
{
	struct unix_sock *peer = (struct unix_sock *)BPF_CORE_READ((struct unix_sock *)sk, peer);
	struct unix_address *address;
	struct path path = {};
	struct name name;
	u32 len;

	if (!peer)
		return false;
	BPF_CORE_READ_INTO(&path, peer, path);
	if (path.dentry) {
		record->connect.path_len =
			file_put(record, walk, &path, &name, at, AW_UNRESOLVED_PATH);
		record->connect.path_dev = name.dev;
		record->header.flags |= name.flags | AW_FLAG_FROM_SOCKET;
		return true;
	}
	address = BPF_CORE_READ(peer, addr);
	if (!address)
		return false;
	len = BPF_CORE_READ(address, len) - sizeof(u16);
	if (!len || len > UNIX_PATH_MAX ||
	    bpf_probe_read_kernel(user->path, len & 127, &address->name[0].sun_path))
		return false;
	*unix_len = len;
	record->header.flags |= AW_FLAG_FROM_SOCKET;
	return true;
}

static void connect_end(const struct scene *scene, const struct aw_subject *subject)
{
	struct task_struct *task = scene->task;
	struct aw_record *record = scene->record;
	const struct call *call = scene->call;
	struct aw_walk *walk = scene->walk;
	struct user_address *user = (struct user_address *)walk->address;
	bool begun = call->result == 0 || call->result == -EINPROGRESS;
	struct aw_connect *connect = &record->connect;
	struct file *file = file_of(task, call->args[0]);
	u32 at = sizeof(struct aw_connect), unix_len;
	struct sock *sk = 0;
	u16 family;

	__builtin_memset(connect, 0, sizeof(*connect));
	__builtin_memset(user, 0, sizeof(*user));
	header_fill(&connect->header, subject, AW_KIND_CONNECT, 0);
	connect->result = call->result;
	if (call->compat)
		connect->header.flags |= AW_FLAG_COMPAT;
	unix_len = address_from_user(connect, call, user);
	family = family_of(file, connect, begun, &sk);
	if (begun && family == AF_UNIX && peer_put(record, walk, sk, &at, user, &unix_len))
		connect->family = AF_UNIX;
	connect->asked_len = at > RECORD_MAX - SHORT ? 0
						     : put_unix(record, at, user->path, unix_len);
	connect->header.length = at + connect->asked_len;
	record_send(RING_ACTIVITY, subject, record, sizeof(*record));
}

/* In the context of the caller of connect, sendto with MSG_FASTOPEN, and the like. */
int tcp_syn(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	struct aw_connect connect = {};
	struct aw_subject subject;

	if ((int)ctx->args[2] != TCP_SYN_SENT ||
	    !tagged(bpf_get_current_pid_tgid() >> 32, &subject) ||
	    BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	header_fill(&connect.header, &subject, AW_KIND_SYN, sizeof(connect));
	connect.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	connect.protocol = IPPROTO_TCP;
	address_from_socket(&connect, sk);
	record_send(RING_ACTIVITY, &subject, &connect, sizeof(connect));
	return 0;
}

/* Changes of names and attributes: the names that the call was given, and where they begin. */

#define OF_KIND(which, op_, fd_, asked_, new_fd_, new_asked_, mode_, flags_)                       \
	case which:                                                                                \
		how->op = op_;                                                                     \
		how->fd = fd_;                                                                     \
		how->asked = asked_;                                                               \
		how->new_fd = new_fd_;                                                             \
		how->new_asked = new_asked_;                                                       \
		how->mode = mode_;                                                                 \
		how->flags = flags_;                                                               \
		break;

/* In scratch memory: what the verifier does not know of it, it need not follow case by case. */
static struct change_call *change_how(const struct scene *scene)
{
	struct change_call *how = (struct change_call *)scene->walk->address;

	__builtin_memset(how, 0, sizeof(*how));
	switch (scene->call->kind) {
		CHANGE_CALLS(OF_KIND)
	}
	return how;
}

/* The directory that a name begins in, or the descriptor's file; false where it is gone. */
static bool base_of(const struct scene *scene, struct given *given, struct path *path)
{
	struct task_struct *task = scene->task;
	struct file *file;
	char first = 0;

	if (given->asked && bpf_probe_read_user(&first, 1, (void *)given->asked))
		return false;
	if (given->empty && !first)
		given->asked = 0;
	if (given->asked && first == '/') {
		BPF_CORE_READ_INTO(path, task, fs, root);
	} else if (given->fd == AT_FDCWD) {
		BPF_CORE_READ_INTO(path, task, fs, pwd);
	} else {
		file = file_of(task, given->fd);
		if (!file)
			return false;
		BPF_CORE_READ_INTO(path, file, f_path);
	}
	return true;
}

/* Where a name begins, put into the record; its file system. base: AW_FLAG_BASE, or 0 where it ends there. */
static u32 base_put(const struct scene *scene, const struct path *path, u32 base, u32 bit, u16 *len)
{
	struct aw_record *record = scene->record;
	u32 at = record->header.length;
	struct name name;

	*len = file_put(record, scene->walk, path, &name, &at, bit);
	record->header.flags |= base ? base : name.flags;
	record->header.length = at;
	return name.dev;
}

static u32 change_base(const struct scene *scene, struct given *given, u32 bit, u16 *len)
{
	struct path path = {};

	*len = 0;
	if (base_of(scene, given, &path))
		return base_put(scene, &path, given->asked ? AW_FLAG_BASE : 0, bit, len);
	scene->record->header.unresolved |= bit;
	return 0;
}

static u32 change_asked(struct aw_record *record, u64 asked, u32 bit)
{
	u32 at = record->header.length, len;

	if (!asked)
		return 0;
	len = put_string(record, &at, (void *)asked, true, bit);
	record->header.length = at;
	return len;
}

/* The first name, or the only one; false: there is another. */
static bool change_first(const struct scene *scene, const struct aw_subject *subject)
{
	struct aw_change *change = &scene->record->change;
	const struct call *call = scene->call;
	struct change_call *how = change_how(scene);
	struct given given;
	u32 flags;

	flags = how->flags == NONE ? 0 : arg_of(call, how->flags);
	__builtin_memset(change, 0, sizeof(*change));
	header_fill(&change->header, subject, AW_KIND_CHANGE, sizeof(*change));
	change->result = call->result;
	change->op = call->kind == CALL_UNLINKAT && flags & AT_REMOVEDIR ? AW_OP_RMDIR : how->op;
	if (how->mode != NONE)
		change->mode = arg_of(call, how->mode);
	if (call->compat)
		change->header.flags |= AW_FLAG_COMPAT;
	given.fd = how->fd == NONE ? AT_FDCWD : arg_of(call, how->fd);
	given.asked = how->asked == NONE ? 0 : arg_of(call, how->asked);
	given.empty = flags & AT_EMPTY_PATH && call->kind != CALL_UNLINKAT;
	if (call->result >= 0)
		change->path_dev =
			change_base(scene, &given, AW_UNRESOLVED_PATH, &change->path_len);
	change->asked_len = change_asked(scene->record, given.asked, AW_UNRESOLVED_ASKED);
	return how->new_asked == NONE;
}

static void change_second(const struct scene *scene)
{
	struct aw_change *change = &scene->record->change;
	const struct call *call = scene->call;
	struct change_call *how = change_how(scene);
	struct given given = {};

	given.fd = how->new_fd == NONE ? AT_FDCWD : arg_of(call, how->new_fd);
	given.asked = arg_of(call, how->new_asked);
	if (call->result >= 0 && how->op != AW_OP_SYMLINK)
		change->new_dev =
			change_base(scene, &given, AW_UNRESOLVED_NEW_PATH, &change->new_len);
	change->new_asked_len = change_asked(scene->record, given.asked, AW_UNRESOLVED_NEW_ASKED);
}

/* Mounts and user namespaces. */

/* What was configured anew has its root alone for a name; false where nothing is told of it. */
static bool mount_point(const struct scene *scene, struct mount_call *how, struct path *path)
{
	struct fs_context *configured;

	if (!how->context)
		return how->names && base_of(scene, &how->point, path);
	configured = BPF_CORE_READ((struct file *)how->context, private_data);
	path->dentry = BPF_CORE_READ(configured, root);
	return path->dentry;
}

static void mount_begin(const struct scene *scene, const struct aw_subject *subject)
{
	struct aw_mounting *mounting = &scene->record->mounting;
	struct mount_call *how = (struct mount_call *)scene->walk->said;
	u64 asked;
	u32 base;
	struct path path = {};

	__builtin_memset(mounting, 0, sizeof(*mounting));
	header_fill(&mounting->header, subject, AW_KIND_MOUNT, sizeof(*mounting));
	mounting->result = scene->call->result > 0 ? 0 : scene->call->result;
	if (scene->call->compat)
		mounting->header.flags |= AW_FLAG_COMPAT;
	how->call = *scene->call;
	mount_said(scene->record, scene->walk);
	asked = how->point.asked;
	if (mounting->result >= 0 && (how->context || how->names)) {
		if (mount_point(scene, how, &path)) {
			base = !how->context && how->point.asked ? AW_FLAG_BASE : 0;
			mounting->path_dev = base_put(scene, &path, base, AW_UNRESOLVED_PATH,
						      &mounting->path_len);
		} else {
			mounting->header.unresolved |= AW_UNRESOLVED_PATH;
		}
	}
	mounting->asked_len = change_asked(scene->record, asked, AW_UNRESOLVED_ASKED);
}

static void mount_rest(const struct scene *scene, const struct aw_subject *subject)
{
	struct aw_mounting *mounting = &scene->record->mounting;
	struct mount_call *how = (struct mount_call *)scene->walk->said;
	u64 asked = how->source.asked;
	u32 at;

	if (mounting->result >= 0 && how->names_source)
		mounting->source_dev = change_base(scene, &how->source, AW_UNRESOLVED_NEW_PATH,
						   &mounting->source_len);
	mounting->source_asked_len = change_asked(scene->record, asked, AW_UNRESOLVED_NEW_ASKED);
	if (how->fstype) {
		at = mounting->header.length;
		mounting->fstype_len = put_string(scene->record, &at, (void *)how->fstype,
						  !how->known, AW_UNRESOLVED_NEW_ASKED);
		mounting->header.length = at;
	}
	record_send(RING_ACTIVITY, subject, scene->record, sizeof(*scene->record));
}

/* The end of a call. */

#define CASE(nr, kind)                                                                             \
	case nr:                                                                                   \
		return kind;

static u32 call_of(u32 nr, bool compat)
{
	if (compat)
		switch (nr) {
			CALLS_32(CASE)
		default:
			return 0;
		}
	switch (nr & ~0x40000000) { /* x32 */
		CALLS_64(CASE)
	default:
		return 0;
	}
}

/*
 * The observer holds a pidfd and so asks for a process as only the kernel knows it: by the nanosecond
 * that it began. Told in `told`, unless its last thread is gone.
 */
static void observe(struct task_struct *observer, u32 fd)
{
	struct file *file = file_of(observer, fd);
	struct aw_process process = {};
	struct task_struct *task, *parent;
	struct aw_subject subject;
	struct hlist_node *node;
	struct pid *pid;
	u32 asked;

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 9, 0)
	pid = BPF_CORE_READ(file, f_inode, i_private);
#else
	pid = BPF_CORE_READ(file, private_data);
#endif
	asked = BPF_CORE_READ(pid, numbers[0].nr);
	node = BPF_CORE_READ(pid, tasks[PIDTYPE_TGID].first);
	task = (void *)node - offsetof(struct task_struct, pid_links[PIDTYPE_TGID]);
	if (!node || !BPF_CORE_READ(task, signal, live.counter)) {
		told.delete(&asked);
		return;
	}
	process.tgid = BPF_CORE_READ(task, tgid);
	process.start = BPF_CORE_READ(task, start_boottime);
	parent = BPF_CORE_READ(task, real_parent);
	process.parent_tgid = BPF_CORE_READ(parent, tgid);
	process.parent_start = BPF_CORE_READ(parent, group_leader, start_boottime);
	process.group = BPF_CORE_READ(task, signal, pids[PIDTYPE_PGID], numbers[0].nr);
	process.terminal = BPF_CORE_READ(task, signal, pids[PIDTYPE_SID], numbers[0].nr);
	if (tagged(process.tgid, &subject)) {
		process.session_start = subject.tag->session.start;
		process.session_tgid = subject.tag->session.tgid;
		process.state = subject.session->state;
	}
	told.update(&asked, &process);
}

/* Whatever of a session that is frozen or ends runs is stopped or killed as it leaves the kernel. */
static void hold(const struct aw_subject *subject)
{
	if (subject->session->state == AW_SESSION_FROZEN)
		bpf_send_signal(SIGSTOP);
	else if (subject->session->state == AW_SESSION_ENDING)
		bpf_send_signal(SIGKILL);
}

/* The arguments of a 32-bit connect that came that way; false for another call. */
static bool socketcall_read(struct call *call)
{
	u32 args[3] = {};

	if (call->args[0] != 3) /* SYS_CONNECT */
		return false;
	bpf_probe_read_user(args, sizeof(args), (void *)call->args[1]);
	call->args[0] = args[0];
	call->args[1] = args[1];
	call->args[2] = args[2];
	call->kind = CALL_CONNECT;
	return true;
}

int on_open(struct bpf_raw_tracepoint_args *ctx)
{
	struct aw_subject subject;
	struct scene scene;

	if (scene_set(&scene) && tagged(bpf_get_current_pid_tgid() >> 32, &subject))
		open_end(&scene, &subject);
	return 0;
}

int on_connect(struct bpf_raw_tracepoint_args *ctx)
{
	struct aw_subject subject;
	struct scene scene;

	if (scene_set(&scene) && tagged(bpf_get_current_pid_tgid() >> 32, &subject))
		connect_end(&scene, &subject);
	return 0;
}

int on_change(struct bpf_raw_tracepoint_args *ctx)
{
	struct aw_subject subject;
	struct scene scene;

	if (!scene_set(&scene) || !tagged(bpf_get_current_pid_tgid() >> 32, &subject))
		return 0;
	if (change_first(&scene, &subject))
		record_send(RING_ACTIVITY, &subject, scene.record, sizeof(*scene.record));
	else
		on.call(ctx, ON_RENAME);
	return 0;
}

int on_rename(struct bpf_raw_tracepoint_args *ctx)
{
	struct aw_subject subject;
	struct scene scene;

	if (!scene_set(&scene) || !tagged(bpf_get_current_pid_tgid() >> 32, &subject))
		return 0;
	change_second(&scene);
	record_send(RING_ACTIVITY, &subject, scene.record, sizeof(*scene.record));
	return 0;
}

int on_mount(struct bpf_raw_tracepoint_args *ctx)
{
	struct aw_subject subject;
	struct scene scene;

	if (!scene_set(&scene) || !tagged(bpf_get_current_pid_tgid() >> 32, &subject))
		return 0;
	mount_begin(&scene, &subject);
	on.call(ctx, ON_SOURCE);
	return 0;
}

int on_source(struct bpf_raw_tracepoint_args *ctx)
{
	struct aw_subject subject;
	struct scene scene;

	if (scene_set(&scene) && tagged(bpf_get_current_pid_tgid() >> 32, &subject))
		mount_rest(&scene, &subject);
	return 0;
}

/* Whether a call is about mounts or user namespaces; the child of a clone passes here, too. */
static bool mounts(const struct call *call)
{
	bool child = (call->kind == CALL_CLONE || call->kind == CALL_CLONE3) && !call->result;

	return !child && !mounts_nothing(call);
}

#define CALL_PIDFD_OPEN 434

int sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32, zero = 0;
	struct aw_control *word = control.lookup(&zero);
	struct aw_subject subject;
	struct pt_regs regs;
	struct scene scene;
	struct call *call;

	if (!word || !scene_set(&scene))
		return 0;
	if (word->doomed && doomed.lookup(&tgid))
		bpf_send_signal(SIGKILL);
	if (tgid == OBSERVER) {
		bpf_probe_read_kernel(&regs, sizeof(regs), (void *)ctx->args[0]);
		if (regs.orig_ax == CALL_PIDFD_OPEN && (s64)ctx->args[1] >= 0)
			observe(scene.task, ctx->args[1]);
	}
	if (!tagged(tgid, &subject))
		return 0;
	if (word->held)
		hold(&subject);
	bpf_probe_read_kernel(&regs, sizeof(regs), (void *)ctx->args[0]);
	call = scene.call;
	call->compat = BPF_CORE_READ(scene.task, thread_info.status) & TS_COMPAT;
	call->kind = call_of(regs.orig_ax, call->compat);
	if (!call->kind)
		return 0;
	call->nr = regs.orig_ax + 1;
	call->result = ctx->args[1];
	args_read(call, &regs);
	if (call->kind == CALL_SOCKETCALL && !socketcall_read(call))
		return 0;
	if (call->kind == CALL_CONNECT)
		on.call(ctx, ON_CONNECT);
	else if (call->kind >= CALL_MOUNT) {
		if (mounts(call))
			on.call(ctx, ON_MOUNT);
	} else if (call->kind >= CALL_RENAME)
		on.call(ctx, ON_CHANGE);
	else if (call->kind != CALL_EXECVE && call->kind != CALL_EXECVEAT)
		on.call(ctx, ON_OPEN);
	else if (call->result < 0)
		exec_failed(scene.record, &subject, call);
	return 0;
}
