/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The contract between the kernel side (bpf/) and agentwatch/abi.py, which mirrors it and is compared
 * with it, field by field, by tests/abi. Everything is little endian as the machine is; every struct is
 * a multiple of 8 bytes with its padding spelled out and zeroed. Fields and kinds are only appended;
 * anything else raises AW_ABI, which the loader compares before it attaches anything.
 *
 * A record is a fixed struct that begins with aw_header, followed by its strings one after the other,
 * not NUL-terminated, each as long as its *_len field says, in the order that abi.LAYOUTS has them in.
 *
 * Two rings: "lifecycle" carries fork, exec and exit; "activity" carries everything else. A record's
 * sequence counts the records of its ring on its CPU, lost ones included: a number that never arrives
 * is a lost record.
 */
#ifndef AGENTWATCH_H
#define AGENTWATCH_H

#define AW_ABI 5

/* aw_header.kind */
#define AW_KIND_FORK 1
#define AW_KIND_EXEC 2
#define AW_KIND_EXIT 3
#define AW_KIND_OPEN 4
#define AW_KIND_CONNECT 5
#define AW_KIND_SYN 6
#define AW_KIND_CHANGE 7 /* of names and attributes: what no open does */
#define AW_KIND_MOUNT 8	 /* and of who may mount: user namespaces */
#define AW_KINDS 16	 /* room in the counters; kind 0 is never used */

/* aw_header.flags */
#define AW_FLAG_PROVISIONAL 0x0001 /* the session's tag is not confirmed */
#define AW_FLAG_CANDIDATE 0x0002   /* exec: a name has a literal component of an identity */
#define AW_FLAG_ARGV_CUT 0x0004	   /* exec: argv is longer than what the record holds */
#define AW_FLAG_SCRIPT 0x0008	   /* exec: a shebang ran `asked` */
#define AW_FLAG_READS 0x0010	   /* open: the file was opened for reading */
#define AW_FLAG_CHANGES 0x0020	   /* open: opened for writing, created or truncated */
#define AW_FLAG_CREATED 0x0040	   /* open: the call created the file */
#define AW_FLAG_DIRECTORY 0x0080   /* open: the file is a directory */
#define AW_FLAG_ANONYMOUS 0x0100   /* the file has no place in a file system (memfd, pipe) */
#define AW_FLAG_DELETED 0x0200	   /* the file's name is gone */
#define AW_FLAG_FROM_SOCKET 0x0400 /* connect: the address is the kernel socket's own */
#define AW_FLAG_COMPAT 0x0800	   /* made through the 32-bit entry */
#define AW_FLAG_SHARED 0x1000	   /* open that kills: another process has the descriptor, too */
#define AW_FLAG_HOOK 0x2000	   /* told by an LSM hook: the call did not happen, or goes on */
#define AW_FLAG_BASE 0x4000  /* change: path and new_path are where asked and new_asked begin */
#define AW_FLAG_BELOW 0x8000 /* the rule is about what is below the directory */

/* aw_header.unresolved: the string or address could not be read, or only a part of it */
#define AW_UNRESOLVED_PATH 0x01
#define AW_UNRESOLVED_ASKED 0x02
#define AW_UNRESOLVED_CWD 0x04
#define AW_UNRESOLVED_ARGV 0x08
#define AW_UNRESOLVED_ADDRESS 0x10

#define AW_UNRESOLVED_NEW_PATH 0x20
#define AW_UNRESOLVED_NEW_ASKED 0x40

/* aw_change.op, aw_mounting.op */
#define AW_OP_CREATE 1
#define AW_OP_TRUNCATE 2
#define AW_OP_RENAME 3
#define AW_OP_LINK 4
#define AW_OP_SYMLINK 5
#define AW_OP_DELETE 6
#define AW_OP_CHMOD 7
#define AW_OP_CHOWN 8
#define AW_OP_XATTR 9
#define AW_OP_MKDIR 10
#define AW_OP_RMDIR 11
#define AW_OP_MOUNT 12 /* something is there that was not */
#define AW_OP_MOVE 13  /* ... and was elsewhere before */
#define AW_OP_REMOUNT 14
#define AW_OP_UMOUNT 15
#define AW_OP_USERNS 16 /* of no path */

/* aw_exec.stdin_kind */
#define AW_STDIN_NULL 0 /* /dev/null, or closed */
#define AW_STDIN_TTY 1
#define AW_STDIN_PIPE 2
#define AW_STDIN_SOCKET 3
#define AW_STDIN_FILE 4 /* anything else */

