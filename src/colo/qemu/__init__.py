"""QEMU: its processes, its QMP, and what colo has it do."""
