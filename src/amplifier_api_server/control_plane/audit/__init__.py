"""The audit log: who changed what, from where. Append-only, also for whoever has a connection to the database."""