/* aw_session.state */
#define AW_SESSION_PROVISIONAL 1
#define AW_SESSION_CONFIRMED 2
#define AW_SESSION_FROZEN 3 /* each of its processes is stopped at the end of its next call */
#define AW_SESSION_ENDING 4 /* ... is killed there */

/* aw_header.verdict */
#define AW_VERDICT_KILL 1
#define AW_VERDICT_DENY 2  /* not let happen where result is -EPERM, else left to the engine */
#define AW_VERDICT_LOOK 3  /* the engine has to judge it */
#define AW_VERDICT_ALLOW 4 /* of rules alone */

#define AW_PATH_MAX 4096	  /* bytes of a path that are read */
#define AW_ARGV_MAX 4096	  /* bytes of argv that a record holds */
#define AW_DATA_MAX 7808	  /* bytes of all strings of a record together */
#define AW_PROJECT_MAX 1016	  /* bytes of a project's directory */
#define AW_ROOT_MAX 64		  /* bytes of a mount's root */
#define AW_POINT_MAX 192	  /* bytes of a mount point */
#define AW_POLICY_SLOTS 4	  /* policies that are loaded at a time */
#define AW_POLICY_NONE 0xffffffff /* no slot of theirs */
#define AW_MOUNTS 8		  /* mounts of a file system */
#define AW_LITERAL_MAX 64	  /* bytes of an identity's literal component, zero-padded */
#define AW_KNOWN_MAX 248	  /* bytes of the name that a file had when a policy was loaded */

struct aw_header {
	__u32 length;	     /* bytes of the whole record, strings included */
	__u16 kind;	     /* AW_KIND_* */
	__u16 flags;	     /* AW_FLAG_* */
	__u64 time;	     /* ns, CLOCK_BOOTTIME, when the probe ran */
	__u64 sequence;	     /* per ring and CPU, from 1 */
	__u32 cpu;	     /* where sequence was taken */
	__u32 generation;    /* of the policy that judged it; 0: none in the kernel */
	__u32 tgid;	     /* process, in the initial PID namespace */
	__u32 tid;	     /* thread, in the initial PID namespace */
	__u64 start;	     /* ns, CLOCK_BOOTTIME, fork of the process */
	__u64 session_start; /* ns, CLOCK_BOOTTIME, fork of the session's first process */
	__u32 session_tgid;  /* the session's first process */
	__u32 unresolved;    /* AW_UNRESOLVED_* */
	__u32 rule;	     /* that decided, of the policy `generation`; 0: none */
	__u32 verdict;	     /* AW_VERDICT_*, 0: nothing to do */
};

struct aw_fork {
	struct aw_header header; /* of the process that forks */
	__u64 child_start;	 /* ns, CLOCK_BOOTTIME */
	__u32 child_tgid;
	__u32 pad;
};

struct aw_exec {
	struct aw_header header;
	__u64 parent_start; /* ns, CLOCK_BOOTTIME; 0: failed call */
	__u32 parent_tgid;
	__u32 uid;	/* real user, in the initial user namespace */
	__s32 result;	/* 0, or -errno of a call that failed */
	__u32 argc;	/* as the new program gets it */
	__u32 path_dev; /* kernel dev_t (major << 20 | minor) of path's file system */
	__u32 cwd_dev;	/* the same, of cwd's */
	__u16 path_len; /* bytes; the path from the root of its file system */
	__u16 asked_len;
	__u16 cwd_len;	 /* from the root of its file system */
	__u16 argv_len;	 /* tokens, each ended by a NUL */
	__u8 stdin_kind; /* AW_STDIN_* */
	__u8 pad;
	__u16 view_len;	 /* bytes; path as the task sees it, where that is another name */
	__u16 known_len; /* bytes; what the file was called when the policy was loaded: the same */
	__u8 pad2[2];
};

struct aw_exit {
	struct aw_header header;
	__s32 status; /* as wait(2) gives it */
	__u32 pad;
};

struct aw_open {
	struct aw_header header;
	__u32 open_flags; /* O_* as asked, the access mode as granted */
	__s32 result;	  /* the descriptor, or -errno */
	__u32 path_dev;	  /* kernel dev_t of path's file system */
	__u16 path_len;	  /* bytes; from the root of its file system; 0: failed call */
	__u16 asked_len;
	__u16 view_len;	 /* bytes; path as the task sees it, where that is another name */
	__u16 known_len; /* bytes; what the file was called when the policy was loaded: the same */
	__u8 pad[4];
};

