"""The layout of a policy's image: the same as in bpf/agentwatch.h (AW_POLICY_*).

A header of u32 words; rules, defaults, lists and tables of byte classes, in u32 words as well; and
the automata, which are one array of u64 cells. Little endian. An offset is a number of u32 words,
where nothing else is said; 0 is none.

    state    bits 0 to 21: where its row of cells begins, in u64; 22 to 30: which default row it
             has; 31: it is sticky, which is to say that it accepts whatever follows
    row      of cells: ten for the symbols of accepting, then one for each class of bytes
    cell     the state it belongs to << 32 | the next state, or of a symbol the offset of a list;
             the cells of other rows lie in a row's gaps
    default  a full row: where each class leads from a state that has no cell of its own for it;
             and the list of what is reachable, of one that has no cell of its own for that
    set      where its table of classes begins, in bytes (0: the set is empty); the state it starts
             in; where its default rows begin, in u64; the state that nothing leaves, or NO_STATE
    list     what a state accepts: [number of its own, by which it is met once; 0: always kept]
             [n, conditions...] [n, predicates...] [n, offsets of rules...]
    reach    the list at the symbol REACH: what is accepted if more bytes follow. Of argv, for every
             state: it was cut there. Of names, for what a separator leads to: the rules, none of
             which allows, that are about what is below the directory. A pattern that
             begins in any component counts for names only once it has begun. At the next symbol,
             of names: the same rules of what is sticky. Where lists take too much room, those of
             most entries are that of all there is
    rule     [id] [verdict | kinds << 8 | otherwise << 16 | OBJECT] [agents: two words] [n, ops...];
             what is stricter stands before. otherwise: the verdict on a connection that cannot be
             prevented; 0: the same. OBJECT: it names what is executed, and so is about mapping that
    op       kind << 29 | UNLESS | LAST | subject << 24 | condition or predicate; or a mask of
             words. Those of the match come first, then each exception's, whose last has LAST
    closed   what the rules' `defaults` say, after their number, the strictest first: [id]
             [verdict | otherwise << 16] [kind] [agents: two words] [offset of the first rule that
             is less strict]
    mask     of predicates: six words
"""

from __future__ import annotations

from agentwatch.policy.subjects import ADDR, ARGS, CWD, EXE, FILE, PORT, UNIX

MAGIC = 0x31505741
ABI = 3
SMALLEST, LARGEST = 64 << 10, 32 << 20
HEADER = 64  # u32 words

(
    H_MAGIC,
    H_ABI,
    H_GENERATION,
    H_USED,
    H_PREDICATES,
    H_BASE_EXEC,
    H_BASE_OPEN,
    H_BASE_CONNECT,
    H_UNREAD_EXEC,
    H_UNREAD_OPEN,
    H_UNREAD_CONNECT,
    H_DEFAULTS,
    H_ROLES_MATCH,
    H_UNREAD_EXE,
    H_UNREAD_CWD,
    H_UNREAD_ARGS,
    H_SETS,
) = range(17)

SETS = (
    "path anchored",
    "path floating",
    "argv anchored",
    "argv floating",
    "address",
    "port",
    "project",
    "path begun",
)
(
    PATH_ANCHORED,
    PATH_FLOATING,
    ARGV_ANCHORED,
    ARGV_FLOATING,
    ADDRESSES,
    PORTS,
    PROJECT,
    PATH_BEGUN,
) = range(8)
VIRTUAL = 10  # symbols of accepting; classes come behind them
ROW_BITS = 22
ROW = (1 << ROW_BITS) - 1
DEFAULT = 272  # cells of a default row
MAX_DEFAULTS = 512
USUAL = MAX_DEFAULTS - 1
STICKY = 1 << 31
NO_STATE = 0xFFFFFFFF
REACH = 8
REACH_WORDS = 1 << 15
"""Words of an automaton's lists of what is reachable; those of all there is come on top of them."""
SYMBOL = {FILE: 0, EXE: 2, CWD: 4, UNIX: 6, ARGS: 0, ADDR: 0, PORT: 0}
"""By subject: the symbol of what is accepted at its end; the next one is of what is sticky."""

KILL, DENY, LOOK, ALLOW = 1, 2, 3, 4
OP_COND, OP_PRED, OP_WORD, OP_ANCHOR = 1, 2, 3, 4
UNLESS, LAST = 1 << 28, 1 << 27
OBJECT = 1 << 24
ANY_WORD = (1 << 27) - 1
MAX_CONDITIONS = 16_384
MAX_PREDICATES = 176
MAX_KEPT = 64
LOW = 0xFFFFFFFF
