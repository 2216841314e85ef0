"""The control plane: who calls, what they may, which sandbox does it, what it used."""
