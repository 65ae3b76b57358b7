/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The kernel side, in reading order: what the records look like, the kernel's types, where things are
 * kept, who is tagged, how a file is named, how a record is sent, what the policy says, then the hooks,
 * and what is run on request.
 */
#include "kernel.bpf.h"
#include "agentwatch.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

#include "maps.bpf.c"
#include "scratch.bpf.c"
#include "task.bpf.c"
#include "path.bpf.c"
#include "view.bpf.c"
#include "call.bpf.c"
#include "fill.bpf.c"
#include "record.bpf.c"
#include "policy.bpf.c"
#include "subjects.bpf.c"
#include "names.bpf.c"
#include "rules.bpf.c"
#include "question.bpf.c"
#include "identity.bpf.c"
#include "lifecycle.bpf.c"
#include "connect.bpf.c"
#include "change.bpf.c"
#include "mounting.bpf.c"
#include "mount.bpf.c"
#include "syscalls.bpf.c"
#include "hooks.bpf.c"
#include "hooks_change.bpf.c"
#include "hooks_layer.bpf.c"
#include "hooks_mount.bpf.c"
#include "hooks_connect.bpf.c"
#include "cgroup.bpf.c"
#include "iterators.bpf.c"
