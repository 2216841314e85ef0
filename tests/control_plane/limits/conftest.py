from tests.tenants.embedded import embedded

__all__ = ["embedded"]
