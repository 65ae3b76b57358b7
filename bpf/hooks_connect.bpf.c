/* SPDX-License-Identifier: GPL-2.0 */
/* BPF LSM: connections of every family, datagrams with an address, and sockets as they are made. */

static __always_inline int connect_begin(struct hooked *hooked, u32 sort)
{
	struct aw_connect *connect;
	int found = hook_begin(hooked, AW_KIND_CONNECT, AW_LISTS_CONNECT, sort);

	if (found != HOOK_ASKS)
		return found;
	connect = &hooked->record->connect;
	__builtin_memset((void *)connect + sizeof(connect->header), 0,
			 sizeof(*connect) - sizeof(connect->header));
	connect->result = -EPERM;
	connect->header.flags |= AW_FLAG_FROM_SOCKET;
	return found;
}

static __always_inline int connect_answer(struct hooked *hooked, u32 at)
{
	struct aw_question *question = &hooked->walk->question;
	struct aw_header *header = &hooked->record->header;

	header->generation = question->generation;
	header->rule = question->rule;
	header->verdict = question->verdict;
	if (question->verdict == AW_VERDICT_KILL)
		bpf_send_signal(SIGKILL);
	return DENIED(hook_answer(hooked, 0, at, &activity, RING_ACTIVITY));
}

/* The kernel's own copy of what connect and sendmsg were given; a unix socket tells its peer elsewhere. */
static __noinline int address_hook(struct socket *socket, void *address, bool sends)
{
	struct sock *sk = BPF_CORE_READ(socket, sk);
	struct user_address *user;
	struct aw_connect *connect;
	struct hooked hooked;
	u16 family = 0;
	int found;

	bpf_probe_read_kernel(&family, sizeof(family), address);
	if (!family && sends && BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET)
		family = AF_INET; /* as IPv4 takes it */
	if (!family || family == AF_UNIX)
		return 0;
	found = connect_begin(&hooked, AW_SORT_ADDRESS);
	if (found != HOOK_ASKS)
		return DENIED(found == HOOK_BLIND);
	connect = &hooked.record->connect;
	connect->family = family;
	connect->protocol = BPF_CORE_READ(sk, sk_protocol);
	user = (struct user_address *)hooked.walk->address;
	if (is_inet(family)) {
		bpf_probe_read_kernel(user, 28, address);
		connect->port = user->port[0] << 8 | user->port[1];
		if (family == AF_INET)
			__builtin_memcpy(connect->address, user->v4, 4);
		else
			__builtin_memcpy(connect->address, user->v6, 16);
	}
	if (connect->protocol == IPPROTO_MPTCP)
		connect->protocol = IPPROTO_TCP;
	hooked.walk->question.kinds = AW_CONNECT;
	hooked.walk->question.words = words_of_connect(family, connect->protocol);
	question_address(hooked.walk, connect->address, family, connect->port);
	if (!is_inet(family))
		hooked.walk->question.sort = AW_SORT_NAME; /* of none */
	addresses_judge(hooked.walk, connect);
	return connect_answer(&hooked, sizeof(*connect));
}

SEC("lsm/socket_connect")
int BPF_PROG(lsm_socket_connect, struct socket *socket, void *address)
{
	return address_hook(socket, address, false);
}

/* Only what has an address of its own: the rest goes where the socket is connected to. */
SEC("lsm/socket_sendmsg")
int BPF_PROG(lsm_socket_sendmsg, struct socket *socket, struct msghdr *message)
{
	void *address = message->msg_name;

	return address ? address_hook(socket, address, true) : 0;
}

/* Where the other end is bound, whatever the caller called it. */
static __always_inline int unix_hook(struct sock *other)
{
	u32 at = sizeof(struct aw_connect), unix_len = 0;
	struct user_address *user;
	struct aw_connect *connect;
	struct hooked hooked;
	int found;

	found = connect_begin(&hooked, AW_SORT_NAME);
	if (found != HOOK_ASKS)
		return DENIED(found == HOOK_BLIND);
	connect = &hooked.record->connect;
	connect->family = AF_UNIX;
	user = (struct user_address *)hooked.walk->address;
	__builtin_memset(user, 0, sizeof(*user));
	unix_bound(hooked.record, hooked.walk, (struct unix_sock *)other, &at, user, &unix_len);
	connect->asked_len =
		at > RECORD_MAX - SHORT ? 0 : put_unix(hooked.record, at, user->path, unix_len);
	at = unix_others(hooked.record, hooked.walk, (struct unix_sock *)other,
			 at + connect->asked_len);
	connect_judge(hooked.record, hooked.walk);
	return connect_answer(&hooked, at);
}

SEC("lsm/unix_stream_connect")
int BPF_PROG(lsm_unix_stream_connect, struct sock *sk, struct sock *other)
{
	return unix_hook(other);
}

SEC("lsm/unix_may_send")
int BPF_PROG(lsm_unix_may_send, struct socket *socket, struct socket *other)
{
	struct sock *peer = other->sk;

	return peer ? unix_hook(peer) : 0;
}

/*
 * A socket that sends without connecting, to nobody a rule could name: only what it is, is asked. SCTP
 * does so by options of the socket as well.
 */
SEC("lsm/socket_create")
int BPF_PROG(lsm_socket_create, int family, int type, int protocol, int kern)
{
	struct hooked hooked;
	int found;

	if (is_inet(family) && (type & 15) == SOCK_SEQPACKET)
		protocol = IPPROTO_SCTP;
	if (kern || family == AF_UNIX ||
	    (is_inet(family) && (type & 15) != SOCK_RAW && protocol != IPPROTO_SCTP))
		return 0;
	found = connect_begin(&hooked, AW_SORT_NAME);
	if (found != HOOK_ASKS)
		return DENIED(found == HOOK_BLIND);
	hooked.record->connect.family = family;
	hooked.record->connect.protocol = protocol;
	hooked.walk->question.kinds = AW_CONNECT;
	hooked.walk->question.words = words_of_connect(family, protocol);
	hooked.walk->question.later = 1 << AW_SUBJECT_ADDR | 1 << AW_SUBJECT_PORT |
				      1 << AW_SUBJECT_UNIX;
	hooked.walk->question.ruled = AW_RULED_ALONE;
	policy_judge(hooked.walk, 0);
	return connect_answer(&hooked, sizeof(struct aw_connect));
}
