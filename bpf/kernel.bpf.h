/* SPDX-License-Identifier: GPL-2.0 */
/* The kernel types the probes read, and of each only the members they read: CO-RE finds the rest. */
#ifndef KERNEL_BPF_H
#define KERNEL_BPF_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct pt_regs {
	unsigned long r10, r9, r8, cx, dx, si, di, bx, bp, orig_ax;
};

struct thread_info {
	u32 status;
};

typedef struct {
	int counter;
} atomic_t;

struct qstr {
	union {
		struct {
			u32 hash;
			u32 len;
		};
		u64 hash_len;
	};
	const unsigned char *name;
};

struct list_head {
	struct list_head *next;
};

struct hlist_bl_node {
	struct hlist_bl_node *next, **pprev;
};

struct file_system_type {
	const char *name;
};

struct fs_context {
	struct dentry *root;
};

struct super_block {
	u32 s_dev;
	unsigned long s_flags;
	unsigned long s_magic;
	struct file_system_type *s_type;
	struct dentry *s_root;
};

struct inode {
	u16 i_mode;
	u32 i_rdev;
	u32 i_generation;
	unsigned long i_ino;
	struct super_block *i_sb;
};

struct dentry {
	struct hlist_bl_node d_hash;
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	struct super_block *d_sb;
};

struct vfsmount {
	struct dentry *mnt_root;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
	struct mnt_namespace *mnt_ns;
	int mnt_id;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	struct path f_path;
	struct inode *f_inode;
	unsigned int f_flags;
	u32 f_mode;
	void *private_data;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	atomic_t count;
	struct fdtable *fdt;
};

struct fs_struct {
	struct path root, pwd;
};

struct mm_struct {
	unsigned long arg_start, arg_end;
};

struct pid_namespace {
	struct task_struct *child_reaper;
};

struct nsproxy {
	struct mnt_namespace *mnt_ns;
	struct pid_namespace *pid_ns_for_children;
};

struct upid {
	int nr;
};

struct pid {
	struct upid numbers[1];
};

struct signal_struct {
	atomic_t live;
	struct list_head thread_head;
	struct pid *pids[4]; /* by PIDTYPE_* */
	int group_exit_code;
	unsigned int flags;
};

struct task_struct {
	struct thread_info thread_info;
	int pid;
	int tgid;
	u64 start_boottime;
	int exit_code;
	unsigned int in_execve : 1;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct list_head tasks;
	struct list_head thread_node;
	struct signal_struct *signal;
	struct files_struct *files;
	struct nsproxy *nsproxy;
	struct fs_struct *fs;
	struct mm_struct *mm;
	const void *cred, *real_cred;
};

struct iattr {
	unsigned int ia_valid;
};

struct linux_binprm {
	struct file *file;
	int argc;
	const char *filename;
	const char *interp;
};

struct vm_area_struct {
	unsigned long vm_flags;
	struct file *vm_file;
};

struct msghdr {
	void *msg_name;
};

struct in6_addr {
	union {
		u8 u6_addr8[16];
	} in6_u;
};

struct sock_common {
	u32 skc_daddr;
	u16 skc_dport;
	u16 skc_family;
	struct in6_addr skc_v6_daddr;
};

struct sock {
	struct sock_common __sk_common;
	u16 sk_protocol;
};

struct socket {
	short type;
	struct sock *sk;
};

struct sockaddr_un {
	char sun_path[108];
};

struct unix_address {
	int len;
	struct sockaddr_un name[0];
};

struct unix_sock {
	struct unix_address *addr;
	struct path path;
	struct sock *peer;
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

#pragma clang attribute pop

/* From the kernel's headers: values that BTF does not carry. */
#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define S_IFREG 0100000
#define S_IFLNK 0120000
#define ATTR_MODE 1
#define ATTR_UID 2
#define ATTR_GID 4
#define ATTR_SIZE 8
#define S_IFDIR 0040000
#define S_IFCHR 0020000
#define S_IFIFO 0010000
#define O_ACCMODE 3
#define O_RDONLY 0
#define O_WRONLY 1
#define O_RDWR 2
#define O_CREAT 0100
#define O_TRUNC 01000
#define O_PATH 010000000
#define FMODE_READ 1
#define FMODE_WRITE 2
#define FMODE_CREATED (1 << 20)
#define SB_NOUSER (1UL << 31)
#define FMODE_EXEC 0x20
#define FMODE_NEED_UNMOUNT (1 << 28)
#define FMODE_NOACCOUNT (1 << 29)
#define RENAME_EXCHANGE 2
#define PROT_EXEC 4
#define VM_EXEC 4
#define SOCK_RAW 3
#define SOCK_SEQPACKET 5
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define AF_NETLINK 16
#define AF_PACKET 17
#define AF_VSOCK 40
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define IPPROTO_SCTP 132
#define IPPROTO_UDPLITE 136
#define IPPROTO_MPTCP 262
#define EPERM 1
#define EAGAIN 11
#define OVERLAYFS_SUPER_MAGIC 0x794c7630
#define TCP_SYN_SENT 2
#define PIDTYPE_PGID 2
#define PIDTYPE_SID 3
#define SIGKILL 9
#define SIGSTOP 19
#define SIGNAL_GROUP_EXIT 4
#define TS_COMPAT 2
#define AT_FDCWD -100
#define AT_REMOVEDIR 0x200
#define AT_EMPTY_PATH 0x1000
#define MOVE_MOUNT_F_EMPTY_PATH 0x04
#define MOVE_MOUNT_T_EMPTY_PATH 0x40
#define FSCONFIG_CMD_RECONFIGURE 7
#define MS_REMOUNT 32
#define MS_BIND 4096
#define MS_MOVE 8192
#define MS_PROPAGATION (1 << 17 | 1 << 18 | 1 << 19 | 1 << 20)
#define MS_MGC_VAL 0xC0ED0000
#define MS_MGC_MSK 0xFFFF0000
#define CLONE_NEWUSER 0x10000000
#define EINPROGRESS 115
#define MINORBITS 20

#endif
