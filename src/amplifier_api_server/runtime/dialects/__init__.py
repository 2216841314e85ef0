"""The model dialects as the sandbox speaks them with the gateway: chat completions, responses, messages.

`conversation` makes any transcript valid, `calls` says what a call asks for; one file a dialect makes bodies and reads
streams; `exchange` carries both; `provider` is what core's providers are made of.
"""
