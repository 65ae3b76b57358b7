/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Memory to build records in, one piece per tagged task: a per-CPU buffer would be shared with whatever
 * preempts us. Created when the tag is set, and again where that failed. Each value stays under 8 KiB with
 * its storage header: that is what newer kernels' allocator for local storage can give.
 */

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

/* The subjects of an event, by the number that rules have for them. */
#define AW_SUBJECT_FILE 0
#define AW_SUBJECT_EXE 1
#define AW_SUBJECT_CWD 2
#define AW_SUBJECT_ARGS 3
#define AW_SUBJECT_ADDR 4
#define AW_SUBJECT_PORT 5
#define AW_SUBJECT_UNIX 6

/* The virtual symbol at which a state has a list: for the end of the subject, the next for each separator. */
#define AW_SYMBOL_FINAL 0
#define AW_SYMBOL_STICKY 1
#define AW_SYMBOL_FILE 0
#define AW_SYMBOL_EXE 2
#define AW_SYMBOL_CWD 4
#define AW_SYMBOL_UNIX 6

/* Kinds of rules, as bits. */
#define AW_EXEC 1
#define AW_READ 2
#define AW_CHANGE 4
#define AW_OPEN 8
#define AW_CONNECT 16
#define AW_MOUNT 32
#define AW_RULE_KINDS 6

/* Of what is below a directory: what it takes along when it goes, and what comes about where it goes to. */
#define AW_BELOW_TAKEN (AW_EXEC | AW_READ | AW_CHANGE | AW_OPEN | AW_CONNECT)
#define AW_BELOW_MADE AW_CHANGE
#define AW_BELOW_ITSELF 64 /* ... or it is no directory, and only itself is taken along */

/* Words that are always known, as bits. Those of a file and those of a program share some. */
#define AW_WORD_READ 0x000001
#define AW_WORD_WRITE 0x000002
#define AW_WORD_OPEN 0x000004
#define AW_WORD_CREATE 0x000008
#define AW_WORD_TRUNCATE 0x000010
#define AW_WORD_RENAME 0x000020
#define AW_WORD_LINK 0x000040
#define AW_WORD_SYMLINK 0x000080
#define AW_WORD_DELETE 0x000100
#define AW_WORD_CHMOD 0x000200
#define AW_WORD_CHOWN 0x000400
#define AW_WORD_XATTR 0x000800
#define AW_WORD_MKDIR 0x001000
#define AW_WORD_RMDIR 0x002000
#define AW_WORD_MOUNT 0x004000
#define AW_WORD_MOVE 0x008000
#define AW_WORD_REMOUNT 0x010000
#define AW_WORD_UMOUNT 0x020000
#define AW_WORD_USERNS 0x040000
#define AW_WORD_STDIN 0x000020 /* and the four above it, by AW_STDIN_* */
#define AW_WORD_ANONYMOUS 0x000400
#define AW_WORD_NAMED 0x000800
#define AW_WORD_TCP 0x001000
#define AW_WORD_UDP 0x002000
#define AW_WORD_UNIX 0x004000
#define AW_WORD_ICMP 0x008000
#define AW_WORD_ICMPV6 0x010000
#define AW_WORD_SCTP 0x020000
#define AW_WORD_INET 0x040000
#define AW_WORD_INET6 0x080000
#define AW_WORD_FAMILY_UNIX 0x100000
#define AW_WORD_NETLINK 0x200000
#define AW_WORD_PACKET 0x400000
#define AW_WORD_VSOCK 0x800000
#define AW_WORD_PROJECT 0x1000000 /* the session has a project */
#define AW_WORD_LITE 0x2000000	  /* UDP-Lite: no program is asked before its connect */

struct aw_question_name {
	u32 at; /* from the start of the record; 0: at the end of aw_walk.path */
	u32 len;
	u32 dev;
	u32 subject; /* AW_SUBJECT_* */
	u32 symbol;  /* AW_SYMBOL_* */
	u32 plain;   /* 1: as it is, of no file system; an empty one is none */
};

struct aw_other_name { /* complete, and in the record */
	u32 at, len;
};

struct aw_answered {
	u32 unread, uncertain, later; /* as it was asked */
	u32 pad;
	u64 argv, args, args_size;
	u32 verdict, rule;
	u64 found[3];
};

/* What walks the subjects. */
#define AW_SORT_EXEC 0	  /* argv and two names */
#define AW_SORT_NAME 1	  /* one name */
#define AW_SORT_ADDRESS 2 /* 16 bytes and a port at the start of aw_walk.path */

/* Which lists are considered. */
#define AW_LISTS_EXEC 0
#define AW_LISTS_OPEN 1 /* and mounts */
#define AW_LISTS_CONNECT 2

#define AW_RULED_ALONE 1
#define AW_RULED_OBJECT 2 /* by those that name what is executed, for it is mapped only */

