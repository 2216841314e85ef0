"""Bundles: what a session is made of, found in pinned trees, composed, and compiled into one plan.

`library` knows which collections there are and what their names mean; `documents` reads one file; `loading` follows what
it includes and `composition` says how one lies over another; `compiling` makes the plan, `inspecting` says what a
collection holds and lacks. Nothing here runs a collection's code, writes, or reaches a network.
"""
