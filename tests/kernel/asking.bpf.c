/*
 * The policy's walker, asked outside of any hook (tests/kernel/asking.py): what userspace wrote into `asking`
 * goes to the functions that every hook calls. Built from the sources of the probes themselves.
 */
#include "agentwatch.bpf.c"

struct ask {
	/* The question; names without a separator behind them. */
	u64 agents;
	u64 predicates[4];
	u64 args, args_size; /* argv in the caller's memory */
	u32 kinds, words, unread, uncertain;
	u32 sort, lists, known, subject;
	u32 symbol, in_project, name_len, cwd_len;
	u32 slot, repeat, below, preventing;
	u32 later, ruled;
	u32 others_len[2];
	/* The answer. */
	u64 found[3];
	u64 left; /* conditions that were not forgotten: none */
	u64 took; /* ns, of all repetitions */
	u32 verdict, rule, crowded, generation;
	u8 address[24];	      /* 16 bytes, and a port */
	u8 name[AW_PATH_MAX]; /* of an exec at the beginning, else at the end */
	u8 cwd[SHORT];
	u8 others[2 * SHORT];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct ask);
} asking SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct aw_walk);
} walking SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct aw_record);
} recorded SEC(".maps");

#define NAME_AT 256
#define OTHERS_AT (NAME_AT + AW_PATH_MAX)

static __always_inline void put(struct ask *ask, struct aw_walk *walk, struct aw_record *record)
{
	struct aw_question *question = &walk->question;
	u64 len = ask->name_len;

	question->slot = ask->slot;
	question->sort = ask->sort;
	question->lists = ask->lists;
	question->kinds = ask->kinds;
	question->below = ask->below;
	question->preventing = ask->preventing;
	question->later = ask->later;
	question->ruled = ask->ruled;
	question->words = ask->words;
	question->unread = ask->unread;
	question->uncertain = ask->uncertain;
	question->agents = ask->agents;
	question->known = ask->known;
	for (int i = 0; i < 4; i++)
		question->predicates[i] = ask->predicates[i];
	question->deciding = 1;
	question->args = ask->args;
	question->args_size = ask->args_size;
	question->session.tgid = 1 + !ask->in_project;
	question->session.start = 1;
	for (int i = 0; i < 2; i++) {
		question->others[i].at = OTHERS_AT + i * SHORT;
		question->others[i].len = ask->others_len[i];
	}
	bpf_probe_read_kernel((u8 *)record + OTHERS_AT, 2 * SHORT, ask->others);
	if (ask->sort == AW_SORT_EXEC) {
		/* Where a hook finds them: in the record. argv is read to where a name is else. */
		question_name(walk, 0, AW_SUBJECT_EXE, AW_SYMBOL_EXE, NAME_AT, len, 0, true);
		question_name(walk, 1, AW_SUBJECT_CWD, AW_SYMBOL_CWD, RECORD_MAX - SHORT,
			      ask->cwd_len, 0, true);
		bpf_probe_read_kernel((u8 *)record + NAME_AT, AW_PATH_MAX, ask->name);
		bpf_probe_read_kernel((u8 *)record + RECORD_MAX - SHORT, SHORT, ask->cwd);
	} else if (ask->sort == AW_SORT_ADDRESS) {
		bpf_probe_read_kernel(walk->path, 18, ask->address);
	} else {
		question_name(walk, 0, ask->subject, ask->symbol, 0, len, 0, true);
		bpf_probe_read_kernel(walk->path, AW_PATH_MAX, ask->name);
	}
}

SEC("syscall")
int ask(void *unused)
{
	u32 zero = 0;
	struct ask *ask = bpf_map_lookup_elem(&asking, &zero);
	struct aw_walk *walk = bpf_map_lookup_elem(&walking, &zero);
	struct aw_record *record = bpf_map_lookup_elem(&recorded, &zero);
	u64 begun;

	if (!ask || !walk || !record)
		return 1;
	ask->took = 0;
	for (int i = 0; i < 64; i++) {
		if (i >= ask->repeat)
			break;
		put(ask, walk, record);
		begun = bpf_ktime_get_ns();
		names_judge(walk, record);
		ask->took += bpf_ktime_get_ns() - begun;
	}
	for (int i = 0; i < 3; i++)
		ask->found[i] = walk->question.found[i];
	ask->verdict = walk->question.verdict;
	ask->rule = walk->question.rule;
	ask->generation = walk->question.generation;
	ask->crowded = walk->machine.crowded;
	ask->left = 0;
	for (int i = 0; i < AW_CONDITION_WORDS; i++)
		ask->left |= walk->bits[i];
	return 0;
}
