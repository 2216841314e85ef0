"""Which models a tenant may ask for."""
