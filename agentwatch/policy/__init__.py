"""What rules mean: byte patterns, conditions as bits, and what a rule is worth on this host."""
