"""What happens to a tenant, as a stream that its members can follow and go on with."""
