"""Requests that can be repeated without their work being done twice: the header `Idempotency-Key`."""
