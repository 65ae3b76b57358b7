/* SPDX-License-Identifier: GPL-2.0 */
/* What the hooks ask: a question about an event, put together, judged, and its answer acted on. */

/* The predicates of a subject that could not be read, of those that restrict. */
static __always_inline void unread_predicates(struct judge *judge, u32 subject, u32 role)
{
	struct aw_question *question = &judge->walk->question;
	u32 at = word(judge->policy, AW_POLICY_UNREAD_ROLES + role);

	if (!at || !(question->unread & (1U << subject)))
		return;
	for (int i = 0; i < 3; i++)
		question->found[i] |= word(judge->policy, at + 2 * i) |
				      (u64)word(judge->policy, at + 2 * i + 1) << 32;
}

/*
 * Answers walk->question; generation 0: there is no policy. Not static: so the verifier looks at it
 * once. record: where names are that are not in `walk`; NULL where all are.
 */
__noinline int policy_judge(struct aw_walk *walk, struct aw_record *record)
{
	struct judge judge = {.walk = walk, .record = record};
	struct aw_question *question;
	struct aw_machine *machine;

	if (!walk)
		return 0;
	question = &walk->question;
	machine = &walk->machine;
	question->verdict = question->rule = question->generation = 0;
	question->found[0] = question->found[1] = question->found[2] = 0;
	judge.policy = policy_of(question);
	if (!judge.policy || word(judge.policy, 0) != AW_POLICY_MAGIC ||
	    word(judge.policy, 1) != AW_POLICY_ABI)
		return 0;
	machine->kept = machine->crowded = 0;
	machine->len = machine->pass = 0;
	machine->ends = 1;
	question->look = 0;
	question->generation = word(judge.policy, AW_POLICY_GENERATION);
	if (word(judge.policy, AW_POLICY_SETS + 4 * PROJECTS) && project_of(question))
		question->words |= AW_WORD_PROJECT;
	bpf_loop(ARGS_PIECES + 8, pass_step, &judge, 0);
	if (question->sort == AW_SORT_EXEC) {
		unread_predicates(&judge, AW_SUBJECT_EXE, 0);
		unread_predicates(&judge, AW_SUBJECT_CWD, 1);
		unread_predicates(&judge, AW_SUBJECT_ARGS, 2);
	}
	if (question->deciding)
		policy_decide(walk);
	machine->clearing = 1;
	if (machine->kept)
		bpf_loop(machine->kept, forget_step, &judge, 0);
	return 0;
}

/*
 * The same by another name: it is uncertain, and no default is about it. The stricter verdict stands,
 * and a program has the predicates of each of its names.
 */
static __always_inline void other_judge(struct aw_walk *walk, struct aw_record *record, u32 which)
{
	struct aw_question *question = &walk->question;
	struct aw_question_name *name = &question->names[0];
	struct aw_answered *before = &question->before;
	u32 crowded = walk->machine.crowded;

	if (question->verdict == AW_VERDICT_KILL || !question->others[which].len)
		return;
	before->verdict = question->verdict;
	before->rule = question->rule;
	for (int i = 0; i < 3; i++)
		before->found[i] = question->found[i];
	name->at = question->others[which].at;
	name->len = question->others[which].len;
	name->plain = 1;
	question->other = 1;
	question->unread = before->unread;
	question->uncertain = before->uncertain | 1U << (name->subject & 7);
	question->later = before->later;
	question->argv = before->argv;
	question->args = before->args;
	question->args_size = before->args_size;
	policy_judge(walk, record);
	walk->machine.crowded |= crowded;
	for (int i = 0; i < 3; i++)
		question->found[i] |= before->found[i];
	if (!question->verdict || (before->verdict && before->verdict <= question->verdict)) {
		question->verdict = before->verdict;
		question->rule = before->rule;
	}
}

/* Whether userspace has more mounts of the canonical name's file system than there is room for. */
static __always_inline bool is_partly_mounted(const struct aw_walk *walk)
{
	u32 dev = walk->question.names[0].dev;
	struct aw_mounts *mounted = bpf_map_lookup_elem(&mounts, &dev);

	return mounted && mounted->partial;
}

/*
 * Answers walk->question by every name of what it is about: names[0], the canonical one, then `others`.
 * Inlined: 8 calls into each other are all there may be, and a hook's own function has used up two.
 */
