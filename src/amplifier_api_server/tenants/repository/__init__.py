"""The only SQL. Every function takes the transaction and then the tenant; those of the operator and of the machinery that
serves all tenants say so by their names (`..._of_all_tenants`, `find_by_digest`, all of `runtimes`).

Nothing here commits: the caller's transaction does.
"""
