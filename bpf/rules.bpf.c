/* SPDX-License-Identifier: GPL-2.0 */
/* Considering the rules for what the automata found: the lists, the ops of each rule, the defaults. */

static __always_inline bool op_holds(struct judge *judge, u32 op)
{
	struct aw_walk *walk = judge->walk;
	struct aw_question *question = &walk->question;
	struct aw_machine *machine = &walk->machine;
	u32 arg = op & 0xffffff, subject = 1U << ((op >> 24) & 7);
	bool loosens = op & OP_UNLESS || machine->verdict == AW_VERDICT_ALLOW;
	u32 kind = op >> 29;

	/* So that nothing is denied by what may turn out not to be: who is asked later decides. */
	if (question->later & subject && (kind == OP_COND || kind == OP_ANCHOR))
		return !(op & OP_UNLESS) == (machine->verdict == AW_VERDICT_ALLOW);
	switch (kind) {
	case OP_COND:
		if (question->uncertain & subject && loosens)
			return false;
		if (question->unread & subject)
			return !loosens;
		return walk->bits[(arg >> 6) & (AW_CONDITION_WORDS - 1)] >> (arg & 63) & 1;
	case OP_PRED:
		if (!question->known)
			return !loosens;
		return question->predicates[(arg >> 6) & 3] >> (arg & 63) & 1;
	case OP_WORD:
		/* Of what is below a directory, but for the session's project. */
		if (question->below && (op & 0x7ffffff) != AW_WORD_PROJECT)
			return !loosens;
		return question->words & op & 0x7ffffff;
	case OP_ANCHOR:
		if (question->uncertain & subject && loosens)
			return false;
		return machine->through || (question->unread & subject && !loosens);
	}
	return false;
}

/* Whether it is refused where it is denied: by whoever asks, or by a cgroup program before that. */
static __always_inline bool preventable(const struct aw_question *question)
{
	if (question->preventing)
		return true;
	return question->words & (AW_WORD_INET | AW_WORD_INET6) &&
	       question->words & (AW_WORD_TCP | AW_WORD_UDP) && !(question->words & AW_WORD_LITE);
}

static __always_inline void rule_holds(struct judge *judge)
{
	struct aw_question *question = &judge->walk->question;
	struct aw_machine *machine = &judge->walk->machine;
	u32 id = word(judge->policy, machine->rule);

	if (machine->verdict == AW_VERDICT_ALLOW) {
		for (int i = 0; i < AW_RULE_KINDS; i++)
			if (machine->kinds >> i & 1)
				machine->allowed[i] |= machine->agents;
	} else if (machine->verdict == AW_VERDICT_LOOK) {
		machine->looked = machine->rule;
		machine->look = id;
	} else {
		machine->best = machine->rule;
		question->verdict = machine->verdict;
		question->rule = id;
	}
}

/* Whether a rule is for this event, and can still change what is decided. */
static __always_inline bool rule_enter(struct judge *judge, u32 rule)
{
	struct aw_question *question = &judge->walk->question;
	struct aw_machine *machine = &judge->walk->machine;
	u32 head = word(judge->policy, rule + 1), verdict = head & 255;
	u64 agents = word(judge->policy, rule + 2);

	if (head >> 16 & 255 && !preventable(question))
		verdict = head >> 16 & 255;
	machine->rule = rule;
	machine->verdict = verdict;
	machine->kinds = head >> 8 & 255;
	if (!(machine->kinds & question->kinds))
		return false;
	if (question->ruled == AW_RULED_OBJECT && !(head & AW_POLICY_OBJECT))
		return false;
	if (verdict == AW_VERDICT_ALLOW
		    ? !machine->defaults
		    : rule >= (verdict == AW_VERDICT_LOOK ? machine->looked : machine->best))
		return false;
	agents |= (u64)word(judge->policy, rule + 3) << 32;
	machine->agents = agents;
	return !~agents || agents & question->agents;
}

/* Some ops of the rule at hand. */
static __always_inline void ops_step(struct judge *judge)
{
	struct aw_machine *machine = &judge->walk->machine;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		u32 op = word(judge->policy, machine->op);
		bool holds;

		if (!machine->ops) {
			rule_holds(judge);
			return;
		}
		holds = op_holds(judge, op);

		if (op & OP_UNLESS) {
			machine->carved &= holds;
			if (op & OP_LAST) {
				if (machine->carved) {
					machine->ops = 0;
					return;
				}
				machine->carved = 1;
			}
		} else if (!holds) {
			machine->ops = 0;
			return;
		}
		machine->op++;
		machine->ops--;
	}
	if (!machine->ops)
		rule_holds(judge);
}

/*
 * The next list: of all events of the sort, those that were kept, those of what is unread. Of what is
 * below a directory those that were kept, or where these are not all, every one that restricts.
 */
