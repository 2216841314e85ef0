"""Pages of the public web, fetched for tools in sandboxes, and the lists by which a tenant narrows what may be fetched."""
