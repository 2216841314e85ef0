"""The hosted, multi-tenant API for Amplifier agents.

Three packages, and one direction: `control_plane` imports `tenants` and `runtime.protocol`; `tenants` (who may do what)
and `runtime` (what runs in a sandbox) know neither each other nor the control plane. import-linter holds it.
"""

__version__ = "0.1.0"
