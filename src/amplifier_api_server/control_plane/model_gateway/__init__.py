"""The model gateway: the one way out of a sandbox. Adds the operator's key, holds the budget, counts what was used."""