static __always_inline bool list_enter(struct judge *judge)
{
	struct aw_walk *walk = judge->walk;
	struct aw_question *question = &walk->question;
	struct aw_machine *machine = &walk->machine;
	u32 index = machine->list++, list;

	machine->through = 0;
	if (index == 0) {
		list = question->below ? 0 : word(judge->policy, AW_POLICY_BASE + question->lists);
	} else if (index <= machine->kept) {
		list = walk->kept[(index - 1) & (AW_KEPT - 1)];
		machine->through = 1;
	} else if (question->below) {
		index -= machine->kept + 1;
		if (!machine->crowded || index > AW_LISTS_CONNECT)
			return false;
		list = word(judge->policy, AW_POLICY_UNREAD + index);
	} else if (index == machine->kept + 1 && question->unread) {
		list = word(judge->policy, AW_POLICY_UNREAD + question->lists);
	} else {
		return false;
	}
	if (!list)
		return true;
	list += 2 + word(judge->policy, list + 1);
	list += 1 + word(judge->policy, list);
	machine->rules = word(judge->policy, list);
	machine->rules_at = list + 1;
	return true;
}

/* One step of deciding: the next list, else the next rule, else some of its ops. */
static long decide_step(u32 index, struct judge *judge)
{
	struct aw_machine *machine = &judge->walk->machine;

	if (!machine->ops) {
		if (!machine->rules)
			return !list_enter(judge);
		machine->rules--;
		if (!rule_enter(judge, word(judge->policy, machine->rules_at++)))
			return 0;
		machine->ops = word(judge->policy, machine->rule + 4);
		machine->op = machine->rule + 5;
		machine->carved = 1;
	}
	ops_step(judge);
	return 0;
}

static long default_step(u32 index, struct judge *judge)
{
	struct aw_question *question = &judge->walk->question;
	struct aw_machine *machine = &judge->walk->machine;
	u64 at = machine->defaults + 1 + 6 * index, agents;
	u32 head = word(judge->policy, at + 1), verdict = head & 255;
	u32 kind = word(judge->policy, at + 2) & question->kinds;

	agents = word(judge->policy, at + 3) | (u64)word(judge->policy, at + 4) << 32;
	agents &= question->agents;
	for (int i = 0; i < AW_RULE_KINDS; i++)
		if (kind >> i & 1)
			agents &= ~machine->allowed[i];
	if (!kind || !agents)
		return 0;
	if (head >> 16 & 255 && !preventable(question))
		verdict = head >> 16 & 255;
	if (question->look) /* what would allow it may be by a name that only userspace knows */
		verdict = AW_VERDICT_LOOK;
	if (machine->best < word(judge->policy, at + 5))
		return 1;
	if (verdict == AW_VERDICT_LOOK) {
		if (!machine->look)
			machine->look = word(judge->policy, at);
		machine->looked = 0;
	} else {
		question->verdict = verdict;
		question->rule = word(judge->policy, at);
		machine->best = 0;
	}
	return 1;
}

/* What is allowed to be opened is allowed to be read and changed, and the other way round. */
static __always_inline void defaults_apply(struct judge *judge)
{
	struct aw_question *question = &judge->walk->question;
	struct aw_machine *machine = &judge->walk->machine;
	u64 all = ~0ULL, *allowed = machine->allowed;

	if (question->lists == AW_LISTS_OPEN) {
		if (question->kinds & AW_READ)
			all &= allowed[1];
		if (question->kinds & AW_CHANGE)
			all &= allowed[2];
		allowed[1] |= allowed[3];
		allowed[2] |= allowed[3];
		if (question->kinds & (AW_READ | AW_CHANGE))
			allowed[3] |= all;
	}
	bpf_loop(word(judge->policy, machine->defaults), default_step, judge, 0);
}

/* An agent's process is not of a session of none. */
#define NO_AGENT (1ULL << 63)

/* After the walk. Not static: so the verifier looks at it once. */
__noinline int policy_decide(struct aw_walk *walk)
{
	struct judge judge = {.walk = walk};
	struct aw_question *question;
	struct aw_machine *machine;

	if (!walk)
		return 0;
	question = &walk->question;
	machine = &walk->machine;
	judge.policy = policy_of(question);
	if (!judge.policy)
		return 0;
	if (question->below) {
		machine->crowded |= !!question->unread;
		question->kinds = question->below & ~AW_BELOW_ITSELF;
	}
	if (machine->crowded || question->below)
		question->unread = EVERY_SUBJECT;
	question->uncertain |= question->unread;
	if (question->agents & ~NO_AGENT)
		question->agents &= ~NO_AGENT;
	machine->list = machine->rules = machine->ops = 0;
	machine->best = machine->looked = ~0U;
	machine->look = 0;
	machine->defaults =
		question->below || question->other ? 0 : word(judge.policy, AW_POLICY_DEFAULTS);
	for (int i = 0; i < AW_RULE_KINDS; i++)
		machine->allowed[i] = 0;
	if (machine->kept || question->unread ||
	    word(judge.policy, AW_POLICY_BASE + question->lists))
		bpf_loop(1 << 20, decide_step, &judge, 0);
	/* What would allow it may be said of arguments that are still to come. */
	if (machine->defaults && !question->ruled && !question->later)
		defaults_apply(&judge);
	if (!question->verdict && (machine->looked != ~0U || question->look)) {
		question->verdict = AW_VERDICT_LOOK;
		question->rule = machine->look;
	}
	return 0;
}
