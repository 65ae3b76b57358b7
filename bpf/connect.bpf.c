/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Connections. TCP is judged from the kernel's socket when it sends its first packet; every connect(2)
 * is also recorded at its end, with its result, from the kernel's socket where that knows the peer and
 * from the caller's memory (which another thread may have rewritten) where it does not.
 */

/*
 * Where a unix socket is bound: a file, walked, or an abstract name, which replaces what the caller's
 * memory said. False where it has no name.
 */
static __always_inline bool unix_bound(struct aw_record *record, struct aw_walk *walk,
				       struct unix_sock *bound, u32 *at, struct user_address *user,
				       u32 *unix_len)
{
	struct unix_address *address;
	struct path path = {};
	struct name name;
	u32 len;

	BPF_CORE_READ_INTO(&path, bound, path);
	if (path.dentry) {
		name_of(&name, &path, walk);
		walk->question.names[0].at = 0;
		record->header.flags |= name.flags | AW_FLAG_FROM_SOCKET;
		record->connect.path_dev = name.dev;
		record->connect.path_len =
			put_name(record, at, &name, walk->path, AW_UNRESOLVED_PATH);
		return true;
	}
	address = BPF_CORE_READ(bound, addr);
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

/*
 * The name of that file as the task sees it, behind all that is in the record: it is worked out in the
 * memory that `user` was in. Where the next string would go. Not inlined, as open_file.
 */
static __noinline u32 unix_others(struct aw_record *record, struct aw_walk *walk,
				  struct unix_sock *bound, u32 at)
{
	struct aw_connect *connect = &record->connect;
	struct name name = {.dev = connect->path_dev};
	struct path path = {};

	BPF_CORE_READ_INTO(&path, bound, path);
	if (!path.dentry || record->header.flags & AW_FLAG_ANONYMOUS)
		return at;
	name.failed = record->header.unresolved & AW_UNRESOLVED_PATH;
	others_put(record, walk, bpf_get_current_task_btf(), 0, &path, &name, sizeof(*connect),
		   connect->path_len, &at, AW_UNRESOLVED_PATH);
	connect->view_len = naming_of(walk)->view_len;
	at -= naming_of(walk)->known_len; /* sockets are not known so */
	naming_of(walk)->known_len = 0;
	naming_of(walk)->at = at;
	return at;
}

/* A unix address: the name of a file, in `walk` or in the record, or "@abstract". */
static __always_inline void unix_judge(struct aw_record *record, struct aw_walk *walk)
{
	struct aw_connect *connect = &record->connect;
	u32 len = connect->path_len, at = sizeof(*connect);

	if (len) {
		question_name(walk, 0, AW_SUBJECT_UNIX, AW_SYMBOL_UNIX, walk->question.names[0].at,
			      len, connect->path_dev, false);
		if (connect->view_len)
			question_others(walk);
		return;
	}
	len = connect->asked_len;
	if (len > UNIX_PATH_MAX)
		return;
	bpf_probe_read_kernel(walk->path + (AW_PATH_MAX - (len & 127)), len & 127,
			      (char *)record + at);
	if (len && !walk->path[(AW_PATH_MAX - len) & (AW_PATH_MAX - 1)])
		walk->path[(AW_PATH_MAX - len) & (AW_PATH_MAX - 1)] = '@';
	question_name(walk, 0, AW_SUBJECT_UNIX, AW_SYMBOL_UNIX, 0, len, 0, true);
}

/* Not static: so the verifier looks at it once. */
__noinline int connect_judge(struct aw_record *record, struct aw_walk *walk)
{
	struct aw_question *question;
	struct aw_connect *connect;
	u32 unresolved;

	if (!record || !walk)
		return 0;
	connect = &record->connect;
	question = &walk->question;
	unresolved = connect->header.unresolved;
	question->kinds = AW_CONNECT;
	question->words = words_of_connect(connect->family, connect->protocol);
	if (!(connect->header.flags & AW_FLAG_FROM_SOCKET))
		question->uncertain = 1 << AW_SUBJECT_ADDR | 1 << AW_SUBJECT_PORT |
				      1 << AW_SUBJECT_UNIX;
	if (connect->family == AF_UNIX) {
		if (unresolved & (AW_UNRESOLVED_ADDRESS | AW_UNRESOLVED_PATH))
			question->unread = 1 << AW_SUBJECT_UNIX;
		unix_judge(record, walk);
	} else if (is_inet(connect->family)) {
		question->sort = AW_SORT_ADDRESS;
		if (unresolved & AW_UNRESOLVED_ADDRESS)
			question->unread = 1 << AW_SUBJECT_ADDR | 1 << AW_SUBJECT_PORT;
		question_address(walk, connect->address, connect->family, connect->port);
	}
	question_ask(walk, record, &connect->header);
	return 0;
}

static __always_inline void connect_end(struct task_struct *task, const struct aw_subject *subject,
					const struct call *call)
{
	struct file *file = file_of(task, call->args[0]);
	struct user_address *user;
	u32 at = sizeof(struct aw_connect), unix_len, asked;
	bool begun = call->result == 0 || call->result == -EINPROGRESS;
	struct aw_connect *connect;
	struct aw_record *record;
	struct aw_walk *walk;
	struct unix_sock *peer = 0;
	struct sock *sk = 0;
	u16 family;

	if (!scratch_get(task, &record, &walk, AW_KIND_CONNECT) ||
	    hook_told(walk, call->nr, call->result))
		return;
	connect = &record->connect;
	__builtin_memset(connect, 0, sizeof(*connect));
	_Static_assert(sizeof(*user) <= sizeof(walk->address), "address");
	user = (struct user_address *)walk->address;
	__builtin_memset(user, 0, sizeof(*user));
	header_fill(&connect->header, task, subject, AW_KIND_CONNECT, 0);
	connect->result = call->result;
	if (call->compat)
		record->header.flags |= AW_FLAG_COMPAT;
	unix_len = address_from_user(connect, call, user);
	family = family_of(file, connect, begun, &sk);
	if (begun && family == AF_UNIX)
		peer = (struct unix_sock *)BPF_CORE_READ((struct unix_sock *)sk, peer);
	if (peer && unix_bound(record, walk, peer, &at, user, &unix_len))
		connect->family = AF_UNIX;
	asked = at > RECORD_MAX - SHORT ? 0 : put_unix(record, at, user->path, unix_len);
	connect->asked_len = asked;
	at += asked;
	if (peer)
		at = unix_others(record, walk, peer, at);
	record->header.length = at;
	/* TCP is judged by tcp_syn. */
	if (begun && connect->family &&
	    (connect->protocol != IPPROTO_TCP || connect->family == AF_UNIX) &&
	    question_begin(walk, subject->tag, subject->session, AW_LISTS_CONNECT, AW_SORT_NAME))
		connect_judge(record, walk);
	record_send(&activity, RING_ACTIVITY, subject, record, sizeof(*record), &connect->result);
}

/* In the context of the caller of connect, sendto with MSG_FASTOPEN, and the like. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_syn, struct sock *sk, int old, int new)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct aw_connect connect = {};
	struct aw_record *record;
	struct aw_subject subject;
	struct aw_walk *walk;

	/* Of an MPTCP connection the subflow tells, which is TCP: the socket above it has no address. */
	if (new != TCP_SYN_SENT || sk->sk_protocol != IPPROTO_TCP || !is_recorder() ||
	    !tagged(task, &subject))
		return 0;
	header_fill(&connect.header, task, &subject, AW_KIND_SYN, sizeof(connect));
	connect.family = sk->__sk_common.skc_family;
	connect.protocol = sk->sk_protocol;
	address_from_socket(&connect, (struct sock *)sk);
	if (scratch_get(task, &record, &walk, AW_KIND_SYN) &&
	    question_begin(walk, subject.tag, subject.session, AW_LISTS_CONNECT, AW_SORT_ADDRESS)) {
		walk->question.kinds = AW_CONNECT;
		walk->question.words = words_of_connect(connect.family, connect.protocol);
		question_address(walk, connect.address, connect.family, connect.port);
		question_ask(walk, 0, &connect.header);
	}
	record_send(&activity, RING_ACTIVITY, &subject, &connect, sizeof(connect), 0);
	return 0;
}
