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
 * once. record: of an exec, NULL for the others.
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
	question->session = tag->session;
	question->names[0].len = 0;
	question->names[0].plain = 1;
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
	policy_judge(walk, record);
	if (!walk->question.deciding)
		return;
	header->generation = walk->question.generation;
	header->rule = walk->question.rule;
	header->verdict = walk->question.verdict;
	if (walk->question.verdict == AW_VERDICT_KILL)
		bpf_send_signal(SIGKILL);
}
