"""Where verdicts and records go: journal, findings file, metrics.

frames    what a journal says             chain     its bytes, and the hash over them
segments  its files                       journal   the writer
ancestors the directories above them
verify    is it intact                    reader    frames and events again, in order
redact    secrets out of argv             ocsf      the record for everybody else
host      whose clock                    lines     text for people
jsonl     findings for log shippers       metrics   Prometheus
"""
