"""A session with modules from outside, in a process of its own: `process` starts and ends one, `session` is how the
runtime's main process has a session in it, `inside` is what is different in it.
"""
