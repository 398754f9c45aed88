"""Rows of the fault matrix: real processes, driven through one fault each; the invariants hold after every one."""