struct aw_change { /* new_*: of rename, link; of a symbolic link its text as new_asked */
	struct aw_header header;
	__s32 result;
	__u32 op;	/* AW_OP_* */
	__u32 path_dev; /* kernel dev_t of path's file system */
	__u32 new_dev;
	__u32 mode;	/* create, chmod, mkdir: as asked */
	__u16 path_len; /* bytes; from the root of its file system; 0: not known */
	__u16 asked_len;
	__u16 new_len;
	__u16 new_asked_len;
	__u16 view_len; /* bytes; path as the task sees it, where that is another name */
	__u16 new_view_len;
	__u16 known_len; /* bytes; what the file was called when the policy was loaded: the same */
	__u16 new_known_len;
	__u16 found_len; /* bytes; what the name led to: put in by whoever reads the record */
	__u16 new_found_len;
};

/* The first fields are where those of aw_change are. */
struct aw_mounting { /* source: what is mounted, where the kernel has it; source_asked: its text */
	struct aw_header header;
	__s32 result;
	__u32 op;	/* AW_OP_* */
	__u32 path_dev; /* kernel dev_t of the mount point's file system */
	__u32 source_dev;
	__u32 mount_flags; /* as asked: MS_*, MNT_*, CLONE_NEWUSER */
	__u16 path_len;	   /* bytes; from the root of its file system; 0: not known, or none */
	__u16 asked_len;
	__u16 source_len;
	__u16 source_asked_len;
	__u16 view_len; /* as of a change */
	__u16 source_view_len;
	__u16 known_len;
	__u16 source_known_len;
	__u16 found_len;
	__u16 source_found_len;
	__u16 fstype_len;
	__u8 pad[6];
};

struct aw_connect { /* AW_KIND_CONNECT, and AW_KIND_SYN with result 0 */
	struct aw_header header;
	__u8 address[16]; /* network order; IPv4 in the first 4 bytes */
	__s32 result;
	__u16 family;	 /* AF_* */
	__u16 port;	 /* host order */
	__u16 protocol;	 /* IPPROTO_*; 0 with AF_UNIX */
	__u16 path_len;	 /* bytes; AF_UNIX: from the root of its file system */
	__u16 asked_len; /* bytes; AF_UNIX: as asked, a leading NUL is the abstract namespace */
	__u16 view_len;	 /* bytes; path as the task sees it, where that is another name */
	__u32 path_dev;	 /* kernel dev_t of path's file system */
	__u32 pad;
};

/*
 * The policy: one image of u32 and u64 words in an array of one element, as large as the loader chose.
 * The header's words; the rest is found through them (agentwatch/policy/image.py).
 */
#define AW_POLICY_MAGIC 0x31505741
#define AW_POLICY_ABI 3
#define AW_POLICY_GENERATION 2
#define AW_POLICY_BASE 5   /* lists: exec, open, connect */
#define AW_POLICY_UNREAD 8 /* lists: the same */
#define AW_POLICY_DEFAULTS 11
#define AW_POLICY_ROLES 12	   /* masks of predicates: those asked in a match */
#define AW_POLICY_UNREAD_ROLES 13  /* ... of exe, cwd, args */
#define AW_POLICY_SETS 16	   /* four words each: classes, start, default, 0 */
#define AW_POLICY_OBJECT 0x1000000 /* in a rule's head: it names what is executed */

/* aw_control.preemption */
#define AW_PREEMPTION_NONE 1 /* nothing else runs while a tracing program does */
#define AW_PREEMPTION_SOME 2 /* another task may: whose runs of that program are skipped then */

/* Values of maps. */

struct aw_session_key {
	__u64 start; /* ns, CLOCK_BOOTTIME, fork of the session's first process */
	__u32 tgid;
	__u32 pad;
};

struct aw_session {
	__u32 state; /* AW_SESSION_*; no entry: not a session (any more) */
	__u32 pad;
	__u64 since;  /* ns, CLOCK_BOOTTIME, when it began: a tag of another time is not its own */
	__u64 lost;   /* records of its processes with no room in their ring */
	__u64 agents; /* bit per agent, of the session's own; 0: the policy does not judge it yet */
};

struct aw_tag { /* 64 bytes, of a task; the same bytes by tgid in the mirror */
	struct aw_session_key session;
	__u64 since;	     /* as its session's */
	__u64 agents;	     /* bit per agent, of those that the process descends from */
	__u64 image;	     /* ns, CLOCK_BOOTTIME, of the exec that made it; never: its own fork */
	__u64 predicates[3]; /* of the policy whose generation's low 16 bits are the topmost 16 */
};

struct aw_mark { /* by image: what userspace knows of it */
	__u64 agents;
	__u64 predicates[3]; /* 176 bits */
	__u32 generation;    /* of the policy that predicates is of */
	__u32 pad;
};

