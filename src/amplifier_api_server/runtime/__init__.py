"""What runs in a sandbox: a process that hosts the Amplifier sessions of one tenant.

It holds no secret and reaches one thing, the gateway socket that it was handed. Nothing here may import the control
plane, a database or a vendor's SDK; the one module that both sides share is `protocol`.
"""
