"""Logging in: people in browsers, by GitHub or an OpenID Connect provider; and devices, by a person in a browser."""