static __always_inline void names_judge(struct aw_walk *walk, struct aw_record *record)
{
	struct aw_question *question = &walk->question;
	struct aw_answered *before = &question->before;

	question->other = 0;
	before->unread = question->unread;
	before->uncertain = question->uncertain;
	before->later = question->later;
	before->argv = question->argv;
	before->args = question->args;
	before->args_size = question->args_size;
	policy_judge(walk, record);
	if (!question->others[0].len && !question->others[1].len)
		return;
	if (before->unread & 1U << (question->names[0].subject & 7))
		return; /* whatever it is called has been considered */
	if (question->look && is_partly_mounted(walk))
		return; /* userspace knows its name, and may know an exception for it */
	other_judge(walk, record, 0);
	other_judge(walk, record, 1);
}

/*
 * The predicates of a tag's image, taken from what userspace knows where they are of another policy.
 * False: they are not known.
 */
static __always_inline bool predicates_of(struct aw_tag *tag, u32 generation)
{
	u64 image = tag->image;
	struct aw_mark *mark;

	if (tag->predicates[2] >> 48 == (generation & 0xffff))
		return true;
	mark = bpf_map_lookup_elem(&marks, &image);
	if (!mark)
		return false;
	if (mark->agents)
		tag->agents = mark->agents;
	if (mark->generation != generation)
		return false;
	tag->predicates[0] = mark->predicates[0];
	tag->predicates[1] = mark->predicates[1];
	tag->predicates[2] = mark->predicates[2] | (u64)generation << 48;
	return true;
}

#define QUESTION_OPEN 1
#define QUESTION_IDLE 2 /* no rule and no default is about such an event: it has its answer */

/* What is asked of an event by somebody who is tagged; 0: no policy in the kernel judges it. */
__noinline int question_begin(struct aw_walk *walk, struct aw_tag *tag, struct aw_session *session,
			      u32 lists, u32 sort)
{
	struct aw_question *question;
	const char *policy;

	if (!walk || !tag || !session)
		return 0;
	question = &walk->question;
	question->slot = control.in_force;
	question->verdict = question->rule = question->generation = 0;
	question->agents = session->agents;
	question->deciding = question->agents && session->state != AW_SESSION_PROVISIONAL;
	question->lists = lists;
	question->sort = sort;
	question->words = question->below = 0;
	question->unread = question->uncertain = 0;
	question->preventing = question->later = question->ruled = 0;
	question->argv = 0;
	question->session = tag->session;
	question->names[0].len = 0;
	question->names[0].plain = 1;
	question->others[0].len = question->others[1].len = 0;
	question->other = 0;
	if (!question->deciding)
		return 0;
	policy = policy_of(question);
	if (!policy)
		return 0;
	question->generation = word(policy, AW_POLICY_GENERATION);
	if (lists == AW_LISTS_OPEN && !word(policy, AW_POLICY_UNREAD + AW_LISTS_OPEN) &&
	    !word(policy, AW_POLICY_DEFAULTS))
		return QUESTION_IDLE;
	question->known = predicates_of(tag, question->generation);
	question->agents |= tag->agents;
	question->predicates[0] = tag->predicates[0];
	question->predicates[1] = tag->predicates[1];
	question->predicates[2] = tag->predicates[2] & ((1ULL << 48) - 1);
	return QUESTION_OPEN;
}

static __always_inline void question_name(struct aw_walk *walk, u32 which, u32 subject, u32 symbol,
					  u32 at, u32 len, u32 dev, bool plain)
{
	struct aw_question_name *name = &walk->question.names[which];

	name->at = at;
	name->len = len;
	name->dev = dev;
	name->subject = subject;
	name->symbol = symbol;
	name->plain = plain;
}

/* What others_put has put into the record, as further names of names[0]. */
static __always_inline void question_others(struct aw_walk *walk)
{
	struct aw_other_name *others = walk->question.others;
	const struct naming *naming = naming_of(walk);

	others[1].len = naming->known_len;
	others[1].at = naming->at - naming->known_len;
	others[0].len = naming->view_len;
	others[0].at = others[1].at - naming->view_len;
}

