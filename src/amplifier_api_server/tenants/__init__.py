"""Who may do what: nouns and rules. No HTTP, no Kubernetes, no Redis and no Stripe in here."""
