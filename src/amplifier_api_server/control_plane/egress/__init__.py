"""What this server fetches from the network for tenants: which addresses may be reached, and how."""
