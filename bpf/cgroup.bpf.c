/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Connections that do not come about: connect and sendmsg of IPv4 and IPv6, before anything is sent, by
 * the kernel's own copy of the address. Here a tag can be found by tgid alone, and no signal can be
 * sent: who is to die does so at the end of the call (sys_exit).
 */

/* Programs here may be preempted by each other: each takes a piece for itself. */
#define PIECES 4

struct aw_piece {
	u64 taken;
	struct aw_connect connect;
	struct aw_walk walk;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PIECES);
	__type(key, u32);
	__type(value, struct aw_piece);
} pieces SEC(".maps");

static __always_inline struct aw_piece *piece_take(void)
{
#pragma unroll
	for (u32 i = 0; i < PIECES; i++) {
		u32 index = i;
		struct aw_piece *piece = bpf_map_lookup_elem(&pieces, &index);

		if (piece && !__sync_val_compare_and_swap(&piece->taken, 0, 1))
			return piece;
	}
	return 0;
}

static __always_inline void condemn(u32 tgid)
{
	u32 one = 1;

	/* Counted first: who finds the entry counts it back. */
	__sync_fetch_and_add(&control.condemned, 1);
	if (bpf_map_update_elem(&condemned, &tgid, &one, BPF_NOEXIST))
		__sync_fetch_and_add(&control.condemned, -1);
}

/* The record of what was refused, or is to be looked at; its address is there already. */
static __always_inline void piece_send(struct aw_piece *piece, const struct aw_subject *subject,
				       struct task_struct *task)
{
	const struct aw_question *question = &piece->walk.question;
	struct aw_connect *connect = &piece->connect;
	struct aw_header *header = &connect->header;

	header->length = sizeof(*connect);
	header->kind = AW_KIND_CONNECT;
	header->flags = AW_FLAG_FROM_SOCKET;
	header->time = bpf_ktime_get_boot_ns();
	header->generation = question->generation;
	header->rule = question->rule;
	header->verdict = question->verdict;
	header->tgid = BPF_CORE_READ(task, tgid);
	header->tid = BPF_CORE_READ(task, pid);
	header->start = BPF_CORE_READ(task, group_leader, start_boottime);
	header->session_start = subject->tag->session.start;
	header->session_tgid = subject->tag->session.tgid;
	connect->result = question->verdict == AW_VERDICT_LOOK ? 0 : -EPERM;
	record_send(&activity, RING_ACTIVITY, subject, connect, sizeof(*connect), 0);
}

static __always_inline void address_of(struct aw_connect *connect, struct bpf_sock_addr *ctx,
				       u16 family)
{
	u32 *words = (u32 *)connect->address;

	__builtin_memset(connect, 0, sizeof(*connect));
	connect->family = family;
	connect->port = __builtin_bswap16(ctx->user_port);
	if (family == AF_INET) {
		words[0] = ctx->user_ip4;
		return;
	}
	words[0] = ctx->user_ip6[0];
	words[1] = ctx->user_ip6[1];
	words[2] = ctx->user_ip6[2];
	words[3] = ctx->user_ip6[3];
}

/* 1: go on; 0: EPERM. sends: a message without connect, which nothing else records. */
static __always_inline int address_judge(struct bpf_sock_addr *ctx, u16 family, bool sends)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	u32 tgid = BPF_CORE_READ(task, tgid), protocol = ctx->protocol, verdict = 0;
	struct aw_subject subject = {};
	struct aw_connect *connect;
	struct aw_piece *piece;
	struct aw_walk *walk;

	if (is_early())
		return 1;
	subject.tag = bpf_map_lookup_elem(&mirror, &tgid);
	if (!subject.tag || !session_of(&subject))
		return 1;
	if (protocol == IPPROTO_MPTCP)
		protocol = IPPROTO_TCP;
	if (protocol == IPPROTO_UDPLITE)
		protocol = IPPROTO_UDP;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return 1;
	piece = piece_take();
	if (!piece) { /* PIECES of us on one CPU: who is judged is let do nothing that was not */
		if (!subject.session->agents || subject.session->state == AW_SESSION_PROVISIONAL ||
		    control.in_force == AW_POLICY_NONE)
			return 1;
		COUNT(unjudged);
		return 0;
	}
	walk = &piece->walk;
	connect = &piece->connect;
	address_of(connect, ctx, family);
	connect->protocol = protocol;
	if (question_begin(walk, subject.tag, subject.session, AW_LISTS_CONNECT, AW_SORT_ADDRESS)) {
		walk->question.kinds = AW_CONNECT;
		walk->question.words = words_of_connect(family, protocol);
		question_address(walk, connect->address, family, connect->port);
		addresses_judge(walk, connect);
		verdict = walk->question.verdict;
		if (is_recorder() && (verdict == AW_VERDICT_KILL || verdict == AW_VERDICT_DENY ||
				      (verdict == AW_VERDICT_LOOK && sends)))
			piece_send(piece, &subject, task);
	}
	__sync_lock_test_and_set(&piece->taken, 0);
	if (verdict == AW_VERDICT_KILL)
		condemn(tgid);
	return verdict != AW_VERDICT_KILL && verdict != AW_VERDICT_DENY;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return address_judge(ctx, AF_INET, false);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return address_judge(ctx, AF_INET6, false);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	return address_judge(ctx, AF_INET, true);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return address_judge(ctx, AF_INET6, true);
}
