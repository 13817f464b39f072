"""The COLO protocol: messages, the two state machines and what they ask for.  No I/O, no clock."""