struct aw_question {
	u32 slot;  /* in policies */
	u32 sort;  /* AW_SORT_* */
	u32 lists; /* AW_LISTS_* */
	u32 kinds, words;
	u32 unread, uncertain; /* bit per subject */
	u32 deciding;	       /* 0: only for the predicates */
	u64 agents;
	u64 predicates[4];   /* of the process; the last is never asked */
	u32 known;	     /* 1: they are of this policy */
	u32 other;	     /* 1: by another name than the canonical one */
	u32 below;	     /* of all of these kinds that is below the directory it names */
	u32 preventing;	     /* 1: asked before anything happens: what is denied does not */
	u32 later;	     /* bit per subject: not to be known yet, and asked again when it is */
	u32 ruled;	     /* AW_RULED_*; 0: by rules, and by what `defaults` says */
	u32 early;	     /* tokens of argv that were read, of an exec that is still to be */
	u32 argv_size;	     /* bytes of a pointer to one of them */
	u64 argv;	     /* ... where its caller keeps them; 0: it has its own memory */
	u64 args, args_size; /* of a new program: in its memory; what is still to be read */
	struct aw_session_key session;
	struct aw_question_name names[2];
	struct aw_other_name others[2]; /* of names[0] */
	struct aw_answered before;	/* by the names asked about already */
	/* The answer. */
	u32 verdict, rule, generation;
	u32 look;     /* 1: a name is another one than the engine's */
	u64 found[4]; /* predicates of a new image */
};

#define AW_CONDITION_WORDS 256 /* bits of conditions, 64 in each */
#define AW_KEPT 64	       /* lists that an event may meet */
#define AW_CHUNK 128	       /* bytes of a subject that are walked at once */
#define AW_FOUND 4	       /* lists that are found before they are looked at: one of each set */
#define AW_FRONT 256	       /* room for a mount point */
#define AW_TEXT_MAX (AW_FRONT + AW_PATH_MAX + 256)

#define AW_SETS 4

struct aw_set {
	u64 state, dead, rows;
	u32 classes; /* 0: there is no such set */
	u32 pad;
};

struct aw_machine {
	struct aw_set
		sets[AW_SETS]; /* anchored, floating, begun, none: a power of two is indexed */
	u32 sticky, last;      /* symbols */
	u32 off, len;	       /* what is walked, from the start of aw_walk */
	u32 subject, which, named, project;
	u32 pass, begins, ends; /* of a subject: its first part, its last */
	u32 turn, done, until;	/* whose it is of the sets, and its bytes of what is walked */
	u32 skip, stop;		/* bytes that the memo knows, and is to know; 0: none */
	u32 slot, begun, noting, spoilt;
	u32 found, kept, crowded;
	u32 conditions, predicates, clearing;
	/* Deciding. */
	u32 list, rules, rules_at, rule, ops, op;
	u32 verdict, kinds, carved, through;
	u32 best, looked, look, defaults;
	u64 agents;
	u64 allowed[AW_RULE_KINDS]; /* agents, by kind */
};

/* What an LSM hook leaves for the end of the call it was in. */
struct aw_hooked {
	u64 call; /* its orig_ax + 1; 0: nothing is left */
	u64 file; /* that was judged */
	u32 generation, rule, verdict;
	u32 told; /* 1: the call was refused, and its record is out */
};

#define AW_MEMO_TEXT 128
#define AW_MEMO_LISTS 2

/*
 * The last name that this task opened: where the sets were behind its first `len` bytes, and what they
 * had found. Names that follow each other begin alike: what they have in common is walked once.
 */
struct aw_memo {
	u32 generation, slot;	  /* of the policy */
	u32 len, pad;		  /* 0: nothing is known */
	u32 project, project_len; /* bytes of a project's directory; `len` when that was noted */
	u32 states[AW_SETS];	  /* of the three sets, and of the project's */
	u32 counts[AW_SETS];
	u32 lists[AW_SETS][AW_MEMO_LISTS];
	char text[AW_MEMO_TEXT];
};

struct aw_walk {
	char front[AW_FRONT];
	char path[AW_PATH_MAX + 256]; /* filled from the end; a name may be read past it */
	u32 size;		      /* of the path component that `literal` begins with */
	u32 off;		      /* where in `path` the name begins */
	u32 disturbed, spare;
	u64 bits[AW_CONDITION_WORDS]; /* all zero between events */
	u32 kept[AW_KEPT];
	u32 found[AW_FOUND];
	struct aw_question question;
	struct aw_machine machine;
	struct aw_hooked hooked;
	union {
		struct aw_memo memo;
		/* By a mount, while its names are walked; then nothing is known of a last name. */
		char said[120] __attribute__((aligned(8)));
	};
	/* Here and not on the stack, of which a chain of calls has 512 bytes. */
	struct aw_mark mark;
	union {
		char literal[AW_LITERAL_MAX] __attribute__((aligned(8)));
		/* Of a connect, as the caller wrote it; or where a name's walk is. */
		char address[136] __attribute__((aligned(8)));
	};
};

_Static_assert(sizeof(struct aw_walk) <= 8192 - 128, "newer kernels have no room for it");
_Static_assert(sizeof(struct aw_record) <= 8192 - 128, "newer kernels have no room for it");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct aw_record);
} records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct aw_walk);
} walks SEC(".maps");

/* Not scratch: of two instances, one may note it and the other judge by it. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct aw_former);
} formers SEC(".maps");

static __always_inline void scratch_create(struct task_struct *task)
{
	bpf_task_storage_get(&records, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	bpf_task_storage_get(&walks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	bpf_task_storage_get(&formers, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

static __always_inline void scratch_delete(struct task_struct *task)
{
	bpf_task_storage_delete(&records, task);
	bpf_task_storage_delete(&walks, task);
	bpf_task_storage_delete(&formers, task);
}

static __always_inline struct aw_walk *walk_of_current(void)
{
	return bpf_task_storage_get(&walks, bpf_get_current_task_btf(), 0, 0);
}

static __always_inline bool literal_known(const struct aw_walk *walk)
{
	return bpf_map_lookup_elem(&literals, walk->literal);
}