/* What a tag said of the program before, from the moment that an exec replaces it until it is judged. */
struct aw_former {
	__u64 successor; /* aw_tag.image of the one in its place; 0: nothing is left */
	__u64 image;
	__u64 predicates[3];
	__u32 instance; /* whose program has noted it, see maps.bpf.c */
	__u32 pad;
};

struct aw_project { /* by session */
	__u32 len;
	__u32 pad;
	__u8 path[AW_PROJECT_MAX];
};

struct aw_mount { /* a file system's directory `root` is what is mounted at `point` */
	__u32 root_len;
	__u32 point_len;
	__u8 root[AW_ROOT_MAX];
	__u8 point[AW_POINT_MAX];
};

struct aw_file_key { /* a file that rules of the policy are about, whatever it is called */
	__u32 dev;   /* kernel dev_t of its file system */
	__u32 pad;
	__u64 inode;
};

struct aw_known {
	__u16 len;
	__u16 versioned;  /* 1: generation is known: another file may get the number */
	__u32 generation; /* of the inode */
	__u8 path[AW_KNOWN_MAX];
};

struct aw_origin { /* by tgid: where a process comes from that was forked while we look for agents */
	__u64 start;		     /* ns, CLOCK_BOOTTIME, its own fork */
	struct aw_session_key first; /* the nearest ancestor that was there when we began to look */
	struct aw_session_key parent; /* its parent, as it was when it forked */
};

struct aw_process {	     /* what the iterators tell of one process */
	__u64 start;	     /* ns, CLOCK_BOOTTIME */
	__u64 parent_start;  /* ns, CLOCK_BOOTTIME */
	__u64 session_start; /* ns, CLOCK_BOOTTIME; 0: no tag that counts */
	__u32 tgid;
	__u32 parent_tgid;
	__u32 session_tgid;
	__u32 state;			    /* AW_SESSION_* of its session, 0 for none */
	struct aw_session_key first;	    /* of its aw_origin, zero for none */
	struct aw_session_key first_parent; /* the same */
	__u32 group;			    /* the process that leads its process group */
	__u32 terminal;			    /* ... its session of a terminal; 0: read failed */
};

struct aw_counters {		    /* per CPU; each only grows */
	__u64 sequence[2];	    /* taken: lifecycle, activity */
	__u64 emitted[AW_KINDS];    /* records written, by kind */
	__u64 lost[AW_KINDS];	    /* records with no room in the ring, by kind */
	__u64 unresolved[AW_KINDS]; /* records with a bit in unresolved, by kind */
	__u64 unrecorded[AW_KINDS]; /* calls of tagged tasks without scratch memory, by kind */
	__u64 untracked;	    /* children that got no tag in task storage */
	__u64 mirror_full;	    /* children that got no tag in the mirror */
	__u64 doomed;		    /* children with neither, killed at their first hook */
	__u64 reconciled;	    /* tasks tagged late, after skipped runs of the fork probe */
	__u64 unbegun;		    /* programs like an agent's, and no room for one more session */
	__u64 unlabelled;	    /* children with no room in origins while we look for agents */
	__u64 unjudged;		    /* connects refused with no memory left to judge them in */
};

struct aw_control {	   /* written by userspace at any time */
	__u32 abi;	   /* AW_ABI, set by the object */
	__u32 wake_kinds;  /* bit per kind: wake the reader for it */
	__u32 identify;	   /* 1: provisional tags on untagged processes too */
	__u32 doomed;	   /* children that die at their first hook, and have not yet */
	__u32 mirror_full; /* set by the probes once a child did not fit the mirror */
	__u32 untracked;   /* set by the probes once a tag was only put into the mirror */
	__u32 looking;	   /* 1: agents that run already are looked for, note who forks whom */
	__u32 held;	   /* 1: some session is frozen or ending */
	__u64 woken;	   /* ns, CLOCK_BOOTTIME, last wake-up; see record.bpf.c */
	__u32 condemned;   /* processes whose connect was refused and that die at its end */
	__u32 in_force;	   /* slot of the policy, or AW_POLICY_NONE */
	__u32 next;	   /* ... of the next one: an exec leaves a mark for it as well */
	__u32 refusing;	   /* 1: programs that refuse connections are attached */
	__u32 known;	   /* 1: there are files that are known by what they are */
	__u32 preemption;  /* of tracing programs, found at the first fork: AW_PREEMPTION_* */
	__u32 recorder;	   /* instance whose tracing programs act, see maps.bpf.c */
	__u32 published;   /* generation of the last policy there was */
	__u64 listened;	   /* ns, CLOCK_BOOTTIME: what was recorded before was read by a daemon */
};

#endif
