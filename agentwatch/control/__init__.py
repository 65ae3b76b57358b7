"""The control socket: how the command line and the daemon talk to each other.

wire says what goes over it, peer who is at the other end, server is the daemon's side, which runs
inside a loop that is not its own, and client is the command line's.
"""