/* An address as automata read it: IPv4 is mapped into IPv6. */
static __always_inline void question_address(struct aw_walk *walk, const u8 *address, u16 family,
					     u16 port)
{
	u32 *words = (u32 *)walk->path;
	const u32 *from = (const u32 *)address;
	bool mapped = family == AF_INET;

	words[0] = mapped ? 0 : from[0];
	words[1] = mapped ? 0 : from[1];
	words[2] = mapped ? 0xffff0000 : from[2];
	words[3] = mapped ? from[0] : from[3];
	walk->path[16] = port >> 8;
	walk->path[17] = port;
}

static __always_inline bool is_inet(u16 family)
{
	return family == AF_INET || family == AF_INET6;
}

static __always_inline u32 words_of_connect(u16 family, u32 protocol)
{
	u32 words = 0;

	switch (family) {
	case AF_UNIX:
		return AW_WORD_FAMILY_UNIX | AW_WORD_UNIX;
	case AF_INET:
		words = AW_WORD_INET;
		break;
	case AF_INET6:
		words = AW_WORD_INET6;
		break;
	case AF_NETLINK:
		words = AW_WORD_NETLINK;
		break;
	case AF_PACKET:
		words = AW_WORD_PACKET;
		break;
	case AF_VSOCK:
		words = AW_WORD_VSOCK;
	}
	switch (protocol) {
	case IPPROTO_TCP:
		return words | AW_WORD_TCP;
	case IPPROTO_UDP:
		return words | AW_WORD_UDP;
	case IPPROTO_UDPLITE:
		return words | AW_WORD_UDP | AW_WORD_LITE;
	case IPPROTO_ICMP:
		return words | AW_WORD_ICMP;
	case IPPROTO_ICMPV6:
		return words | AW_WORD_ICMPV6;
	case IPPROTO_SCTP:
		return words | AW_WORD_SCTP;
	}
	return words;
}

/* Asks it, writes the answer into the record and acts on it: on the current task. */
static __always_inline void question_ask(struct aw_walk *walk, struct aw_record *record,
					 struct aw_header *header)
{
	names_judge(walk, record);
	if (!walk->question.deciding)
		return;
	header->generation = walk->question.generation;
	header->rule = walk->question.rule;
	header->verdict = walk->question.verdict;
	if (walk->question.verdict == AW_VERDICT_KILL)
		bpf_send_signal(SIGKILL);
}

/* Words of addresses, as they lie in memory. */
#define MAPPED 0xffff0000   /* ::ffff:a.b.c.d, the third */
#define LOOPBACK 0x0100007f /* 127.0.0.1 */
#define LOOPBACK6 0x01000000

/* Judges the address in walk->path as another one; the stricter answer stands, and its address. */
static __always_inline void address_also(struct aw_walk *walk, struct aw_connect *connect,
					 u32 third, u32 last)
{
	struct aw_question *question = &walk->question;
	u32 *words = (u32 *)walk->path, *address = (u32 *)connect->address;
	u32 verdict = question->verdict, rule = question->rule;
	bool inet = connect->family == AF_INET;

	if (verdict == AW_VERDICT_KILL)
		return;
	words[2] = third;
	words[3] = last;
	question->unread = question->uncertain = 0;
	policy_judge(walk, 0);
	if (!question->verdict || (verdict && verdict <= question->verdict)) {
		question->verdict = verdict;
		question->rule = rule;
		return;
	}
	address[0] = inet ? last : 0;
	address[1] = 0;
	address[2] = inet ? 0 : third;
	address[3] = inet ? 0 : last;
}

/* To no address at all is to this machine itself, as connect and sendmsg have it. */
static __always_inline void addresses_judge(struct aw_walk *walk, struct aw_connect *connect)
{
	const u32 *words = (const u32 *)walk->path;
	bool none = !words[0] && !words[1] && !words[3], mapped = words[2] == MAPPED;

	none &= mapped || !words[2];
	policy_judge(walk, 0);
	if (!none)
		return;
	address_also(walk, connect, MAPPED, LOOPBACK);
	if (!mapped)
		address_also(walk, connect, 0, LOOPBACK6);
}

/* Whether an LSM hook left something for the end of this call; asked once. */
static __always_inline bool hook_left(struct aw_walk *walk, u64 call)
{
	if (walk->hooked.call != call)
		return false;
	walk->hooked.call = 0;
	return true;
}

/* Whether it refused the call and told that. */
static __always_inline bool hook_told(struct aw_walk *walk, u64 call, s32 result)
{
	return hook_left(walk, call) && walk->hooked.told && result == -EPERM;
}
