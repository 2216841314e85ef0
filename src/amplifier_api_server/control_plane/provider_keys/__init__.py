"""Tenants' own keys for model providers: set, hinted at, used in one header, never shown."""
